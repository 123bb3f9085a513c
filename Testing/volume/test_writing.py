"""Outputs: every format read back by somebody else, and nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from PIL import Image

from MedSAM3Core.errors import OutputError, VolumeError
from MedSAM3Core.prompts import Code, Coding, Concept
from MedSAM3Core.segmentation import Provenance, Segmentation
from MedSAM3Core.volume import Volume, read_volume
from MedSAM3Core.volume.geometry import Geometry
from MedSAM3Core.volume.nrrd import lps_image_affine
from MedSAM3Core.volume.reference import place_on_grid, read_segmentation
from MedSAM3Core.volume.tags import provenance_of
from MedSAM3Core.volume.writing import check_output, write_segmentations

ANATOMY, ALTERED = (
    Code("123037004", "Anatomical Structure"),
    Code("49755003", "Morphologically Altered Structure"),
)
LIVER = Concept(
    "Liver", "liver", ("liver",), "liver", "10200004", (221, 130, 101),
    coding=Coding(ANATOMY, Code("10200004", "Liver")),
)  # fmt: skip
KIDNEY = Concept(
    "kidney, left", "left kidney", ("left kidney",), "left kidney", "64033007", (185, 102, 83),
    coding=Coding(ANATOMY, Code("64033007", "Kidney"), Code("7771000", "Left")),
)  # fmt: skip
TUMOUR = Concept(
    "liver tumour", "liver tumor", ("liver tumor",), "liver tumor", "108369006", (144, 238, 144),
    coding=Coding(ALTERED, Code("108369006", "Neoplasm"), None, Code("10200004", "Liver")),
)  # fmt: skip
ODD = Concept("Übergröße | x:y%7C\nz", "odd", (), "Übergröße", None, (1, 2, 3))
MADE = Provenance(
    "Liver", "demo", "ab" * 32, "0.1", ("liver", "hepar"), ("3,1,2,5,6,+",), {"score": 0.5}, "axial (k)",
    "soft tissue: 400 | 50", "cpu", "2026-11-23T07:00:00Z", ("a: b", "c\nd"),
)  # fmt: skip


def volume_on(affine: np.ndarray, shape: tuple[int, int, int] = (6, 10, 12)) -> Volume:
    return Volume.from_array(np.arange(np.prod(shape), dtype=np.int16).reshape(shape), ijk_to_ras=affine)


def segmentations_on(volume: Volume) -> list[Segmentation]:
    """Liver, kidney beside it, tumour inside the liver, and one that was found nowhere."""
    masks = np.zeros((4, *volume.geometry.shape), bool)
    masks[0, 1:5, 2:8, 3:9] = True
    masks[1, 0:2, 0:2, 0:12:3] = True
    masks[2, 2:4, 3:6, 4:6] = True
    concepts = (LIVER, KIDNEY, TUMOUR, ODD)
    return [
        Segmentation.from_mask(concept, volume.geometry, mask, score=0.75, provenance=MADE)
        for concept, mask in zip(concepts, masks, strict=True)
    ]


def expected_labels(segmentations: list[Segmentation]) -> np.ndarray:
    labels = np.zeros(segmentations[0].geometry.shape, int)
    for value, one in enumerate(segmentations, 1):
        labels[one.to_array()] = value
    return labels


@pytest.mark.parametrize("name", ["out.nrrd", "out.nii", "out.nii.gz"])
def test_labelmaps_lie_on_the_volume(
    tmp_path: Path, tilted: np.ndarray, left_handed: np.ndarray, name: str
) -> None:
    for affine in (tilted, left_handed):
        volume = volume_on(affine)
        segmentations = segmentations_on(volume)
        notices = write_segmentations(tmp_path / name, segmentations, volume)
        image = sitk.ReadImage(str(tmp_path / name))
        assert np.array_equal(sitk.GetArrayFromImage(image), expected_labels(segmentations))
        tolerance = 1e-9 if name == "out.nrrd" else 1e-4
        assert lps_image_affine(image) == pytest.approx(affine, abs=tolerance)
        assert read_volume(tmp_path / name).geometry.same_grid(volume.geometry)
        assert notices == (
            "12 of 144 voxels of 'liver' lie under a later segment in this labelmap; write .seg.nrrd to keep both.",
        )
    assert os.listdir(tmp_path) == [name]


def test_png_of_a_2d_image(tmp_path: Path) -> None:
    photo = Volume.from_array(np.zeros((10, 12, 3), np.uint8))
    mask = np.zeros((1, 10, 12), bool)
    mask[0, 3:5, 2:7] = True
    polyp = Segmentation.from_mask(Concept("polyp", "polyp"), photo.geometry, mask)
    write_segmentations(tmp_path / "mask.png", [polyp, polyp], photo)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "mask.png")), mask[0] * 2)
    with pytest.raises(OutputError, match="PNG cannot hold the 6 slices"):
        write_segmentations(tmp_path / "mask.png", [polyp], volume_on(np.eye(4)))


def test_more_than_255_segments(tmp_path: Path) -> None:
    volume = volume_on(np.eye(4), (2, 16, 16))
    segmentations = []
    for n in range(300):
        mask = np.zeros(volume.geometry.shape, bool)
        mask.reshape(-1)[n] = True
        segmentations.append(Segmentation.from_mask(Concept(f"c{n}", f"c{n}"), volume.geometry, mask))
    for name in ("a.nrrd", "a.nii.gz", "a.seg.nrrd"):
        write_segmentations(tmp_path / name, segmentations, volume)
        segments = read_segmentation(tmp_path / name)
        assert len(segments) == 300
        assert segments[299].label == 300
        assert np.flatnonzero(segments[299].mask).tolist() == [299]


def test_seg_nrrd_round_trip(tmp_path: Path, left_handed: np.ndarray) -> None:
    volume = volume_on(left_handed)
    segmentations = segmentations_on(volume)
    assert write_segmentations(tmp_path / "out.seg.nrrd", segmentations, volume) == ()
    segments = read_segmentation(tmp_path / "out.seg.nrrd")
    for one, segment in zip(segmentations, segments, strict=True):
        assert np.array_equal(segment.mask, one.to_array())
        assert segment.geometry.ijk_to_ras == pytest.approx(left_handed, abs=1e-12)
        assert segment.name == one.concept.name
        assert segment.colour == one.concept.colour
        assert segment.code == one.concept.code
        assert provenance_of(segment.tags) == MADE
        assert segment.tags["MedSAM3.Score"] == "0.7500"


def test_one_layer_is_a_plain_labelmap_too(tmp_path: Path) -> None:
    volume = volume_on(np.eye(4))
    liver, kidney, _, _ = segmentations_on(volume)
    write_segmentations(tmp_path / "out.seg.nrrd", [liver, kidney], volume)
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "out.seg.nrrd")))
    assert np.array_equal(labels, expected_labels([liver, kidney]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out.mha", "expected a name that ends in"),
        (".nii.gz", "expected a name that ends in"),
        ("no/such/out.nrrd", "does not exist; create it"),
        ("out.dcm", "was not read from one"),
        ("", "expected a name that ends in"),
    ],
)
def test_outputs_that_cannot_be(tmp_path: Path, name: str, message: str) -> None:
    volume = volume_on(np.eye(4))
    with pytest.raises(OutputError, match=message):
        write_segmentations(tmp_path / name, segmentations_on(volume), volume)
    with pytest.raises(OutputError, match=message):
        check_output(tmp_path / name, volume)
    assert os.listdir(tmp_path) == []


def test_a_folder_of_that_name_stays(tmp_path: Path) -> None:
    volume = volume_on(np.eye(4))
    (tmp_path / "out.nrrd").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        write_segmentations(tmp_path / "out.nrrd", segmentations_on(volume), volume)
    assert (tmp_path / "out.nrrd").is_dir()


def test_closed_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tests may run as root, whom no permission stops, so the system's answer is doubled.
    monkeypatch.setattr(os, "access", lambda *_: False)
    volume = volume_on(np.eye(4))
    with pytest.raises(OutputError, match="cannot be written to"):
        write_segmentations(tmp_path / "out.nrrd", segmentations_on(volume), volume)


def test_nothing_to_write_and_wrong_grid(tmp_path: Path) -> None:
    volume = volume_on(np.eye(4))
    with pytest.raises(OutputError, match="no segmentation to write"):
        write_segmentations(tmp_path / "out.nrrd", [], volume)
    with pytest.raises(OutputError, match="at another place or size"):
        write_segmentations(tmp_path / "out.nrrd", segmentations_on(volume), volume_on(2 * np.eye(4)))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["out.seg.nrrd", "out.nrrd", "out.nii", "out.nii.gz"])
def test_full_disk_leaves_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    # The double: the flush to the disk answers as a full disk does.
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    volume = volume_on(np.eye(4))
    (tmp_path / name).write_bytes(b"former")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="The disk is full"):
        write_segmentations(tmp_path / name, segmentations_on(volume), volume)
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == b"former"


def test_a_limit_that_the_system_sets_in_the_middle(tmp_path: Path) -> None:
    """A real failure while bytes are written: the process may not write files of more than 4 kB."""
    rng = np.random.default_rng(9)
    volume = volume_on(np.eye(4), (20, 64, 64))
    noise = Segmentation.from_mask(LIVER, volume.geometry, rng.random(volume.geometry.shape) < 0.5)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        with pytest.raises(OutputError, match=r"cannot be written \(file too large\)"):
            write_segmentations(tmp_path / "out.seg.nrrd", [noise], volume)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == []


def test_a_cancel_in_the_middle_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    volume = volume_on(np.eye(4))
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_segmentations(tmp_path / "out.nrrd", segmentations_on(volume), volume)
    assert os.listdir(tmp_path) == []


def test_files_have_the_users_permissions(tmp_path: Path) -> None:
    volume = volume_on(np.eye(4))
    write_segmentations(tmp_path / "out.nrrd", segmentations_on(volume), volume)
    (tmp_path / "plain").touch()
    assert (tmp_path / "out.nrrd").stat().st_mode == (tmp_path / "plain").stat().st_mode


READ_BACK = """
import sys
import numpy as np, slicer, vtk
from vtk.util.numpy_support import vtk_to_numpy
found = {}
for name in sys.argv[1:]:
    scene = slicer.vtkMRMLScene()
    node = scene.AddNode(slicer.vtkMRMLSegmentationNode())
    storage = scene.AddNode(slicer.vtkMRMLSegmentationStorageNode())
    storage.SetFileName(name)
    assert storage.ReadData(node) == 1
    segmentation = node.GetSegmentation()
    found[f"{name} layers"] = segmentation.GetNumberOfLayers()
    for n in range(segmentation.GetNumberOfSegments()):
        segment = segmentation.GetNthSegment(n)
        image = slicer.vtkOrientedImageData()
        node.GetBinaryLabelmapRepresentation(segmentation.GetNthSegmentID(n), image)
        matrix = vtk.vtkMatrix4x4()
        image.GetImageToWorldMatrix(matrix)
        points = np.zeros((0, 3))
        if image.GetPointData().GetScalars() is not None:
            e = image.GetExtent()
            voxels = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(e[5]-e[4]+1, e[3]-e[2]+1, e[1]-e[0]+1)
            kji = np.argwhere(voxels > 0) + [e[4], e[2], e[0]]
            affine = np.array([[matrix.GetElement(r, c) for c in range(4)] for r in range(4)])
            points = (affine @ np.c_[kji[:, ::-1], np.ones(len(kji))].T).T[:, :3]
        texts = [vtk.reference("") for _ in range(4)]
        for tag, value in zip(("TerminologyEntry", "MedSAM3.Model", "MedSAM3.Notices", "MedSAM3.Phrase"), texts):
            segment.GetTag(tag, value)
        found[f"{name} points {n}"] = points
        found[f"{name} texts {n}"] = np.array([segment.GetName(), *(str(value) for value in texts)])
        found[f"{name} colour {n}"] = np.array(segment.GetColor())
np.savez("found.npz", **found)
"""


def test_slicer_reads_it_back(tmp_path: Path, tilted: np.ndarray, left_handed: np.ndarray) -> None:
    """Slicer's own storage node, in a process of its own, for its messages go to stderr."""
    pytest.importorskip("slicer")
    affines = {"tilted.seg.nrrd": tilted, "left.seg.nrrd": left_handed}
    for name, affine in list(affines.items()):
        sheared = affine.copy()
        sheared[:3, 2] += 0.8 * affine[:3, 1]
        affines[f"sheared_{name}"] = sheared
    for name, affine in affines.items():
        volume = volume_on(affine)
        write_segmentations(tmp_path / name, segmentations_on(volume), volume)
    (tmp_path / "read_back.py").write_text(READ_BACK)
    subprocess.run(
        [sys.executable, "read_back.py", *affines], cwd=tmp_path, check=True, capture_output=True, timeout=120
    )
    found = np.load(tmp_path / "found.npz", allow_pickle=False)
    for name, affine in affines.items():
        assert found[f"{name} layers"] == 2
        for n, one in enumerate(segmentations_on(volume_on(affine))):
            kji = np.argwhere(one.to_array())
            points = (affine @ np.c_[kji[:, ::-1], np.ones(len(kji))].T).T[:, :3]
            assert sorted_rows(found[f"{name} points {n}"]) == pytest.approx(sorted_rows(points), abs=1e-6)
            shown, terminology, model, notices, phrase = found[f"{name} texts {n}"]
            assert (shown, phrase, model) == (one.concept.name, one.concept.phrase, "demo")
            assert notices == '["a: b", "c\\nd"]'
            if one.concept.coding:
                assert terminology == one.concept.coding.slicer_entry()
            assert found[f"{name} colour {n}"] * 255 == pytest.approx(one.concept.colour, abs=0.01)


def sorted_rows(points: np.ndarray) -> np.ndarray:
    rounded = np.round(points, 3)
    return points[np.lexsort(rounded.T)]


Make = Callable[..., object]


def dicom_case(make_slice: Make, save_series: Callable[..., Path]) -> tuple[Volume, list[Segmentation]]:
    tilt = [0.8, 0.6, 0, 0, 0, -1]
    normal = np.cross(tilt[:3], tilt[3:])
    place = {"ImageOrientationPatient": tilt}
    folder = save_series(
        [
            make_slice(0, n, value=n, ImagePositionPatient=list(n * 3.0 * normal), **place)
            for n in (3, 0, 5, 1, 4, 2)
        ]
    )
    volume = read_volume(folder)
    return volume, segmentations_on(volume)


def test_dicom_segmentation(make_slice: Make, save_series: Callable[..., Path], tmp_path: Path) -> None:
    volume, segmentations = dicom_case(make_slice, save_series)
    write_segmentations(tmp_path / "out.dcm", segmentations[:3], volume)
    check_dicom_segmentation(tmp_path / "out.dcm", volume, segmentations[:3])
    assert sorted(os.listdir(tmp_path)) == ["out.dcm", "series"]


def check_dicom_segmentation(path: Path, volume: Volume, segmentations: list[Segmentation]) -> None:
    """Compare with what plain pydicom finds: masks by the UID of the slice they refer to, codes, and places."""
    from pydicom import dcmread

    dataset = dcmread(path)
    assert dataset.Modality == "SEG"
    uids = [
        str(dcmread(file, stop_before_pixels=True).file_meta.MediaStorageSOPInstanceUID)
        for file in volume.files
    ]
    masks = np.zeros((len(segmentations), *volume.geometry.shape), bool)
    for frame, groups in zip(
        np.atleast_3d(dataset.pixel_array), dataset.PerFrameFunctionalGroupsSequence, strict=True
    ):
        source = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        shared = dataset.SharedFunctionalGroupsSequence[0]
        place = groups if "SegmentIdentificationSequence" in groups else shared
        number = place.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        k = uids.index(str(source))
        masks[number - 1, k] = frame > 0
        position = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        assert position * [-1, -1, 1] == pytest.approx(
            (volume.geometry.ijk_to_ras @ [0, 0, k, 1])[:3], abs=1e-3
        )
    for one, mask, item in zip(segmentations, masks, dataset.SegmentSequence, strict=True):
        assert np.array_equal(mask, one.to_array())
        assert item.SegmentLabel == one.concept.name
        kind = item.SegmentedPropertyTypeCodeSequence[0]
        coding = one.concept.coding
        if coding is None:
            continue
        assert (kind.CodeValue, kind.CodingSchemeDesignator) == (coding.type.value, "SCT")
        if coding.modifier:
            assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeValue == coding.modifier.value
        if coding.region:
            assert item.AnatomicRegionSequence[0].CodeValue == coding.region.value


def test_dicom_segmentation_read_by_highdicom(
    make_slice: Make, save_series: Callable[..., Path], tmp_path: Path
) -> None:
    volume, segmentations = dicom_case(make_slice, save_series)
    write_segmentations(
        tmp_path / "out.dcm", segmentations[:2], volume
    )  # no overlap: another way in the writer
    check_dicom_segmentation(tmp_path / "out.dcm", volume, segmentations[:2])
    for one, segment in zip(segmentations, read_segmentation(tmp_path / "out.dcm"), strict=False):
        assert np.array_equal(segment.on(volume.geometry), one.to_array())
        assert (segment.name, segment.code) == (one.concept.name, one.concept.code)


@pytest.mark.parametrize("what", ["frames", "places", "rows", "segments"])
def test_a_damaged_dicom_segmentation_is_refused_before_memory_is_asked_for(
    make_slice: Make, save_series: Callable[..., Path], tmp_path: Path, what: str
) -> None:
    from pydicom import dcmread

    volume, segmentations = dicom_case(make_slice, save_series)
    path = tmp_path / "out.dcm"
    write_segmentations(path, segmentations[:2], volume)
    dataset = dcmread(path)
    frames = dataset.PerFrameFunctionalGroupsSequence
    if what == "frames":
        dataset.NumberOfFrames = 99_999_999
    elif what == "places":
        places = [frame.PlanePositionSequence[0] for frame in frames]
        last = max((place.ImagePositionPatient for place in places), key=np.linalg.norm)
        far = [round(n / np.linalg.norm(last) * 3e8, 3) for n in last]  # of slices 3 mm apart
        for place in places:
            if place.ImagePositionPatient == last:
                place.ImagePositionPatient = far
    elif what == "rows":
        dataset.Rows = dataset.Columns = 60_000
    else:
        for frame in frames:
            del frame.SegmentIdentificationSequence
    dataset.save_as(path)
    words = {
        "frames": "promises 99999999 frames and describes",
        "segments": "cannot be read as a segmentation",
    }
    with pytest.raises(VolumeError, match=words.get(what, "its frames span .* voxels, which cannot be")):
        read_segmentation(path)


def test_dicom_segmentation_with_an_empty_segment(
    make_slice: Make, save_series: Callable[..., Path], tmp_path: Path
) -> None:
    volume, segmentations = dicom_case(make_slice, save_series)
    write_segmentations(tmp_path / "out.dcm", segmentations, volume)
    check_dicom_segmentation(tmp_path / "out.dcm", volume, segmentations)


def test_dicom_segmentation_of_what_was_found_nowhere(
    make_slice: Make, save_series: Callable[..., Path], tmp_path: Path
) -> None:
    volume, segmentations = dicom_case(make_slice, save_series)
    nothing = segmentations[3:]
    assert all(one.empty for one in nothing)
    write_segmentations(tmp_path / "empty.dcm", nothing, volume)
    again = read_segmentation(tmp_path / "empty.dcm")
    assert [segment.name for segment in again] == [one.concept.name for one in nothing]
    assert not any(segment.on(volume.geometry).any() for segment in again)


def test_dicom_source_that_is_gone_or_poor(
    make_slice: Make, save_series: Callable[..., Path], tmp_path: Path
) -> None:
    volume, segmentations = dicom_case(make_slice, save_series)
    volume.files[2].rename(tmp_path / "elsewhere.dcm")
    with pytest.raises(OutputError, match="is gone; put it back"):
        write_segmentations(tmp_path / "out.dcm", segmentations, volume)
    poor = read_volume(save_series([make_slice(2.0 * n, n, SOPClassUID="1.2.3") for n in range(6)], "poor"))
    with pytest.raises(OutputError, match=r"lacks what a DICOM segmentation needs"):
        write_segmentations(tmp_path / "out.dcm", segmentations_on(poor), poor)
    assert not (tmp_path / "out.dcm").exists()


@pytest.mark.shared
def test_dicom_segmentation_of_a_real_series(raw: Path, tmp_path: Path) -> None:
    volume = read_volume(raw / "ts_ct_dicom20" / "dicom")
    labels = read_segmentation(raw / "ts_ct_dicom20" / "labels.nii.gz")
    by_name = {segment.name: segment for segment in labels}
    segmentations = [
        Segmentation.from_mask(concept, volume.geometry, by_name[name].on(volume.geometry), provenance=MADE)
        for concept, name in ((LIVER, "liver"), (KIDNEY, "kidney_left"))
        if name in by_name
    ]
    assert segmentations
    notices = write_segmentations(tmp_path / "out.dcm", segmentations, volume)
    assert "no StudyInstanceUID and no SeriesInstanceUID" in notices[0]
    check_dicom_segmentation(tmp_path / "out.dcm", volume, segmentations)


@pytest.mark.shared
def test_published_dicom_segmentation_equals_its_nrrd(raw: Path) -> None:
    folder = raw / "dcmqi_ct3slice"
    volume = read_volume(folder / "dicom")
    (liver,) = read_segmentation(folder / "liver.dcm")
    (from_nrrd,) = read_segmentation(folder / "liver_seg.nrrd")
    assert liver.code == "T-62000"  # the file is older than SNOMED CT in DICOM
    assert np.array_equal(liver.on(volume.geometry), from_nrrd.on(volume.geometry))
    assert liver.mask.any()


def test_reference_labelmap_names(tmp_path: Path) -> None:
    volume = volume_on(np.eye(4))
    write_segmentations(tmp_path / "out.nii.gz", segmentations_on(volume)[:2], volume)
    assert [segment.name for segment in read_segmentation(tmp_path / "out.nii.gz")] == ["1", "2"]
    (tmp_path / "labels.json").write_text('{"1": {"name": "liver"}, "2": "left kidney", "9": "spleen"}')
    segments = read_segmentation(tmp_path / "out.nii.gz")
    assert [segment.name for segment in segments] == ["liver", "left kidney", "spleen"]
    assert not segments[2].mask.any()
    named = read_segmentation(tmp_path / "out.nii.gz", names={1: "a"})
    assert [segment.name for segment in named] == ["a", "2"]


def test_references_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="does not exist"):
        read_segmentation(tmp_path / "no.nrrd")
    sitk.WriteImage(sitk.GetImageFromArray(np.full((2, 3, 4), 0.5)), str(tmp_path / "a.nrrd"))
    with pytest.raises(VolumeError, match="not whole numbers"):
        read_segmentation(tmp_path / "a.nrrd")
    sitk.WriteImage(sitk.GetImageFromArray(np.arange(2400).reshape(2, 30, 40)), str(tmp_path / "b.nrrd"))
    with pytest.raises(VolumeError, match="2399 different values"):
        read_segmentation(tmp_path / "b.nrrd")


def test_crops_and_flips_are_put_in_place() -> None:
    rng = np.random.default_rng(10)
    full = rng.random((6, 10, 12)) < 0.5
    grid = Geometry(full.shape, np.diag([1.0, 2.0, 3.0, 1.0]))
    shift = np.eye(4)
    shift[:3, 3] = [3, 2, 1]
    crop = Geometry((4, 5, 6), grid.ijk_to_ras @ shift)
    placed = place_on_grid(full[1:5, 2:7, 3:9], crop, grid)
    assert np.array_equal(placed[1:5, 2:7, 3:9], full[1:5, 2:7, 3:9])
    assert placed.sum() == full[1:5, 2:7, 3:9].sum()
    flip = np.eye(4)
    flip[1, 1], flip[1, 3] = -1, 9
    assert np.array_equal(
        place_on_grid(full[:, ::-1], Geometry(full.shape, grid.ijk_to_ras @ flip), grid), full
    )
    half = np.eye(4)
    half[0, 3] = 0.5
    with pytest.raises(VolumeError, match="do not coincide"):
        place_on_grid(full, Geometry(full.shape, grid.ijk_to_ras @ half), grid)


@pytest.mark.shared
def test_dicom_segmentation_read_by_dcmqi(raw: Path, tmp_path: Path) -> None:
    """An independent reader, written in C++ on DCMTK; `pip install dcmqi` (140 MB) brings it."""
    reader = shutil.which("segimage2itkimage")
    if reader is None:
        pytest.skip("dcmqi's segimage2itkimage is not installed")
    volume = read_volume(raw / "dcmqi_ct3slice" / "dicom")
    (liver,) = read_segmentation(raw / "dcmqi_ct3slice" / "liver_seg.nrrd")
    mask = liver.on(volume.geometry)
    inner = np.zeros_like(mask)
    inner[1] = mask[1]
    segmentations = [
        Segmentation.from_mask(LIVER, volume.geometry, mask, provenance=MADE),
        Segmentation.from_mask(TUMOUR, volume.geometry, inner, provenance=MADE),
    ]
    write_segmentations(tmp_path / "out.dcm", segmentations, volume)
    command = [
        reader,
        "--inputDICOM",
        "out.dcm",
        "--outputDirectory",
        ".",
        "--outputType",
        "nrrd",
        "--prefix",
        "s",
    ]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    for n, one in enumerate(segmentations, 1):
        (read,) = read_segmentation(tmp_path / f"s-{n}.nrrd")
        assert np.array_equal(read.on(volume.geometry), one.to_array())
    described = json.loads((tmp_path / "s-meta.json").read_text())
    kinds = [group[0]["SegmentedPropertyTypeCodeSequence"] for group in described["segmentAttributes"]]
    assert [kind["CodeValue"] for kind in kinds] == ["10200004", "108369006"]


WRITE_IN_SLICER = """
import numpy as np, slicer, vtk
from vtk.util.numpy_support import vtk_to_numpy
data = np.load("masks.npz")
scene = slicer.vtkMRMLScene()
node = scene.AddNode(slicer.vtkMRMLSegmentationNode())
matrix = vtk.vtkMatrix4x4()
for row in range(4):
    for column in range(4):
        matrix.SetElement(row, column, data["affine"][row, column])
for name in ("first", "second"):
    image = slicer.vtkOrientedImageData()
    image.SetDimensions(*data[name].shape[::-1])
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    vtk_to_numpy(image.GetPointData().GetScalars())[:] = data[name].ravel()
    image.SetGeometryFromImageToWorldMatrix(matrix)
    segment = slicer.vtkSegment()
    segment.SetName(name)
    segment.SetColor(0.2, 0.4, 0.6)
    segment.AddRepresentation("Binary labelmap", image)
    segment.SetTag("Mine", "a value")
    node.GetSegmentation().AddSegment(segment, name)
storage = scene.AddNode(slicer.vtkMRMLSegmentationStorageNode())
storage.SetFileName("slicer.seg.nrrd")
assert storage.WriteData(node) == 1
"""


def test_what_slicer_wrote(tmp_path: Path, left_handed: np.ndarray) -> None:
    """Slicer writes a crop; it is put back on the volume's grid."""
    pytest.importorskip("slicer")
    volume = volume_on(left_handed)
    first, second, _, _ = (one.to_array() for one in segmentations_on(volume))
    second |= np.roll(first, 1, axis=2)  # overlaps the first
    np.savez(tmp_path / "masks.npz", first=first, second=second, affine=left_handed)
    (tmp_path / "write.py").write_text(WRITE_IN_SLICER)
    subprocess.run([sys.executable, "write.py"], cwd=tmp_path, check=True, capture_output=True, timeout=120)
    segments = read_segmentation(tmp_path / "slicer.seg.nrrd")
    assert [segment.name for segment in segments] == ["first", "second"]
    for segment, mask in zip(segments, (first, second), strict=True):
        assert np.array_equal(segment.on(volume.geometry), mask)
        assert segment.colour == (51, 102, 153)
        assert segment.tags["Mine"] == "a value"


def test_paths_beyond_ascii(tmp_path: Path) -> None:
    folder = tmp_path / "Übergröße 肝臓"
    folder.mkdir()
    volume = volume_on(np.eye(4))
    for name in ("é.seg.nrrd", "é.nrrd", "é.nii.gz"):
        write_segmentations(folder / name, segmentations_on(volume)[:2], volume)
        assert len(read_segmentation(folder / name)) == 2
        assert read_volume(folder / name).array.shape == volume.array.shape
