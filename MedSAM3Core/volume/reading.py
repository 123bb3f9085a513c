"""Files and folders to volumes: which reader, and one sentence for whatever is wrong.

::

    read_volume ──> reader by suffix, folder or content ──> RawImage ──> checks ──> Volume
    read_sequence ─────────────────────────────────────────────────────────────> one Volume per time

A further format is a function from a path to a `RawImage` and a line in `_READERS`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from MedSAM3Core.errors import MedSAM3Error, VolumeError
from MedSAM3Core.volume import dicom, images, metaimage, nifti, nrrd, video
from MedSAM3Core.volume.geometry import Geometry
from MedSAM3Core.volume.modality import infer_modality
from MedSAM3Core.volume.raw import FOREIGN_ERRORS, RawImage, foreign_warnings_silenced, reason
from MedSAM3Core.volume.volume import Volume, check_array

logger = logging.getLogger(__name__)

Reader = Callable[[Path], RawImage]

_READERS: dict[str, tuple[str, Reader]] = {
    ".nii": ("NIfTI", nifti.read_nifti),
    ".nii.gz": ("NIfTI", nifti.read_nifti),
    ".nrrd": ("NRRD", nrrd.read_nrrd),
    ".nhdr": ("NRRD", nrrd.read_nrrd),
    ".mha": ("MetaImage", metaimage.read_metaimage),
    ".mhd": ("MetaImage", metaimage.read_metaimage),
    ".png": ("PNG", images.read_image),
    ".jpg": ("JPEG", images.read_image),
    ".jpeg": ("JPEG", images.read_image),
    ".tif": ("TIFF", images.read_image),
    ".tiff": ("TIFF", images.read_image),
    ".bmp": ("BMP", images.read_image),
    ".ppm": ("PPM", images.read_image),
    ".dcm": ("DICOM", dicom.read_dicom_file),
    **dict.fromkeys(video.SUFFIXES, ("a film", video.read_film)),
}
SUFFIXES = tuple(_READERS)
"""Suffixes that are read, besides DICOM files of any name and folders of them."""


def read_volume(
    path: str | Path,
    time: int | str | None = None,
    series: str | None = None,
    modality: str | None = None,
) -> Volume:
    """Read one volume or 2D image.

    Args:
        path: A file (see `SUFFIXES`, or a DICOM file of any name), or a folder with a DICOM series.
        time: For an image with several times: which one, counted from 0, or "slices" to take the times of a
            2D series (a cine loop) as the slices of one volume, 1 mm apart. Without it such an image is an
            error.
        series: For a folder with several series: the series' UID, number, or a part of its description.
        modality: What the image is, where the format does not say it or says it wrongly.

    Returns:
        The volume, on the grid of the file, with `Volume.notices` about what was set aside or assumed.

    Raises:
        VolumeError: If it is missing, damaged, incomplete, of an unsupported kind, or not finite.
    """
    raw = _read(Path(path), series)
    times = raw.array.shape[0]
    if time == "slices":
        raw = _times_as_slices(raw)
        time = 0
    if time is None and times > 1:
        raise VolumeError(
            f"{Path(path).name} holds {times} volumes ({raw.time_name}), expected one; choose time 0 to "
            f"{times - 1} (--time on the command line), or take all of them ('medsam3 track', read_sequence)."
        )
    index = 0 if time is None else _index(time, times, Path(path))
    return _volume(raw, index, Path(path), modality)


def read_series(files: Sequence[Path], folder: Path) -> Volume:
    """Read the DICOM files of one series that a search has found.

    Args:
        files: At least one.
        folder: What to call it by in messages, and the volume's source.

    Raises:
        VolumeError: As for `read_volume`.
    """
    raw = _guarded("DICOM", lambda _: dicom.read_dicom_files(files), folder)
    times = raw.array.shape[0]
    if times > 1:
        raise VolumeError(
            f"{folder.name} holds {times} volumes ({raw.time_name}), expected one; follow it with medsam3 track."
        )
    return _volume(raw, 0, folder, None)


def read_sequence(path: str | Path, series: str | None = None, modality: str | None = None) -> list[Volume]:
    """Read an image with several times (4D, cine, multi-echo) as one volume for each.

    Args:
        path: As for `read_volume`.
        series: As for `read_volume`.
        modality: As for `read_volume`.

    Returns:
        The volumes in their order, with `Volume.time_s`; a single one for an image without times.

    Raises:
        VolumeError: As for `read_volume`.
    """
    raw = _read(Path(path), series)
    return [_volume(raw, t, Path(path), modality) for t in range(raw.array.shape[0])]


def stem(path: Path) -> str:
    """File name without its suffix, ``.nii.gz`` and ``.seg.nrrd`` counted as one; a folder's whole name."""
    name = path.name
    for suffix in (".nii.gz", ".seg.nrrd"):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name if path.is_dir() else path.stem


def _read(path: Path, series: str | None) -> RawImage:
    try:
        there = path.exists()
    except OSError as error:  # a name longer than the file system takes
        raise VolumeError(f"{path} cannot be looked for ({reason(error)}); check the path.") from error
    if not there:
        raise VolumeError(f"{path} does not exist; check the path.")
    if path.is_dir():
        label, reader = "DICOM", lambda folder: dicom.read_dicom_folder(folder, series)
    elif path.is_file():
        label, reader = _reader_of(path)
    else:
        raise VolumeError(f"{path} is neither a file nor a folder; expected an image file or a DICOM folder.")
    return _guarded(label, reader, path)


def _guarded(label: str, reader: Reader, path: Path) -> RawImage:
    """Call a reader; whatever it raises becomes a sentence about ``path``."""
    try:
        with foreign_warnings_silenced():
            return reader(path)
    except MedSAM3Error as error:
        raise type(error)(f"{path.name}: {error.message}", error.remedy) from error
    except FOREIGN_ERRORS as error:
        logger.debug("reading %s failed", path, exc_info=True)
        raise VolumeError(
            f"{path.name} cannot be read as {label} ({reason(error)}); the file is damaged or of another kind."
        ) from error


def _reader_of(path: Path) -> tuple[str, Reader]:
    if path.stat().st_size == 0:
        raise VolumeError(f"{path.name} is empty; copy it again.")
    name = path.name.lower()
    for suffix, reader in _READERS.items():
        if name.endswith(suffix):
            return reader
    if dicom.looks_like_dicom(path):
        return _READERS[".dcm"]
    raise VolumeError(
        f"{path.name} is of no known kind; expected a DICOM file or folder, or one of {', '.join(SUFFIXES)}."
    )


def _index(time: int | str, times: int, path: Path) -> int:
    if times == 1 and time != 0:
        raise VolumeError(f"{path.name} has one time only, but time {time!r} was asked for; leave it out.")
    if not isinstance(time, int) or not 0 <= time < times:
        raise VolumeError(f"{path.name} has no time {time!r}; expected 0 to {times - 1}.")
    return time


def _times_as_slices(raw: RawImage) -> RawImage:
    if raw.array.shape[1] != 1:
        raise VolumeError(f"time='slices' needs 2D images, but each time has {raw.array.shape[1]} slices.")
    notice = f"The {raw.array.shape[0]} frames are taken as slices 1 mm apart."
    return replace(
        raw,
        calibrated=False,
        array=np.moveaxis(raw.array, 1, 0),
        files=(tuple(file for files in raw.files for file in files),) if raw.files else (),
        times_s=(),
        notices=(*raw.notices, notice),
    )


def _volume(raw: RawImage, index: int, path: Path, modality: str | None) -> Volume:
    array, notices = raw.array[index], raw.notices
    if array.ndim == 4 and array.shape[-1] == 4:
        array = array[..., :3]
        notices = (*notices, "The image's transparency (alpha channel) was dropped.")
    try:
        voxels = check_array(array, rgb=array.ndim == 4)
        geometry = Geometry((voxels.shape[0], voxels.shape[1], voxels.shape[2]), raw.ijk_to_ras)
    except VolumeError as error:
        raise VolumeError(f"{path.name}: {error.message}", error.remedy) from error
    name = stem(path) if raw.array.shape[0] == 1 else f"{stem(path)}_{index:03d}"
    return Volume(
        array=voxels,
        geometry=geometry,
        modality=modality or raw.modality or infer_modality(voxels),
        name=name,
        source=path,
        files=raw.files[index] if raw.files else (),
        body_part=raw.body_part,
        time_s=raw.times_s[index] if raw.times_s else 0.0,
        calibrated=raw.calibrated,
        notices=notices,
    )
