"""A store of what was computed once from a slice, bounded in bytes on the device and in host memory."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["trunk", "detector", "tracker"]


@dataclass(frozen=True)
class FeatureKey:
    """What a feature belongs to; volume, axis, resolution and model are those of the session that owns the store.

    Attributes:
        window: Token of the intensity window.
        index: Slice in the plane frame.
        kind: The trunk's output, or the detector's or tracker's pyramid.
    """

    window: str
    index: int
    kind: Kind


@dataclass(frozen=True)
class StoreReport:
    """What a store holds and how it served.

    Attributes:
        device_entries: Entries on the device.
        device_bytes: Their bytes.
        host_entries: Entries spilled to host memory.
        host_bytes: Their bytes.
        hits: Requests served.
        misses: Requests for what had to be computed.
        spilled: Entries moved from the device to host memory so far.
        dropped: Entries given up so far; they are computed again when wanted.
    """

    device_entries: int
    device_bytes: int
    host_entries: int
    host_bytes: int
    hits: int
    misses: int
    spilled: int
    dropped: int


class FeatureStore:
    """Least recently used features leave the device first, then host memory; pyramids leave before any trunk.

    A pyramid is made again from the trunk's output at a fraction of the encoder's cost, a trunk's output is
    not. On a CPU both memories are one: what leaves the device is dropped.

    Args:
        device: Where features are used.
        device_bytes: Most bytes kept there. One entry that is larger is not kept at all.
        host_bytes: Most bytes kept in host memory beside it.
    """

    def __init__(self, device: torch.device | str, device_bytes: int, host_bytes: int = 0) -> None:
        self.device = torch.device(device)
        self.device_bytes = device_bytes
        self.host_bytes = 0 if self.device.type == "cpu" else host_bytes
        self._near: OrderedDict[FeatureKey, tuple[Tensor, ...]] = OrderedDict()
        self._far: OrderedDict[FeatureKey, tuple[Tensor, ...]] = OrderedDict()
        self._near_bytes = self._far_bytes = 0
        self._hits = self._misses = self._spilled = self._dropped = 0

    def __contains__(self, key: FeatureKey) -> bool:
        return key in self._near or key in self._far

    def put(self, key: FeatureKey, tensors: tuple[Tensor, ...]) -> None:
        """Keep the tensors of one slice, letting older ones go where the bounds say so."""
        self.discard(key)
        size = _bytes(tensors)
        if size > self.device_bytes:
            self._dropped += 1
            return
        self._near[key] = tensors
        self._near_bytes += size
        while self._near_bytes > self.device_bytes:
            self._spill()

    def get(self, key: FeatureKey) -> tuple[Tensor, ...] | None:
        """Tensors on the device, or None where they are not held; counts as a use."""
        if key in self._near:
            self._near.move_to_end(key)
            self._hits += 1
            return self._near[key]
        if key in self._far:
            tensors = tuple(t.to(self.device, non_blocking=True) for t in self._far[key])
            self._hits += 1
            self.put(key, tensors)
            return tensors
        self._misses += 1
        return None

    def discard(self, key: FeatureKey) -> None:
        """Forget one entry, if it is there."""
        if key in self._near:
            self._near_bytes -= _bytes(self._near.pop(key))
        if key in self._far:
            self._far_bytes -= _bytes(self._far.pop(key))

    def clear(self) -> None:
        """Forget everything."""
        self._near.clear()
        self._far.clear()
        self._near_bytes = self._far_bytes = 0

    def report(self) -> StoreReport:
        """What is held now."""
        return StoreReport(
            len(self._near),
            self._near_bytes,
            len(self._far),
            self._far_bytes,
            self._hits,
            self._misses,
            self._spilled,
            self._dropped,
        )

    def _spill(self) -> None:
        key = _first_to_go(self._near)
        tensors = self._near.pop(key)
        size = _bytes(tensors)
        self._near_bytes -= size
        if size > self.host_bytes:
            self._dropped += 1
            return
        self._far[key] = tuple(_to_pinned(t) for t in tensors)
        self._far_bytes += size
        self._spilled += 1
        while self._far_bytes > self.host_bytes:
            self._far_bytes -= _bytes(self._far.pop(_first_to_go(self._far)))
            self._dropped += 1


def _first_to_go(entries: OrderedDict[FeatureKey, tuple[Tensor, ...]]) -> FeatureKey:
    return next((key for key in entries if key.kind != "trunk"), next(iter(entries)))


def _bytes(tensors: tuple[Tensor, ...]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _to_pinned(tensor: Tensor) -> Tensor:
    # Pinned, so that the way back overlaps with computing.
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=torch.cuda.is_available())
    return host.copy_(tensor)
