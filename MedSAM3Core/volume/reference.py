"""Segmentations from files: references to compare with, results to go on from.

A ``.seg.nrrd`` (Slicer's or ours) and a DICOM Segmentation hold named segments; any other image is a labelmap whose
values are its segments, named by a ``labels.json`` beside it if there is one.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 - the name its own documentation uses

from MedSAM3Core.errors import VolumeError
from MedSAM3Core.plurals import counted
from MedSAM3Core.volume.dicom import looks_like_dicom
from MedSAM3Core.volume.dicom.source import read_dataset
from MedSAM3Core.volume.geometry import LPS_FROM_RAS, Geometry
from MedSAM3Core.volume.nrrd import check_nrrd, read_nrrd
from MedSAM3Core.volume.raw import FOREIGN_ERRORS, MAX_DEFLATE_RATIO, foreign_warnings_silenced, reason
from MedSAM3Core.volume.reading import read_volume
from MedSAM3Core.volume.tags import TERMINOLOGY_TAG, unescape

MAX_LABELS = 1000
ON_GRID_VOXELS = 0.02
"""How far, in voxels, a grid may lie beside another and still be a crop of it."""


@dataclass(frozen=True, eq=False)
class Segment:
    """One segment of a file.

    Attributes:
        name: As the file names it, or the label's value as text.
        mask: bool (slices, rows, columns) on `geometry`.
        geometry: The file's grid.
        label: Its value in its layer.
        colour: RGB, each 0..255, or None.
        terminology: Slicer's terminology entry, or "".
        tags: Other tags, unescaped.
    """

    name: str
    mask: np.ndarray
    geometry: Geometry
    label: int = 1
    colour: tuple[int, int, int] | None = None
    terminology: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def code(self) -> str | None:
        """SNOMED CT code value of what the segment is, or None."""
        parts = self.terminology.split("~")
        code = parts[2].split("^") if len(parts) > 2 else []
        return code[1] if len(code) > 1 and code[1] else None

    def on(self, geometry: Geometry) -> np.ndarray:
        """The mask on another grid whose voxels coincide: a crop is put in its place, flipped axes are turned round.

        Args:
            geometry: The other grid.

        Returns:
            bool, of the shape of ``geometry``.

        Raises:
            VolumeError: If the voxels do not coincide; nothing is resampled.
        """
        return place_on_grid(self.mask, self.geometry, geometry)


def read_segmentation(path: str | Path, names: Mapping[int, str] | None = None) -> list[Segment]:
    """Read the segments of a file.

    Args:
        path: ``.seg.nrrd``, a DICOM Segmentation, or a labelmap of any format that `read_volume` reads.
        names: Label value to name, for a labelmap; without it a ``labels.json`` beside the file is looked at.

    Returns:
        Segments in the order of the file, of a labelmap in the order of their values; empty ones only if named.

    Raises:
        VolumeError: If the file is missing, damaged, or holds no labels.
    """
    target = Path(path)
    if not target.is_file():
        raise VolumeError(f"{target} does not exist; check the path.")
    try:
        with foreign_warnings_silenced():
            segments = _read_named(target)
    except (*FOREIGN_ERRORS, sqlite3.Error) as error:  # highdicom asks a data base about frames
        raise VolumeError(
            f"{target.name} cannot be read as a segmentation ({reason(error)}); copy it again."
        ) from error
    return _read_labelmap(target, names) if segments is None else segments


def _read_named(path: Path) -> list[Segment] | None:
    """Segments of a file that names them; None for one that is read as a labelmap."""
    if path.name.lower().endswith((".nrrd", ".nhdr")):
        return _read_seg_nrrd(path)
    return _read_dicom_seg(path) if looks_like_dicom(path) else None


def _read_seg_nrrd(path: Path) -> list[Segment] | None:
    """Segments of a ``.seg.nrrd``; None when the file has no segment keys."""
    check_nrrd(path)
    header = sitk.ImageFileReader()
    header.SetFileName(str(path))
    header.ReadImageInformation()
    fields = {key: header.GetMetaData(key) for key in header.GetMetaDataKeys() if key.startswith("Segment")}
    count = sum(key.endswith("_ID") for key in fields)
    if count == 0:
        return None
    raw = read_nrrd(path)
    shape = (raw.array.shape[1], raw.array.shape[2], raw.array.shape[3])
    geometry = Geometry(shape, raw.ijk_to_ras)
    segments = []
    for n in range(count):
        layer = int(fields.get(f"Segment{n}_Layer", 0))
        label = int(fields.get(f"Segment{n}_LabelValue", 1))
        tags = dict(
            part.split(":", 1) for part in fields.get(f"Segment{n}_Tags", "").split("|") if ":" in part
        )
        colour = [round(255 * float(c)) for c in fields.get(f"Segment{n}_Color", "").split()]
        segments.append(
            Segment(
                name=fields.get(f"Segment{n}_Name", f"Segment {n + 1}"),
                mask=raw.array[layer] == label,
                geometry=geometry,
                label=label,
                colour=(colour[0], colour[1], colour[2]) if len(colour) == 3 else None,
                terminology=tags.pop(TERMINOLOGY_TAG, ""),
                tags={name: unescape(value) for name, value in tags.items()},
            )
        )
    return segments


def _read_dicom_seg(path: Path) -> list[Segment]:
    import highdicom

    if str(read_dataset(path, stop_before_pixels=True, specific_tags=["Modality"]).get("Modality")) != "SEG":
        raise VolumeError(f"{path.name} is a DICOM image; expected a DICOM Segmentation.")
    header = read_dataset(path)
    described, promised = len(header.PerFrameFunctionalGroupsSequence), int(header.NumberOfFrames)
    if described != promised:
        raise VolumeError(
            f"{path.name} is damaged: it promises {counted(promised, 'frame')} and describes {described}; "
            "copy it again."
        )
    dataset = highdicom.seg.Segmentation.from_dataset(header, copy=False)
    grid = dataset.get_volume_geometry()
    if grid is not None and math.prod(grid.spatial_shape) > 8 * path.stat().st_size * MAX_DEFLATE_RATIO:
        raise VolumeError(
            f"{path.name} is damaged: its frames span {' x '.join(map(str, grid.spatial_shape))} voxels, which cannot "
            f"be in a file of {path.stat().st_size} bytes; copy it again."
        )
    volume = dataset.get_volume(combine_segments=False, dtype=np.uint8)
    # highdicom's affine maps (slice, row, column) to LPS.
    affine = LPS_FROM_RAS @ volume.affine[:, [2, 1, 0, 3]]
    shape = (volume.array.shape[0], volume.array.shape[1], volume.array.shape[2])
    geometry = Geometry(shape, affine)
    return [
        Segment(
            name=str(item.SegmentLabel),
            mask=volume.array[..., n] > 0,
            geometry=geometry,
            label=int(item.SegmentNumber),
            terminology=_terminology(item),
        )
        for n, item in enumerate(dataset.SegmentSequence)
    ]


def _terminology(item: object) -> str:
    category = item.SegmentedPropertyCategoryCodeSequence[0]  # type: ignore[attr-defined]
    kind = item.SegmentedPropertyTypeCodeSequence[0]  # type: ignore[attr-defined]
    codes = [f"{one.CodingSchemeDesignator}^{one.CodeValue}^{one.CodeMeaning}" for one in (category, kind)]
    return "~".join(["DICOM", *codes, "^^", "", "^^", "^^"])


def _read_labelmap(path: Path, names: Mapping[int, str] | None) -> list[Segment]:
    volume = read_volume(path)
    if volume.is_rgb:
        raise VolumeError(f"{path.name} is a colour image; expected labels, one whole number per voxel.")
    labels = volume.array
    values = np.unique(labels)
    if labels.dtype.kind == "f" and not np.array_equal(values, np.rint(values)):
        raise VolumeError(f"{path.name} has values that are not whole numbers; expected labels.")
    named = dict(names) if names is not None else _names_beside(path)
    found = {int(value) for value in values} - {0}
    if len(found) > MAX_LABELS:
        raise VolumeError(
            f"{path.name} has {len(found)} different values; expected labels, at most {MAX_LABELS}."
        )
    return [
        Segment(named.get(value, str(value)), labels == value, volume.geometry, value)
        for value in sorted(found | set(named))
    ]


def _names_beside(path: Path) -> dict[int, str]:
    """Names from ``labels.json``, {"1": "liver"} or {"1": {"name": "liver"}}; empty when there is none."""
    try:
        content = json.loads((path.parent / "labels.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    pairs = {key: value.get("name") if isinstance(value, dict) else value for key, value in content.items()}
    named = {int(key): value for key, value in pairs.items() if key.isdecimal() and isinstance(value, str)}
    return {key: value for key, value in named.items() if key}


def place_on_grid(mask: np.ndarray, source: Geometry, target: Geometry) -> np.ndarray:
    """Put a mask on a grid whose voxels coincide with its own.

    Args:
        mask: bool (slices, rows, columns) on ``source``.
        source: The mask's grid: a crop of ``target``, or the same with axes swapped or turned round.
        target: The grid wanted.

    Returns:
        bool, of the shape of ``target``; what lies outside of it is cut off.

    Raises:
        VolumeError: If the voxels do not coincide.
    """
    to_target = np.linalg.inv(target.ijk_to_ras) @ source.ijk_to_ras
    rounded = np.rint(to_target)
    size = np.array([n - 1 for n in reversed(source.shape)], float)
    drift = np.abs(to_target[:3, :3] - rounded[:3, :3]) @ size + np.abs(to_target[:3, 3] - rounded[:3, 3])
    if drift.max() > ON_GRID_VOXELS or abs(abs(np.linalg.det(rounded[:3, :3])) - 1) > 1e-6:
        raise VolumeError(
            "The segmentation's voxels do not coincide with the volume's; resample it onto the volume first."
        )
    out = np.zeros(target.shape, bool)
    kji = np.argwhere(mask)
    ijk = kji[:, ::-1] @ rounded[:3, :3].T + rounded[:3, 3]
    inside = ((ijk >= 0) & (ijk < np.array(target.shape[::-1]))).all(axis=1)
    i, j, k = ijk[inside].astype(int).T
    out[k, j, i] = True
    return out
