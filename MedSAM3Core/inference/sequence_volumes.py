"""3D through time: every volume is segmented by text, and its objects keep their identity from time to time.

Each time is a run of its own, with search, detection and propagation along the slices. The parts of a concept are
linked to those of the time before by their overlap. Where a known object is not found again, the tracker carries it in
time: its sections at the last time are anchors, and the same sections now are what follows them. At most two volumes
and their features are in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate

from MedSAM3Core.errors import VolumeError
from MedSAM3Core.inference.linking import Linker, split_objects
from MedSAM3Core.inference.session import Segmenter, Session
from MedSAM3Core.progress import CancelToken
from MedSAM3Core.prompts import Concept
from MedSAM3Core.segmentation import Segmentation
from MedSAM3Core.volume.geometry import Geometry
from MedSAM3Core.volume.volume import Volume

SECTIONS = 16
"""Sections that are carried at once."""
END_SCORE = 0.5
"""Mean object score (probability) of its sections under which an object is not seen any more."""


@dataclass(frozen=True, eq=False)
class VolumeObject:
    """One object at one time.

    Attributes:
        identity: Its number, from 1 on, the same at all times.
        segmentation: Where it is, on the grid of the volumes.
        detected: Whether it was found by text, and not carried by the tracker alone.
    """

    identity: int
    segmentation: Segmentation
    detected: bool


@dataclass(frozen=True, eq=False)
class VolumeObjects:
    """The objects of one time.

    Attributes:
        index: Time, from 0 on.
        time_s: In seconds.
        geometry: The grid.
        objects: By their identity.
    """

    index: int
    time_s: float
    geometry: Geometry
    objects: tuple[VolumeObject, ...]

    def labels(self) -> np.ndarray:
        """(slices, rows, columns) uint16 of identities; of overlapping objects the one with the lower number stays."""
        out = np.zeros(self.geometry.shape, np.uint16)
        for one in reversed(self.objects):
            if one.segmentation.extent is not None:
                out[one.segmentation.extent.slices][one.segmentation.mask] = one.identity
        return out


class VolumeTracker:
    """Follows the objects of some concepts through volumes on one grid.

    Args:
        segmenter: A model.
        concepts: What to look for.
        threshold: Score from which a slice shows a concept; None takes the model's.
        options: Of `Segmenter.open`.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        concepts: Sequence[Concept],
        threshold: float | None = None,
        **options: Any,
    ) -> None:
        self.segmenter = segmenter
        self.concepts = tuple(concepts)
        self.threshold = threshold
        self.options = options

    def run(self, volumes: Iterable[Volume], cancel: CancelToken | None = None) -> Iterator[VolumeObjects]:
        """Follow objects.

        Args:
            volumes: On one grid, in their order; read as they are needed.
            cancel: Looked at between slices.

        Yields:
            One result a time, in order.

        Raises:
            VolumeError: If a volume has another grid than the first.
            Cancelled: If the token was cancelled.
        """
        linkers = [Linker() for _ in self.concepts]
        numbers: dict[tuple[int, int], int] = {}
        before: tuple[Session, list[list[tuple[int, np.ndarray]]]] | None = None
        try:
            for index, volume in enumerate(volumes):
                session = self.segmenter.open(volume, **self.options)
                if before is not None and not volume.geometry.same_grid(before[0].volume.geometry):
                    session.close()
                    raise VolumeError(f"Time {index} lies on another grid than the first; expected one grid.")
                results = session.segment_many(self.concepts, cancel=cancel, threshold=self.threshold)
                kept: list[list[tuple[int, np.ndarray]]] = []
                shown = []
                for number, whole in enumerate(results):
                    last = (before[0], before[1][number]) if before is not None else None
                    entries = self._link(session, whole, last, linkers[number])
                    kept.append([(identity, one.to_array()) for identity, one, _ in entries])
                    for identity, one, detected in entries:
                        own = numbers.setdefault((number, identity), len(numbers) + 1)
                        shown.append(VolumeObject(own, one, detected))
                if before is not None:
                    before[0].close()
                before = (session, kept)
                shown.sort(key=lambda one: one.identity)
                yield VolumeObjects(index, volume.time_s, volume.geometry, tuple(shown))
        finally:
            if before is not None:
                before[0].close()

    def _link(
        self,
        session: Session,
        whole: Segmentation,
        last: tuple[Session, list[tuple[int, np.ndarray]]] | None,
        linker: Linker,
    ) -> list[tuple[int, Segmentation, bool]]:
        """Parts of a concept's mask with their identities, and what was carried because it was not found."""
        found = [] if whole.empty else split_objects(whole.to_array())
        carried = []
        for _, mask in last[1] if last is not None else []:
            if not any(np.logical_and(mask, part).any() for part in found):
                there = carry(last[0], session, whole.concept.phrase, mask)  # type: ignore[index]
                if there is not None and not any(np.logical_and(there, part).any() for part in found):
                    carried.append(there)
        masks = [*found, *carried]
        entries = [
            (identity, self._part(whole, mask), row < len(found))
            for row, (identity, mask) in enumerate(zip(linker.link(masks), masks, strict=True))
        ]
        return sorted(entries, key=lambda entry: entry[0])

    def _part(self, whole: Segmentation, mask: np.ndarray) -> Segmentation:
        part = Segmentation.from_mask(whole.concept, whole.geometry, mask)
        return replace(part, score=whole.score, provenance=whole.provenance, timings=whole.timings)


@torch.inference_mode()
def carry(before: Session, now: Session, phrase: str, mask: np.ndarray) -> np.ndarray | None:
    """Find an object at the next time by the tracker's memory of its sections.

    Args:
        before: Where it was seen, still open.
        now: The next time, on the same grid and cut alike.
        phrase: Its concept, which chooses the window.
        mask: Boolean, (slices, rows, columns) of the grid, where it was.

    Returns:
        Boolean mask of the grid, or None if the tracker does not see it, or the model has none.
    """
    tracker = before._encoder.tracker
    if tracker is None:
        return None
    plan = now.plan
    plane = plan.to_plane(mask)
    sections = [int(n) for n in np.flatnonzero(plane.any(axis=(1, 2)))]
    out, scores = np.zeros(plan.shape, bool), []
    for start in range(0, len(sections), SECTIONS):
        chunk = sections[start : start + SECTIONS]
        pyramid = before._encoder.tracker_pyramid(before._window(phrase), chunk)
        anchors = torch.from_numpy(np.ascontiguousarray(plane[chunk])).to(pyramid.maps[0].device)
        with before._precision.context():
            output = tracker.prompt_mask(pyramid, anchors.float())
            bank = tracker.new_bank(2).add(tracker.memorise(pyramid, output, 0, conditioning=True))
            there = tracker.track(now._encoder.tracker_pyramid(now._window(phrase), chunk), bank, 1)
        large = interpolate(there.logits[:, None].float(), size=plan.shape[1:], mode="bilinear")[:, 0]
        out[chunk] = (large.sigmoid() >= now.policy.mask_threshold).cpu().numpy()
        scores += there.object_score.float().sigmoid().tolist()
    if not scores or sum(scores) / len(scores) < END_SCORE or not out.any():
        return None
    return np.ascontiguousarray(plan.to_grid(out))
