"""What made a segment, as Slicer's segment tags (DESIGN decision 10): the same in files and in scenes."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from MedSAM3Core.segmentation import Extent, Provenance, Segmentation

PREFIX = "MedSAM3."
TERMINOLOGY_TAG = "TerminologyEntry"
"""Slicer's own name of the tag that holds a segment's codes."""
_LISTS = ("prompts", "boxes", "notices", "points", "anchors")


def escape(value: str) -> str:
    """Text that survives ``.seg.nrrd``, which separates tags with ``|`` and fields with line ends."""
    return value.replace("%", "%25").replace("|", "%7C").replace("\r", "").replace("\n", "%0A")


def unescape(value: str) -> str:
    """What `escape` was given."""
    return value.replace("%0A", "\n").replace("%7C", "|").replace("%25", "%")


def tags_of(segmentation: Segmentation) -> dict[str, str]:
    """Tags of a segment, not yet escaped: phrase, score, provenance, and a fingerprint of the mask."""
    tags = {
        PREFIX + "Phrase": segmentation.concept.phrase,
        PREFIX + "Score": f"{segmentation.score:.4f}",
    }
    for field, value in vars(segmentation.provenance).items():
        tags[tag_name(field)] = value if isinstance(value, str) else json.dumps(value)
    tags[PREFIX + "Fingerprint"] = fingerprint(segmentation.extent, segmentation.mask)
    return tags


def provenance_of(tags: Mapping[str, str]) -> Provenance | None:
    """What made a segment, from its unescaped tags; None when this project did not make it, or the tags are damaged."""
    if PREFIX + "Phrase" not in tags:
        return None
    try:
        fields: dict[str, Any] = {
            name: field_of_tag(name, tags.get(tag_name(name), "")) for name in Provenance.__dataclass_fields__
        }
    except ValueError:
        return None
    return Provenance(**fields)


def tag_name(field: str) -> str:
    """Tag of a field of `Provenance`: ``model_hash`` becomes ``MedSAM3.ModelHash``."""
    return PREFIX + "".join(part.capitalize() for part in field.split("_"))


def fingerprint(extent: Extent | None, mask: np.ndarray) -> str:
    """Short text that differs when a single voxel does; says whether a segment was edited since it was written.

    Args:
        extent: Where the crop sits in the volume's grid; it must be the smallest that holds the mask.
        mask: Boolean crop (slices, rows, columns).
    """
    if extent is None:
        return "empty"
    packed = np.packbits(np.ascontiguousarray(mask, bool))
    return f"{extent.i},{extent.j},{extent.k}:{zlib.crc32(packed.tobytes()):08x}".replace(" ", "")


def field_of_tag(name: str, text: str) -> object:
    """The value of a field of `Provenance` from its unescaped tag, which anybody may have written.

    Raises:
        ValueError: If the text is not what that field is written as.
    """
    if name not in (*_LISTS, "thresholds"):
        return text
    kind: type = dict if name == "thresholds" else list
    try:
        value = json.loads(text) if text else kind()
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, (dict, list)) or not isinstance(value, kind):
        raise ValueError(f"{name} is a {type(value).__name__}")
    if isinstance(value, dict):
        return {key: float(one) for key, one in value.items() if isinstance(one, int | float)}
    return tuple(one for one in value if isinstance(one, str))
