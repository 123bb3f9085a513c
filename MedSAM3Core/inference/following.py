"""A settled slice carried to its neighbours by the detector: each slice is asked with the box of the one before.

For models whose tracker is weak, or that have none. The box keeps the detector at the object that the user meant,
where the phrase alone may mean another. A walk ends where the mask does, jumps, or where the phrase alone finds far
less than on the slice that the walk started from: with a box there is always something.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from MedSAM3Core.inference import fusion
from MedSAM3Core.inference.detector import Detector, Finding, Request
from MedSAM3Core.inference.plan import PlaneBox, SlicePlan
from MedSAM3Core.inference.propagator import Anchor, EndRule, Track
from MedSAM3Core.windowing import Window

BOX_MARGIN = 0.15
"""Share of a box's side by which the object may grow from one slice to the next."""

LEAST_OVERLAP = 0.3
"""Dice of the masks of two neighbouring slices under which they show two objects."""


@dataclass
class _Walk:
    """One anchor's way in one direction, and what it saw last."""

    owner: int
    start: int
    step: int
    last: int
    gap: int
    area: int
    surety: float
    here: int
    mask: np.ndarray

    @property
    def next(self) -> int:
        return self.here + self.step


class BoxFollower:
    """Carries masks from slice to slice by the detector's answers to boxes.

    Args:
        plan: The cut.
        detector: Is asked with the concept, alone and with a box.
        mask_threshold: Probability from which a pixel is in the mask.
        surety_share: Share of the phrase's score on the first slice under which the object has ended.
    """

    def __init__(
        self, plan: SlicePlan, detector: Detector, mask_threshold: float, surety_share: float
    ) -> None:
        self.plan = plan
        self.detector = detector
        self.mask_threshold = mask_threshold
        self.surety_share = surety_share

    def follow(
        self,
        window: Window,
        phrase: str,
        objects: Sequence[tuple[Sequence[Anchor], tuple[int, int]]],
        apart: Collection[int],
        rule: EndRule,
        step: Callable[[int, int], None],
    ) -> list[dict[int, list[Track]]]:
        """Walk from every anchor that starts runs to the next one on either side, or to the object's limits.

        Args:
            window: Intensity window.
            phrase: What is said to the detector.
            objects: Anchors of each object, in ascending order, and the first and last slice it may reach.
            apart: Positions of objects that the phrase did not find, so that its score says nothing of their end.
            rule: When a walk has left its object.
            step: Told of slices walked and slices in all.

        Returns:
            Slice to what was found there, for each object.
        """
        found: list[dict[int, list[Track]]] = [{} for _ in objects]
        walks = self._walks(window, phrase, objects, apart)
        total = sum(abs(walk.last - walk.start) for walk in walks)
        done = 0
        while walks:
            alone = self.detector.scores(window, phrase, [walk.next for walk in walks])
            asked = self.detector.detect(window, [Request(w.next, phrase, (self._box(w),)) for w in walks])
            onward = []
            for walk, score, finding in zip(walks, alone, asked, strict=True):
                track = self._advance(walk, score, finding, rule)
                if track is not None:
                    found[walk.owner].setdefault(walk.here, []).append(track)
                if track is not None and walk.here != walk.last:
                    onward.append(walk)
                else:
                    done += abs(walk.last - walk.start)
            walks = onward
            step(min(total, done + sum(abs(walk.here - walk.start) for walk in walks)), max(1, total))
        return found

    def _walks(
        self,
        window: Window,
        phrase: str,
        objects: Sequence[tuple[Sequence[Anchor], tuple[int, int]]],
        apart: Collection[int],
    ) -> list[_Walk]:
        starts = sorted({anchor.index for anchors, _ in objects for anchor in anchors if anchor.starts})
        surety = dict(zip(starts, self.detector.scores(window, phrase, starts), strict=True))
        walks = []
        for owner, (anchors, limits) in enumerate(objects):
            places = [anchor.index for anchor in anchors]
            for anchor in anchors:
                mask = self._enlarged(anchor.mask) >= 0.5
                if not anchor.starts or not mask.any():
                    continue
                for direction, limit in ((-1, limits[0]), (1, limits[1])):
                    ahead = [n for n in places if (n - anchor.index) * direction > 0]
                    nearest = min(ahead, key=lambda n: abs(n - anchor.index), default=None)
                    last = limit if nearest is None else nearest - direction
                    if (last - anchor.index) * direction > 0:
                        gap = 0 if nearest is None else abs(nearest - anchor.index)
                        place = (anchor.index, direction, last, gap)
                        score = 0.0 if owner in apart else surety[anchor.index]
                        walks.append(_Walk(owner, *place, int(mask.sum()), score, anchor.index, mask))
        return walks

    def _advance(self, walk: _Walk, alone: float, asked: Finding, rule: EndRule) -> Track | None:
        """What the next slice shows; None where the object has ended."""
        box = self._box(walk, BOX_MARGIN)
        walk.here = walk.next
        probability = self._enlarged(asked.probability.float())
        outside = np.ones(probability.shape, bool)
        outside[box.index[1:]] = False
        probability[outside] = 0
        mask = probability >= self.mask_threshold
        blocked = rule.blocked.get(walk.here)
        ended = (
            mask.sum() < max(1, rule.area_share * walk.area)
            or _dice(mask, walk.mask) < LEAST_OVERLAP
            or alone < self.surety_share * walk.surety
            or (blocked is not None and (mask & (self._enlarged(blocked) >= 0.5)).sum() > mask.sum() / 2)
        )
        if ended:
            return None
        walk.mask = mask
        return Track(torch.from_numpy(probability).half(), asked.score, abs(walk.here - walk.start), walk.gap)

    def _box(self, walk: _Walk, margin: float = 0.0) -> PlaneBox:
        """Box around what the walk saw last, on the slice that it comes to next."""
        around = fusion.box_of(torch.from_numpy(walk.mask), walk.mask.shape)  # type: ignore[arg-type]
        assert around is not None
        grown = []
        for (first, last), size in zip((around.rows, around.columns), walk.mask.shape, strict=True):
            more = int(np.ceil(margin * (last - first + 1)))
            grown.append((max(0, first - more), min(size - 1, last + more)))
        return PlaneBox((walk.next, walk.next), grown[0], grown[1])

    def _enlarged(self, mask: Tensor) -> np.ndarray:
        return fusion.enlarge(mask.float()[None], self.plan.shape[1:])[0].cpu().numpy()


def _dice(one: np.ndarray, other: np.ndarray) -> float:
    total = int(one.sum()) + int(other.sum())
    return 2.0 * int((one & other).sum()) / total if total else 0.0
