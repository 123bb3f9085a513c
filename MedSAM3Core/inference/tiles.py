"""A large single image, cut into overlapping tiles that are looked at one by one and put together again.

A model sees a slide of 4,096 x 4,096 pixels at its own 1,008 at most: a nucleus of 20 pixels is 5 then. Tiles show it
in full. They are the slices of a session of their own, so that features, batches and bounds are the same as for a
volume; what was found is blended by weights that fall towards a tile's edge, and one mask is made of the blend, so that
an object across a seam is one object.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from MedSAM3Core.inference import fusion
from MedSAM3Core.inference.encoder import Work
from MedSAM3Core.inference.plan import SlicePlan
from MedSAM3Core.inference.refine import Draft
from MedSAM3Core.inference.session import Refinement, Session
from MedSAM3Core.inference.settings import InferenceSettings
from MedSAM3Core.models.card import Policy
from MedSAM3Core.models.loading import LoadedModel
from MedSAM3Core.progress import ProgressMeter
from MedSAM3Core.prompts import Box, Concept, Point
from MedSAM3Core.segmentation import Segmentation
from MedSAM3Core.volume.geometry import Geometry
from MedSAM3Core.volume.volume import Volume

LEAST_TILE = 320
"""A small model's tiles are larger than its input: it was trained on images of about this size, made smaller."""

LARGE_IMAGE = 2.0
"""Sides of an image, in tiles, from which tiles pay."""

LARGE_OBJECT = 0.5
"""An object longer than this share of a tile is better seen whole."""

LEAST_WEIGHT = 0.02
"""Weight of a tile at its very edge, so that the border of the image, which one tile alone sees, has some."""


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Where the tiles of an image lie.

    Attributes:
        shape: Rows and columns of the image.
        size: Rows and columns of a tile.
        tops: First row of each row of tiles.
        lefts: First column of each column of tiles.
    """

    shape: tuple[int, int]
    size: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @classmethod
    def of(cls, shape: tuple[int, int], side: int, overlap: float) -> Tiling:
        """Tiles of ``side`` pixels that overlap by at least a share of it, evenly spread.

        Args:
            shape: Rows and columns of the image.
            side: Of a tile; one that is larger than the image is cut to it.
            overlap: Share of a tile, 0 up to but not including 1.
        """
        size = (min(side, shape[0]), min(side, shape[1]))
        tops, lefts = (_starts(n, part, overlap) for n, part in zip(shape, size, strict=True))
        return cls(shape, size, tops, lefts)

    @property
    def corners(self) -> list[tuple[int, int]]:
        """First row and column of each tile, row by row."""
        return [(top, left) for top in self.tops for left in self.lefts]

    def cut(self, image: np.ndarray) -> np.ndarray:
        """(rows, columns[, 3]) to (tiles, tile rows, tile columns[, 3]), copied."""
        height, width = self.size
        return np.stack([image[top : top + height, left : left + width] for top, left in self.corners])

    def blend(self, tiles: np.ndarray) -> np.ndarray:
        """(tiles, tile rows, tile columns) to the weighted mean, (rows, columns) float32."""
        weight = np.outer(_ramp(self.size[0]), _ramp(self.size[1]))
        total = np.zeros(self.shape, np.float32)
        weights = np.zeros(self.shape, np.float32)
        height, width = self.size
        for (top, left), tile in zip(self.corners, tiles, strict=True):
            place = (slice(top, top + height), slice(left, left + width))
            weights[place] += weight
            if tile.any():
                total[place] += weight * tile
        return np.divide(total, weights, out=total)


def _starts(length: int, part: int, overlap: float) -> tuple[int, ...]:
    """First index of each part of ``part`` in ``length``: as few as overlap enough."""
    if part >= length:
        return (0,)
    steps = int(np.ceil((length - part) / max(1.0, part * (1 - overlap))))
    return tuple(round(n * (length - part) / steps) for n in range(steps + 1))


def _ramp(length: int) -> np.ndarray:
    """Weights along a tile's side: 1 in the middle half, falling linearly to its ends."""
    distance = np.minimum(np.arange(length), np.arange(length)[::-1]) + 0.5
    return np.clip(distance / (length / 4), LEAST_WEIGHT, 1.0).astype(np.float32)


def tile_side(model: LoadedModel, settings: InferenceSettings) -> int:
    """Pixels of a tile's side: as the settings say, else the model's own."""
    return settings.tile_pixels or max(LEAST_TILE, model.network.image_size)


def wants_tiles(model: LoadedModel, plan: SlicePlan, settings: InferenceSettings) -> bool:
    """Whether an image is to be cut: a single one, and large, or the settings say so."""
    if settings.tiles == "off" or plan.count > 1:
        return False
    side = tile_side(model, settings)
    return settings.tiles == "on" or min(plan.shape[1:]) >= LARGE_IMAGE * side


class TiledSession(Session):
    """A session on one large image; it is asked as any other.

    With ``tiles="auto"`` the whole image is looked at first, and a concept whose objects are large in it is left at
    that. Boxes and clicks are worked in on a cut around them, of a tile's size where they fit.

    Args:
        model: The model.
        volume: One slice.
        plan: How it is looked at.
        settings: All choices.
        policy: How the model's outputs are read.
        window: "auto" or a request of `choose_window`.
    """

    def __init__(
        self,
        model: LoadedModel,
        volume: Volume,
        plan: SlicePlan,
        settings: InferenceSettings,
        policy: Policy,
        window: str = "auto",
    ) -> None:
        super().__init__(model, volume, plan, settings, policy, window)
        self.tiling = Tiling.of(plan.shape[1:], tile_side(model, settings), settings.tile_overlap)
        cut = Volume.from_array(
            self.tiling.cut(plan.to_plane(volume.array)[0]), modality=volume.modality, rgb=volume.is_rgb
        )
        as_stored = SlicePlan(cut.geometry, plan.name, (0, 1, 2), (False, False, False))
        # Tiles are no neighbours along an axis: each is judged alone.
        alone = dataclasses.replace(
            settings,
            tiles="off",
            thorough=True,
            propagate=False,
            agreement_mm=0.0,
            low_share=1.0,
            smoothing_mm=0.0,
            island_share=0.0,
        )
        self._tiles = Session(model, cut, as_stored, alone, policy, window)
        # A window chosen from the whole image, also for a tile that is empty.
        self._tiles._windows = self._windows

    def close(self) -> None:
        """Forget the features of the image and of its tiles."""
        super().close()
        self._tiles.close()

    @property
    def work(self) -> Work:
        """What has been computed since the image was opened; a tile counts as a slice."""
        pairs = zip(dataclasses.astuple(super().work), dataclasses.astuple(self._tiles.work), strict=True)
        return Work(*(a + b for a, b in pairs))

    def _segment(
        self,
        concepts: Sequence[str | Concept],
        meter: ProgressMeter,
        threshold: float | None,
        within: tuple[int, int],
    ) -> list[Segmentation]:
        found: list[Segmentation] = []
        if self.settings.tiles == "auto":
            found = super()._segment(concepts, meter, threshold, within)
        small = [n for n in range(len(concepts)) if not found or not self._has_large_objects(found[n])]
        if self._is_constant or not small:
            return found or super()._segment(concepts, meter, threshold, within)
        for concept in (concepts[n] for n in small):
            self.window(concept)
        tiled = self._tiles._segment(
            [concepts[n] for n in small], meter, threshold, (0, self._tiles.plan.count - 1)
        )
        answers: list[Any] = list(found) or [None] * len(concepts)
        for n, tiles in zip(small, tiled, strict=True):
            answers[n] = self._put_together(tiles)
        return answers

    def _has_large_objects(self, found: Segmentation) -> bool:
        labels, _ = ndimage.label(self.plan.to_plane(found.to_array())[0])
        sides = [max(s.stop - s.start for s in place) for place in ndimage.find_objects(labels) if place]
        return max(sides, default=0) > LARGE_OBJECT * max(self.tiling.size)

    def _put_together(self, tiles: Segmentation) -> Segmentation:
        """What was found in the tiles, as one segmentation of the image."""
        probability = self.tiling.blend(tiles.probability_map())
        s = self.settings
        mask = (probability >= self.policy.mask_threshold)[None]
        # Islands are measured against the largest object: among many alike, small ones stay.
        mask = fusion.clean(mask, 0.0, s.hole_share)
        draft = Draft(mask, probability[None].astype(np.float16), {0: tiles.score}, set())
        count, (height, width) = len(self.tiling.corners), self.tiling.size
        draft.notices.append(f"The image was looked at in {count} tiles of {height} x {width} pixels.")
        phrase = (tiles.provenance.prompts or (tiles.concept.phrase,))[0]
        least = tiles.provenance.thresholds.get("score", self.policy.threshold)
        whole = self._finish(tiles.concept, draft, self.window(tiles.concept), phrase, least)
        return dataclasses.replace(whole, timings=tiles.timings)

    def _refine(self, segmentation: Segmentation, wanted: Refinement, meter: ProgressMeter) -> Segmentation:
        place = self._place_of(wanted)
        if place is None or wanted.more_like_this:
            return super()._refine(segmentation, wanted, meter)
        self._check_open()
        self._asked(segmentation, wanted)  # refuses what cannot be used, in the image's own numbers
        crop = _Crop(self.volume.geometry, place)
        cut = np.ascontiguousarray(self.volume.array[place])
        shown = dataclasses.replace(self.volume, array=cut, geometry=crop.geometry, files=())
        plan = dataclasses.replace(self.plan, geometry=crop.geometry)
        settings = dataclasses.replace(self.settings, tiles="off")
        with Session(self.model, shown, plan, settings, self.policy, self.window_request) as session:
            session._windows = self._windows
            self.window(segmentation.concept)
            part = session._refine(crop.segmentation(segmentation), crop.refinement(wanted), meter)
        return self._paste(segmentation, part, place, wanted)

    def _place_of(self, wanted: Refinement) -> tuple[slice, slice, slice] | None:
        """A cut of a tile's size around all marks, in the grid; None where they do not fit, or there are none."""
        ends = [(box.k, box.j, box.i) for box in wanted.boxes]
        ends += [((p.k, p.k), (p.j, p.j), (p.i, p.i)) for p in wanted.points]
        if not ends:
            return None
        sides = {axis: size for axis, size in zip(self.plan.axes[1:], self.tiling.size, strict=True)}
        place = []
        for axis, length in enumerate(self.volume.geometry.shape):
            first, last = min(e[axis][0] for e in ends), max(e[axis][1] for e in ends)
            side = sides.get(axis, length)
            if last - first >= side:
                return None
            start = min(max(0, (first + last + 1 - side) // 2), length - side)
            place.append(slice(start, start + side))
        return place[0], place[1], place[2]

    def _paste(
        self,
        segmentation: Segmentation,
        part: Segmentation,
        place: tuple[slice, slice, slice],
        wanted: Refinement,
    ) -> Segmentation:
        """The segmentation with a refined cut put back; nothing outside it changes."""
        mask, probability = segmentation.to_array(), segmentation.probability_map().astype(np.float16)
        mask[place], probability[place] = part.to_array(), part.probability_map()
        draft = Draft(
            np.ascontiguousarray(self.plan.to_plane(mask)),
            np.ascontiguousarray(self.plan.to_plane(probability)),
            {0: max(segmentation.score, part.score)},
            set(),
            list(part.provenance.notices),
        )
        phrase = (segmentation.provenance.prompts or (segmentation.concept.phrase,))[0]
        least = segmentation.provenance.thresholds.get("score", self.policy.threshold)
        window = self.window(segmentation.concept)
        result = self._finish(segmentation.concept, draft, window, phrase, least)
        return self._with_prompts(result, segmentation, wanted, part.timings)


@dataclasses.dataclass(frozen=True)
class _Crop:
    """A part of a grid.

    Attributes:
        whole: The grid.
        place: Index of the part into an array (slices, rows, columns).
    """

    whole: Geometry
    place: tuple[slice, slice, slice]

    @property
    def origin(self) -> tuple[int, int, int]:
        """First slice, row and column."""
        return tuple(part.start for part in self.place)  # type: ignore[return-value]

    @property
    def geometry(self) -> Geometry:
        """The part's own grid, at its place in the patient."""
        k, j, i = self.origin
        affine = self.whole.ijk_to_ras.copy()
        affine[:3, 3] = (self.whole.ijk_to_ras @ (i, j, k, 1))[:3]
        return Geometry(tuple(p.stop - p.start for p in self.place), affine)  # type: ignore[arg-type]

    def segmentation(self, whole: Segmentation) -> Segmentation:
        """The part of a segmentation."""
        return Segmentation.from_mask(
            whole.concept,
            self.geometry,
            whole.to_array()[self.place],
            probability=whole.probability_map()[self.place],
            score=whole.score,
            slice_scores=dict(whole.slice_scores),
            provenance=dataclasses.replace(whole.provenance, notices=()),
        )

    def refinement(self, wanted: Refinement) -> Refinement:
        """The same marks in the part's own indices."""
        k, j, i = self.origin
        boxes = tuple(
            Box(_moved(box.i, i), _moved(box.j, j), _moved(box.k, k), box.positive) for box in wanted.boxes
        )
        points = tuple(Point(p.i - i, p.j - j, p.k - k, p.positive) for p in wanted.points)
        return dataclasses.replace(wanted, boxes=boxes, points=points)


def _moved(ends: tuple[int, int], by: int) -> tuple[int, int]:
    return ends[0] - by, ends[1] - by
