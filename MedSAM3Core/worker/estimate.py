"""How much memory a run will need, told before it starts. Arithmetic on sizes; no torch.

What the feature store will hold follows from its shapes. What a batch needs while it is computed is counted from the
largest tensors that live together, in float32; it is an estimate, and was not measured on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

_TRUNK_TENSORS = 12
"""Of a vision block at once: input, norm, query, key, value, output, and the MLP's, which is 4.6 times as wide."""
_PAIR_MAPS = 85
"""Of a pair of slice and concept, in token grids of the detector's width: its pyramid (21), the pixel decoder's three
finest maps (48), one layer of the DETR encoder with its MLP (16)."""
_BYTES_A_VOXEL = 24
"""Of a run in host memory: probability, logits and mask on the way, in and out of the plane frame."""
_BYTES_A_RESULT_VOXEL = 3
"""Mask and float16 probability, for each concept."""


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a network.

    Attributes:
        tokens: Side of the token grid (72 at 1008 px with patches of 14).
        trunk: Channels of the vision transformer.
        width: Channels of the detector and the tracker.
        bytes_a_number: 4, or 2 where features are kept in bfloat16.
    """

    tokens: int
    trunk: int
    width: int
    bytes_a_number: int = 4

    @property
    def slice_bytes(self) -> int:
        """What the store holds of one slice: the trunk's output and both pyramids."""
        detector = 21 * self.width
        tracker = (16 // 8 + 4 // 4 + 1) * self.width
        return self.tokens**2 * (self.trunk + detector + tracker) * self.bytes_a_number


@dataclass(frozen=True)
class RunSizes:
    """Sizes of a run.

    Attributes:
        slices: Of the volume along its slicing axis.
        voxels: Of the volume.
        concepts: That are asked for together.
        batch_slices: Encoded at once.
        batch_pairs: Detected at once.
        device_bytes: Most that the store keeps on the device.
        host_bytes: Most that it keeps in host memory beside it.
    """

    slices: int
    voxels: int
    concepts: int
    batch_slices: int
    batch_pairs: int
    device_bytes: int
    host_bytes: int


def device_need(model: ModelSizes, run: RunSizes) -> int:
    """Bytes on the device: kept features, and the larger of an encoder's and a detector's batch."""
    features = min(run.slices * model.slice_bytes, run.device_bytes)
    grid = model.tokens**2 * 4
    encoding = min(run.batch_slices, run.slices) * grid * model.trunk * _TRUNK_TENSORS
    detecting = min(run.batch_pairs, run.slices * run.concepts) * grid * model.width * _PAIR_MAPS
    return features + max(encoding, detecting)


def host_need(model: ModelSizes, run: RunSizes) -> int:
    """Bytes in host memory beside the device's: spilled features, the run's arrays, the results."""
    spilled = max(0, run.slices * model.slice_bytes - run.device_bytes)
    arrays = run.voxels * (_BYTES_A_VOXEL + run.concepts * _BYTES_A_RESULT_VOXEL)
    return min(spilled, run.host_bytes) + arrays
