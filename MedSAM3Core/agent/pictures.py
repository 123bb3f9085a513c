"""The slices that a judge sees, as PNG files in memory, and the way from a place on a picture back to voxels.

A picture holds the windowed pixels, the mask, the patient's sides, a scale bar and its number. Nothing of the file's
header, of its name or of the patient is written on it, and the file carries no text of its own. What a scanner burned
into the pixels is still there.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from MedSAM3Core.agent.facts import Picture
from MedSAM3Core.errors import PromptError
from MedSAM3Core.inference.plan import PlaneBox, SlicePlan
from MedSAM3Core.overlay.slices import areas_by_slice, key_slices, mask_in_slice
from MedSAM3Core.overlay.tile import (
    View,
    draw_scale,
    edge_letters,
    name_edges,
    paint_slice,
    write_text,
)
from MedSAM3Core.prompts import Box
from MedSAM3Core.segmentation import Segmentation
from MedSAM3Core.volume.volume import Volume
from MedSAM3Core.windowing import Window

FRAME = 1000
"""Places on a picture are told in thousandths of its width and height, from the left and from the top."""
LONGEST_SIDE = 512
"""Pixels of a picture's longer side."""
MASK_COLOUR = (255, 190, 0)
"""Amber is seen on grey, on red and on pink tissue."""
UNSURE_SCORE = 0.5
"""A slice with at least this score and no mask, or with a mask and less, is in doubt."""


@dataclass(frozen=True, eq=False)
class PictureMaker:
    """Draws slices of one volume.

    Attributes:
        volume: The image.
        plan: How it is cut.
        most: Most pictures at once.
        longest: Pixels of a picture's longer side.
    """

    volume: Volume
    plan: SlicePlan
    most: int = 4
    longest: int = LONGEST_SIDE

    def overview(self, window: Window) -> tuple[Picture, ...]:
        """At most two slices of the image alone, for a planner."""
        places = key_slices(np.zeros((1, self.plan.count)), min(2, self.most))
        return tuple(self._picture(n, place, None, window) for n, place in enumerate(places, start=1))

    def look_at(
        self, segmentation: Segmentation, before: Segmentation | None, window: Window
    ) -> tuple[Picture, ...]:
        """The slices that tell most about a segmentation, in the order of the slices.

        Args:
            segmentation: What to judge.
            before: The round before, None in the first.
            window: Intensities to 8 bits.
        """
        places = choose_slices(segmentation, before, self.plan, self.most)
        return tuple(self._picture(n, place, segmentation, window) for n, place in enumerate(places, start=1))

    def box(self, picture: Picture, corners: tuple[float, float, float, float], positive: bool) -> Box:
        """A box drawn on a picture as a box of voxels.

        Args:
            picture: One of those this maker drew.
            corners: Left, top, right and bottom in thousandths of the picture (`FRAME`).
            positive: Whether the target is inside.

        Raises:
            PromptError: If it is not within the picture, or has no area.
        """
        left, top, right, bottom = corners
        if not (0 <= left < right <= FRAME and 0 <= top < bottom <= FRAME):
            raise PromptError(
                f"The box {left:g}, {top:g}, {right:g}, {bottom:g} is not within picture {picture.number}; "
                f"expected left < right and top < bottom, from 0 to {FRAME}."
            )
        _, rows, columns = self.plan.shape
        index = self.plan.grid_slice(picture.slice_index)
        plane = PlaneBox((index, index), _pixels(top, bottom, rows), _pixels(left, right, columns), positive)
        return self.plan.box_to_grid(plane)

    def corners(self, box: Box) -> tuple[int, int, int, int]:
        """A voxel box's left, top, right and bottom in thousandths of a picture of one of its slices."""
        plane = self.plan.box_to_plane(box)
        _, rows, columns = self.plan.shape
        (top, bottom), (left, right) = plane.rows, plane.columns
        return (
            round(FRAME * left / columns),
            round(FRAME * top / rows),
            round(FRAME * (right + 1) / columns),
            round(FRAME * (bottom + 1) / rows),
        )

    def _picture(self, number: int, index: int, shown: Segmentation | None, window: Window) -> Picture:
        plan = self.plan
        view = View((0, plan.shape[1] - 1), (0, plan.shape[2] - 1))
        width_mm, height_mm = view.size_mm(plan)
        scale = self.longest / max(width_mm, height_mm)
        size = (max(32, round(width_mm * scale)), max(32, round(height_mm * scale)))
        pixels = np.ascontiguousarray(window.apply(plan.to_plane(self.volume.array)[index]))
        mask = mask_in_slice(shown, plan, index) if shown is not None else None
        image = paint_slice(pixels, [] if mask is None else [(mask, MASK_COLOUR)], size)
        if self.volume.calibrated:
            name_edges(image, edge_letters(plan))
            draw_scale(image, width_mm / size[0])
        write_text(ImageDraw.Draw(image), (8, 6), str(number), "la", 20)
        png = _png(image)
        return Picture(number, png, hashlib.sha256(png).hexdigest(), size, plan.grid_slice(index))


def choose_slices(
    segmentation: Segmentation, before: Segmentation | None, plan: SlicePlan, most: int
) -> list[int]:
    """Slices of the plan to show: by area, then the best score, then where things disagree; ascending.

    Half of them show the object where it is large and along its extent. The others are the slice of the highest score
    and the one of the largest `disagreement`.
    """
    areas = areas_by_slice([segmentation], plan)
    if plan.count <= most:
        return list(range(plan.count))
    chosen = key_slices(areas, max(1, most - most // 2))
    scores = _scores(segmentation, plan)
    for ranking in (disagreement(segmentation, before, plan), scores):
        order = [int(n) for n in np.argsort(-ranking, kind="stable") if ranking[n] > 0]
        chosen.extend([n for n in order if n not in chosen][:1])
    for place in key_slices(areas, most):
        if len(chosen) < most and place not in chosen:
            chosen.append(place)
    return sorted(chosen[:most])


def disagreement(segmentation: Segmentation, before: Segmentation | None, plan: SlicePlan) -> np.ndarray:
    """How much the slices are in doubt, 0 upwards, one value a slice of the plan.

    The sum of two doubts: the model's score says one thing and the mask another; and this round's mask differs from
    the round before's (share of their union).
    """
    areas = areas_by_slice([segmentation], plan)[0]
    scores = _scores(segmentation, plan)
    known = np.isfinite(scores)
    doubt = np.where(areas > 0, UNSURE_SCORE - scores, scores - UNSURE_SCORE)
    doubt = np.where(known, np.clip(doubt, 0, None), 0.0)
    if before is not None:
        for index in range(plan.count):
            doubt[index] += _change(segmentation, before, plan, index)
    return doubt


def _change(one: Segmentation, other: Segmentation, plan: SlicePlan, index: int) -> float:
    a, b = mask_in_slice(one, plan, index), mask_in_slice(other, plan, index)
    if a is None and b is None:
        return 0.0
    if a is None or b is None:
        return float(bool((a if b is None else b).any()))  # type: ignore[union-attr]
    union = int((a | b).sum())
    return int((a ^ b).sum()) / union if union else 0.0


def _scores(segmentation: Segmentation, plan: SlicePlan) -> np.ndarray:
    """Presence score of each slice of the plan, NaN where none is known."""
    scores = np.full(plan.count, np.nan)
    for grid_index, score in segmentation.slice_scores.items():
        if 0 <= grid_index < plan.count:
            scores[plan.grid_slice(grid_index)] = score
    return scores


def _pixels(first: float, last: float, size: int) -> tuple[int, int]:
    """First and last pixel of a range in thousandths of ``size`` pixels."""
    start = min(int(first * size / FRAME), size - 1)
    return start, max(start, min(int(np.ceil(last * size / FRAME)) - 1, size - 1))


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=False)
    return stream.getvalue()
