"""NIfTI: exact geometry, every data type, scaling, and no truncated file that passes."""

import gzip
import io
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from MedSAM3Core.errors import VolumeError
from MedSAM3Core.volume import read_sequence, read_volume
from MedSAM3Core.volume.nifti import write_nifti
from MedSAM3Core.volume.nrrd import lps_image_affine


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    with gzip.open(path, "wb") if path.suffix == ".gz" else path.open("wb") as stream:
        write_nifti(stream, array, affine)
    return path


def voxels(dtype: str = "int16") -> np.ndarray:
    return np.arange(2 * 3 * 4).reshape(2, 3, 4).astype(dtype)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
def test_round_trip_and_simpleitk_agree(tmp_path: Path, tilted: np.ndarray, dtype: str, suffix: str) -> None:
    path = save(tmp_path / f"a{suffix}", voxels(dtype), tilted)
    volume = read_volume(path)
    assert volume.array.dtype == dtype
    assert np.array_equal(volume.array, voxels(dtype))
    assert np.array_equal(volume.geometry.ijk_to_ras, tilted.astype(np.float32))
    image = sitk.ReadImage(str(path))
    assert np.array_equal(sitk.GetArrayFromImage(image), volume.array)
    assert lps_image_affine(image) == pytest.approx(tilted, abs=1e-4)


def test_left_handed_grid_survives(tmp_path: Path, left_handed: np.ndarray) -> None:
    path = save(tmp_path / "a.nii.gz", voxels(), left_handed)
    assert np.array_equal(read_volume(path).geometry.ijk_to_ras, left_handed.astype(np.float32))
    assert lps_image_affine(sitk.ReadImage(str(path))) == pytest.approx(left_handed, abs=1e-4)


def test_quaternion_alone_gives_the_same_grid(
    tmp_path: Path, tilted: np.ndarray, left_handed: np.ndarray
) -> None:
    for affine in (tilted, left_handed):
        path = save(tmp_path / "a.nii", voxels(), affine)
        data = bytearray(path.read_bytes())
        struct.pack_into("<2h", data, 252, 1, 0)  # qform only
        path.write_bytes(data)
        assert read_volume(path).geometry.ijk_to_ras == pytest.approx(affine, abs=1e-4)


def test_sheared_grid_survives(tmp_path: Path, tilted: np.ndarray) -> None:
    sheared = tilted.copy()
    sheared[:3, 2] += 0.8 * tilted[:3, 1]
    path = save(tmp_path / "a.nii.gz", voxels(), sheared)
    assert np.array_equal(read_volume(path).geometry.ijk_to_ras, sheared.astype(np.float32))


@pytest.mark.parametrize("codes", [(1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (0, 0), (0, 2), (1, 0)])
def test_conflicting_forms_are_settled_as_itk_does(
    tmp_path: Path, tilted: np.ndarray, codes: tuple[int, int]
) -> None:
    path = save(tmp_path / "a.nii", voxels(), tilted)
    data = bytearray(path.read_bytes())
    struct.pack_into("<2h", data, 252, *codes)
    struct.pack_into("<f", data, 268, 500.0)  # the qform's x offset alone
    path.write_bytes(data)
    assert read_volume(path).geometry.ijk_to_ras == pytest.approx(
        lps_image_affine(sitk.ReadImage(str(path))), abs=1e-3
    )


def patched(tmp_path: Path, *patches: tuple[str, int, float], dtype: str = "int16") -> Path:
    path = save(tmp_path / "a.nii", voxels(dtype), np.eye(4))
    data = bytearray(path.read_bytes())
    for fmt, offset, value in patches:
        struct.pack_into("<" + fmt, data, offset, value)
    path.write_bytes(data)
    return path


def test_whole_scaling_keeps_whole_numbers(tmp_path: Path) -> None:
    volume = read_volume(patched(tmp_path, ("f", 112, 1.0), ("f", 116, -1024.0)))
    assert volume.array.dtype == np.int32
    assert volume.array.min() == -1024


def test_broken_scaling_becomes_float(tmp_path: Path) -> None:
    volume = read_volume(patched(tmp_path, ("f", 112, 0.5), ("f", 116, 1.0)))
    assert volume.array.dtype == np.float32
    assert volume.array.max() == pytest.approx(23 * 0.5 + 1)


def test_metres_and_microns_become_mm(tmp_path: Path) -> None:
    assert read_volume(patched(tmp_path, ("b", 123, 1))).geometry.spacing == pytest.approx((1000, 1000, 1000))
    assert read_volume(patched(tmp_path, ("b", 123, 3))).geometry.spacing == pytest.approx((1e-3, 1e-3, 1e-3))


def test_rgb_voxels(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(
        np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3), isVector=True
    )
    path = tmp_path / "rgb.nii.gz"
    data = bytearray(348 + 4)
    struct.pack_into("<i", data, 0, 348)
    struct.pack_into("<8h", data, 40, 3, 4, 3, 2, 1, 1, 1, 1)
    struct.pack_into("<hh", data, 70, 128, 24)
    struct.pack_into("<8f", data, 76, 1, 1, 1, 1, 1, 1, 1, 1)
    struct.pack_into("<f", data, 108, 352)
    data[344:348] = b"n+1\0"
    path.write_bytes(gzip.compress(bytes(data) + sitk.GetArrayFromImage(image).tobytes()))
    volume = read_volume(path)
    assert volume.is_rgb
    assert np.array_equal(volume.array, sitk.GetArrayFromImage(image))


def test_big_endian_and_nifti2(tmp_path: Path) -> None:
    data = bytearray(544)
    struct.pack_into(">i", data, 0, 540)
    data[4:12] = b"n+2\0\r\n\x1a\n"
    struct.pack_into(">h", data, 12, 4)
    struct.pack_into(">8q", data, 16, 3, 4, 3, 2, 1, 1, 1, 1)
    struct.pack_into(">8d", data, 104, 1, 2, 3, 4, 1, 1, 1, 1)
    struct.pack_into(">q", data, 168, 544)
    struct.pack_into(">2i", data, 344, 0, 1)
    struct.pack_into(">12d", data, 400, 2, 0, 0, 5, 0, 3, 0, 6, 0, 0, 4, 7)
    path = tmp_path / "two.nii"
    path.write_bytes(bytes(data) + voxels().astype(">i2").tobytes())
    volume = read_volume(path)
    assert np.array_equal(volume.array, voxels())
    assert volume.array.dtype.isnative
    assert volume.geometry.spacing == (2, 3, 4)


def test_four_dimensions_are_times(tmp_path: Path) -> None:
    frames = np.arange(3 * 2 * 3 * 4, dtype=np.int16).reshape(3, 2, 3, 4)
    image = sitk.JoinSeries([sitk.GetImageFromArray(frame) for frame in frames], 0.0, 2.0)
    path = tmp_path / "bold.nii.gz"
    sitk.WriteImage(image, str(path))
    with pytest.raises(VolumeError, match=r"holds 3 volumes .* read_sequence"):
        read_volume(path)
    with pytest.raises(VolumeError, match="expected 0 to 2"):
        read_volume(path, time=3)
    assert np.array_equal(read_volume(path, time=1).array, frames[1])
    sequence = read_sequence(path)
    assert [volume.time_s for volume in sequence] == [0.0, 2.0, 4.0]
    assert np.array_equal(sequence[2].array, frames[2])


def test_vector_field_is_refused(tmp_path: Path) -> None:
    image = sitk.Image([4, 3, 2], sitk.sitkVectorFloat32, 2)
    sitk.WriteImage(image, str(tmp_path / "v.nii.gz"))
    with pytest.raises(VolumeError, match="2 values per voxel"):
        read_volume(tmp_path / "v.nii.gz")


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        (("h", 40, 9), "9 dimensions"),
        (("h", 42, 0), "no voxels"),
        (("h", 42, -4), "positive numbers"),
        (("h", 42, 30000), "cut short"),
        (("h", 70, 32), "data type 32"),
        (("i", 0, 999), "does not begin with a NIfTI header"),
        (("f", 280, float("nan")), "cannot be inverted"),
    ],
)
def test_impossible_headers(tmp_path: Path, patch: tuple[str, int, float], message: str) -> None:
    with pytest.raises(VolumeError, match=message):
        read_volume(patched(tmp_path, patch))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_truncated_anywhere_is_an_error(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(3)
    path = save(tmp_path / f"a{suffix}", rng.integers(0, 999, (6, 20, 20)).astype(np.int16), np.eye(4))
    whole = path.read_bytes()
    for end in (1, 100, 347, 360, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(VolumeError):
            read_volume(path)


def test_damaged_compressed_data_is_an_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    path = save(tmp_path / "a.nii.gz", rng.integers(0, 999, (6, 20, 20)).astype(np.int16), np.eye(4))
    whole = path.read_bytes()
    for place in (len(whole) // 2, len(whole) - 6):  # the data, and the checksum
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(VolumeError, match="cannot be read as NIfTI"):
            read_volume(path)


def test_split_image_is_named(tmp_path: Path) -> None:
    stream = io.BytesIO()
    write_nifti(stream, voxels(), np.eye(4))
    data = bytearray(stream.getvalue())
    data[344:348] = b"ni1\0"
    (tmp_path / "a.nii").write_bytes(data)
    with pytest.raises(VolumeError, match=r"\.hdr and \.img"):
        read_volume(tmp_path / "a.nii")


@pytest.mark.shared
def test_real_files_agree_with_simpleitk(raw: Path) -> None:
    files = sorted(raw.rglob("*.nii.gz"))
    assert files
    for path in files:
        volume, image = read_volume(path), sitk.ReadImage(str(path))
        assert np.array_equal(volume.array, sitk.GetArrayFromImage(image)), path
        assert volume.geometry.ijk_to_ras == pytest.approx(lps_image_affine(image), abs=1e-4), path
