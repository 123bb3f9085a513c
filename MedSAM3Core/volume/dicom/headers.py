"""DICOM headers as frames: one record for each 2D image, whether it has a file of its own or shares one with others."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset

from MedSAM3Core.errors import VolumeError
from MedSAM3Core.plurals import counted
from MedSAM3Core.volume.dicom.source import read_dataset
from MedSAM3Core.volume.raw import FOREIGN_ERRORS, MAX_DEFLATE_RATIO, reason

NOT_IMAGES = (
    "SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "PR", "KO", "SR", "REG", "RWV", "DOC", "AU", "ECG", "FID",
)  # fmt: skip
"""Modalities of DICOM objects that are not images to segment."""

_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "StudyInstanceUID",
    "Modality", "ImageType", "BodyPartExamined", "InstanceNumber", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing",
    "SequenceOfUltrasoundRegions", "SliceThickness", "SpacingBetweenSlices", "Rows", "Columns", "NumberOfFrames",
    "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "PixelRepresentation",
    "RescaleSlope", "RescaleIntercept", "TemporalPositionIdentifier", "TriggerTime", "EchoTime",
    "AcquisitionNumber", "AcquisitionTime", "ContentTime", "FrameTime", "FrameIncrementPointer", "CineRate",
    "DiffusionBValue", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "DimensionOrganizationType", "TotalPixelMatrixColumns",
]  # fmt: skip

_PREAMBLE = 128
TIME_KEYS = (
    "TemporalPositionIndex",
    "TemporalPositionIdentifier",
    "TriggerTime",
    "EchoTime",
    "DiffusionBValue",
    "AcquisitionNumber",
    "AcquisitionTime",
    "ContentTime",
    "InstanceNumber",
)
"""What may tell images at the same place apart, the most telling first."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One 2D image of a DICOM file.

    Attributes:
        path: Its file.
        index: Its place in a file of several frames, None in a file of one.
        sop_uid: SOP Instance UID of the file.
        series_uid: Series Instance UID.
        rows: Pixel rows.
        columns: Pixel columns.
        position: Centre of the first pixel in LPS, mm; None when not given.
        axes: (2, 3) unit vectors in LPS along a row and down a column; None when not given.
        spacing: Pixel size along (i, j) in mm; None when not given.
        thickness: Distance to the next slice as the header has it, mm; None when not given.
        slope: Rescale slope.
        intercept: Rescale intercept.
        stored_range: Least and greatest value that the stored bits can hold.
        image_type: DICOM's Image Type, upper case.
        times: Values by name out of `TIME_KEYS`.
    """

    path: Path
    index: int | None
    sop_uid: str
    series_uid: str
    rows: int
    columns: int
    position: np.ndarray | None
    axes: np.ndarray | None
    spacing: tuple[float, float] | None
    thickness: float | None
    slope: float
    intercept: float
    stored_range: tuple[int, int]
    image_type: tuple[str, ...]
    times: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Series:
    """The images of one Series Instance UID in a folder.

    Attributes:
        uid: Series Instance UID.
        number: Series Number as text, "" when not given.
        description: Series Description.
        modality: DICOM's modality code.
        body_part: Body Part Examined, upper case, or None.
        frames: Its images in the order of the files.
        frame_time_s: Seconds from one frame to the next in a cine file, None when not given.
    """

    uid: str
    number: str
    description: str
    modality: str
    body_part: str | None
    frames: tuple[Frame, ...]
    frame_time_s: float | None = None

    @property
    def is_localizer(self) -> bool:
        """Whether its images are scouts for planning and not a scan."""
        named = names_localizer(self.description)
        return named or all("LOCALIZER" in frame.image_type for frame in self.frames)

    def describe(self) -> str:
        """Number, description, modality and count in words."""
        label = f"{self.number} " if self.number else ""
        images = counted(len(self.frames), "image")
        return f"{label}'{self.description or 'no description'}' ({self.modality}, {images})"


@dataclass(frozen=True)
class FolderContent:
    """What a folder holds.

    Attributes:
        series: Image series by UID, in the order in which they were met.
        others: What else was met: a modality code or file suffix to its count.
    """

    series: tuple[Series, ...]
    others: dict[str, int]


def names_localizer(description: str) -> bool:
    """Whether a Series Description is that of a scout for planning."""
    words = description.lower()
    return any(word in words for word in ("localizer", "scout", "topogram", "surview", "scanogram"))


def looks_like_dicom(path: Path) -> bool:
    """Whether the file has DICOM's preamble, or begins with a data element of group 2 or 8 as old files do."""
    with path.open("rb") as stream:
        head = stream.read(_PREAMBLE + 4)
    if head[_PREAMBLE:] == b"DICM":
        return True
    return len(head) >= 8 and head[0] in (2, 8) and head[1] == 0 and head[3] == 0 and head[4:6].isalpha()


def scan_folder(folder: Path) -> FolderContent:
    """Read the headers of all DICOM files in a folder and its subfolders.

    Raises:
        VolumeError: If a DICOM file is damaged: it might be a slice of any series.
    """
    datasets: dict[str, list[tuple[Path, Dataset]]] = {}
    others: dict[str, int] = {}
    for path in _files(folder):
        if not looks_like_dicom(path) or path.name == "DICOMDIR":
            kind = path.suffix.lower() or "suffixless"
            others[kind] = others.get(kind, 0) + 1
            continue
        dataset = _header(path)
        if not is_image(dataset):
            modality = dataset.get("Modality")
            kind = f"DICOM {modality}" if modality else "imageless DICOM"
            others[kind] = others.get(kind, 0) + 1
            continue
        datasets.setdefault(str(dataset.get("SeriesInstanceUID", "")), []).append((path, dataset))
    return FolderContent(tuple(_series(uid, members) for uid, members in datasets.items()), others)


def scan_file(path: Path) -> Series:
    """Read the header of one DICOM file.

    Raises:
        VolumeError: If it is no image.
    """
    dataset = _header(path)
    if not is_image(dataset):
        raise VolumeError(
            f"The DICOM file holds no image (modality {dataset.get('Modality') or 'not given'}); expected an image."
        )
    return _series(str(dataset.get("SeriesInstanceUID", "")), [(path, dataset)])


def scan_files(paths: Sequence[Path]) -> Series:
    """Read the headers of the files of one series.

    Raises:
        VolumeError: If there is none, one is no image or damaged, or they are of several series.
    """
    members = [(path, _header(path)) for path in paths]
    uids = {str(dataset.get("SeriesInstanceUID", "")) for _, dataset in members}
    if others := [path.name for path, dataset in members if not is_image(dataset)]:
        raise VolumeError(f"The DICOM file {others[0]} holds no image; expected the images of one series.")
    if len(uids) != 1:
        raise VolumeError(
            f"The {len(paths)} files hold {len(uids)} series; expected the images of a single one."
        )
    return _series(uids.pop(), members)


def _files(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(root) / name
            if not name.startswith(".") and path.is_file() and path.stat().st_size:
                yield path


def _header(path: Path) -> Dataset:
    with _damage_said(path):
        return read_dataset(path, stop_before_pixels=True, force=True, specific_tags=list(_TAGS))


@contextmanager
def _damage_said(path: Path) -> Iterator[None]:
    """Say of what pydicom raises which file it is about: while it reads, and when a value is first looked at."""
    try:
        yield
    except FOREIGN_ERRORS as error:
        raise VolumeError(
            f"The DICOM file {path.name} is damaged ({reason(error)}); copy it again, or remove it if it is not needed."
        ) from error


def is_image(dataset: Dataset) -> bool:
    """Whether a header is that of an image to segment."""
    return "Rows" in dataset and str(dataset.get("Modality", "")) not in NOT_IMAGES


def _series(uid: str, members: list[tuple[Path, Dataset]]) -> Series:
    frames: list[Frame] = []
    for path, dataset in members:
        with _damage_said(path):
            frames += _frames(path, dataset)
    with _damage_said(members[0][0]):
        return _described(uid, members[0][1], tuple(frames))


def _described(uid: str, first: Dataset, frames: tuple[Frame, ...]) -> Series:
    frame_time = _number(first, "FrameTime")
    rate = _number(first, "CineRate")
    return Series(
        uid=uid,
        number=str(first.get("SeriesNumber", "") or ""),
        description=str(first.get("SeriesDescription", "") or "").strip(),
        modality=str(first.get("Modality", "") or ""),
        body_part=str(first.get("BodyPartExamined", "") or "").strip().upper() or None,
        frames=frames,
        frame_time_s=frame_time / 1000 if frame_time else (1 / rate if rate else None),
    )


def _frames(path: Path, dataset: Dataset) -> list[Frame]:
    if "TotalPixelMatrixColumns" in dataset and "TILED" in str(dataset.get("DimensionOrganizationType", "")):
        raise VolumeError(f"{path.name} is a tiled whole-slide image; export a region of it as PNG or TIFF.")
    count = int(dataset.get("NumberOfFrames", 1) or 1)
    file_bytes = path.stat().st_size
    if min(count, int(dataset.Rows), int(dataset.Columns)) < 1 or count > file_bytes:
        raise VolumeError(
            f"The DICOM file {path.name} is damaged: its header promises {counted(count, 'frame')} of "
            f"{dataset.Columns} x {dataset.Rows} pixels in {file_bytes} bytes; copy it again."
        )
    if count * int(dataset.Rows) * int(dataset.Columns) > file_bytes * MAX_DEFLATE_RATIO:
        raise VolumeError(
            f"The file is cut short: its header promises {counted(count, 'frame')} of {dataset.Columns} x "
            f"{dataset.Rows} pixels, which cannot be in a file of {file_bytes} bytes; copy it again."
        )
    shared = _first(dataset, "SharedFunctionalGroupsSequence")
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if count == 1 and not groups:
        return [_frame(path, None, dataset, [dataset])]
    return [
        _frame(path, n, dataset, [groups[n] if n < len(groups) else Dataset(), shared, dataset])
        for n in range(count)
    ]


def _frame(path: Path, index: int | None, dataset: Dataset, places: list[Dataset]) -> Frame:
    """A frame from the places that may describe it, the most specific first."""
    measures = [_first(place, "PixelMeasuresSequence") for place in places] + [dataset]
    transforms = [_first(place, "PixelValueTransformationSequence") for place in places] + [dataset]
    contents = [_first(place, "FrameContentSequence") for place in places]
    echoes = [_first(place, "MREchoSequence") for place in places]
    diffusions = [_first(place, "MRDiffusionSequence") for place in places]
    position = _vector(
        [_first(place, "PlanePositionSequence") for place in places] + [dataset], "ImagePositionPatient", 3
    )
    axes = _vector(
        [_first(p, "PlaneOrientationSequence") for p in places] + [dataset], "ImageOrientationPatient", 6
    )
    slope = _first_number(transforms, "RescaleSlope")
    times = {
        key: value
        for key in TIME_KEYS
        if (value := _first_number([dataset, *contents, *diffusions], key)) is not None
    }
    if (echo := _first_number(echoes, "EffectiveEchoTime")) is not None:
        times["EchoTime"] = echo
    return Frame(
        path=path,
        index=index,
        sop_uid=_sop_uid(path, dataset),
        series_uid=str(dataset.get("SeriesInstanceUID", "")),
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        position=position,
        axes=None if axes is None else axes.reshape(2, 3),
        spacing=_spacing(measures, dataset),
        thickness=_first_number(measures, "SpacingBetweenSlices")
        or _first_number(measures, "SliceThickness"),
        slope=1.0 if slope is None else slope,
        intercept=_first_number(transforms, "RescaleIntercept") or 0.0,
        stored_range=_stored_range(dataset),
        image_type=tuple(str(word).upper() for word in dataset.get("ImageType", None) or ()),
        times=times,
    )


def _sop_uid(path: Path, dataset: Dataset) -> str:
    """The instance's UID; blank ones of badly de-identified files come from the file's own header."""
    meta = getattr(dataset, "file_meta", Dataset())
    return str(dataset.get("SOPInstanceUID", "") or meta.get("MediaStorageSOPInstanceUID", "") or path)


def _stored_range(dataset: Dataset) -> tuple[int, int]:
    bits = min(32, int(dataset.get("BitsStored", 16) or 16))
    return (
        (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        if dataset.get("PixelRepresentation", 0)
        else (0, 2**bits - 1)
    )


def _spacing(measures: list[Dataset], dataset: Dataset) -> tuple[float, float] | None:
    """Pixel size along (i, j) in mm; DICOM gives the distance between rows first."""
    for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        rows_columns = _vector(measures, name, 2)
        if rows_columns is not None and (rows_columns > 0).all():
            return float(rows_columns[1]), float(rows_columns[0])
    region = _first(dataset, "SequenceOfUltrasoundRegions")
    x, y = _number(region, "PhysicalDeltaX"), _number(region, "PhysicalDeltaY")
    if x and y and region.get("PhysicalUnitsXDirection") == 3:  # 3 is centimetres
        return abs(x) * 10, abs(y) * 10
    return None


def _first(dataset: Dataset, name: str) -> Dataset:
    sequence: Any = dataset.get(name)
    return sequence[0] if sequence else Dataset()


def _number(dataset: Dataset, name: str) -> float | None:
    value = dataset.get(name)
    try:
        number = float(value) if value not in (None, "") else None  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if number is not None and np.isfinite(number) else None


def _first_number(places: list[Dataset], name: str) -> float | None:
    return next((n for place in places if (n := _number(place, name)) is not None), None)


def _vector(places: list[Dataset], name: str, size: int) -> np.ndarray | None:
    for place in places:
        value = place.get(name)
        if value is not None and len(value) == size:
            vector = np.array([float(n) for n in value])
            if np.isfinite(vector).all():
                return vector
    return None
