"""DICOM series: order, geometry, what is set aside, and what is refused with the slices named."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from pydicom import Dataset, Sequence, dcmread
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import RLELossless, UltrasoundMultiFrameImageStorage, generate_uid

from MedSAM3Core.errors import VolumeError
from MedSAM3Core.volume import read_sequence, read_volume
from MedSAM3Core.volume.dicom import list_series
from MedSAM3Core.volume.dicom.cine import open_cine
from MedSAM3Core.volume.nrrd import lps_image_affine

Make = Callable[..., Dataset]
Save = Callable[..., Path]


def test_slices_are_sorted_by_place_not_by_name(make_slice: Make, save_series: Save) -> None:
    heights = [10.0, 2.0, 6.0, 4.0, 8.0]
    folder = save_series([make_slice(z, n + 1, value=int(z)) for n, z in enumerate(heights)])
    volume = read_volume(folder)
    assert volume.array[:, 5, 5].tolist() == [2, 4, 6, 8, 10]
    assert volume.array.dtype == np.int16
    assert volume.modality == "CT"
    assert volume.notices == ()
    assert volume.geometry.spacing == pytest.approx((0.6, 0.8, 2.0))
    assert volume.geometry.ijk_to_ras @ [0, 0, 0, 1] == pytest.approx([5, 7, 2, 1])
    assert [file.name for file in volume.files] == [f"IM000{n}.dcm" for n in (2, 6, 4, 8, 0)]


def test_bright_corner_is_where_simpleitk_puts_it(make_slice: Make, save_series: Save) -> None:
    tilt = [0.8, 0.6, 0, 0, 0, -1]  # an oblique coronal scan
    normal = np.cross(tilt[:3], tilt[3:])
    slices = [
        make_slice(0, n, value=n, ImageOrientationPatient=tilt, ImagePositionPatient=list(n * 3.0 * normal))
        for n in range(4)
    ]
    folder = save_series(slices)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    volume = read_volume(folder)
    assert np.array_equal(volume.array, sitk.GetArrayFromImage(image))
    assert volume.geometry.ijk_to_ras == pytest.approx(lps_image_affine(image), abs=1e-6)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["ts_ct_dicom20/dicom", "dcmqi_ct3slice/dicom"])
def test_real_series_agree_with_simpleitk(raw: Path, name: str) -> None:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(raw / name)))
    image = reader.Execute()
    volume = read_volume(raw / name)
    assert np.array_equal(volume.array, sitk.GetArrayFromImage(image))
    assert volume.geometry.ijk_to_ras == pytest.approx(lps_image_affine(image), abs=1e-3)
    assert volume.modality == "CT"
    assert len(volume.files) == volume.array.shape[0]


@pytest.mark.shared
def test_real_segmentation_beside_a_series_is_no_image(raw: Path) -> None:
    assert read_volume(raw / "dcmqi_ct3slice").array.shape == (3, 512, 512)
    with pytest.raises(VolumeError, match=r"holds no image \(modality SEG\); expected an image"):
        read_volume(raw / "dcmqi_ct3slice" / "liver.dcm")


def test_missing_slices_are_named(make_slice: Make, save_series: Save) -> None:
    folder = save_series([make_slice(2.0 * n, n) for n in range(10) if n not in (4, 5, 8)])
    with pytest.raises(
        VolumeError, match=r"3 are missing: between image 3 at 6.0 mm and image 6 at 12.0 mm, between image 7"
    ):
        read_volume(folder)


def test_mixed_orientations_are_named(make_slice: Make, save_series: Save) -> None:
    sagittal = make_slice(0, 9, ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    folder = save_series([*(make_slice(2.0 * n, n) for n in range(5)), sagittal])
    with pytest.raises(
        VolumeError, match=r"2 orientations: axial 1: 5 images; sagittal 2: 1 image \(IM0010.dcm\)"
    ):
        read_volume(folder)


def test_localizers_are_set_aside(make_slice: Make, save_series: Save) -> None:
    scout = make_slice(
        50, 0, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], ImageOrientationPatient=[0, 1, 0, 0, 0, -1]
    )
    folder = save_series([scout, *(make_slice(2.0 * n, n) for n in range(5))])
    volume = read_volume(folder)
    assert volume.array.shape[0] == 5
    assert volume.notices == ("1 localizer image was set aside.",)


def test_localizer_series_is_set_aside(make_slice: Make, save_series: Save) -> None:
    scouts = [make_slice(n, n, SeriesInstanceUID="9.9", SeriesDescription="Topogram 0.6") for n in range(2)]
    folder = save_series([*scouts, *(make_slice(2.0 * n, n) for n in range(5))])
    volume = read_volume(folder)
    assert volume.array.shape[0] == 5
    assert "Topogram" in volume.notices[0]


def test_copies_and_twins_are_set_aside(make_slice: Make, save_series: Save) -> None:
    slices = [make_slice(2.0 * n, n, value=n) for n in range(5)]
    twin = make_slice(4.0, 2, value=2)  # the same pixels under a UID of its own
    folder = save_series([*slices, slices[3], twin])
    volume = read_volume(folder)
    assert volume.array[:, 5, 5].tolist() == [0, 1, 2, 3, 4]
    assert len(volume.notices) == 2


def test_gantry_tilt_is_kept_and_said(make_slice: Make, save_series: Save) -> None:
    shift = np.tan(np.radians(15.0)) * 2.0
    folder = save_series([make_slice(0, n, ImagePositionPatient=[0, shift * n, 2.0 * n]) for n in range(6)])
    volume = read_volume(folder)
    assert "tilted by 15.0 degrees" in volume.notices[0]
    assert volume.geometry.ijk_to_ras @ [0, 0, 5, 1] == pytest.approx([0, -shift * 5, 10, 1])


def test_uneven_distances(make_slice: Make, save_series: Save) -> None:
    slightly = [0, 2.0, 4.08, 6.0, 8.0]
    volume = read_volume(save_series([make_slice(z, n) for n, z in enumerate(slightly)], "slightly"))
    assert "not evenly spaced" in volume.notices[0]
    badly = [0, 2.0, 4.7, 6.0, 8.0]
    with pytest.raises(VolumeError, match=r"image 2 at 4.7 mm is 0.70 mm from its even place"):
        read_volume(save_series([make_slice(z, n) for n, z in enumerate(badly)], "badly"))


def test_several_series_are_listed_and_chosen(make_slice: Make, save_series: Save) -> None:
    thick = [
        make_slice(
            5.0 * n, n, value=7, SeriesInstanceUID="7.7", SeriesNumber=5, SeriesDescription="thick bone"
        )
        for n in range(3)
    ]
    folder = save_series([*thick, *(make_slice(2.0 * n, n) for n in range(5))])
    with pytest.raises(
        VolumeError, match=r"2 series, expected one: 5 'thick bone' \(CT, 3 images\); 3 'thin axial'"
    ):
        read_volume(folder)
    for wanted in ("7.7", "5", "BONE"):
        assert read_volume(folder, series=wanted).array.shape[0] == 3
    with pytest.raises(VolumeError, match="'th' matches 2 series"):
        read_volume(folder, series="th")
    assert sorted(series.number for series in list_series(folder)) == ["3", "5"]


def test_several_sizes(make_slice: Make, save_series: Save) -> None:
    small = make_slice(8, 4, Rows=5, Columns=6, PixelData=bytes(60))
    with pytest.raises(VolumeError, match=r"12 x 10: 4 images; 6 x 5: 1 image \(IM0008.dcm\)"):
        read_volume(save_series([*(make_slice(2.0 * n, n) for n in range(4)), small]))


def test_times_at_each_place(make_slice: Make, save_series: Save) -> None:
    slices = [
        make_slice(2.0 * k, 10 * t + k, value=100 * t + k, Modality="MR", TriggerTime=40.0 * t)
        for k in range(4)
        for t in (2, 0, 1)
    ]
    folder = save_series(slices)
    with pytest.raises(VolumeError, match="holds 3 volumes"):
        read_volume(folder)
    sequence = read_sequence(folder)
    assert [volume.array[1, 5, 5] for volume in sequence] == [1, 101, 201]
    assert [volume.time_s for volume in sequence] == pytest.approx([0, 0.04, 0.08])
    assert len(set(sequence[0].files) | set(sequence[1].files)) == 8


def test_a_time_with_a_missing_slice(make_slice: Make, save_series: Save) -> None:
    slices = [
        make_slice(2.0 * k, 10 * t + k, value=t, TriggerTime=40.0 * t) for k in range(4) for t in range(3)
    ]
    with pytest.raises(VolumeError, match=r"3 images at most places but fewer at 1 \(image 0 at 0.0 mm: 2\)"):
        read_volume(save_series([*slices[:1], *slices[2:]]))


def test_damaged_file_is_named(make_slice: Make, save_series: Save) -> None:
    folder = save_series([make_slice(2.0 * n, n) for n in range(4)])
    victim = sorted(folder.iterdir())[1]
    victim.write_bytes(victim.read_bytes()[:-50])
    with pytest.raises(VolumeError, match=rf"pixels of {victim.name} cannot be decoded"):
        read_volume(folder)


def test_monochrome1_is_turned_round(make_slice: Make, save_series: Save) -> None:
    xray = make_slice(0, 1, PhotometricInterpretation="MONOCHROME1", Modality="DX")
    volume = read_volume(save_series([xray]))
    assert volume.modality == "XR"
    assert volume.array[0, 0, 0] < volume.array[0, 5, 5]
    assert "MONOCHROME1" in volume.notices[0]


def test_palette_becomes_colour(make_slice: Make, save_series: Save) -> None:
    ramp = np.arange(256, dtype=np.uint16) * 257
    picture = make_slice(
        0, 1, PhotometricInterpretation="PALETTE COLOR", BitsAllocated=8, BitsStored=8, HighBit=7, Modality="US",
        PixelData=bytes(range(120)), RescaleSlope=None, RescaleIntercept=None,
        RedPaletteColorLookupTableDescriptor=[256, 0, 16], GreenPaletteColorLookupTableDescriptor=[256, 0, 16],
        BluePaletteColorLookupTableDescriptor=[256, 0, 16], RedPaletteColorLookupTableData=ramp.tobytes(),
        GreenPaletteColorLookupTableData=ramp[::-1].tobytes(), BluePaletteColorLookupTableData=bytes(512),
    )  # fmt: skip
    volume = read_volume(save_series([picture]))
    assert volume.is_rgb
    assert volume.array[0, 0, 3].tolist() == [3, 252, 0]


def cine(make_slice: Make, frames: int = 4) -> tuple[Dataset, np.ndarray]:
    rng = np.random.default_rng(8)
    pixels = rng.integers(0, 255, (frames, 10, 12, 3), dtype=np.uint8)
    region = Dataset()
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.05, 0.04
    dataset = make_slice(
        0, 1, SOPClassUID=UltrasoundMultiFrameImageStorage, Modality="US", NumberOfFrames=frames, SamplesPerPixel=3,
        PhotometricInterpretation="RGB", PlanarConfiguration=0, BitsAllocated=8, BitsStored=8, HighBit=7,
        ImagePositionPatient=None, ImageOrientationPatient=None, PixelSpacing=None, RescaleSlope=None,
        RescaleIntercept=None, FrameTime=50.0, SequenceOfUltrasoundRegions=Sequence([region]),
        PixelData=pixels.tobytes(),
    )  # fmt: skip
    return dataset, pixels


def test_ultrasound_cine_is_a_sequence(make_slice: Make, save_series: Save) -> None:
    dataset, pixels = cine(make_slice)
    path = next(save_series([dataset]).iterdir())
    sequence = read_sequence(path)
    assert np.array_equal(np.concatenate([volume.array for volume in sequence]), pixels)
    assert [volume.time_s for volume in sequence] == pytest.approx([0, 0.05, 0.1, 0.15])
    assert sequence[0].geometry.spacing[:2] == pytest.approx((0.5, 0.4))
    assert sequence[0].modality == "US"
    with pytest.raises(VolumeError, match=r"holds 4 volumes \(frames\)"):
        read_volume(path)
    assert np.array_equal(read_volume(path, time="slices").array, pixels)


def enhanced(make_slice: Make, heights: list[float], drop: tuple[str, ...] = ()) -> Dataset:
    """An enhanced CT whose frames are stored in the order of ``heights``, values 10 * height - 1000."""
    dataset = make_slice(
        0, 1, ImagePositionPatient=None, ImageOrientationPatient=None, PixelSpacing=None, RescaleSlope=None,
        RescaleIntercept=None, NumberOfFrames=len(heights),
        PixelData=b"".join(np.full((10, 12), int(10 * z), np.uint16).tobytes() for z in heights),
    )  # fmt: skip
    measures, plane, transform, shared = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.8, 0.6], 3.0
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    transform.RescaleSlope, transform.RescaleIntercept = 1, -1000
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([plane])
    shared.PixelValueTransformationSequence = Sequence([transform])
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for z in heights:
        position, group = Dataset(), Dataset()
        position.ImagePositionPatient = [0, 0, z]
        group.PlanePositionSequence = Sequence([position])
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
    return dataset


def test_enhanced_multi_frame(make_slice: Make, save_series: Save) -> None:
    path = next(save_series([enhanced(make_slice, [6.0, 0.0, 3.0, 9.0])]).iterdir())
    volume = read_volume(path)
    assert volume.array[:, 0, 0].tolist() == [-1000, -970, -940, -910]
    assert volume.geometry.spacing == pytest.approx((0.6, 0.8, 3.0))


def test_enhanced_multi_frame_with_a_missing_frame(make_slice: Make, save_series: Save) -> None:
    path = next(save_series([enhanced(make_slice, [0.0, 3.0, 6.0, 12.0, 15.0])]).iterdir())
    with pytest.raises(VolumeError, match="1 is missing"):
        read_volume(path)


def test_single_file_is_one_slice_in_its_place(make_slice: Make, save_series: Save) -> None:
    path = next(save_series([make_slice(42.0, 1)]).iterdir())
    bare = path.rename(path.with_name("IM1"))  # DICOM files often have no suffix
    volume = read_volume(bare)
    assert volume.is_2d
    assert volume.geometry.ijk_to_ras[:3, 3] == pytest.approx([5, 7, 42])
    assert volume.geometry.spacing == pytest.approx((0.6, 0.8, 2.0))


def test_slopes_that_differ_by_slice(make_slice: Make, save_series: Save) -> None:
    pet = [
        make_slice(2.0 * n, n, Modality="PT", RescaleSlope=0.5 * (n + 1), RescaleIntercept=0)
        for n in range(3)
    ]
    volume = read_volume(save_series(pet))
    assert volume.modality == "PT"
    assert volume.array.dtype == np.float32
    assert volume.array[:, 5, 5] == pytest.approx([512, 1024, 1536])


def test_lookup_table_beyond_the_stored_range_does_not_wrap(make_slice: Make, save_series: Save) -> None:
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [2048, 0, 16], "US"
    table.LUTData = (np.arange(2048, dtype=np.uint16) + 50000).tobytes()
    lut = {"ModalityLUTSequence": Sequence([table]), "RescaleSlope": None, "RescaleIntercept": None}
    volume = read_volume(save_series([make_slice(2.0 * n, n, value=n, **lut) for n in range(3)]))
    assert volume.array[:, 5, 5].tolist() == [51024, 51025, 51026]


def test_run_length_encoding(make_slice: Make, save_series: Save) -> None:
    slices = [make_slice(2.0 * n, n, value=n) for n in range(3)]
    expected = read_volume(save_series(slices, "plain")).array
    for one in slices:
        one.compress(RLELossless, generate_instance_uid=False)
    assert np.array_equal(read_volume(save_series(slices, "compressed")).array, expected)


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000"])
def test_jpeg_without_a_pydicom_plugin(
    make_slice: Make, save_series: Save, tmp_path: Path, capfd: pytest.CaptureFixture[str], compressor: str
) -> None:
    plain = save_series([make_slice(2.0 * n, n, value=n) for n in range(3)], "plain")
    (tmp_path / "compressed").mkdir()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    for path in plain.iterdir():
        reader = sitk.ImageFileReader()
        reader.LoadPrivateTagsOn()
        reader.SetFileName(str(path))
        writer.SetFileName(str(tmp_path / "compressed" / path.name))
        writer.Execute(reader.Execute())
    volume, expected = read_volume(tmp_path / "compressed"), read_volume(plain)
    assert dcmread(volume.files[0]).file_meta.TransferSyntaxUID.is_compressed
    assert np.array_equal(volume.array, expected.array)
    assert volume.geometry.same_grid(expected.geometry)
    for share in (0.5, 0.9):  # the end of the pixels is missing, and the file says so itself
        damaged = dcmread(volume.files[0])
        (frame,) = generate_frames(damaged.PixelData, number_of_frames=1)
        damaged.PixelData = encapsulate([frame[: int(len(frame) * share) // 2 * 2]])
        damaged.save_as(tmp_path / "damaged.dcm", enforce_file_format=True)
        with pytest.raises(VolumeError, match=r"damaged\.dcm"):
            read_volume(tmp_path / "damaged.dcm")
    assert capfd.readouterr().err == ""


def test_images_without_a_place(make_slice: Make, save_series: Save) -> None:
    plain = [make_slice(0, n, value=n, ImagePositionPatient=None, PixelSpacing=None) for n in range(2)]
    volume = read_volume(next(save_series(plain[:1], "one").iterdir()))
    assert volume.geometry.spacing == (1.0, 1.0, 2.0)
    assert "no pixel size" in volume.notices[0]
    with pytest.raises(VolumeError, match="2 images without a place in the patient"):
        read_volume(save_series(plain, "two"))


def test_uids_of_copies_in_two_folders(make_slice: Make, save_series: Save, tmp_path: Path) -> None:
    slices = [make_slice(2.0 * n, n, SOPInstanceUID=generate_uid()) for n in range(3)]
    save_series(slices, "study/a".replace("/", "_"))
    folder = tmp_path / "study_a"
    (folder / "again").mkdir()
    for path in list(folder.glob("*.dcm")):
        (folder / "again" / path.name).write_bytes(path.read_bytes())
    volume = read_volume(folder)
    assert volume.array.shape[0] == 3
    assert volume.notices == ("3 files that are copies of others were set aside.",)


def test_forged_lengths_cost_no_memory(make_slice: Make, save_series: Save) -> None:
    forged = make_slice(0, 1)
    forged.compress(RLELossless, generate_instance_uid=False)
    forged.PixelData = forged.PixelData[:4] + (2**31).to_bytes(4, "little") + forged.PixelData[8:]
    with pytest.raises(VolumeError, match="2147483648 bytes of frame offsets"):
        read_volume(save_series([forged], "offsets"))
    with pytest.raises(VolumeError, match="promises 1 frame of 60000 x 60000 pixels"):
        read_volume(save_series([make_slice(0, 1, Rows=60000, Columns=60000)], "rows"))


@pytest.mark.parametrize(
    "element", [b"\x08\x00\x60\x00CS", b"\xe0\x7f\x10\x00OW"], ids=["Modality", "PixelData"]
)
def test_a_value_that_claims_more_than_its_file_costs_no_memory(
    make_slice: Make, save_series: Save, element: bytes
) -> None:
    path = next(save_series([make_slice(0, 1)]).iterdir())
    before, _, behind = path.read_bytes().partition(element)
    path.write_bytes(before + element[:4] + b"OB\0\0" + (2**32 - 2).to_bytes(4, "little") + behind)
    tracemalloc.start()
    with pytest.raises(VolumeError, match="claims 4294967294 bytes, more than the whole file"):
        read_volume(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


@pytest.mark.parametrize("read", [list_series, read_volume, lambda folder: open_cine(next(folder.iterdir()))])
def test_a_header_without_columns_is_one_sentence(
    make_slice: Make, save_series: Save, read: Callable
) -> None:
    with pytest.raises(VolumeError, match=r"IM0000\.dcm is damaged \(.*Columns"):
        read(save_series([make_slice(0, 1, Columns=None)]))


@pytest.mark.parametrize("tags", [{"Rows": 0, "NumberOfFrames": 99_999_999}, {"NumberOfFrames": 200_000}])
def test_frames_that_cannot_be_there_are_not_counted(
    make_slice: Make, save_series: Save, tags: dict[str, int]
) -> None:
    with pytest.raises(VolumeError, match=r"is damaged: its header promises \d+ frames"):
        read_volume(save_series([make_slice(0, 1, **tags)]))


def test_jpeg_ls_is_decoded_by_gdcm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyjpegls does not end on some damaged frames."""
    source = Path(get_testdata_file("SC_rgb_jls_lossy_line.dcm"))
    monkeypatch.delattr("MedSAM3Core.volume.dicom.pixels.pixel_array")
    colours = read_volume(source).array[0]
    assert (colours.shape, colours[0, 0].tolist()) == ((100, 100, 3), [255, 0, 0])
    damaged = dcmread(source)
    (frame,) = generate_frames(damaged.PixelData, number_of_frames=1)
    for share, what in ((0.6, "cannot be decoded"), (0.05, "does not say the bits")):
        damaged.PixelData = encapsulate([frame[: int(len(frame) * share) // 2 * 2]])
        damaged.save_as(tmp_path / "damaged.dcm", enforce_file_format=True)
        with pytest.raises(VolumeError, match=rf"damaged\.dcm: A .*{what}"):
            read_volume(tmp_path / "damaged.dcm")
