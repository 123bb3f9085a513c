"""What the tracker remembers of objects, and what it says of them; values, without a network.

Which memories are attended from a slice, and how far back, is the published code's rule
(facebookresearch/sam3, model/sam3_tracker_base.py and model/sam3_tracker_utils.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Memory:
    """What is kept of a batch of objects on one slice.

    Attributes:
        slice_index: The slice.
        features: (objects, memory channels, height, width), or None once the slice is too far away to be attended.
        positions: (1, memory channels, height, width) sine encoding, or None with the features.
        pointer: (objects, channels), the object as one token.
        conditioning: Whether the slice was prompted (an anchor) and not tracked.
        object_score: (objects,) logit that the object is on the slice.
    """

    slice_index: int
    features: Tensor | None
    positions: Tensor | None
    pointer: Tensor
    conditioning: bool
    object_score: Tensor

    def without_features(self) -> Memory:
        """Only the pointer of this memory."""
        return replace(self, features=None, positions=None)


@dataclass(frozen=True, eq=False)
class TrackOutput:
    """What the tracker says of a batch of objects on one slice.

    Attributes:
        logits: (objects, height, width) mask logits at four times the token grid, of the best candidate.
        object_score: (objects,) logit that the object is on the slice at all.
        pointer: (objects, channels), the object as one token.
        candidates: (objects, candidates, height, width) mask logits: three, or one where the prompt leaves no doubt.
        ious: (objects, candidates) predicted overlap of each candidate with the object, 0..1.
    """

    logits: Tensor
    object_score: Tensor
    pointer: Tensor
    candidates: Tensor
    ious: Tensor


@dataclass(frozen=True, eq=False)
class MemoryBank:
    """The memories of a batch of objects; adding one gives another bank.

    What no later slice can use is dropped when a slice is added: features further back than the recent memories
    reach, pointers further back than pointers reach. Anchors stay. So a bank is bounded by its anchors plus a
    constant, however long the volume is.

    Attributes:
        slices: Slices of the volume along the slicing axis (scales the time encoding of short volumes).
        memories: In the order in which they were added.
        anchors_attended: Most anchors that are attended from one slice; the nearest on both sides come first.
        recent: Slices before the current one whose features are attended (the published 7 memories less one).
        pointers: Slices whose pointers are attended, the current one counted (the published 16).
    """

    slices: int
    memories: tuple[Memory, ...] = ()
    anchors_attended: int = 4
    recent: int = 6
    pointers: int = 16

    @property
    def anchors(self) -> tuple[Memory, ...]:
        """The prompted slices."""
        return tuple(m for m in self.memories if m.conditioning)

    def add(self, memory: Memory) -> MemoryBank:
        """Bank with ``memory`` in it, in the place of what it held of that slice, without what will not be used."""
        kept = [m for m in self.memories if m.slice_index != memory.slice_index]
        if not memory.conditioning:
            kept = [k for m in kept if (k := self._aged(m, memory.slice_index)) is not None]
        return replace(self, memories=(*kept, memory))

    def forget_around(self, slice_index: int) -> MemoryBank:
        """Bank without the tracked slices near a slice that has been corrected: they hold what was wrong.

        The published code does this when a single object is corrected.
        """
        reach = self.recent + 1
        kept = (m for m in self.memories if m.conditioning or abs(m.slice_index - slice_index) > reach)
        return replace(self, memories=tuple(kept))

    def only_anchors(self) -> MemoryBank:
        """Bank to start in the other direction with."""
        return replace(self, memories=self.anchors)

    def _aged(self, memory: Memory, newest: int) -> Memory | None:
        """What later slices can still use of a tracked memory; the next slice is one further than ``newest``."""
        offset = abs(newest - memory.slice_index) + 1
        if memory.conditioning or offset <= self.recent:
            return memory
        return memory.without_features() if offset < self.pointers else None

    def select_anchors(self, slice_index: int) -> tuple[Memory, ...]:
        """Up to ``anchors_attended`` anchors: the nearest before, the nearest from here on, then the nearest."""
        anchors = self.anchors
        if len(anchors) <= self.anchors_attended:
            return anchors
        before = [m for m in anchors if m.slice_index < slice_index]
        after = [m for m in anchors if m.slice_index >= slice_index]
        chosen = []
        if before:
            chosen.append(max(before, key=lambda m: m.slice_index))
        if after:
            chosen.append(min(after, key=lambda m: m.slice_index))
        others = sorted(
            (m for m in anchors if m not in chosen), key=lambda m: abs(m.slice_index - slice_index)
        )
        return tuple(chosen + others[: self.anchors_attended - len(chosen)])

    def select_recent(self, slice_index: int, reverse: bool) -> tuple[tuple[int, Memory], ...]:
        """Memories behind the slice in the direction of travel, by their offset 1, 2, ... from it.

        Anchors that `select_anchors` left out count as tracked slices here, as in the published code.
        """
        selected = {id(m) for m in self.select_anchors(slice_index)}
        sign = -1 if reverse else 1
        behind = {
            offset: memory
            for memory in self.memories
            if id(memory) not in selected
            and 0 < (offset := (slice_index - memory.slice_index) * sign) < self.pointers
        }
        return tuple(sorted(behind.items()))
