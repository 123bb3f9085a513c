"""Studies and series below a folder, by a glance at each header, for archives too large to read twice."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset

from MedSAM3Core.errors import VolumeError
from MedSAM3Core.volume.dicom.headers import is_image, looks_like_dicom, names_localizer
from MedSAM3Core.volume.dicom.source import read_dataset
from MedSAM3Core.volume.raw import FOREIGN_ERRORS, foreign_warnings_silenced, reason

_GLANCE = (
    "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality", "ImageType", "Rows",
)  # fmt: skip

_IMAGES = frozenset(["CT", "MR", "PT", "NM", "US", "XA", "RF", "CR", "DX", "MG", "OP", "ES"])
"""Modalities whose objects have pixels: a header of theirs without rows was cut short. Without this a series would lose
its last slice in silence."""


@dataclass(frozen=True)
class SeriesFiles:
    """The files of one series.

    Attributes:
        uid: Series Instance UID.
        study_uid: Study Instance UID.
        number: Series Number as text, "" when not given.
        description: Series Description.
        modality: DICOM's modality code.
        files: Its files, sorted.
        localizer: Whether all its images are scouts for planning.
        damaged: Files of its folder that cannot be read and may belong to it, with the reason.
    """

    uid: str
    study_uid: str
    number: str
    description: str
    modality: str
    files: tuple[Path, ...]
    localizer: bool
    damaged: tuple[str, ...] = ()

    def describe(self) -> str:
        """Number, description and modality in words."""
        label = f"{self.number} " if self.number else ""
        return f"{label}{self.description or 'no description'} ({self.modality or 'no modality'})"


@dataclass(frozen=True)
class Tree:
    """What files hold.

    Attributes:
        series: Image series, in the order of their first files.
        others: What else was met, such as "DICOM SEG", to its count.
        damaged: Unreadable files that no series can be blamed for, with the reason.
    """

    series: tuple[SeriesFiles, ...]
    others: dict[str, int]
    damaged: dict[Path, str]


def sort_into_series(files: Iterable[Path]) -> Tree:
    """Sort DICOM files into series. An unreadable file counts to the series of its folder, if there is one only.

    Args:
        files: DICOM files of any kind, by their look; see `looks_like_dicom`.
    """
    members: dict[str, list[tuple[Path, Dataset]]] = {}
    others: dict[str, int] = {}
    damaged: dict[Path, str] = {}
    with foreign_warnings_silenced():
        for path in files:
            try:
                dataset = read_dataset(path, stop_before_pixels=True, force=True, specific_tags=list(_GLANCE))
            except FOREIGN_ERRORS as error:
                damaged[path] = reason(error)
                continue
            if "Rows" not in dataset and str(dataset.get("Modality", "") or "CT") in _IMAGES:
                damaged[path] = "its header stops early"
                continue
            if not is_image(dataset):
                modality = dataset.get("Modality")
                kind = f"DICOM {modality}" if modality else "imageless DICOM"
                others[kind] = others.get(kind, 0) + 1
                continue
            members.setdefault(str(dataset.get("SeriesInstanceUID", "")), []).append((path, dataset))
    return _tree(members, others, damaged)


def _tree(
    members: dict[str, list[tuple[Path, Dataset]]], others: dict[str, int], damaged: dict[Path, str]
) -> Tree:
    by_folder: dict[Path, set[str]] = {}
    for uid, entries in members.items():
        for path, _ in entries:
            by_folder.setdefault(path.parent, set()).add(uid)
    blamed: dict[str, list[str]] = {}
    lone: dict[Path, str] = {}
    for path, why in damaged.items():
        owners = by_folder.get(path.parent, set())
        if len(owners) == 1:
            blamed.setdefault(next(iter(owners)), []).append(f"{path.name} ({why})")
        else:
            lone[path] = why
    series = tuple(_series(uid, entries, tuple(blamed.get(uid, ()))) for uid, entries in members.items())
    return Tree(series, others, lone)


def _series(uid: str, entries: list[tuple[Path, Dataset]], damaged: tuple[str, ...]) -> SeriesFiles:
    first = entries[0][1]
    description = str(first.get("SeriesDescription", "") or "").strip()
    types = [
        tuple(str(word).upper() for word in dataset.get("ImageType", None) or ()) for _, dataset in entries
    ]
    return SeriesFiles(
        uid=uid,
        study_uid=str(first.get("StudyInstanceUID", "") or ""),
        number=str(first.get("SeriesNumber", "") or ""),
        description=description,
        modality=str(first.get("Modality", "") or ""),
        files=tuple(path for path, _ in entries),
        localizer=names_localizer(description) or all("LOCALIZER" in words for words in types),
        damaged=damaged,
    )


def check_whole(series: SeriesFiles) -> None:
    """Raise `VolumeError` if a file that may be one of the series' slices is unreadable."""
    if series.damaged:
        raise VolumeError(
            f"Beside the series {series.describe()} lies a damaged DICOM file, {series.damaged[0]}, that may be one of "
            "its slices; copy it again, or remove it if it is not needed."
        )


__all__ = ["SeriesFiles", "Tree", "check_whole", "looks_like_dicom", "sort_into_series"]
