from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from batch_doubles import write_scan
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from MedSAM3Core.batch import Wanted, find_cases, read_manifest
from MedSAM3Core.errors import InputError, PromptError
from MedSAM3Core.volume.reading import read_series


def write_series(folder: Path, uid: str, count: int = 3, **tags: object) -> None:
    """A small CT series; every slice a file."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        one = Dataset()
        one.file_meta = FileMetaDataset()
        one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID = CTImageStorage
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        one.StudyInstanceUID, one.SeriesInstanceUID = "1.2", uid
        one.Modality, one.SeriesNumber, one.SeriesDescription = "CT", 2, "abdomen"
        one.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        one.ImagePositionPatient, one.ImageOrientationPatient = [0, 0, 3.0 * number], [1, 0, 0, 0, 1, 0]
        one.PixelSpacing, one.Rows, one.Columns = [1, 1], 8, 8
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
        one.PixelData = np.full((8, 8), number, np.int16).tobytes()
        for name, value in tags.items():
            setattr(one, name, value)
        one.save_as(folder / f"{uid}_{number}", enforce_file_format=True)


def keys(found) -> list[str]:
    return [case.key for case in found.cases]


def test_a_folder_is_mirrored_and_what_is_left_out_is_said(tmp_path: Path) -> None:
    source = tmp_path / "in"
    write_scan(source / "a" / "one.nii.gz", 1)
    write_scan(source / "a" / "one.nrrd", 1)
    write_scan(source / "b" / "two.seg.nrrd", 1)
    (source / "b" / "notes.txt").write_text("x")
    (source / ".hidden").mkdir()
    write_scan(source / ".hidden" / "three.nrrd", 1)
    write_scan(source / "out" / "old.nrrd", 1)
    found = find_cases([str(source)], ["Liver, spleen", "liver"], source / "out")
    assert keys(found) == ["a/one.nii.gz", "a/one.nrrd"]
    assert found.cases[0].concepts == ("Liver", "spleen")
    assert found.notices == ("Left out: 1 .txt file, 1 segmentation.",)


def test_patterns_and_files(tmp_path: Path) -> None:
    for n in range(3):
        write_scan(tmp_path / f"p{n}" / "ct.nrrd", n)
    pattern = str(tmp_path / "**" / "*.nrrd")
    found = find_cases([pattern, str(tmp_path / "p0" / "ct.nrrd")], ["liver"], tmp_path / "out")
    assert keys(found) == ["ct.nrrd", "ct.nrrd_2", "ct.nrrd_3"]
    assert "1 file named twice" in found.notices[0]
    with pytest.raises(InputError, match="Nothing matches"):
        find_cases([str(tmp_path / "*.gipl")], ["liver"], tmp_path / "out")
    with pytest.raises(InputError, match="does not exist"):
        find_cases([str(tmp_path / "absent")], ["liver"], tmp_path / "out")
    with pytest.raises(PromptError, match="no concept"):
        find_cases([pattern], [], tmp_path / "out")


def test_a_dicom_tree_is_sorted_by_series(tmp_path: Path) -> None:
    source = tmp_path / "archive"
    write_series(source / "patient" / "study", "1.5")
    write_series(source / "patient" / "study", "1.6", SeriesDescription="lung/bone", SeriesNumber=4)
    write_series(source / "patient" / "study", "1.7", 1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(source / "patient" / "mr", "1.8", Modality="MR")
    write_series(source / "patient" / "seg", "1.9", 1, Modality="SEG")
    found = find_cases([str(source)], ["liver"], tmp_path / "out")
    assert keys(found) == ["patient/mr", "patient/study/2_abdomen", "patient/study/4_lung_bone"]
    assert found.notices == ("Left out: 1 DICOM SEG file, 1 localizer series.",)
    volume = read_series(found.cases[1].files, found.cases[1].path)
    assert volume.geometry.shape == (3, 8, 8)
    assert [n.name for n in volume.files] == ["1.5_0", "1.5_1", "1.5_2"]
    ct = find_cases([str(source)], ["liver"], tmp_path / "out", Wanted(("CT",), "LUNG"))
    assert keys(ct) == ["patient/study"]
    assert "2 series of another modality or description" in ct.notices[0]


def test_a_damaged_file_is_blamed_on_its_series(tmp_path: Path) -> None:
    source = tmp_path / "archive"
    write_series(source / "a", "1.5")
    broken = source / "a" / "1.5_1"
    broken.write_bytes(broken.read_bytes()[:400])
    write_series(source / "b", "1.6")
    found = find_cases([str(source)], ["liver"], tmp_path / "out")
    assert keys(found) == ["a", "b"]
    assert "1.5_1" in found.cases[0].problem
    assert found.cases[1].problem == ""


def test_a_manifest_keeps_every_row(tmp_path: Path) -> None:
    write_scan(tmp_path / "data" / "one.nrrd", 1)
    table = tmp_path / "cases.csv"
    table.write_text(
        "Path,concepts,name,modality\n"
        "data/one.nrrd,liver; spleen,,ct\n"
        "data/one.nrrd,,second/run,\n"
        "data/absent.nrrd,,,\n"
        ",liver,,\n"
        "../../etc/up.nrrd,liver,../../x,\n"
    )
    found = read_manifest(table, ["kidney"])
    assert keys(found) == ["data/one", "second/run", "data/absent", "row 5", "x"]
    assert [case.concepts for case in found.cases][:2] == [("liver", "spleen"), ("kidney",)]
    assert found.cases[0].modality == "CT"
    assert "names no image" in found.cases[3].problem
    assert "names no concept" in read_manifest(table).cases[1].problem


def test_manifests_that_are_none(tmp_path: Path) -> None:
    table = tmp_path / "cases.csv"
    table.write_text("file,organ\nx,y\n")
    with pytest.raises(InputError, match="columns file, organ; expected path"):
        read_manifest(table)
    table.write_text("path\n")
    with pytest.raises(InputError, match="no rows"):
        read_manifest(table)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "x.png")
    with pytest.raises(InputError, match="cannot be read"):
        read_manifest(tmp_path / "x.png")
