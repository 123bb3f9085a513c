"""What boxes, clicks and hand edits do to a volume: they settle their slice, and a settled slice is an anchor that
nothing overrides.

What was marked is made on its own slice (`settle`). Then the slices up to the neighbouring anchors are propagated
again, on features that are there already; no other slice is touched. An object that is new on its slice and lies
beside nothing of its neighbouring anchors is followed on its own, to its end or to the next settled slice, and is
added to what there is. A box through several slices restricts the result, or removes from it; both hold for every
later rerun.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from MedSAM3Core.errors import PromptError
from MedSAM3Core.inference import fusion
from MedSAM3Core.inference.detector import Detector
from MedSAM3Core.inference.encoder import Encoder
from MedSAM3Core.inference.following import BoxFollower
from MedSAM3Core.inference.plan import PlaneBox, SlicePlan
from MedSAM3Core.inference.propagator import Anchor, EndRule, Propagator, Track
from MedSAM3Core.inference.settings import InferenceSettings
from MedSAM3Core.inference.settle import PlanePoint, SlicePrompts, SliceSettler
from MedSAM3Core.windowing import Window

StageStep = Callable[[str, int, int], None]
"""Told stage, units finished and units in all; may raise `Cancelled`."""

Tracks = Mapping[int, Sequence[Track]]


@dataclass(frozen=True)
class Asked:
    """What a user wants of a rerun, in the plane frame.

    Attributes:
        boxes: New boxes, in the order drawn.
        points: New clicks.
        edited: Slices whose mask was corrected by hand: new anchors.
        known: Boxes of earlier reruns, which stay in force.
        propagate: Whether the slices around follow; without, only marked slices change.
    """

    boxes: Sequence[PlaneBox] = ()
    points: Sequence[PlanePoint] = ()
    edited: Sequence[int] = ()
    known: Sequence[PlaneBox] = ()
    propagate: bool = True

    @property
    def all_boxes(self) -> list[PlaneBox]:
        """Old and new boxes."""
        return [*self.known, *self.boxes]


@dataclass
class Draft:
    """A concept's voxels while they are being refined, in the plane frame.

    Attributes:
        mask: bool, (slices, rows, columns).
        probability: float16, the same shape, 0..1.
        scores: Slice to score.
        fixed: Slices that a user has settled; nothing changes them.
        notices: Sentences for the user.
    """

    mask: np.ndarray
    probability: np.ndarray
    scores: dict[int, float]
    fixed: set[int]
    notices: list[str] = field(default_factory=list)

    def copy(self) -> Draft:
        """A draft of its own arrays."""
        return replace(
            self,
            mask=self.mask.copy(),
            probability=self.probability.copy(),
            scores=dict(self.scores),
            fixed=set(self.fixed),
            notices=list(self.notices),
        )


class Refiner:
    """Applies boxes, clicks and edited slices to a concept.

    Args:
        plan: The cut.
        encoder: Gives features.
        detector: Is prompted with the concept and the boxes.
        propagator: Has the tracker; None where the model has none.
        settings: All choices.
        mask_threshold: Probability from which a voxel is in the mask.
        follower: Carries settled slices to their neighbours in the tracker's place.
    """

    def __init__(
        self,
        plan: SlicePlan,
        encoder: Encoder,
        detector: Detector,
        propagator: Propagator | None,
        settings: InferenceSettings,
        mask_threshold: float,
        follower: BoxFollower | None = None,
    ) -> None:
        self.plan = plan
        self.follower = follower
        self.encoder = encoder
        self.detector = detector
        self.propagator = propagator
        self.settings = settings
        self.mask_threshold = mask_threshold

    def refine(self, before: Draft, asked: Asked, window: Window, phrase: str, step: StageStep) -> Draft:
        """A new draft with what was asked worked in.

        Args:
            before: The state before; it is not changed.
            asked: Boxes, clicks, edited slices.
            window: Intensity window.
            phrase: What is said to the detector.
            step: Told of progress.

        Raises:
            PromptError: If a box lies across the slices and is one pixel thin.
        """
        marked = self._sort(asked, before)
        result = before.copy()
        settler = SliceSettler(self.plan, self.detector, self.propagator, self.mask_threshold, window, phrase)
        added: dict[int, np.ndarray] = {}
        for number, (index, prompts) in enumerate(marked.items()):
            step("detecting", number, len(marked))
            settled = settler.settle(index, before.mask[index], prompts)
            result.mask[index] = result.probability[index] = settled.mask
            result.scores[index] = float(settled.mask.any())
            result.notices.extend(settled.notices)
            if settled.added.any():
                added[index] = settled.added
        step("detecting", 1, 1)
        changed = sorted({*marked, *asked.edited})
        result.fixed.update(changed)
        touched: set[int] = set()
        if changed and asked.propagate and self.plan.count > 1 and (self.propagator or self.follower):
            touched = self._rerun_around(result, before, changed, added, asked, window, phrase, step)
        self._apply_boxes(result, asked, touched)
        return result

    def _sort(self, asked: Asked, before: Draft) -> dict[int, SlicePrompts]:
        """What marks a slice, by slice.

        A positive box through several slices that holds nothing yet also prompts its middle slice.
        """
        boxes: dict[int, list[PlaneBox]] = {}
        for box in asked.boxes:
            if _is_flat(box):
                boxes.setdefault(box.slices[0], []).append(box)
                continue
            if box.rows[0] == box.rows[1] or box.columns[0] == box.columns[1]:
                raise PromptError(
                    f"The box is one voxel thin and lies across the {self.plan.name} slices that this volume is cut "
                    f"into; draw it on one {self.plan.name} slice, or choose the axis along which it is thin."
                )
            if box.positive and not before.mask[box.index].any():
                middle = PlaneBox((box.middle, box.middle), box.rows, box.columns)
                boxes.setdefault(box.middle, []).append(middle)
        points: dict[int, list[PlanePoint]] = {}
        for point in asked.points:
            points.setdefault(point.index, []).append(point)
        return {
            n: SlicePrompts(tuple(boxes.get(n, ())), tuple(points.get(n, ()))) for n in {**boxes, **points}
        }

    def _apply_boxes(self, result: Draft, asked: Asked, touched: set[int]) -> None:
        """Restrict to boxes through several slices, and remove what negative ones hold.

        New boxes count everywhere; old ones on slices that this rerun has touched, so that hand edits stay.
        """
        restricting = [box for box in asked.all_boxes if box.positive and not _is_flat(box)]
        where = np.zeros(self.plan.count, bool)
        where[sorted(touched)] = True
        if any(box in asked.boxes for box in restricting):
            where[:] = True
        if restricting and where.any():
            inside = np.zeros(result.mask.shape, bool)
            for box in restricting:
                inside[box.index] = True
            inside |= ~where[:, None, None]
            result.mask &= inside
            result.probability[~inside] = 0
        for box in asked.all_boxes:
            if not box.positive:
                new = box in asked.boxes
                for n in range(box.slices[0], box.slices[1] + 1):
                    if new or n in touched:
                        result.mask[n][box.index[1:]] = False
                        result.probability[n][box.index[1:]] = 0

    # -- the slices around ------------------------------------------------------------------------------------

    def _rerun_around(
        self,
        result: Draft,
        before: Draft,
        changed: Sequence[int],
        added: Mapping[int, np.ndarray],
        asked: Asked,
        window: Window,
        phrase: str,
        step: StageStep,
    ) -> set[int]:
        """Propagate from the changed slices to their neighbouring anchors, and blend that in; gives what it touched."""
        anchors = self._anchors_of(result)
        apart = {n: mask for n, mask in added.items() if not self._continues(result, mask, n, anchors)}
        follow = [
            n
            for n in changed
            if n not in apart or not np.array_equal(result.mask[n], before.mask[n] | apart[n])
        ]
        spans = self._spans(result, follow, anchors, apart)
        alone = [self._alone(result, n, mask) for n, mask in apart.items()]
        s = self.settings
        negative = self._blocked([box for box in asked.all_boxes if not box.positive])
        rule = EndRule(s.end_score, s.end_area_share, negative)
        found = self._carry(spans, alone, rule, window, phrase, step)
        free = [{n: t for n, t in tracks.items() if n not in result.fixed} for tracks in found]
        for tracks in free[: len(spans)]:
            self._blend(result, before, tracks)
        for tracks in free[len(spans) :]:
            self._add(result, tracks)
        return {n for tracks in free for n in tracks}

    def _carry(
        self,
        spans: list[tuple[list[Anchor], tuple[int, int]]],
        alone: list[tuple[list[Anchor], tuple[int, int]]],
        rule: EndRule,
        window: Window,
        phrase: str,
        step: StageStep,
    ) -> Sequence[Tracks]:
        """What is found of stretches of the concept's object, and of objects that stand alone, in this order."""
        objects = [*spans, *alone]

        def report(done: int, total: int) -> None:
            step("propagating", done, total)

        if self.follower is not None:
            apart = range(len(spans), len(objects))
            return self.follower.follow(window, phrase, objects, apart, rule, report)
        assert self.propagator is not None
        members, limits = [one for one, _ in objects], [limit for _, limit in objects]
        return self.propagator.propagate(window, members, limits, rule, report)

    def _anchors_of(self, draft: Draft) -> list[int]:
        """Settled slices, and between them the surest of the rest."""
        spacing = max(1, round(self.settings.anchor_spacing_mm / self.plan.spacing[0]))
        shown = {
            n: score for n, score in draft.scores.items() if n not in draft.fixed and draft.mask[n].any()
        }
        return fusion.choose_anchors(shown, self.settings.anchor_share, spacing, sorted(draft.fixed))

    def _continues(self, draft: Draft, added: np.ndarray, index: int, anchors: Sequence[int]) -> bool:
        """Whether an object that is new on its slice lies over what a neighbouring anchor shows: the same object."""
        reach = self._reach
        near = [_nearest(anchors, index, side) for side in (-1, 1)]
        return any(
            n is not None and abs(n - index) <= reach and bool((draft.mask[n] & added).any()) for n in near
        )

    @property
    def _reach(self) -> int:
        return max(1, round(self.settings.reach_mm / self.plan.spacing[0]))

    def _spans(
        self, draft: Draft, changed: Sequence[int], anchors: Sequence[int], apart: Mapping[int, np.ndarray]
    ) -> list[tuple[list[Anchor], tuple[int, int]]]:
        """Stretches to be run again: anchors that take part, and how far runs may go beyond them."""
        reach = self._reach
        spans: list[list[int]] = []
        for n in sorted(changed):
            around = (_nearest(anchors, n, -1), n, _nearest(anchors, n, +1))
            members = [a for a in around if a is not None]
            if spans and spans[-1][-1] >= members[0]:
                spans[-1] = sorted({*spans[-1], *members})
            else:
                spans.append(members)
        objects = []
        for members in spans:
            # Beyond an anchor that was not changed nothing runs; beyond a changed one, as far as it reaches.
            low = members[0] if members[0] not in changed else max(0, members[0] - reach)
            high = (
                members[-1] if members[-1] not in changed else min(self.plan.count - 1, members[-1] + reach)
            )
            masks = {n: draft.mask[n] & ~apart[n] if n in apart else draft.mask[n] for n in members}
            # Only what was changed sends runs out: what comes from the other side stands in the earlier result.
            objects.append(([self._anchor(n, masks[n], n in changed) for n in members], (low, high)))
        return objects

    def _alone(self, draft: Draft, index: int, mask: np.ndarray) -> tuple[list[Anchor], tuple[int, int]]:
        """An object that only this slice shows, and how far it may go: to the next settled slices."""
        before = _nearest(sorted(draft.fixed), index, -1)
        after = _nearest(sorted(draft.fixed), index, +1)
        low = max(0, index - self._reach) if before is None else max(before + 1, index - self._reach)
        last = self.plan.count - 1 if after is None else after - 1
        return [self._anchor(index, mask)], (low, min(last, index + self._reach))

    def _anchor(self, index: int, mask: np.ndarray, starts: bool = True) -> Anchor:
        given = torch.from_numpy(np.ascontiguousarray(mask)).to(self.encoder.store.device)
        fitted = given if self.follower or not self.propagator else self.propagator.fit_mask(given)
        return Anchor(index, fitted, starts=starts)

    def _blocked(self, boxes: Sequence[PlaneBox]) -> dict[int, Tensor]:
        """Slice to what negative boxes cover there, at the tracks' resolution."""
        blocked: dict[int, np.ndarray] = {}
        for box in boxes:
            for index in range(box.slices[0], box.slices[1] + 1):
                covered = blocked.setdefault(index, np.zeros(self.plan.shape[1:], bool))
                covered[box.index[1:]] = True
        if self.follower is not None or self.propagator is None:
            return {n: torch.from_numpy(covered) for n, covered in blocked.items()}
        return {
            n: self.propagator.fit_mask(torch.from_numpy(covered).to(self.encoder.store.device), tracks=True)
            > 0.5
            for n, covered in blocked.items()
        }

    def _blend(self, result: Draft, before: Draft, tracks: Tracks) -> None:
        s = self.settings
        for index, found in tracks.items():
            tracked = self._enlarged(found)
            share = s.propagation_weight + (s.refine_weight - s.propagation_weight) * self._nearness(
                found, index, result
            )
            if not before.mask[index].any():
                share = 1.0
            # In torch: numpy converts float16 one number at a time, 11 ms a slice of 512 x 512.
            earlier = torch.from_numpy(before.probability[index]).float()
            blended = (share * tracked + (1 - share) * earlier).half()
            result.probability[index] = blended.numpy()
            mask = (blended >= self.mask_threshold).numpy()
            result.mask[index] = fusion.clean(mask[None], s.island_share, s.hole_share)[0]
            result.scores[index] = max(track.object_score for track in found)

    def _add(self, result: Draft, tracks: Tracks) -> None:
        """Add an object that was followed on its own to what there is."""
        s = self.settings
        for index, found in tracks.items():
            tracked = self._enlarged(found).half()
            mask = fusion.clean((tracked >= self.mask_threshold).numpy()[None], s.island_share, s.hole_share)[
                0
            ]
            if not mask.any():
                continue
            result.mask[index] |= mask
            np.maximum(result.probability[index], tracked.numpy(), out=result.probability[index], where=mask)
            score = max(track.object_score for track in found)
            result.scores[index] = max(result.scores.get(index, 0.0), score)

    def _enlarged(self, tracks: Sequence[Track]) -> Tensor:
        return fusion.enlarge(fusion.blend_tracks(tracks)[None], self.plan.shape[1:])[0].cpu()

    def _nearness(self, tracks: Sequence[Track], index: int, draft: Draft) -> float:
        """1 beside a settled slice, falling to 0 at the next anchor, or as far as a settled slice may reach."""
        near = 0.0
        for track in tracks:
            for side in (index - track.distance, index + track.distance):
                if side in draft.fixed:
                    near = max(near, 1.0 - track.distance / (track.gap or self._reach + 1))
        return near


def _is_flat(box: PlaneBox) -> bool:
    return box.slices[0] == box.slices[1]


def _nearest(ordered: Sequence[int], index: int, side: int) -> int | None:
    """The nearest of some slices on one side of a slice, or None."""
    beyond = [n for n in ordered if (n - index) * side > 0]
    return min(beyond, key=lambda n: abs(n - index)) if beyond else None
