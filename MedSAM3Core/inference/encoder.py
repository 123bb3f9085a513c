"""Slices to features: computed in one place, once, in batches, into a store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from MedSAM3Core.inference.compiling import CompiledTrunk
from MedSAM3Core.inference.disk import DiskFeatures
from MedSAM3Core.inference.features import FeatureKey, FeatureStore, Kind
from MedSAM3Core.inference.heads import Heads, PlainHeads, SharedHeads
from MedSAM3Core.inference.precision import Precision
from MedSAM3Core.inference.preprocess import to_pixels
from MedSAM3Core.inference.rotation import use_complex_rotation
from MedSAM3Core.inference.settings import InferenceSettings
from MedSAM3Core.models.network import ConceptNetwork, Pyramid
from MedSAM3Core.models.tracker import Tracker
from MedSAM3Core.windowing import Window

StepCallback = Callable[[int, int], None]
"""Receives units finished and units in all; may raise `Cancelled`."""


@dataclass(frozen=True)
class Work:
    """What has been computed so far.

    Attributes:
        slices: Slices that went through the vision encoder.
        pairs: Pairs of slice and phrase that went through the detector.
        steps: Slices that the tracker was taken to, each object and direction on its own.
    """

    slices: int
    pairs: int
    steps: int


class Encoder:
    """Features of the slices of one volume, by window.

    Args:
        network: Encoder and necks.
        tracker: Has its own neck; None when propagation is not wanted.
        slices: The volume in the plane frame, (slices, rows, columns[, 3]), before windowing.
        store: Where features are kept.
        precision: Arithmetic to run in.
        settings: Batch size, and what to keep.
        disk: Where trunk outputs are also kept; None keeps none.
    """

    def __init__(
        self,
        network: ConceptNetwork,
        tracker: Tracker | None,
        slices: np.ndarray,
        store: FeatureStore,
        precision: Precision,
        settings: InferenceSettings,
        disk: DiskFeatures | None = None,
    ) -> None:
        self.disk = disk
        self.network = network
        self.tracker = tracker
        self.slices = slices
        self.store = store
        self.precision = precision
        self.settings = settings
        self.heads: Heads = PlainHeads(network)
        if settings.share and isinstance(network, ConceptNetwork):
            self.heads = SharedHeads(network)
            use_complex_rotation(network)
        self._run_trunk: Callable[[Tensor], Tensor] = network.trunk
        if settings.compile and isinstance(network, ConceptNetwork):
            self._run_trunk = CompiledTrunk(network, settings.batch_slices)
        self.encoded = self.detected = 0
        self._positions: dict[Kind, tuple[Tensor, ...]] = {}

    def missing(self, window: Window, indices: Sequence[int]) -> list[int]:
        """Slices whose trunk output has to be computed, in ascending order."""
        token = window_token(window)
        return [n for n in sorted(set(indices)) if FeatureKey(token, n, "trunk") not in self.store]

    @torch.inference_mode()
    def prefetch(self, window: Window, indices: Sequence[int], step: StepCallback | None = None) -> None:
        """Encode those slices that are not in the store yet, batch by batch.

        Args:
            window: Intensity window.
            indices: Slices in the plane frame.
            step: Told after every batch.
        """
        missing = self.missing(window, indices)
        for start in range(0, len(missing), self.settings.batch_slices):
            batch = missing[start : start + self.settings.batch_slices]
            self._encode(window, batch)
            if step is not None:
                step(start + len(batch), len(missing))

    def detector_pyramid(self, window: Window, indices: Sequence[int]) -> Pyramid:
        """The detector's pyramid of some slices as `heads` wants it, one batch entry each, in the order given."""
        return self._pyramid(window, indices, "detector")

    def tracker_pyramid(self, window: Window, indices: Sequence[int]) -> Pyramid:
        """The tracker's reduced pyramid of some slices, one batch entry each, in the order given."""
        return self._pyramid(window, indices, "tracker")

    @torch.inference_mode()
    def _pyramid(self, window: Window, indices: Sequence[int], kind: Kind) -> Pyramid:
        token = window_token(window)
        held: dict[int, tuple[Tensor, ...]] = {}
        for index in dict.fromkeys(indices):
            maps = self.store.get(FeatureKey(token, index, kind))
            if maps is not None:
                held[index] = maps
        wanted = [n for n in dict.fromkeys(indices) if n not in held]
        for start in range(0, len(wanted), self.settings.batch_slices):
            batch = wanted[start : start + self.settings.batch_slices]
            maps = self._run_neck(self._trunk(window, batch), kind)
            for row, index in enumerate(batch):
                held[index] = tuple(level[row : row + 1] for level in maps)
                if self.settings.keep == "pyramid":
                    # Cloned: a view would keep the whole batch alive past its bytes in the store's count.
                    self.store.put(FeatureKey(token, index, kind), tuple(m.clone() for m in held[index]))
        levels = zip(*(held[n] for n in indices), strict=True)
        positions = tuple(p.expand(len(indices), -1, -1, -1) for p in self._positions[kind])
        return Pyramid(tuple(torch.cat(level) for level in levels), positions)

    def _run_neck(self, trunk: Tensor, kind: Kind) -> tuple[Tensor, ...]:
        with self.precision.context():
            if kind == "detector":
                pyramid = self.heads.prepare(self.network.detector_pyramid(trunk))
            elif self.tracker is not None:
                pyramid = self.tracker.pyramid(trunk)
            else:
                raise ValueError("The encoder was made without a tracker; it has no tracker pyramid.")
        if kind not in self._positions:
            self._positions[kind] = tuple(p[:1] for p in pyramid.positions)
        return pyramid.maps

    def _trunk(self, window: Window, indices: Sequence[int]) -> Tensor:
        token = window_token(window)
        rows = {n: self.store.get(FeatureKey(token, n, "trunk")) for n in indices}
        if missing := [n for n in indices if rows[n] is None]:
            encoded = self._encode(window, missing)
            rows.update({n: (encoded[row : row + 1],) for row, n in enumerate(missing)})
        return torch.cat([tensors[0] for tensors in rows.values() if tensors is not None])

    def _encode(self, window: Window, indices: Sequence[int]) -> Tensor:
        images = window.apply(np.stack([self.slices[n] for n in indices]))
        rows = self._recall(images)
        if missing := [row for row in range(len(indices)) if row not in rows]:
            computed = self._compute(images[missing])
            rows.update({row: computed[n : n + 1] for n, row in enumerate(missing)})
            if self.disk is not None:
                for row in missing:
                    self.disk.write(self.disk.key(images[row]), rows[row])
        token = window_token(window)
        for row, index in enumerate(indices):
            # Cloned: a view would keep the whole batch alive past its bytes in the store's count.
            self.store.put(FeatureKey(token, index, "trunk"), (rows[row].clone(),))
        return torch.cat([rows[row] for row in range(len(indices))])

    def _recall(self, images: np.ndarray) -> dict[int, Tensor]:
        """Trunk outputs that are on disk, by their place in ``images``, on the device."""
        if self.disk is None:
            return {}
        found = {}
        for row, image in enumerate(images):
            tensor = self.disk.read(self.disk.key(image))
            if tensor is not None and self.precision.adopt(tensor.dtype):
                found[row] = tensor.to(self.store.device)
        return found

    def _compute(self, images: np.ndarray) -> Tensor:
        pixels = to_pixels(images, self.network.image_size, self.store.device)
        self.precision.settle(self.network.trunk, pixels[:1])
        with self.precision.context():
            trunk = self._run_trunk(pixels)
        self.encoded += len(images)
        # bfloat16 trunk outputs come in float32 from the last norm; half of that is kept without loss of
        # parity.
        return trunk.to(self.precision.dtype)


def window_token(window: Window) -> str:
    """What distinguishes one window from another in feature keys: its numbers, not its name or reason."""
    return f"{window.low:g},{window.high:g}" + (",slice" if window.per_slice else "")
