"""DICOM pixels: decoding, colours, and the rescaling to the modality's unit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array

from MedSAM3Core.errors import VolumeError
from MedSAM3Core.plurals import counted
from MedSAM3Core.volume.dicom.gdcm import JPEG_LS, decode_frames
from MedSAM3Core.volume.dicom.headers import Frame
from MedSAM3Core.volume.dicom.source import read_dataset
from MedSAM3Core.volume.raw import FOREIGN_ERRORS, reason

_JPEG = "1.2.840.10008.1.2.4."
"""What the UIDs of all JPEG transfer syntaxes begin with."""


class PixelReader:
    """Reads the pixels of frames, and keeps the last file's, because its frames are asked for one after the other."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._decoded = np.zeros(0)
        self._rescaled = False
        self.inverted = False

    def values(self, frame: Frame) -> np.ndarray:
        """Pixels of one frame in the modality's unit (HU for CT).

        Returns:
            (rows, columns) or, in colour, (rows, columns, 3).

        Raises:
            VolumeError: If the file is damaged or its compression is not supported.
        """
        self._load(frame.path)
        if frame.index is not None and frame.index >= len(self._decoded):
            raise VolumeError(
                f"{frame.path.name} holds {counted(len(self._decoded), 'frame')}, but its header promises more; "
                "copy it again."
            )
        pixels = self._decoded[frame.index or 0]
        if self._rescaled or pixels.ndim == 3 or (frame.slope, frame.intercept) == (1.0, 0.0):
            return pixels
        if float(frame.slope).is_integer() and float(frame.intercept).is_integer():
            return pixels.astype(np.int64) * int(frame.slope) + int(frame.intercept)
        return (pixels * frame.slope + frame.intercept).astype(np.float32)

    def _load(self, path: Path) -> None:
        if path == self._path:
            return
        try:
            dataset = read_dataset(path, force=True)
            if "PixelData" not in dataset and "FloatPixelData" not in dataset:
                raise VolumeError(f"{path.name} has no pixels; copy it again.")
            decoded = _decode(path, dataset)
        except FOREIGN_ERRORS as error:
            raise VolumeError(
                f"The pixels of {path.name} cannot be decoded ({reason(error)}); copy it again."
            ) from error
        decoded = _in_colour(decoded, dataset)
        self._rescaled = "ModalityLUTSequence" in dataset
        if self._rescaled:
            decoded = apply_modality_lut(decoded, dataset)
        if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
            decoded, self.inverted = _invert(decoded), True
        colour = _palette(dataset) or dataset.get("SamplesPerPixel", 1) == 3
        self._decoded = decoded if decoded.ndim == 3 + colour else decoded[np.newaxis]
        self._path = path


def _palette(dataset: Dataset) -> bool:
    return dataset.get("PhotometricInterpretation") == "PALETTE COLOR"


def _decode(path: Path, dataset: Dataset) -> np.ndarray:
    """Stored pixels: (rows, columns[, samples]) of a single frame, with an axis of frames in front of several."""
    if "FloatPixelData" in dataset:
        return dataset.pixel_array
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed:
        return pixel_array(dataset)
    offsets = int.from_bytes(dataset.PixelData[4:8], "little")
    if offsets > len(dataset.PixelData):  # pydicom 3.0 would ask for that memory, up to 4 GB
        raise VolumeError(
            f"{path.name} promises {offsets} bytes of frame offsets that it does not have; copy it again."
        )
    if syntax in JPEG_LS:
        return decode_frames(dataset)
    try:
        return pixel_array(dataset)
    except (RuntimeError, NotImplementedError):
        if not syntax.startswith(_JPEG):
            raise
    return decode_frames(dataset)


def _in_colour(decoded: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Palette colours as 8-bit RGB; everything else as it is."""
    if not _palette(dataset) or (decoded.ndim > 2 and decoded.shape[-1] == 3):
        return decoded
    colours = apply_color_lut(decoded, dataset)[..., :3]
    return (colours >> 8).astype(np.uint8) if colours.dtype.itemsize > 1 else colours


def _invert(decoded: np.ndarray) -> np.ndarray:
    """Turn white round: MONOCHROME1 shows small values bright."""
    low, high = int(decoded.min()), int(decoded.max())
    return (low + high - decoded.astype(np.int64)).astype(decoded.dtype)


def read_pixels(frames: Sequence[Sequence[Frame]]) -> tuple[np.ndarray, bool]:
    """Pixels of a stack.

    Args:
        frames: For each time the frames of its slices.

    Returns:
        (times, slices, rows, columns[, 3]) in the smallest of uint8, int16, uint16, int32 and float32 that holds every
        value the headers allow, and whether black and white were turned round (MONOCHROME1).

    Raises:
        VolumeError: If a file is damaged, or colour and grey are mixed.
    """
    reader = PixelReader()
    first = reader.values(frames[0][0])
    everything = [frame for time in frames for frame in time]
    dtype = first.dtype if first.ndim == 3 else _value_type(everything, first)
    out = np.empty((len(frames), len(frames[0]), *first.shape), dtype)
    for t, time in enumerate(frames):
        for k, frame in enumerate(time):
            pixels = reader.values(frame)
            if pixels.shape != first.shape:
                raise VolumeError(
                    f"{frame.path.name} has shape {pixels.shape}, the others {first.shape}; export it separately."
                )
            if out.dtype.kind in "iu" and not _fits(pixels, out.dtype):
                out = out.astype(np.int32)
            out[t, k] = pixels
    return out, reader.inverted


def _fits(pixels: np.ndarray, dtype: np.dtype) -> bool:
    """Whether the values lie in the type's range: some files store more bits than they admit."""
    limits = np.iinfo(dtype)
    return bool(limits.min <= pixels.min() and pixels.max() <= limits.max)


def _value_type(frames: Sequence[Frame], first: np.ndarray) -> np.dtype:
    if first.dtype.kind == "f":
        return np.dtype(np.float32)
    if any(not float(n).is_integer() for frame in frames for n in (frame.slope, frame.intercept)):
        return np.dtype(np.float32)
    ends = [end * frame.slope + frame.intercept for frame in frames for end in frame.stored_range]
    low, high = min(ends), max(ends)
    for name in ("uint8", "int16", "uint16", "int32"):
        if np.iinfo(name).min <= low and high <= np.iinfo(name).max:
            return np.dtype(name)
    return np.dtype(np.float32)
