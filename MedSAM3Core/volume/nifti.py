"""NIfTI-1 and NIfTI-2, read and written with nothing lost and nothing made up (decision record 001).

SimpleITK 2.5.7 returns zeros for the missing part of a truncated ``.nii`` or ``.nii.gz`` and for a damaged
one, without an error, and turns a sheared grid (gantry tilt) into the nearest orthogonal one. So the format,
whose header is a C structure, is read here. Source: the NIfTI-1 and NIfTI-2 definitions,
https://nifti.nimh.nih.gov.
"""

from __future__ import annotations

import gzip
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from MedSAM3Core.errors import VolumeError
from MedSAM3Core.volume.raw import MAX_DEFLATE_RATIO, RawImage, read_exactly, read_to_end
from MedSAM3Core.volume.volume import axial_affine

_TYPES: dict[int, tuple[str, int]] = {
    2: ("u1", 1),
    4: ("i2", 1),
    8: ("i4", 1),
    16: ("f4", 1),
    64: ("f8", 1),
    128: ("u1", 3),
    256: ("i1", 1),
    512: ("u2", 1),
    768: ("u4", 1),
    1024: ("i8", 1),
    1280: ("u8", 1),
    2304: ("u1", 4),
}
"""NIfTI data type code to numpy type and samples per voxel."""

_MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_S_PER_UNIT = {0: 1.0, 8: 1.0, 16: 1e-3, 24: 1e-6}
_SCANNER = 1
_AGREE_MM = 1e-2
"""Two affines of one header closer than this are the same affine, once rounded by a quaternion and once not."""


@dataclass(frozen=True)
class _Layout:
    """Where NIfTI-1 or NIfTI-2 keeps its fields: ``struct`` formats and byte offsets."""

    size: int
    dim: tuple[str, int]
    datatype: tuple[str, int]
    pixdim: tuple[str, int]
    vox_offset: tuple[str, int]
    scaling: tuple[str, int]
    units: tuple[str, int]
    codes: tuple[str, int]
    quaternion: tuple[str, int]
    sform: tuple[str, int]
    magic: int


_NIFTI1 = _Layout(
    size=348,
    dim=("8h", 40),
    datatype=("h", 70),
    pixdim=("8f", 76),
    vox_offset=("f", 108),
    scaling=("2f", 112),
    units=("b", 123),
    codes=("2h", 252),
    quaternion=("6f", 256),
    sform=("12f", 280),
    magic=344,
)
_NIFTI2 = _Layout(
    size=540,
    dim=("8q", 16),
    datatype=("h", 12),
    pixdim=("8d", 104),
    vox_offset=("q", 168),
    scaling=("2d", 176),
    units=("i", 500),
    codes=("2i", 344),
    quaternion=("6d", 352),
    sform=("12d", 400),
    magic=4,
)


@dataclass(frozen=True, eq=False)
class _Header:
    dtype: np.dtype
    channels: int
    sizes: tuple[int, int, int, int]
    offset: int
    slope: float
    intercept: float
    affine: np.ndarray
    seconds: float

    @property
    def data_bytes(self) -> int:
        return int(np.prod([*self.sizes, self.channels], dtype=object)) * self.dtype.itemsize


def read_nifti(path: Path) -> RawImage:
    """Read ``.nii`` or ``.nii.gz``.

    Args:
        path: The file.

    Returns:
        Voxels with the header's scaling applied; the affine is exactly the header's.

    Raises:
        VolumeError: If the header cannot be true or the voxels are incomplete or damaged.
    """
    file_bytes = path.stat().st_size
    with path.open("rb") as probe:
        compressed = probe.read(2) == b"\x1f\x8b"
    with gzip.open(path, "rb") if compressed else path.open("rb") as stream:
        header = _parse_header(stream.read(_NIFTI2.size))
        limit = file_bytes * MAX_DEFLATE_RATIO if compressed else file_bytes
        if header.offset + header.data_bytes > limit:
            raise VolumeError(
                f"The file is cut short: its header promises {header.data_bytes} bytes of voxels, which cannot be in a "
                f"file of {file_bytes} bytes; copy it again."
            )
        stream.seek(header.offset)
        stored = np.frombuffer(read_exactly(stream, header.data_bytes), header.dtype)
        if compressed:
            read_to_end(stream)
    x, y, z, times = header.sizes
    shape = (times, z, y, x) + ((header.channels,) if header.channels > 1 else ())
    array = _scaled(stored.reshape(shape), header.slope, header.intercept)
    seconds = tuple(header.seconds * t for t in range(times)) if times > 1 and header.seconds > 0 else ()
    return RawImage(array, header.affine, times_s=seconds)


def _parse_header(block: bytes) -> _Header:
    layout, order = _layout(block)

    def field(spec: tuple[str, int]) -> tuple:
        return struct.unpack_from(order + spec[0], block, spec[1])

    (code,) = field(layout.datatype)
    if code not in _TYPES:
        raise VolumeError(f"The voxels have NIfTI data type {code}; expected whole or real numbers, or RGB.")
    name, channels = _TYPES[code]
    sizes, vector = _sizes([int(n) for n in field(layout.dim)])
    if vector > 1:
        raise VolumeError(
            f"The image has {vector} values per voxel (a vector field or a statistic); expected one, or RGB voxels."
        )
    slope, intercept = field(layout.scaling)
    (units,) = field(layout.units)
    affine = _affine(field(layout.pixdim), field(layout.codes), field(layout.quaternion), field(layout.sform))
    affine[:3] *= _MM_PER_UNIT.get(units & 7, 1.0)
    seconds = float(field(layout.pixdim)[4]) * _S_PER_UNIT.get(units & 56, 1.0)
    offset = max(int(field(layout.vox_offset)[0]), layout.size)
    return _Header(np.dtype(order + name), channels, sizes, offset, slope, intercept, affine, seconds)


def _layout(block: bytes) -> tuple[_Layout, str]:
    for layout in (_NIFTI1, _NIFTI2):
        for order in "<>":
            if len(block) >= layout.size and struct.unpack_from(order + "i", block)[0] == layout.size:
                if block[layout.magic : layout.magic + 3] in (b"ni1", b"ni2"):
                    raise VolumeError(
                        "The image is split into .hdr and .img; expected one .nii or .nii.gz file."
                    )
                if block[layout.magic : layout.magic + 3] in (b"n+1", b"n+2"):
                    return layout, order
    raise VolumeError("The file does not begin with a NIfTI header; expected NIfTI-1 or NIfTI-2.")


def _sizes(dim: list[int]) -> tuple[tuple[int, int, int, int], int]:
    """Sizes along (x, y, z, time), and the number of values per voxel."""
    if not 1 <= dim[0] <= 7:
        raise VolumeError(f"The header says {dim[0]} dimensions; expected 2 to 4.")
    used = dim[1 : dim[0] + 1] + [1] * (7 - dim[0])
    if min(used) < 0:
        raise VolumeError(f"The header says sizes {used}; expected positive numbers.")
    if 0 in used:
        raise VolumeError(
            f"The volume has no voxels: its sizes are {used[: dim[0]]}; expected at least two voxels."
        )
    return (used[0], used[1], used[2], used[3]), int(np.prod(used[4:], dtype=object))


def _affine(pixdim: tuple, codes: tuple, quaternion: tuple, sform: tuple) -> np.ndarray:
    """The affine that ITK, and so Slicer, uses when the two forms disagree; of two that agree the unrounded sform."""
    q_code, s_code = codes
    from_s = np.vstack([np.array(sform, float).reshape(3, 4), [0, 0, 0, 1]])
    from_q = _quaternion_affine(pixdim, quaternion) if q_code > 0 else None
    if from_q is None and s_code <= 0:
        return axial_affine([abs(float(n)) or 1.0 for n in pixdim[1:4]])
    if from_q is None or s_code == _SCANNER or (s_code > 0 and np.abs(from_s - from_q).max() < _AGREE_MM):
        return from_s
    return from_q


def _quaternion_affine(pixdim: tuple, quaternion: tuple) -> np.ndarray:
    b, c, d, *offset = (float(n) for n in quaternion)
    a = max(0.0, 1.0 - b * b - c * c - d * d) ** 0.5
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    handed = -1.0 if pixdim[0] < 0 else 1.0
    affine = np.eye(4)
    affine[:3, :3] = rotation * np.array([pixdim[1], pixdim[2], pixdim[3] * handed], float)
    affine[:3, 3] = offset
    return affine


def _scaled(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """Apply the header's scaling; whole factors keep whole numbers, and then CT stays recognisable."""
    stored = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    if not np.isfinite([slope, intercept]).all() or slope == 0 or (slope, intercept) == (1, 0):
        return stored
    whole = float(slope).is_integer() and float(intercept).is_integer() and stored.dtype.itemsize <= 2
    if whole and stored.dtype.kind in "iu" and abs(slope) * 65536 + abs(intercept) < 2**31:
        return stored.astype(np.int32) * int(slope) + int(intercept)
    return stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)


def write_nifti(stream: BinaryIO, array: np.ndarray, ijk_to_ras: np.ndarray) -> None:
    """Write a NIfTI-1 file, uncompressed.

    Args:
        stream: Where to; give a ``gzip.GzipFile`` for ``.nii.gz``.
        array: (slices, rows, columns) of uint8, uint16, int16, int32, float32 or float64.
        ijk_to_ras: 4x4 affine; kept in float32, as the format has it. A sheared one is written as sform only.
    """
    code = next(k for k, (name, n) in _TYPES.items() if np.dtype(name) == array.dtype and n == 1)
    spacing = np.linalg.norm(ijk_to_ras[:3, :3], axis=0)
    handed, quaternion = _quaternion(ijk_to_ras[:3, :3] / spacing)
    header = bytearray(_NIFTI1.size + 4)

    def put(spec: tuple[str, int], *values: float) -> None:
        struct.pack_into("<" + spec[0], header, spec[1], *values)

    slices, rows, columns = array.shape
    put(("i", 0), _NIFTI1.size)
    put(_NIFTI1.dim, 3, columns, rows, slices, 1, 1, 1, 1)
    put(_NIFTI1.datatype, code)
    put(("h", 72), array.dtype.itemsize * 8)
    put(_NIFTI1.pixdim, handed, *(float(n) for n in spacing), 1, 1, 1, 1)
    put(_NIFTI1.vox_offset, len(header))
    put(_NIFTI1.scaling, 1, 0)
    put(_NIFTI1.units, 2)
    put(_NIFTI1.codes, 0 if quaternion is None else 1, 1)
    put(_NIFTI1.quaternion, *(quaternion or (0, 0, 0)), *(float(n) for n in ijk_to_ras[:3, 3]))
    put(_NIFTI1.sform, *(float(n) for n in ijk_to_ras[:3].ravel()))
    header[_NIFTI1.magic : _NIFTI1.magic + 4] = b"n+1\0"
    stream.write(header)
    for plane in array:
        stream.write(np.ascontiguousarray(plane, plane.dtype.newbyteorder("<")).tobytes())


def _quaternion(axes: np.ndarray) -> tuple[float, tuple[float, float, float] | None]:
    """Handedness (1 or -1) and the quaternion's b, c, d of unit axes (columns), None when they are not orthogonal."""
    if np.abs(axes.T @ axes - np.eye(3)).max() > 1e-4:
        return 1.0, None
    handed = 1.0 if np.linalg.det(axes) > 0 else -1.0
    m = axes * np.array([1.0, 1.0, handed])
    # The symmetric matrix whose largest eigenvector is the quaternion (Bar-Itzhack 2000): no case
    # distinctions.
    k = np.array(
        [
            [m[0, 0] + m[1, 1] + m[2, 2], m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]],
            [m[2, 1] - m[1, 2], m[0, 0] - m[1, 1] - m[2, 2], m[0, 1] + m[1, 0], m[0, 2] + m[2, 0]],
            [m[0, 2] - m[2, 0], m[0, 1] + m[1, 0], m[1, 1] - m[0, 0] - m[2, 2], m[1, 2] + m[2, 1]],
            [m[1, 0] - m[0, 1], m[0, 2] + m[2, 0], m[1, 2] + m[2, 1], m[2, 2] - m[0, 0] - m[1, 1]],
        ]
    )
    a, b, c, d = np.linalg.eigh(k)[1][:, -1]
    sign = -1.0 if a < 0 else 1.0
    return handed, (float(sign * b), float(sign * c), float(sign * d))
