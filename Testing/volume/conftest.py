"""Real data from ../shared where it is, and DICOM series made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SHARED = Path(__file__).resolve().parents[3] / "shared"


@pytest.fixture(scope="session")
def raw() -> Path:
    """The folder of real images in their published formats."""
    folder = SHARED / "data" / "raw"
    if not folder.is_dir():
        pytest.skip("../shared/data/raw is not there")
    return folder


def tilted_affine(left_handed: bool = False) -> np.ndarray:
    """ijk-to-RAS of an anisotropic grid, rotated about two axes."""
    a, b = np.radians([25.0, 10.0])
    turn_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    turn_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn_x @ turn_z @ np.diag([0.7, 0.9, -2.5 if left_handed else 2.5])
    affine[:3, 3] = [-31.25, 17.5, 102.125]
    return affine


@pytest.fixture
def tilted() -> np.ndarray:
    return tilted_affine()


@pytest.fixture
def left_handed() -> np.ndarray:
    return tilted_affine(left_handed=True)


def ct_slice(z: float, number: int, value: int = 0, **tags: object) -> Dataset:
    """One 12 x 10 CT slice at height ``z`` mm with a bright corner; ``tags`` replace or add elements, None removes."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID = "1.2.3.4", "1.2.3"
    dataset.FrameOfReferenceUID = "1.2.5"
    dataset.PatientID, dataset.PatientName = "P", "Phantom"
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID, dataset.AccessionNumber = (
        "20260101",
        "120000",
        "1",
        "",
    )
    dataset.PatientBirthDate, dataset.PatientSex, dataset.ReferringPhysicianName = "", "O", ""
    dataset.Modality, dataset.SeriesNumber, dataset.SeriesDescription = "CT", 3, "thin axial"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.InstanceNumber = number
    dataset.ImagePositionPatient = [-5.0, -7.0, z]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.SliceThickness = [0.8, 0.6], 2.0
    dataset.Rows, dataset.Columns = 10, 12
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    pixels = np.full((10, 12), 1024 + value, np.uint16)
    pixels[0, 0] = 3000
    dataset.PixelData = pixels.tobytes()
    for name, content in tags.items():
        if content is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, content)
    return dataset


@pytest.fixture
def make_slice() -> Callable[..., Dataset]:
    return ct_slice


@pytest.fixture
def save_series(tmp_path: Path) -> Callable[..., Path]:
    """Writes datasets as files of one folder and returns the folder."""

    def save(datasets: list[Dataset], folder: str = "series") -> Path:
        target = tmp_path / folder
        target.mkdir(exist_ok=True)
        for n, dataset in enumerate(datasets):
            dataset.save_as(target / f"IM{len(list(target.iterdir())) + n:04d}.dcm", enforce_file_format=True)
        return target

    return save
