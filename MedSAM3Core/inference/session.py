"""A model, a volume that is open on it, and what a user does there: segment concepts, refine them, cancel.

`Segmenter` and `Session` are the same classes in process and behind the worker.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from MedSAM3Core.errors import PromptError
from MedSAM3Core.inference import fusion
from MedSAM3Core.inference.detector import Detector
from MedSAM3Core.inference.disk import DiskFeatures
from MedSAM3Core.inference.encoder import Encoder, Work
from MedSAM3Core.inference.exemplars import ExemplarSearch
from MedSAM3Core.inference.extents import BODY_MODALITIES, coarse_step_mm
from MedSAM3Core.inference.features import FeatureStore, StoreReport
from MedSAM3Core.inference.following import BoxFollower
from MedSAM3Core.inference.interrupt import interruptible
from MedSAM3Core.inference.plan import PlaneBox, SlicePlan
from MedSAM3Core.inference.precision import Precision
from MedSAM3Core.inference.propagator import Propagator
from MedSAM3Core.inference.refine import Asked, Draft, Refiner
from MedSAM3Core.inference.resolution import at_side, lower_side
from MedSAM3Core.inference.runner import STAGE_WEIGHTS, Clock, ConceptRun, Runner
from MedSAM3Core.inference.settings import InferenceSettings
from MedSAM3Core.inference.settle import PlanePoint
from MedSAM3Core.models.card import Policy
from MedSAM3Core.models.loading import LoadedModel, load_model
from MedSAM3Core.progress import CancelToken, ProgressCallback, ProgressMeter
from MedSAM3Core.prompts import Box, Concept, Point
from MedSAM3Core.segmentation import Extent, Provenance, Segmentation
from MedSAM3Core.version import __version__
from MedSAM3Core.volume.volume import Volume
from MedSAM3Core.windowing import Window, choose_window

log = logging.getLogger(__name__)

REFINE_WEIGHTS = {"detecting": 2.0, "propagating": 7.0, "fusing": 1.0}
"""Share of a refinement's work."""

SEARCH_WEIGHTS = {"encoding": 6.0, "searching": 10.0}
"""What "more like this" adds to it."""

MOST_SYNONYMS = 3
"""Phrases tried on the key slices when the model's card does not name the concept."""


class Segmenter:
    """A loaded model, ready to open volumes.

    Args:
        model: From `load_model`.
    """

    def __init__(self, model: LoadedModel) -> None:
        self.model = model

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path = "demo", device: str = "auto") -> Segmenter:
        """Load a model by registry name or folder; ``device`` is "auto", "cpu", "cuda" or "cuda:N".

        Raises:
            ModelError: If the model is unknown, not installed or damaged.
            InputError: If the device does not exist.
        """
        return cls(load_model(name_or_path, device))

    def open(
        self,
        volume: Volume | np.ndarray,
        axis: str = "auto",
        window: str = "auto",
        mode: str = "recommended",
        **settings: object,
    ) -> Session:
        """Open a volume for segmentation; use it in a ``with`` block, or close it.

        Args:
            volume: A volume, or an array (slices, rows, columns[, 3]) or (rows, columns[, 3]) of 1 mm voxels.
            axis: "auto", "axial", "coronal" or "sagittal".
            window: "auto" (by concept), or what `choose_window` takes.
            mode: "recommended"; "thorough", which encodes every slice; "fast", which encodes fewer, at a lower
                resolution where the model has one; or "published", which runs as the model's authors do.
            settings: Attributes of `InferenceSettings` to change.

        Raises:
            VolumeError: If the array cannot be a volume, or the axis is unknown.
            InputError: If the window, mode or a setting is unknown.
        """
        if not isinstance(volume, Volume):
            volume = Volume.from_array(np.asarray(volume))
        chosen = InferenceSettings.preset(mode, **settings)
        choose_window(volume, None, window)  # so that a wrong request is told now, not after the first prompt
        policy = self.model.card.policy("published" if mode == "published" else "recommended")
        plan = SlicePlan.for_volume(volume, axis)
        from MedSAM3Core.inference.tiles import TiledSession, wants_tiles  # which is made of sessions

        model = self.model
        if chosen.resolution_share < 1:
            model = at_side(model, lower_side(model, chosen.resolution_share))
        kind = TiledSession if wants_tiles(model, plan, chosen) else Session
        return kind(model, volume, plan, chosen, policy, window)


class Session:
    """One volume open on one model: its features, and everything that is asked of it.

    Args:
        model: The model.
        volume: The volume.
        plan: How it is cut.
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
        self.model = model
        self.volume = volume
        self.plan = plan
        self.settings = settings
        self.policy = policy
        self.window_request = window
        self._store = FeatureStore(model.device, settings.device_bytes, settings.host_bytes)
        self._precision = Precision(model.device, settings.precision)
        slices = plan.to_plane(volume.array)
        tracker = model.tracker if model.card.tracks else None
        self._encoder = Encoder(
            model.network, tracker, slices, self._store, self._precision, settings, self._disk()
        )
        self._build(settings)
        self._windows: dict[str, Window] = {}
        self._state = _State()

    def _disk(self) -> DiskFeatures | None:
        """Where features outlive the session, if that is asked for and the weights can be named."""
        s, weights = self.settings, self.model.card.sha256
        if not s.disk_folder or not weights:
            return None
        side = self.model.network.image_size
        return DiskFeatures(Path(s.disk_folder).expanduser(), s.disk_bytes, weights, side, s.precision)

    def _build(self, settings: InferenceSettings) -> None:
        """Everything that depends on settings but not on features."""
        self.settings = settings
        self._detector = Detector(self._encoder, self.model.tokenize, settings, self.policy)
        self._propagator = None
        if self._encoder.tracker is not None:
            self._propagator = Propagator(
                self._encoder.tracker,
                self._encoder.tracker_pyramid,
                self.plan.count,
                self._precision.context,
                frames=self.policy.tracker_frames,
                rebase=settings.rebase,
            )

    def with_settings(self, **changes: Any) -> Session:
        """A session on the same volume and the same features under other settings, to compare them cheaply.

        Batch sizes, bounds and precision stay as they are: they belong to the features. Closing either closes both.

        Args:
            changes: Attributes of `InferenceSettings`.
        """
        self._check_open()
        other = copy.copy(self)
        other._build(dataclasses.replace(self.settings, **changes))
        return other

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forget the features; the session cannot be used any more."""
        self._store.clear()
        self._state.closed = True

    @property
    def features(self) -> StoreReport:
        """What the feature store holds."""
        return self._store.report()

    @property
    def work(self) -> Work:
        """What has been computed since the volume was opened."""
        steps = 0 if self._propagator is None else self._propagator.steps
        return Work(self._encoder.encoded, self._encoder.detected, steps)

    @property
    def precision(self) -> Precision:
        """Arithmetic that the network runs in; "auto" is settled by the first slice."""
        return self._precision

    def window(self, concept: str | Concept) -> Window:
        """Intensity window that slices are shown in when a concept is looked for."""
        return self._window(_resolve(concept).phrase)

    # -- text -------------------------------------------------------------------------------------------------

    def segment(
        self,
        concept: str | Concept,
        boxes: Sequence[Box] = (),
        progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
        threshold: float | None = None,
        points: Sequence[Point] = (),
    ) -> Segmentation:
        """Segment one concept.

        Args:
            concept: A phrase, or a resolved concept.
            boxes: Voxel boxes of the volume's own grid, as for `refine`.
            progress: Receives reports from the calling thread.
            cancel: Raising it stops the call with `Cancelled`; the session stays usable.
            threshold: Score from which a slice shows the concept, 0..1; None takes the model's.
            points: Clicks, as for `refine`.

        Raises:
            PromptError: If the phrase is empty, or a box or point is outside the volume.
            Cancelled: If the token was cancelled.
        """
        wanted = Refinement(tuple(boxes), tuple(points))
        plane_boxes = [self.plan.box_to_plane(box) for box in boxes]
        for point in points:
            point.check_inside(self.volume.geometry.shape)
        within = _slices_within(plane_boxes, self.plan.count)
        marked = bool(boxes or points)
        meter = ProgressMeter(progress, cancel, {**STAGE_WEIGHTS, **(REFINE_WEIGHTS if marked else {})})
        found = self._segment([concept], meter, threshold, within)[0]
        return self._refine(found, wanted, meter) if marked else found

    def segment_many(
        self,
        concepts: Sequence[str | Concept],
        progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
        threshold: float | None = None,
    ) -> list[Segmentation]:
        """Segment several concepts on one set of features; arguments and errors as for `segment`.

        Returns:
            One segmentation a concept, in the order given, each the same as `segment` would give.
        """
        meter = ProgressMeter(progress, cancel, STAGE_WEIGHTS)
        return self._segment(concepts, meter, threshold, (0, self.plan.count - 1))

    def _segment(
        self,
        concepts: Sequence[str | Concept],
        meter: ProgressMeter,
        threshold: float | None,
        within: tuple[int, int],
    ) -> list[Segmentation]:
        self._check_open()
        resolved = [_resolve(concept) for concept in concepts]
        least = self._threshold(threshold)
        if self._is_constant:
            return [
                self._nothing(concept, "All voxels of the volume have one value.") for concept in resolved
            ]
        runs = [
            ConceptRun(
                concept,
                self._window(concept.phrase),
                self._phrases(concept),
                within,
                self._coarse_mm(concept.phrase),
            )
            for concept in resolved
        ]
        detector = self._detector.with_threshold(least)
        # In a single image there is nowhere to propagate to; its tracker still answers boxes.
        propagator = self._propagator if self.plan.count > 1 else None
        runner = Runner(self.plan, self._encoder, detector, propagator, self.settings)
        clock = Clock()
        with torch.inference_mode(), interruptible(self.model.network, meter.cancel):
            runner.run(runs, meter, clock)
            results = []
            for number, run in enumerate(runs):
                meter.step("fusing", number, len(runs))
                with clock.measure("fusing"):
                    draft = self._draft_of(run)
                results.append(self._finish(run.concept, draft, run.window, run.phrase, least))
            meter.step("fusing", len(runs), len(runs))
        return [dataclasses.replace(result, timings=dict(clock.seconds)) for result in results]

    def _draft_of(self, run: ConceptRun) -> Draft:
        """A run's probabilities as voxels, cleaned."""
        s = self.settings
        shape = self.plan.shape
        mask, probability = np.zeros(shape, bool), np.zeros(shape, np.float16)
        slab = fusion.to_slab(run.probabilities, self.plan, self.policy.mask_threshold, self.model.device)
        if slab is not None:
            rows = slice(slab.first, slab.first + len(slab.mask))
            mask[rows] = fusion.clean(slab.mask, s.island_share, s.hole_share)
            probability[rows] = slab.probability
        return Draft(mask, probability, run.scores, set())

    # -- boxes, clicks and hand edits -------------------------------------------------------------------------

    def refine(
        self,
        segmentation: Segmentation,
        boxes: Sequence[Box] = (),
        progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
        edited_slices: Sequence[int] = (),
        locked_slices: Sequence[int] = (),
        points: Sequence[Point] = (),
        propagate: bool = True,
        more_like_this: bool = False,
    ) -> Segmentation:
        """Correct a segmentation with boxes, clicks or hand-edited slices.

        A box or a click on a slice of the slicing axis decides the mask there; the slices up to the neighbouring
        anchors are propagated again, no other voxel changes. A positive box through several slices restricts the
        segmentation, a negative one removes what is in it.

        Args:
            segmentation: Of this volume; its mask may have been edited by hand.
            boxes: New boxes, voxels of the volume's own grid; those in ``segmentation.boxes`` are known already.
            progress: Receives reports.
            cancel: Raising it stops the call with `Cancelled`; the session stays usable.
            edited_slices: Slices (grid indices along the slicing axis) whose mask was corrected by hand: anchors.
            locked_slices: Slices that must not change.
            points: New clicks, voxels of the volume's own grid.
            propagate: False changes marked slices only, to show them at once; call again on the answer with these
                slices as ``edited_slices`` to let the others follow.
            more_like_this: Afterwards look on every slice for what resembles the segmentation, and add that.

        Returns:
            A new segmentation; the one given is not changed.

        Raises:
            PromptError: If the segmentation has another grid, a box or point is outside the volume or on a locked
                slice, or there is nothing for others to resemble.
            Cancelled: If the token was cancelled.
        """
        wanted = Refinement(
            tuple(boxes),
            tuple(points),
            tuple(edited_slices),
            tuple(locked_slices),
            propagate,
            more_like_this,
        )
        weights = {**REFINE_WEIGHTS, **(SEARCH_WEIGHTS if more_like_this else {})}
        return self._refine(segmentation, wanted, ProgressMeter(progress, cancel, weights))

    def _refine(self, segmentation: Segmentation, wanted: Refinement, meter: ProgressMeter) -> Segmentation:
        self._check_open()
        asked = self._asked(segmentation, wanted)
        window = self._window(segmentation.concept.phrase)
        phrase = (segmentation.provenance.prompts or (segmentation.concept.phrase,))[0]
        threshold = segmentation.provenance.thresholds.get("score", self.policy.threshold)
        clock = Clock()
        before = self._draft_from(segmentation, wanted.locked)
        interrupt = interruptible(self.model.network, meter.cancel)
        with torch.inference_mode(), interrupt, clock.measure("refining"):
            draft = self._refiner().refine(before, asked, window, phrase, meter.step)
            if wanted.more_like_this:
                search = ExemplarSearch(self.plan, self._encoder, self._detector, self.settings)
                draft = search.extend(draft, asked.all_boxes, window, phrase, threshold, meter.step)
        for n in map(self.plan.grid_slice, wanted.locked):
            draft.mask[n], draft.probability[n] = before.mask[n], before.probability[n]
        meter.step("fusing", 1, 1)
        result = self._finish(segmentation.concept, draft, window, phrase, threshold)
        return self._with_prompts(result, segmentation, wanted, clock.seconds)

    def _refiner(self) -> Refiner:
        policy, follower = self.policy, None
        if policy.follow == "detector" or self._propagator is None:
            follower = BoxFollower(
                self.plan, self._detector, policy.mask_threshold, self.settings.follow_share
            )
        return Refiner(
            self.plan,
            self._encoder,
            self._detector,
            self._propagator,
            self.settings,
            policy.mask_threshold,
            follower,
        )

    def _asked(self, segmentation: Segmentation, wanted: Refinement) -> Asked:
        """A refinement in the plane frame.

        Raises:
            PromptError: If something of it cannot be used.
        """
        if not segmentation.geometry.same_grid(self.volume.geometry):
            raise PromptError(
                f"The segmentation has a grid of {segmentation.geometry.shape}, the open volume one of "
                f"{self.volume.geometry.shape}; refine it in the volume it was made from."
            )
        boxes = [self.plan.box_to_plane(box) for box in wanted.boxes]
        points = [self._point_to_plane(point) for point in wanted.points]
        marked = {box.slices[0] for box in boxes if box.slices[0] == box.slices[1]}
        marked |= {point.index for point in points}
        for n in map(self.plan.grid_slice, wanted.locked):
            if n in marked:
                raise PromptError(
                    f"Slice {self.plan.grid_slice(n)} is locked and was marked; unlock it, or mark another."
                )
        return Asked(
            boxes,
            points,
            [self.plan.grid_slice(n) for n in wanted.edited],
            [self.plan.box_to_plane(box) for box in segmentation.boxes],
            wanted.propagate,
        )

    def _point_to_plane(self, point: Point) -> PlanePoint:
        point.check_inside(self.volume.geometry.shape)
        ends = ((point.i,) * 2, (point.j,) * 2, (point.k,) * 2)
        place = self.plan.box_to_plane(Box(*ends))
        return PlanePoint(place.slices[0], place.rows[0], place.columns[0], point.positive)

    def _draft_from(self, segmentation: Segmentation, locked: Sequence[int]) -> Draft:
        """A segmentation in the plane frame, with the slices that were settled earlier."""
        probability = np.zeros(segmentation.geometry.shape, np.float16)
        if segmentation.extent is not None:
            known = segmentation.probability
            probability[segmentation.extent.slices] = segmentation.mask if known is None else known
        return Draft(
            np.ascontiguousarray(self.plan.to_plane(segmentation.to_array())),
            np.ascontiguousarray(self.plan.to_plane(probability)),
            {self.plan.grid_slice(n): score for n, score in segmentation.slice_scores.items()},
            {self.plan.grid_slice(n) for n in (*self._anchors_of(segmentation), *locked)},
            [],
        )

    def _anchors_of(self, segmentation: Segmentation) -> tuple[int, ...]:
        """Slices settled earlier; none where that was along another axis: those numbers say nothing along this one."""
        settled_along = segmentation.provenance.axis
        grid_axis = self.plan.description.rsplit("(", 1)[-1]
        return () if settled_along and not settled_along.endswith(grid_axis) else segmentation.anchors

    def _with_prompts(
        self, result: Segmentation, before: Segmentation, wanted: Refinement, seconds: dict[str, float]
    ) -> Segmentation:
        """The result with everything that has shaped it so far."""
        boxes, points = (*before.boxes, *wanted.boxes), (*before.points, *wanted.points)
        axis = self.plan.axes[0]
        flat = [(box.k, box.j, box.i)[axis] for box in wanted.boxes]
        anchors = {
            *self._anchors_of(before),
            *wanted.edited,
            *(first for first, last in flat if first == last),
            *((point.k, point.j, point.i)[axis] for point in wanted.points),
        }
        made = dataclasses.replace(
            result.provenance,
            boxes=tuple(box.written() for box in boxes),
            points=tuple(point.written() for point in points),
            anchors=tuple(sorted(anchors)),
        )
        return dataclasses.replace(
            result,
            boxes=boxes,
            points=points,
            anchors=tuple(sorted(anchors)),
            provenance=made,
            timings={**before.timings, **seconds},
        )

    # -- what both need ---------------------------------------------------------------------------------------

    def _finish(
        self, concept: Concept, draft: Draft, window: Window, phrase: str, threshold: float
    ) -> Segmentation:
        """A draft as a segmentation of the volume's own grid."""
        notices = [*concept.notices, *draft.notices]
        extent = Extent.of_mask(draft.mask)
        if extent is None:
            notices.append(f"{concept.phrase!r} was found nowhere in this volume.")
        shown = {n: score for n, score in draft.scores.items() if draft.mask[n].any()}
        return Segmentation.from_mask(
            concept,
            self.volume.geometry,
            self.plan.to_grid(draft.mask),
            probability=self.plan.to_grid(draft.probability),
            score=max(shown.values(), default=0.0),
            slice_scores={self.plan.grid_slice(n): score for n, score in sorted(draft.scores.items())},
            provenance=self._provenance(concept, window, phrase, threshold, notices),
        )

    def _nothing(self, concept: Concept, notice: str) -> Segmentation:
        window = self._window(concept.phrase)
        notices = [*concept.notices, notice]
        return Segmentation.from_mask(
            concept,
            self.volume.geometry,
            np.zeros(self.volume.geometry.shape, bool),
            provenance=self._provenance(concept, window, concept.phrase, self.policy.threshold, notices),
        )

    def _provenance(
        self, concept: Concept, window: Window, phrase: str, threshold: float, notices: Sequence[str]
    ) -> Provenance:
        card = self.model.card
        return Provenance(
            concept=concept.typed,
            model=card.name,
            model_hash=card.sha256,
            version=__version__,
            prompts=(phrase,),
            thresholds={"score": threshold, "mask": self.policy.mask_threshold},
            axis=self.plan.description,
            window=window.describe(),
            device=self._device_words(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            notices=tuple(dict.fromkeys((*self.volume.notices, *notices))),
        )

    def _device_words(self) -> str:
        device = self.model.device
        name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
        return f"{device}{name}, {self._precision.name}"

    def _window(self, phrase: str) -> Window:
        """Window of a phrase, chosen once: percentiles of a large volume take a while."""
        if phrase not in self._windows:
            self._windows[phrase] = self._choose_window(phrase)
        return self._windows[phrase]

    def _choose_window(self, phrase: str) -> Window:
        request = self.window_request
        if request == "auto" and self.volume.modality == "CT" and self.volume.array.dtype != np.uint8:
            request = self.policy.ct_window or request
        return choose_window(self.volume, phrase, request, self.policy.clip_policy)

    def _coarse_mm(self, phrase: str) -> float:
        """Distance of first looks for a concept whose length along the body is known; else 0."""
        body = self.volume.modality in BODY_MODALITIES and self.volume.calibrated
        if not (body and self.settings.use_extents and self.plan.name == "axial"):
            return 0.0
        return coarse_step_mm(phrase)

    def _phrases(self, concept: Concept) -> tuple[str, ...]:
        """What may be said to the model: what its card knows first, else the phrase and some synonyms."""
        candidates = concept.prompts or (concept.phrase,)
        if not self.settings.synonyms:
            return candidates[:1]
        known = [phrase for phrase in candidates if phrase in self.model.card.concepts]
        return (known[0],) if known else tuple(candidates[:MOST_SYNONYMS])

    def _threshold(self, request: float | None) -> float:
        if request is None:
            return self.policy.threshold
        if not 0 <= request <= 1:
            raise PromptError(f"The threshold is {request:g}; expected a score from 0 to 1.")
        return request

    @cached_property
    def _is_constant(self) -> bool:
        return bool(self.volume.array.min() == self.volume.array.max())

    def _check_open(self) -> None:
        if self._state.closed:
            raise PromptError("The session is closed; open the volume again.")


@dataclasses.dataclass(frozen=True)
class Refinement:
    """What is asked of `Session.refine`, with its meanings."""

    boxes: tuple[Box, ...] = ()
    points: tuple[Point, ...] = ()
    edited: tuple[int, ...] = ()
    locked: tuple[int, ...] = ()
    propagate: bool = True
    more_like_this: bool = False


@dataclasses.dataclass
class _State:
    """What sessions on the same features share."""

    closed: bool = False


def _resolve(concept: str | Concept) -> Concept:
    if isinstance(concept, Concept):
        return concept
    from MedSAM3Core.concepts import resolve

    return resolve(concept)


def _slices_within(boxes: Sequence[PlaneBox], count: int) -> tuple[int, int]:
    """First and last slice that positive boxes through several slices leave."""
    deep = [box.slices for box in boxes if box.positive and box.slices[0] != box.slices[1]]
    if not deep:
        return 0, count - 1
    return min(first for first, _ in deep), max(last for _, last in deep)
