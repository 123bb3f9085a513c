"""JPEG-LS, and the JPEG kinds that pydicom has no decoder for (lossless, 12 bits), by the GDCM inside SimpleITK.

pyjpegls 1.5.1, which pydicom would take for JPEG-LS where it is installed, does not end on some damaged frames.
GDCM is given one frame at a time in a file made for it, not the user's file: on damaged files it was seen to ask for
4 GB and to take 44 s. The lines that its libraries print about a frame count as damage, for their pixels are wrong.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name its own documentation uses
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import UID, JPEGLSLossless, JPEGLSNearLossless, SecondaryCaptureImageStorage

from MedSAM3Core.errors import VolumeError

_PIXEL_MODULE = (
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation", "PlanarConfiguration",
)  # fmt: skip
JPEG_LS = frozenset([JPEGLSLossless, JPEGLSNearLossless])
_JPEG_LS_FRAME = b"\xff\xf7"
"""Marker of JPEG-LS's frame header; behind it two bytes of length and the bits of a sample."""
_STDERR = 2
_capturing = threading.Lock()


def decode_frames(dataset: Dataset) -> np.ndarray:
    """Decode the frames of a dataset with encapsulated pixels.

    Args:
        dataset: With ``PixelData`` and ``file_meta``.

    Returns:
        Stored values, (rows, columns[, samples]) of a single frame, (frames, rows, columns[, samples]) of several.

    Raises:
        VolumeError: If a frame is damaged.
    """
    count = int(dataset.get("NumberOfFrames", 1) or 1)
    frames = list(iter_frames(dataset))
    if len(frames) < count:
        raise VolumeError(f"{len(frames)} of {count} frames are there; copy the file again.")
    return frames[0] if count == 1 else np.stack(frames)


def iter_frames(dataset: Dataset) -> Iterator[np.ndarray]:
    """Decode the frames one by one: stored values, (rows, columns[, samples]).

    Args:
        dataset: With ``PixelData`` and ``file_meta``.

    Raises:
        VolumeError: If a frame is damaged.
    """
    count = int(dataset.get("NumberOfFrames", 1) or 1)
    with tempfile.TemporaryDirectory(prefix="medsam3-") as folder:
        for frame in generate_frames(dataset.PixelData, number_of_frames=count):
            yield _decode_frame(dataset, frame, Path(folder) / "frame.dcm")


def _decode_frame(dataset: Dataset, frame: bytes, path: Path) -> np.ndarray:
    alone = Dataset()
    alone.file_meta = FileMetaDataset()
    alone.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    alone.file_meta.MediaStorageSOPClassUID = alone.SOPClassUID = SecondaryCaptureImageStorage
    alone.file_meta.MediaStorageSOPInstanceUID = alone.SOPInstanceUID = UID("1.2.3")
    alone.Modality = "OT"
    for name in _PIXEL_MODULE:
        if name in dataset:
            setattr(alone, name, dataset[name].value)
    if alone.get("SamplesPerPixel", 1) == 1:
        alone.PhotometricInterpretation = "MONOCHROME2"  # ITK would apply palettes and turn MONOCHROME1 round
    if alone.file_meta.TransferSyntaxUID in JPEG_LS:
        _take_bits_of_frame(alone, frame)
    alone.PixelData = encapsulate([frame])
    alone["PixelData"].VR = "OB"
    alone.save_as(path, enforce_file_format=True)
    try:
        with _stderr_captured() as said:
            pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    except RuntimeError as error:  # whose words are about addresses and source files
        raise VolumeError("A compressed frame cannot be decoded; copy the file again.") from error
    if said:
        raise VolumeError(f"A compressed frame is damaged ({said[0]}); copy the file again.")
    return pixels[0] if pixels.shape[0] == 1 else pixels


def _take_bits_of_frame(alone: Dataset, frame: bytes) -> None:
    """Say of a JPEG-LS frame the bits that it has: of headers that say others GDCM gives wrong values or none."""
    at = frame.find(_JPEG_LS_FRAME)
    bits = frame[at + 4] if 0 <= at < len(frame) - 4 else 0
    if not 2 <= bits <= 16:
        raise VolumeError(
            "A JPEG-LS frame is damaged: it does not say the bits of a sample; copy the file again."
        )
    alone.BitsAllocated = 8 if bits <= 8 else 16
    alone.BitsStored, alone.HighBit = bits, bits - 1


@contextmanager
def _stderr_captured() -> Iterator[list[str]]:
    """Collect what C libraries print to stderr; the list is filled when the block ends. For moments, one at a time."""
    said: list[str] = []
    with _capturing, tempfile.TemporaryFile() as sink:
        sys.stderr.flush()
        saved = os.dup(_STDERR)
        os.dup2(sink.fileno(), _STDERR)
        try:
            yield said
        finally:
            os.dup2(saved, _STDERR)
            os.close(saved)
            sink.seek(0)
            said += [
                line.strip() for line in sink.read().decode(errors="replace").splitlines() if line.strip()
            ]
