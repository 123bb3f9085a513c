"""DICOM files and folders of them: series found, chosen, checked and read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from MedSAM3Core.errors import VolumeError
from MedSAM3Core.plurals import counted
from MedSAM3Core.volume.dicom.headers import (
    FolderContent,
    Frame,
    Series,
    looks_like_dicom,
    scan_file,
    scan_files,
    scan_folder,
)
from MedSAM3Core.volume.dicom.pixels import PixelReader, read_pixels
from MedSAM3Core.volume.dicom.stack import Stack, build_stack
from MedSAM3Core.volume.modality import from_dicom
from MedSAM3Core.volume.raw import RawImage, foreign_warnings_silenced

__all__ = [
    "Series",
    "list_series",
    "looks_like_dicom",
    "read_dicom_file",
    "read_dicom_files",
    "read_dicom_folder",
]

CINE = frozenset(["US", "IVUS", "XA", "RF", "ES", "XC", "OP"])
"""Modalities whose files of several frames without a place are films; those of others are slices."""


def list_series(folder: str | Path) -> list[Series]:
    """Image series in a folder and its subfolders.

    Args:
        folder: The folder.

    Returns:
        The series; empty when there is none.

    Raises:
        VolumeError: If a DICOM file is damaged.
    """
    with foreign_warnings_silenced():
        return list(scan_folder(Path(folder)).series)


def read_dicom_folder(folder: Path, series: str | None = None) -> RawImage:
    """Read the image series of a folder.

    Args:
        folder: The folder; subfolders are searched too.
        series: Which one, when there are several: UID, number, or a part of the description.

    Raises:
        VolumeError: If there is none, several to choose from, or the series is incomplete or mixed.
    """
    content = scan_folder(folder)
    chosen, notices = _choose(content, series)
    return _read(chosen, notices)


def read_dicom_file(path: Path) -> RawImage:
    """Read the image or images of one file: a slice, a multi-frame volume, a cine loop.

    Raises:
        VolumeError: If it is no image or damaged.
    """
    return _read(scan_file(path), [])


def read_dicom_files(paths: Sequence[Path]) -> RawImage:
    """Read the files of one series, which a caller has sorted already.

    Raises:
        VolumeError: If they are of several series, or the series is incomplete or mixed.
    """
    return _read(scan_files(paths), [])


def _choose(content: FolderContent, wanted: str | None) -> tuple[Series, list[str]]:
    if not content.series:
        met = [counted(count, f"{kind} file") for kind, count in sorted(content.others.items())]
        found = ", ".join(met) or "nothing"
        raise VolumeError(
            f"The folder has no readable DICOM images; found {found}.",
            "Name a DICOM folder or one image file.",
        )
    if wanted is not None:
        return _find(content.series, wanted), []
    scans = [one for one in content.series if not one.is_localizer] or list(content.series)
    aside = [one for one in content.series if one not in scans]
    notices = [f"The localizer series {one.describe()} was set aside." for one in aside]
    if len(scans) > 1:
        listed = "; ".join(one.describe() for one in scans[:8])
        raise VolumeError(
            f"The folder holds {len(scans)} series, expected one: {listed}{'; ...' if len(scans) > 8 else ''}.",
            "Choose one by its number, a part of its description or its UID (--series on the command line), or name "
            "its own folder.",
        )
    return scans[0], notices


def _find(all_series: tuple[Series, ...], wanted: str) -> Series:
    text = wanted.strip().lower()
    exact = [
        one for one in all_series if text in (one.uid.lower(), one.number.lower(), one.description.lower())
    ]
    found = exact or [one for one in all_series if text and text in one.description.lower()]
    if len(found) == 1:
        return found[0]
    listed = "; ".join(one.describe() for one in (found or all_series)[:8])
    matches = f"{len(found)} series" if found else "no series"
    raise VolumeError(f"The series {wanted!r} matches {matches}; expected one of: {listed}.")


def _read(series: Series, notices: list[str]) -> RawImage:
    reader = PixelReader()

    def same_pixels(a: Frame, b: Frame) -> bool:
        return np.array_equal(reader.values(a), reader.values(b))

    stack = _as_slices(build_stack(series.frames, same_pixels), series)
    array, inverted = read_pixels(stack.frames)
    notices = [*notices, *stack.notices]
    if inverted:
        notices.append(
            "Small values are bright in the file (MONOCHROME1); black and white were turned round."
        )
    times_s = stack.times_s
    if not times_s and len(stack.frames) > 1 and series.frame_time_s and stack.time_name == "frames":
        times_s = tuple(t * series.frame_time_s for t in range(len(stack.frames)))
    return RawImage(
        array=array,
        ijk_to_ras=stack.ijk_to_ras,
        modality=from_dicom(series.modality),
        files=tuple(tuple(frame.path for frame in time) for time in stack.frames),
        body_part=series.body_part,
        times_s=times_s,
        time_name=stack.time_name,
        calibrated=all(frame.spacing is not None for frame in stack.frames[0]),
        notices=tuple(notices),
    )


def _as_slices(stack: Stack, series: Series) -> Stack:
    """Take the frames of a file without places as slices, unless it is of a kind that makes films."""
    if (
        stack.time_name != "frames"
        or len(stack.frames) == 1
        or series.modality in CINE
        or series.frame_time_s
    ):
        return stack
    notice = (
        f"The {len(stack.frames)} frames have no place in the patient and are taken as slices in their order."
    )
    slices = tuple(time[0] for time in stack.frames)
    return Stack((slices,), stack.ijk_to_ras, notices=(*stack.notices, notice))
