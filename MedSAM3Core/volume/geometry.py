"""Where the voxels of a grid are in the patient.

Frames: ``ijk`` are voxel indices (column, row, slice), the centre of the first voxel is (0, 0, 0); ``RAS`` is
the patient frame of Slicer and NIfTI in mm (x to the right, y to the front, z to the head); ``LPS`` is that
of DICOM and ITK, with the first two axes turned round. Affines are 4x4, float64, and map homogeneous ijk to
mm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from MedSAM3Core.errors import VolumeError

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Geometry:
    """A voxel grid.

    Attributes:
        shape: (slices, rows, columns), that is (k, j, i).
        ijk_to_ras: 4x4 affine from voxel indices (i, j, k) to RAS in mm.
    """

    shape: tuple[int, int, int]
    ijk_to_ras: np.ndarray

    def __post_init__(self) -> None:
        affine = np.array(self.ijk_to_ras, dtype=np.float64)
        if affine.shape != (4, 4):
            raise VolumeError(f"The affine has shape {affine.shape}; expected 4x4, ijk to RAS in mm.")
        if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
            raise VolumeError(
                f"The affine {affine.tolist()} cannot be inverted; expected a 4x4 ijk-to-RAS matrix."
            )
        affine.setflags(write=False)
        object.__setattr__(self, "ijk_to_ras", affine)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))

    @classmethod
    def identity(cls, shape: tuple[int, int, int]) -> Geometry:
        """Grid of 1 mm voxels at the origin."""
        return cls(shape, np.eye(4))

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size along (i, j, k) in mm."""
        return tuple(float(n) for n in np.linalg.norm(self.ijk_to_ras[:3, :3], axis=0))  # type: ignore[return-value]

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return float(abs(np.linalg.det(self.ijk_to_ras[:3, :3]))) / 1000.0

    def same_grid(self, other: Geometry, tolerance_mm: float = 1e-3) -> bool:
        """Whether both grids have the same shape and agree on each corner to within ``tolerance_mm``."""
        if self.shape != other.shape:
            return False
        k, j, i = (n - 1 for n in self.shape)
        corners = np.array([[a, b, c, 1] for a in (0, i) for b in (0, j) for c in (0, k)], dtype=float).T
        return bool(np.abs((self.ijk_to_ras - other.ijk_to_ras) @ corners).max() <= tolerance_mm)
