"""How well one mask answers another: overlap, and the distance of their surfaces.

Definitions, so that figures can be compared: the surface of a mask are its voxels with a face outside of it; HD95 is
the larger of the two directed 95th percentiles; NSD is the share of both surfaces that lies within a tolerance of the
other (Maier-Hein, Reinke et al., Metrics Reloaded, Nat Methods 2024; Nikolov et al. 2021 for NSD). The tests compare
them with SimpleITK's own filters and with MONAI on the same masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

PERCENTILE = 95.0


@dataclass(frozen=True)
class Overlap:
    """Two masks voxel by voxel.

    Attributes:
        answer: Voxels of the answer.
        reference: Voxels of the reference.
        common: Voxels of both.
    """

    answer: int
    reference: int
    common: int

    @classmethod
    def of(cls, answer: np.ndarray, reference: np.ndarray) -> Overlap:
        """Count two boolean masks of one shape."""
        return cls(int(answer.sum()), int(reference.sum()), int(np.count_nonzero(answer & reference)))

    @property
    def dice(self) -> float:
        """Twice the common part over both; 1 when both are empty."""
        total = self.answer + self.reference
        return 2 * self.common / total if total else 1.0

    @property
    def iou(self) -> float:
        """The common part over the union; 1 when both are empty."""
        union = self.answer + self.reference - self.common
        return self.common / union if union else 1.0

    @property
    def precision(self) -> float:
        """Share of the answer that is right; 1 for an empty answer."""
        return self.common / self.answer if self.answer else 1.0

    @property
    def recall(self) -> float:
        """Share of the reference that was found; 1 for an empty reference."""
        return self.common / self.reference if self.reference else 1.0


@dataclass(frozen=True)
class SurfaceDistance:
    """Two surfaces.

    Attributes:
        hd95: Hausdorff distance, 95th percentile, in the spacing's unit; None when one mask is empty.
        nsd: Normalised surface Dice, 0..1; 0 when one mask is empty.
    """

    hd95: float | None
    nsd: float


def surface_distance(
    answer: np.ndarray, reference: np.ndarray, spacing: Sequence[float], tolerance: float
) -> SurfaceDistance | None:
    """Compare the surfaces of two masks.

    Args:
        answer: Boolean (slices, rows, columns) or (rows, columns); one slice is judged as a plane.
        reference: The same shape.
        spacing: Size of a voxel along each array axis: (slice, row, column) or (row, column).
        tolerance: Distance that NSD forgives, in the spacing's unit.

    Returns:
        The distances; None when both masks are empty, and there is no surface to speak of.
    """
    if answer.ndim == 3 and answer.shape[0] == 1:
        return surface_distance(answer[0], reference[0], spacing[-2:], tolerance)
    if not answer.any() or not reference.any():
        return None if answer.any() == reference.any() else SurfaceDistance(None, 0.0)
    window = _common_window(answer | reference)
    ours, theirs = surface(answer[window]), surface(reference[window])
    to_theirs = ndimage.distance_transform_edt(~theirs, sampling=spacing)[ours]
    to_ours = ndimage.distance_transform_edt(~ours, sampling=spacing)[theirs]
    near = np.count_nonzero(to_theirs <= tolerance) + np.count_nonzero(to_ours <= tolerance)
    return SurfaceDistance(
        float(max(np.percentile(to_theirs, PERCENTILE), np.percentile(to_ours, PERCENTILE))),
        near / (len(to_theirs) + len(to_ours)),
    )


def surface(mask: np.ndarray) -> np.ndarray:
    """Voxels of a mask with a face outside of it; the edge of the image counts as outside."""
    return mask & ~ndimage.binary_erosion(mask)


def _common_window(mask: np.ndarray) -> tuple[slice, ...]:
    """Smallest window that holds a mask: distances between what is in it do not depend on what is around it."""
    return ndimage.find_objects(mask.astype(np.uint8))[0]
