"""A volume: voxels, where they are in the patient, and what is known about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from MedSAM3Core.errors import VolumeError
from MedSAM3Core.plurals import counted
from MedSAM3Core.volume.geometry import Geometry
from MedSAM3Core.volume.modality import infer_modality


@dataclass(frozen=True, eq=False)
class Volume:
    """One volume, or one 2D image as a volume of one slice. Made by `Volume.from_array` or `read_volume`,
    which check it.

    Attributes:
        array: (slices, rows, columns) or, in colour, (slices, rows, columns, 3); finite numbers.
        geometry: The grid: its shape and its place in the patient.
        modality: "CT", "MR", "PT", "US", "XR", "OCT", "FUNDUS", "DERM", "HISTO", "ENDO", ..., or None when
            not known.
        name: What to call it, usually the file's name without its suffix.
        source: The file or folder it was read from.
        files: The DICOM files of its slices, in the order of the slices; empty for other formats.
        body_part: DICOM's Body Part Examined, upper case, or None.
        time_s: Seconds since the first volume of its sequence, 0 when it is no part of one.
        calibrated: Whether the voxels' size and place are known; in photographs they are not, and then millimetres,
            millilitres and directions mean nothing.
        notices: Sentences for the user about what was set aside or assumed while reading.
    """

    array: np.ndarray
    geometry: Geometry
    modality: str | None = None
    name: str = ""
    source: Path | None = None
    files: tuple[Path, ...] = ()
    body_part: str | None = None
    time_s: float = 0.0
    calibrated: bool = True
    notices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.array.shape[:3] != self.geometry.shape:
            raise VolumeError(
                f"The array has shape {self.array.shape}, its geometry {self.geometry.shape}; "
                "expected the same slices, rows and columns."
            )

    @classmethod
    def from_array(
        cls,
        array: np.ndarray,
        spacing: Sequence[float] | None = None,
        ijk_to_ras: np.ndarray | None = None,
        modality: str | None = None,
        name: str = "array",
        rgb: bool | None = None,
    ) -> Volume:
        """Volume of a numpy array.

        Args:
            array: (rows, columns), (slices, rows, columns), (rows, columns, 3) or (slices, rows, columns, 3).
                Three axes with exactly three uint8 samples along the last are taken as one colour image
                unless ``rgb`` says otherwise.
            spacing: Voxel size along (i, j, k), that is columns, rows, slices, in mm; 1 mm when absent. The
                volume then lies as an axial scan does: columns to the patient's left, rows to the back,
                slices to the head.
            ijk_to_ras: 4x4 affine from voxel indices (i, j, k) to RAS in mm; excludes ``spacing``.
            modality: For example "CT"; None when not known, and then CT is recognised by its Hounsfield
                units.
            name: What to call it.
            rgb: Whether the last axis is colour; None decides by the shape.

        Raises:
            VolumeError: If the array cannot be a volume or holds NaN or infinite values, or both affine and
                spacing are given.
        """
        voxels = check_array(array, rgb)
        if ijk_to_ras is not None and spacing is not None:
            raise VolumeError(
                "Both spacing and ijk_to_ras are given; the affine holds the spacing, give one of them."
            )
        affine = axial_affine(spacing or (1.0, 1.0, 1.0)) if ijk_to_ras is None else np.asarray(ijk_to_ras)
        shape = (voxels.shape[0], voxels.shape[1], voxels.shape[2])
        known = spacing is not None or ijk_to_ras is not None
        return cls(
            voxels, Geometry(shape, affine), modality or infer_modality(voxels), name, calibrated=known
        )

    @property
    def is_rgb(self) -> bool:
        """Whether the voxels are colours."""
        return self.array.ndim == 4

    @property
    def is_2d(self) -> bool:
        """Whether there is one slice only."""
        return self.geometry.shape[0] == 1


def axial_affine(spacing: Sequence[float]) -> np.ndarray:
    """4x4 ijk-to-RAS affine of an axial scan at the origin: columns to the left, rows to the back, slices to
    the head.

    Args:
        spacing: Voxel size along (i, j) or (i, j, k) in mm.

    Raises:
        VolumeError: If it does not hold two or three positive numbers.
    """
    sizes = [float(n) for n in spacing]
    if len(sizes) not in (2, 3) or not all(np.isfinite(n) and n > 0 for n in sizes):
        raise VolumeError(
            f"The spacing is {tuple(sizes)}; expected three positive numbers in mm, along i, j and k."
        )
    return np.diag([-sizes[0], -sizes[1], sizes[2] if len(sizes) == 3 else 1.0, 1.0])


def check_array(array: np.ndarray, rgb: bool | None = None) -> np.ndarray:
    """Bring an array into the form that `Volume` holds.

    Args:
        array: As for `Volume.from_array`.
        rgb: Whether the last axis is colour; None decides by the shape.

    Returns:
        (slices, rows, columns) or (slices, rows, columns, 3) in native byte order; a view where possible.

    Raises:
        VolumeError: If it has another number of axes or channels, no or one voxel, or values that are not
            finite numbers.
    """
    array = np.asarray(array)
    if array.dtype.kind not in "biuf":
        raise VolumeError(f"The voxels are of type {array.dtype}; expected real numbers.")
    if rgb is None:
        rgb = array.ndim == 4 or (array.ndim == 3 and array.shape[-1] == 3 and array.dtype == np.uint8)
    spatial = array.ndim - bool(rgb)
    if spatial not in (2, 3):
        raise VolumeError(f"The array has shape {array.shape}; expected (slices, rows, columns[, 3]).")
    if rgb and array.shape[-1] != 3:
        raise VolumeError(
            f"The image has {array.shape[-1]} channels; expected 1 (grey) or 3 (red, green, blue)."
        )
    voxels = array if spatial == 3 else array[np.newaxis]
    _check_size(voxels.shape[:3])
    voxels = _native(voxels)
    _check_finite(voxels)
    return voxels


def _check_size(shape: tuple[int, ...]) -> None:
    if 0 in shape:
        raise VolumeError(
            f"The volume has no voxels: its shape is {tuple(shape)}; expected at least two voxels."
        )
    if shape == (1, 1, 1):
        raise VolumeError("The volume has a single voxel; expected at least two voxels.")


def _native(voxels: np.ndarray) -> np.ndarray:
    if voxels.dtype == bool:
        return voxels.astype(np.uint8)
    if voxels.dtype == np.float16:
        return voxels.astype(np.float32)
    return voxels.astype(voxels.dtype.newbyteorder("="), copy=False)


def _check_finite(voxels: np.ndarray) -> None:
    if voxels.dtype.kind != "f":
        return
    bad = [(k, int(plane.size - np.isfinite(plane).sum())) for k, plane in enumerate(voxels)]
    slices = [k for k, count in bad if count]
    if slices:
        count = sum(count for _, count in bad)
        raise VolumeError(
            f"{counted(count, 'voxel is', 'voxels are')} NaN or infinite, the first on slice {slices[0]}; "
            "expected finite numbers: replace them, for example by the background's value."
        )
