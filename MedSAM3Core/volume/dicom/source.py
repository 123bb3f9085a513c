"""DICOM files read so that a damaged length costs no memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydicom import dcmread

from MedSAM3Core.volume.raw import SizedFile

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset


def read_dataset(path: Path, **options: Any) -> FileDataset:
    """What ``pydicom.dcmread`` gives for a file and its options.

    Raises:
        ValueError: If a value claims to be longer than the file.
        InvalidDicomError: If the file is no DICOM.
    """
    with SizedFile(path) as file:
        return dcmread(file, **options)
