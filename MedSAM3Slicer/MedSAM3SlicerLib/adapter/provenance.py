"""What made a segment, kept in the segment's tags (DESIGN decision 10), readable without this module."""

from __future__ import annotations

import json
import zlib
from typing import Any

import numpy as np
import slicer
import vtk

from MedSAM3Core.segmentation import Extent, Provenance, Segmentation
from MedSAM3Core.volume.tags import field_of_tag

PREFIX = "MedSAM3."
PHRASE_TAG = PREFIX + "Phrase"
FINGERPRINT_TAG = PREFIX + "Fingerprint"
SCORE_TAG = PREFIX + "Score"
REVISION_TAG = PREFIX + "Revision"
ACCEPTED_TAG = PREFIX + "Accepted"


def setTag(segment: slicer.vtkSegment, name: str, value: str) -> None:
    """Set a tag so that it survives a file: `.seg.nrrd` separates tags with ``|`` and cuts a value there."""
    segment.SetTag(name, value.replace("%", "%25").replace("|", "%7C").replace("\n", "%0A"))


def getTag(segment: slicer.vtkSegment, name: str) -> str:
    """A tag that `setTag` wrote; empty when there is none."""
    value = vtk.reference("")
    if not segment.GetTag(name, value):
        return ""
    return str(value).replace("%0A", "\n").replace("%7C", "|").replace("%25", "%")


def writeProvenance(segment: slicer.vtkSegment, segmentation: Segmentation, mark: str = "") -> None:
    """Write concept, model, hash, version, prompts, boxes, thresholds, axis, window, device and time as tags.

    Args:
        segment: Gets the tags.
        segmentation: Was made.
        mark: Its `fingerprint` if it is known already.
    """
    made = segmentation.provenance
    setTag(segment, PHRASE_TAG, segmentation.concept.phrase)
    setTag(segment, SCORE_TAG, f"{segmentation.score:.4f}")
    for name, value in vars(made).items():
        setTag(segment, PREFIX + _tagName(name), value if isinstance(value, str) else json.dumps(value))
    setTag(segment, FINGERPRINT_TAG, mark or fingerprint(segmentation.extent, segmentation.mask))
    revision = getTag(segment, REVISION_TAG)
    setTag(segment, REVISION_TAG, str(int(revision) + 1 if revision.isdecimal() else 1))


def readProvenance(segment: slicer.vtkSegment) -> Provenance | None:
    """What made the segment, or None for a segment that this module did not make."""
    if not getTag(segment, PHRASE_TAG):
        return None
    fields: dict[str, Any] = {}
    for name in Provenance.__dataclass_fields__:
        try:
            fields[name] = field_of_tag(name, getTag(segment, PREFIX + _tagName(name)))
        except ValueError:  # written by somebody else, or cut: as good as not there
            fields[name] = field_of_tag(name, "")
    return Provenance(**fields)


def phraseOf(segment: slicer.vtkSegment) -> str:
    """The concept's phrase, empty for a segment that this module did not make."""
    return getTag(segment, PHRASE_TAG)


def scoreOf(segment: slicer.vtkSegment) -> float | None:
    """Confidence of the segment, 0..1, or None for a segment that this module did not make."""
    try:
        return float(getTag(segment, SCORE_TAG))
    except ValueError:
        return None


def fingerprint(extent: Extent | None, mask: np.ndarray) -> str:
    """Short text that differs when a single voxel does; says whether a segment was edited by hand since it was written.

    Args:
        extent: Where the crop sits in the volume's grid; it must be the smallest that holds the mask.
        mask: Boolean crop (slices, rows, columns).
    """
    if extent is None:
        return "empty"
    packed = np.packbits(np.ascontiguousarray(mask, bool))
    return f"{extent.i},{extent.j},{extent.k}:{zlib.crc32(packed.tobytes()):08x}".replace(" ", "")


def describe(segment: slicer.vtkSegment) -> str:
    """What made the segment, in lines for a tool tip; empty for a segment that this module did not make."""
    made = readProvenance(segment)
    if made is None:
        return ""
    lines = [f"Typed: {made.concept}", f"Model: {made.model} ({made.model_hash[:12] or 'hash unknown'})"]
    if made.prompts:
        lines.append("Said to the model: " + "; ".join(made.prompts))
    if made.boxes:
        lines.append(f"Boxes: {len(made.boxes)}")
    if made.points:
        lines.append(f"Points: {len(made.points)}")
    lines += [f"{label}: {value}" for label, value in _rest(made) if value]
    return "\n".join([*lines, *made.notices])


def _rest(made: Provenance) -> list[tuple[str, str]]:
    thresholds = ", ".join(f"{name} {value:g}" for name, value in made.thresholds.items())
    return [
        ("Thresholds", thresholds),
        ("Slices along", made.axis),
        ("Window", made.window),
        ("Device", made.device),
        ("Version", made.version),
        ("Made", made.created),
    ]


def _tagName(field: str) -> str:
    return "".join(part.capitalize() for part in field.split("_"))
