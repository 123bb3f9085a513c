"""NRRD, PNG, JPEG and TIFF, and what bad input gets."""

import bz2
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from PIL import Image

from MedSAM3Core.errors import VolumeError
from MedSAM3Core.volume import Volume, read_sequence, read_volume
from MedSAM3Core.volume.geometry import LPS_FROM_RAS


def itk_image(array: np.ndarray, affine: np.ndarray, **kwargs: bool) -> sitk.Image:
    image = sitk.GetImageFromArray(array, **kwargs)
    lps = LPS_FROM_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing)
    image.SetDirection((lps[:3, :3] / spacing).ravel())
    image.SetOrigin(lps[:3, 3])
    return image


def voxels() -> np.ndarray:
    return np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr"])
def test_itk_formats_keep_the_grid(
    tmp_path: Path, tilted: np.ndarray, left_handed: np.ndarray, suffix: str
) -> None:
    for affine in (tilted, left_handed):
        sitk.WriteImage(itk_image(voxels(), affine), str(tmp_path / f"a{suffix}"))
        volume = read_volume(tmp_path / f"a{suffix}")
        assert np.array_equal(volume.array, voxels())
        assert volume.geometry.ijk_to_ras == pytest.approx(affine, abs=1e-10)


def test_nrrd_keeps_a_sheared_grid(tmp_path: Path, tilted: np.ndarray) -> None:
    sheared = tilted.copy()
    sheared[:3, 2] += 0.8 * tilted[:3, 1]
    sitk.WriteImage(itk_image(voxels(), sheared), str(tmp_path / "a.nrrd"))
    assert read_volume(tmp_path / "a.nrrd").geometry.ijk_to_ras == pytest.approx(sheared, abs=1e-10)


def test_nrrd_colour(tmp_path: Path) -> None:
    colours = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), str(tmp_path / "a.nrrd"))
    volume = read_volume(tmp_path / "a.nrrd")
    assert volume.is_rgb
    assert np.array_equal(volume.array, colours)


SEQUENCE = b"""NRRD0004
type: short
dimension: 4
space: left-posterior-superior
sizes: %s
space directions: %s
kinds: %s
endian: little
encoding: raw
space origin: (1,2,3)

"""


@pytest.mark.parametrize("times", [3, 5])
def test_nrrd_sequences_of_slicer_and_of_itk(tmp_path: Path, times: int) -> None:
    frames = np.arange(times * 2 * 3 * 4, dtype="<i2").reshape(times, 2, 3, 4)
    axes = b"(1,0,0) (0,1,0) (0,0,2)"
    header = SEQUENCE % (f"{times} 4 3 2".encode(), b"none " + axes, b"list domain domain domain")
    (tmp_path / "list.nrrd").write_bytes(header + np.moveaxis(frames, 0, -1).tobytes())
    sitk.WriteImage(
        sitk.JoinSeries([sitk.GetImageFromArray(frame) for frame in frames]), str(tmp_path / "joined.nrrd")
    )
    for name in ("list.nrrd", "joined.nrrd"):
        with pytest.raises(VolumeError, match=f"holds {times} volumes"):
            read_volume(tmp_path / name)
        sequence = read_sequence(tmp_path / name)
        assert np.array_equal(np.stack([volume.array for volume in sequence]), frames)
        assert len({volume.name for volume in sequence}) == times
    assert read_volume(tmp_path / "list.nrrd", time=1).geometry.spacing == (1, 1, 2)


def test_vector_field_in_nrrd_is_refused(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.Image([4, 3, 2], sitk.sitkVectorFloat32, 3), str(tmp_path / "a.nrrd"))
    with pytest.raises(VolumeError, match="3 values per voxel"):
        read_volume(tmp_path / "a.nrrd")


def test_two_dimensional_nrrd_is_one_slice(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(voxels()[0]), str(tmp_path / "a.nrrd"))
    volume = read_volume(tmp_path / "a.nrrd")
    assert volume.is_2d
    assert np.array_equal(volume.array[0], voxels()[0])


def write_png(path: Path, mode: str) -> np.ndarray:
    rng = np.random.default_rng(5)
    rgb = Image.fromarray(rng.integers(0, 255, (6, 5, 3), dtype=np.uint8))
    image = rgb.quantize(16) if mode == "P" else rgb.convert(mode)
    image.save(path)
    return np.asarray(
        rgb if mode not in ("L", "LA", "1", "P") else image.convert("RGB" if mode == "P" else "L")
    )


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "1"])
def test_png_modes(tmp_path: Path, mode: str) -> None:
    expected = write_png(tmp_path / "a.png", mode)
    volume = read_volume(tmp_path / "a.png")
    assert np.array_equal(volume.array, expected[np.newaxis])
    assert any("alpha" in notice for notice in volume.notices) == (mode in ("LA", "RGBA"))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_grey(tmp_path: Path, suffix: str) -> None:
    pixels = np.array([[0, 1000, 65535], [3, 2, 1]], np.uint16)
    Image.fromarray(pixels).save(tmp_path / f"a{suffix}")
    assert np.array_equal(read_volume(tmp_path / f"a{suffix}").array[0], pixels)


def test_float_tiff_and_pages(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full((3, 4), n, np.float32)) for n in (1.5, 2.5)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    volume = read_volume(tmp_path / "a.tif")
    assert volume.array.shape == (2, 3, 4)
    assert volume.array[:, 0, 0].tolist() == [1.5, 2.5]
    assert any("2 pages" in notice for notice in volume.notices)


def test_tiff_pages_of_two_sizes(tmp_path: Path) -> None:
    pages = [Image.new("L", (4, 3)), Image.new("L", (5, 3))]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(VolumeError, match="pages differ"):
        read_volume(tmp_path / "a.tif")


def test_sixteen_bit_colour_png_loses_the_low_byte_only(tmp_path: Path) -> None:
    colours = (np.arange(2 * 3 * 3).reshape(2, 3, 3) * 3000).astype(np.uint16)
    sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), str(tmp_path / "a.png"))
    assert np.array_equal(read_volume(tmp_path / "a.png").array[0], (colours >> 8).astype(np.uint8))


def test_cmyk_and_exif_are_said(tmp_path: Path) -> None:
    Image.new("CMYK", (4, 3)).save(tmp_path / "c.jpg")
    assert any("CMYK" in notice for notice in read_volume(tmp_path / "c.jpg").notices)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 3)).save(tmp_path / "e.jpg", exif=exif)
    volume = read_volume(tmp_path / "e.jpg")
    assert volume.array.shape == (1, 3, 4, 3)
    assert any("EXIF" in notice for notice in volume.notices)


def test_missing_and_unknown(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="does not exist"):
        read_volume(tmp_path / "no.nrrd")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(VolumeError, match="of no known kind"):
        read_volume(tmp_path / "notes.txt")
    (tmp_path / "empty.nrrd").write_bytes(b"")
    with pytest.raises(VolumeError, match="empty"):
        read_volume(tmp_path / "empty.nrrd")


def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.nrrd")
    with pytest.raises(VolumeError, match="neither a file nor a folder"):
        read_volume(tmp_path / "pipe.nrrd")


def test_folder_without_images_names_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "b.txt").write_text("x")
    (tmp_path / "c.png").write_bytes(b"x")
    with pytest.raises(VolumeError, match=r"found 1 \.png file, 2 \.txt files"):
        read_volume(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(VolumeError, match="found nothing"):
        read_volume(tmp_path / "empty")


@pytest.mark.parametrize("name", ["a.nrrd", "a.nii", "a.nii.gz", "a.png", "a.jpg", "a.tif", "a.dcm"])
def test_junk_is_one_sentence(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_bytes(b"This is no image at all. " * 40)
    with pytest.raises(VolumeError) as caught:
        read_volume(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["a.nrrd", "raw.nrrd", "a.png", "a.jpg", "a.tif"])
def test_truncated_is_never_read(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(6)
    path = tmp_path / name
    if path.suffix == ".nrrd":
        image = sitk.GetImageFromArray(rng.integers(0, 999, (5, 40, 40)).astype(np.int16))
        sitk.WriteImage(image, str(path), not name.startswith("raw"))
    else:
        Image.fromarray(rng.integers(0, 255, (60, 60), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    for share in (0.02, 0.3, 0.6, 0.9, 0.97):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(VolumeError):
            read_volume(path)
    assert capfd.readouterr() == ("", "")


def test_every_single_bit_error_in_gzip_is_noticed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    voxels = rng.integers(0, 999, (6, 20, 20)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / "a.nrrd"), True)
    whole = (tmp_path / "a.nrrd").read_bytes()
    start = whole.index(b"\n\n") + 2
    for place in [*range(start + 10, len(whole), 41), len(whole) - 6]:
        damaged = bytearray(whole)
        damaged[place] ^= 16
        (tmp_path / "a.nrrd").write_bytes(damaged)
        with pytest.raises(VolumeError):
            read_volume(tmp_path / "a.nrrd")


@pytest.mark.parametrize("encoding", ["ascii", "bzip2", "hex", "big"])
def test_rarer_encodings(tmp_path: Path, encoding: str) -> None:
    header = b"NRRD0004\ntype: int16\ndimension: 3\nsizes: 4 3 2\nspacings: 1 2 3\n"
    plain = voxels().astype("<i2").tobytes()
    written = {
        "ascii": b"encoding: ascii\n\n" + " ".join(str(n) for n in voxels().ravel()).encode(),
        "bzip2": b"endian: little\nencoding: bzip2\n\n" + bz2.compress(plain),
        "hex": b"endian: little\nencoding: hex\n\n" + plain.hex().encode(),
        "big": b"endian: big\r\nencoding: raw\r\n\r\n" + voxels().astype(">i2").tobytes(),
    }[encoding]
    (tmp_path / "a.nrrd").write_bytes(header + written)
    try:
        volume = read_volume(tmp_path / "a.nrrd")
    except VolumeError:
        assert encoding == "bzip2"  # SimpleITK's wheel is built without it
        return
    assert np.array_equal(volume.array, voxels())
    assert volume.geometry.spacing == (1, 2, 3)


def test_header_that_promises_too_much_costs_no_memory(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(voxels()), str(tmp_path / "a.nrrd"))
    data = (tmp_path / "a.nrrd").read_bytes().replace(b"sizes: 4 3 2", b"sizes: 40000 30000 2000")
    (tmp_path / "a.nrrd").write_bytes(data)
    with pytest.raises(VolumeError, match="cut short"):
        read_volume(tmp_path / "a.nrrd")


@pytest.mark.parametrize(
    "line", [b"*" * 3000, b"foo: " + b"*" * 3000, b"old min: " + b"*" * 3000, b"foo: " + b"*" * 3000 + b":=1"]
)
def test_a_line_of_a_header_that_itk_would_not_survive(tmp_path: Path, line: bytes) -> None:
    """SimpleITK 2.5.7 ends the process on lines that it repeats in a message; those it keeps may be long."""
    head = b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 4 3 2\nencoding: raw\n"
    (tmp_path / "a.nrrd").write_bytes(head + line + b"\n\n" + bytes(range(24)))
    with pytest.raises(VolumeError, match=r"has the line '.{60}'; expected a field that the format knows"):
        read_volume(tmp_path / "a.nrrd")
    (tmp_path / "a.nrrd").write_bytes(head + b"a:=b: " + b"*" * 3000 + b"\n\n" + bytes(range(24)))
    assert read_volume(tmp_path / "a.nrrd").array[1, 2, 3] == 23


def test_a_part_of_a_picture_that_claims_more_than_the_file_costs_no_memory(tmp_path: Path) -> None:
    Image.fromarray(np.arange(156, dtype=np.uint8).reshape(12, 13)).save(tmp_path / "a.png")
    before, name, behind = (tmp_path / "a.png").read_bytes().partition(b"IDAT")
    (tmp_path / "a.png").write_bytes(before[:-4] + (2**31 - 1).to_bytes(4, "big") + name + behind)
    tracemalloc.start()
    with pytest.raises(VolumeError, match=r"a\.png"):
        read_volume(tmp_path / "a.png")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers(tmp_path: Path, bad: float) -> None:
    array = voxels().astype(np.float32)
    array[1, 0, 2] = bad
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "a.nrrd"))
    with pytest.raises(VolumeError, match=r"a\.nrrd: 1 voxel is NaN or infinite, the first on slice 1"):
        read_volume(tmp_path / "a.nrrd")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((0, 4, 4)), "no voxels"),
        (np.zeros((1, 1, 1)), "single voxel"),
        (np.zeros((2, 3, 4, 2)), "2 channels"),
        (np.zeros((2, 3, 4, 5)), "5 channels"),
        (np.zeros(5), r"expected \(slices, rows, columns"),
        (np.zeros((2, 2, 2, 2, 3)), r"expected \(slices, rows, columns"),
        (np.zeros((2, 3, 4), complex), "complex128"),
        (np.array([["a"]]), "real numbers"),
    ],
)
def test_arrays_that_are_no_volumes(array: np.ndarray, message: str) -> None:
    with pytest.raises(VolumeError, match=message):
        Volume.from_array(array)


def test_single_voxel_file(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.Image(1, 1, 1, sitk.sitkInt16), str(tmp_path / "a.nrrd"))
    with pytest.raises(VolumeError, match=r"a\.nrrd: The volume has a single voxel"):
        read_volume(tmp_path / "a.nrrd")


def test_from_array_in_all_its_forms() -> None:
    assert Volume.from_array(np.zeros((3, 4))).array.shape == (1, 3, 4)
    assert Volume.from_array(np.zeros((3, 4, 3), np.uint8)).array.shape == (1, 3, 4, 3)
    assert Volume.from_array(np.zeros((3, 4, 3), np.uint8), rgb=False).array.shape == (3, 4, 3)
    assert Volume.from_array(np.zeros((3, 4, 3), np.int16)).array.shape == (3, 4, 3)
    assert Volume.from_array(np.zeros((2, 3, 4, 3), np.uint8)).is_rgb
    assert Volume.from_array(np.zeros((3, 4), bool)).array.dtype == np.uint8
    assert Volume.from_array(np.zeros((2, 3, 4)), spacing=(1, 2, 3)).geometry.spacing == (1, 2, 3)
    with pytest.raises(VolumeError, match="Both spacing and ijk_to_ras"):
        Volume.from_array(np.zeros((2, 3, 4)), spacing=(1, 2, 3), ijk_to_ras=np.eye(4))
    with pytest.raises(VolumeError, match="three positive numbers"):
        Volume.from_array(np.zeros((2, 3, 4)), spacing=(1, 0, 3))
    with pytest.raises(VolumeError, match="cannot be inverted"):
        Volume.from_array(np.zeros((2, 3, 4)), ijk_to_ras=np.zeros((4, 4)))


def test_ct_is_recognised_and_mr_is_not() -> None:
    rng = np.random.default_rng(7)
    body = np.where(rng.random((5, 40, 40)) < 0.4, -1000, rng.normal(40, 30, (5, 40, 40))).astype(np.int16)
    assert Volume.from_array(body).modality == "CT"
    assert Volume.from_array(np.abs(body)).modality is None
    assert Volume.from_array(body.astype(np.float32) + 0.5).modality is None
    phase = rng.integers(-4096, 4095, (5, 40, 40)).astype(np.int16)
    assert Volume.from_array(phase).modality is None
    assert Volume.from_array(body, modality="MR").modality == "MR"


@pytest.mark.shared
def test_modalities_of_the_real_files(raw: Path) -> None:
    assert read_volume(raw / "ts_ct_abdomen" / "ct.nii.gz").modality == "CT"
    for name in (
        "ts_mr_abdomen/mr.nii.gz",
        "sct_spinal_t2/t2.nii.gz",
        "pyradiomics_brain1/brain1_image.nrrd",
    ):
        assert read_volume(raw / name).modality is None
    for path in (raw / "msd_hippocampus_mr").glob("hippocampus_00?.nii.gz"):
        assert read_volume(path).modality is None


def test_photographs_are_not_calibrated(tmp_path: Path) -> None:
    Image.new("L", (4, 3)).save(tmp_path / "a.png")
    assert not read_volume(tmp_path / "a.png").calibrated
    sitk.WriteImage(sitk.GetImageFromArray(voxels()), str(tmp_path / "a.nrrd"))
    assert read_volume(tmp_path / "a.nrrd").calibrated
    assert not Volume.from_array(np.zeros((3, 4))).calibrated
    assert Volume.from_array(np.zeros((3, 4)), spacing=(1, 1)).calibrated


@pytest.mark.shared
def test_real_images(raw: Path) -> None:
    fundus = read_volume(raw / "chase_db1_fundus" / "Image_01L.jpg")
    assert fundus.array.shape == (1, 960, 999, 3)
    nuclei = read_volume(raw / "dsb2018_nuclei" / "0bf33d3db428.png")
    assert nuclei.is_rgb
    assert nuclei.notices == ("The image's transparency (alpha channel) was dropped.",)
    grey = read_volume(raw / "biomedparse_2d" / "04_CT_liver.png")
    assert grey.array.shape == (1, 1024, 1024)
