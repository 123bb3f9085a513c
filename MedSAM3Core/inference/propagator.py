"""From anchors to the slices between and beyond them, by the tracker's memory, both ways (DESIGN decision 5).

Every anchor sends its object out as up to two **runs**, one a direction, each to the next anchor or to a
limit. All runs of all objects advance together, one slice a step, as one batch: a run's own slice number
starts at 0, so that memories of one step have the same age in every run, whatever slice each of them is on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from MedSAM3Core.inference.plan import PlaneBox
from MedSAM3Core.models.network import Pyramid
from MedSAM3Core.models.tracker import Memory, MemoryBank, Tracker, TrackOutput
from MedSAM3Core.windowing import Window

PREVIOUS_LOGITS = 20.0
"""Difference of the logits inside and outside of a mask that is given as a prompt: as sure as a clear prediction."""

FAR_AHEAD = 1_000_000
"""Slice number of the anchor a run ends at, in the run's own count: ahead of every step; its distance is
not encoded."""


@dataclass(frozen=True)
class Anchor:
    """A slice on which an object's mask is given.

    Attributes:
        index: Slice in the plane frame.
        mask: (height, width), 0..1, any resolution, covering the slice.
        by_user: Whether a user drew it: nothing overrides it.
        starts: Whether runs start here; else it is only where those of its neighbours end.
    """

    index: int
    mask: Tensor
    by_user: bool = False
    starts: bool = True


@dataclass(frozen=True)
class Track:
    """What propagation says of an object on one slice.

    Attributes:
        probability: (height, width) float16, 0..1; all 0 beyond the object's end.
        object_score: Probability that the object is on the slice.
        distance: Slices from the anchor it comes from.
        gap: Slices from that anchor to the next one in its direction, or 0 where there is none.
    """

    probability: Tensor
    object_score: float
    distance: int
    gap: int


@dataclass(frozen=True)
class EndRule:
    """When a run has left its object.

    Attributes:
        score: Object score (probability) under which it has.
        area_share: Share of its anchor's area under which it has.
        blocked: Slice to a mask, (height, width) bool at the track's resolution, of what is not the object
            there (negative boxes): a run whose mask lies there for the most part has ended.
    """

    score: float = 0.5
    area_share: float = 0.08
    blocked: dict[int, Tensor] = field(default_factory=dict)


@dataclass
class _Run:
    """One anchor's way in one direction."""

    owner: int
    start: Anchor
    step: int
    last: int
    far: Anchor | None

    def slice_at(self, step: int) -> int:
        return self.start.index + self.step * step

    def length(self) -> int:
        return abs(self.last - self.start.index)


class PyramidSource(Protocol):
    """Where the tracker's features come from."""

    def __call__(self, window: Window, indices: Sequence[int]) -> Pyramid:
        """The tracker's pyramid of slices in a window, one batch entry each."""


class Propagator:
    """Sends objects through a volume.

    Args:
        tracker: The model's tracker.
        pyramids: The features of the volume.
        count: Slices of the volume.
        context: Makes the context the network is called in (autocast).
        batch: Most runs advanced at once.
        frames: Slices of the clips that the tracker was trained on; no memory but an anchor's is older, because its
            age was never seen in training. None reaches as far as the model's configuration says.
        rebase: Take what was found ``frames`` - 1 slices from an anchor as the anchor of what follows.
    """

    def __init__(
        self,
        tracker: Tracker,
        pyramids: PyramidSource,
        count: int,
        context: Callable,
        batch: int = 16,
        frames: int | None = None,
        rebase: bool = False,
    ) -> None:
        self.tracker = tracker
        self.pyramids = pyramids
        self.count = count
        self.context = context
        self.batch = batch
        self.frames = frames
        self.rebase = rebase and frames is not None
        self.steps = 0

    @torch.inference_mode()
    def prompt_boxes(
        self, window: Window, index: int, boxes: Sequence[PlaneBox], shape: tuple[int, int]
    ) -> Tensor:
        """What the tracker's own prompt encoder makes of boxes on a slice.

        Args:
            window: Intensity window of the features.
            index: Slice in the plane frame.
            boxes: At least one box around an object on it.
            shape: (rows, columns) of the slice.

        Returns:
            (height, width) float32, the highest probability of any of the objects.
        """
        pyramid = self.pyramids(window, [index])
        size = self.tracker.image_size
        corners = []
        for box in boxes:
            x, y, width, height = box.relative(*shape)
            corners.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
        relative = torch.tensor(corners, dtype=torch.float32, device=pyramid.maps[0].device)
        with self.context():
            output = self.tracker.prompt_box(pyramid, relative * size, gate=False)
        return output.logits.float().sigmoid().amax(0)

    @torch.inference_mode()
    def prompt_points(
        self, window: Window, index: int, points: Tensor, labels: Tensor, previous: Tensor | None = None
    ) -> Tensor:
        """What the tracker's own prompt encoder makes of clicks on a slice.

        Args:
            window: Intensity window of the features.
            index: Slice in the plane frame.
            points: (objects, points, 2), x then y relative to the slice, 0..1.
            labels: (objects, points) as `Tracker.prompt_points` takes them.
            previous: (rows, columns) bool, the mask that the clicks correct, or None.

        Returns:
            (height, width) float32, the highest probability of any of the objects.
        """
        pyramid = self.pyramids(window, [index])
        device = pyramid.maps[0].device
        points, labels = (points * self.tracker.image_size).to(device), labels.to(device)
        logits = None
        if previous is not None:
            fitted = self.fit_mask(previous.to(device), tracks=True)
            logits = ((fitted - 0.5) * PREVIOUS_LOGITS).expand(len(points), -1, -1)
        with self.context():
            output = self.tracker.prompt_points(pyramid, points, labels, gate=False, previous=logits)
        return output.logits.float().sigmoid().amax(0)

    def fit_mask(self, mask: Tensor, tracks: bool = False) -> Tensor:
        """A slice's mask (rows, columns) at the resolution of the model's input, or of the tracks; float32, 0..1."""
        size = self.tracker.low_resolution if tracks else self.tracker.image_size
        return interpolate(
            mask.float()[None, None], size=(size, size), mode="bilinear", align_corners=False, antialias=True
        )[0, 0]

    @torch.inference_mode()
    def propagate(
        self,
        window: Window,
        objects: Sequence[Sequence[Anchor]],
        limits: Sequence[tuple[int, int]],
        ends: EndRule,
        step: Callable[[int, int], None] | None = None,
    ) -> list[dict[int, list[Track]]]:
        """Run every object from each of its anchors to the next.

        Args:
            window: Intensity window of the features.
            objects: Each object's anchors, at least one, on different slices.
            limits: For each object the first and last slice that it may reach.
            ends: When a run has left its object.
            step: Told after every step of a batch of runs; may raise `Cancelled`.

        Returns:
            For each object, slice to the tracks that reached it: one from each side at most; anchors'
            slices are not in it.
        """
        runs = [
            run
            for owner, (anchors, limit) in enumerate(zip(objects, limits, strict=True))
            for run in _plan_runs(owner, anchors, limit)
        ]
        tracks: list[dict[int, list[Track]]] = [defaultdict(list) for _ in objects]
        # Runs with an anchor at both ends attend one memory more and make batches of their own; long ones
        # first, so that the runs of a batch end at about the same time.
        runs.sort(key=lambda run: (run.far is None, -run.length()))
        total, done = sum(run.length() for run in runs), 0
        for bounded in (True, False):
            group = [run for run in runs if (run.far is not None) == bounded]
            for first in range(0, len(group), self.batch):
                for steps in self._advance(window, group[first : first + self.batch], ends, tracks):
                    done += steps
                    if step is not None:
                        step(done, total)
        return [dict(found) for found in tracks]

    def _advance(
        self, window: Window, runs: list[_Run], ends: EndRule, tracks: list[dict[int, list[Track]]]
    ) -> Iterator[int]:
        """Advance a batch of runs to their ends; yields the run steps that each step has settled."""
        bank, areas = self._open_bank(window, runs)
        number = own = 0
        while runs:
            number, own = number + 1, own + 1
            self.steps += len(runs)
            slices = [run.slice_at(number) for run in runs]
            pyramid = self.pyramids(window, slices)
            with self.context():
                output = self.tracker.track(pyramid, bank, own)
                bank = self._remember(bank, self.tracker.memorise(pyramid, output, own))
            own = max(m.slice_index for m in bank.memories if m.slice_index != FAR_AHEAD)
            probability = output.logits.float().sigmoid()
            alive = self._alive(output, probability, areas, slices, ends)
            scores = output.object_score.float().sigmoid().tolist()
            # To the host: what was found must not fill the device, however long the scan is.
            stored = (probability * alive[:, None, None]).to(torch.float16).cpu()
            living = alive.tolist()
            for row, run in enumerate(runs):
                track = Track(stored[row], scores[row], number, run.length() + 1 if run.far else 0)
                tracks[run.owner].setdefault(slices[row], []).append(track)
            onward = [r for r, run in enumerate(runs) if living[r] and run.length() > number]
            yield sum(1 if r in onward else run.length() - number + 1 for r, run in enumerate(runs))
            for row, run in enumerate(runs):
                if not living[row]:
                    _fill_ended(tracks[run.owner], run, number, stored[row])
            if len(onward) < len(runs):
                bank, areas = _take(bank, onward), areas[onward]
            runs = [runs[r] for r in onward]

    def _open_bank(self, window: Window, runs: list[_Run]) -> tuple[MemoryBank, Tensor]:
        """Memory of each run's anchors, and the area of its first one as a share of the slice."""
        bank = self._new_bank()
        areas = None
        for number, anchors in ((0, [r.start for r in runs]), (FAR_AHEAD, [r.far for r in runs if r.far])):
            if not anchors:
                continue
            pyramid = self.pyramids(window, [anchor.index for anchor in anchors])
            masks = torch.stack([anchor.mask.to(pyramid.maps[0].device) for anchor in anchors])
            with self.context():
                output = self.tracker.prompt_mask(pyramid, masks)
                memory = self.tracker.memorise(pyramid, output, number, conditioning=True)
            bank = bank.add(memory)
            if areas is None:
                areas = (output.logits > 0).float().mean((1, 2))
        assert areas is not None, "a batch of runs is never empty"
        return bank, areas

    def _new_bank(self) -> MemoryBank:
        bank = self.tracker.new_bank(self.count)
        if self.frames is None:
            return bank
        recent, pointers = min(bank.recent, self.frames - 2), min(bank.pointers, self.frames)
        return replace(bank, recent=recent, pointers=pointers)

    def _remember(self, bank: MemoryBank, memory: Memory) -> MemoryBank:
        """Bank with what was found on a slice; it becomes the anchor of what follows where that is wanted."""
        if not self.rebase or self.frames is None or memory.slice_index < self.frames - 1:
            return bank.add(memory)
        far = tuple(anchor for anchor in bank.anchors if anchor.slice_index == FAR_AHEAD)
        return replace(bank, memories=(replace(memory, slice_index=0, conditioning=True), *far))

    def _alive(
        self, output: TrackOutput, probability: Tensor, areas: Tensor, slices: list[int], ends: EndRule
    ) -> Tensor:
        """The end-of-object test: (runs,) bool."""
        inside = probability > 0.5
        area = inside.float().mean((1, 2))
        alive = (output.object_score.float().sigmoid() >= ends.score) & (area > ends.area_share * areas)
        for row, index in enumerate(slices):
            if (blocked := ends.blocked.get(index)) is not None:
                alive[row] &= (inside[row] & blocked).sum() <= inside[row].sum() / 2
        return alive


def _plan_runs(owner: int, anchors: Sequence[Anchor], limit: tuple[int, int]) -> list[_Run]:
    ordered = sorted(anchors, key=lambda anchor: anchor.index)
    runs = []
    for n, anchor in enumerate(ordered):
        if not anchor.starts:
            continue
        after = ordered[n + 1] if n + 1 < len(ordered) else None
        before = ordered[n - 1] if n else None
        runs.append(_Run(owner, anchor, +1, after.index - 1 if after else limit[1], after))
        runs.append(_Run(owner, anchor, -1, before.index + 1 if before else limit[0], before))
    return [run for run in runs if (run.last - run.start.index) * run.step > 0]


def _fill_ended(found: dict[int, list[Track]], run: _Run, number: int, like: Tensor) -> None:
    """A run that has ended says "absent" for the rest of its way, so that the other direction is weighed
    against it."""
    if run.far is None:
        return
    nothing = torch.zeros_like(like)
    for later in range(number + 1, run.length() + 1):
        track = Track(nothing, 0.0, later, run.length() + 1)
        found.setdefault(run.slice_at(later), []).append(track)


def _take(bank: MemoryBank, rows: list[int]) -> MemoryBank:
    """Bank of some of its objects."""
    return replace(bank, memories=tuple(_take_memory(memory, rows) for memory in bank.memories))


def _take_memory(memory: Memory, rows: list[int]) -> Memory:
    return replace(
        memory,
        features=None if memory.features is None else memory.features[rows],
        pointer=memory.pointer[rows],
        object_score=memory.object_score[rows],
    )
