"""What a run found, as plain values for JSON and as rows for a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from MedSAM3Core.prompts import Coding
    from MedSAM3Core.segmentation import Segmentation
    from MedSAM3Core.volume import Volume

TABLE_COLUMNS = [
    ("concept", "left"),
    ("code", "left"),
    ("voxels", "right"),
    ("ml", "right"),
    ("slices", "right"),
    ("score", "right"),
]


def report(
    volume: Volume,
    segmentations: Sequence[Segmentation],
    outputs: dict[str, str],
    seconds: dict[str, float],
    notices: Sequence[str] = (),
) -> dict[str, Any]:
    """A run as plain values.

    Args:
        volume: What was segmented.
        segmentations: In the order of the concepts.
        outputs: Kind of file to its path.
        seconds: Stage of the whole command to its seconds.
        notices: Sentences for the user about the whole run.
    """
    from MedSAM3Core.version import __version__

    return {
        "medsam3": __version__,
        "input": _input(volume),
        "outputs": outputs,
        "notices": list(dict.fromkeys(notices)),
        "concepts": [_concept(label, s) for label, s in enumerate(segmentations, start=1)],
        "stage_seconds": {stage: round(value, 3) for stage, value in stage_seconds(segmentations).items()},
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
    }


def table_row(segmentation: Segmentation) -> list[str]:
    """One row under `TABLE_COLUMNS`."""
    code = segmentation.concept.code
    return [
        segmentation.concept.name or segmentation.concept.phrase,
        f"SCT {code}" if code else "none",
        f"{segmentation.voxels:,}",
        millilitres(segmentation),
        "not found" if segmentation.extent is None else "{}-{}".format(*slice_range(segmentation)),
        f"{segmentation.score:.2f}",
    ]


def millilitres(segmentation: Segmentation) -> str:
    """The volume for a table; a dash for a 2D image, which has none."""
    return "-" if segmentation.geometry.shape[0] == 1 else f"{segmentation.volume_ml:.2f}"


def stage_seconds(segmentations: Sequence[Segmentation]) -> dict[str, float]:
    """Stage to seconds of a whole run. Concepts that ran together report the same times, which count once."""
    timings: list[dict[str, float]] = []
    for segmentation in segmentations:
        if segmentation.timings not in timings:
            timings.append(segmentation.timings)
    stages = dict.fromkeys(stage for one in timings for stage in one)
    return {stage: sum(one.get(stage, 0.0) for one in timings) for stage in stages}


def slice_range(segmentation: Segmentation) -> tuple[int, int]:
    """First and last slice with the concept, along the grid axis that the volume was cut along."""
    extent = segmentation.extent
    assert extent is not None
    return getattr(extent, grid_axis(segmentation))


def grid_axis(segmentation: Segmentation) -> str:
    """The grid axis, "i", "j" or "k", that the provenance's axis names; "k" where it names none."""
    words = segmentation.provenance.axis.replace("(", " ").replace(")", " ").split()
    return next((word for word in words if word in ("i", "j", "k")), "k")


def _input(volume: Volume) -> dict[str, Any]:
    return {
        "path": str(volume.source) if volume.source else None,
        "name": volume.name,
        "modality": volume.modality,
        "shape": {
            "slices": volume.geometry.shape[0],
            "rows": volume.geometry.shape[1],
            "columns": volume.geometry.shape[2],
        },
        "spacing_mm": {
            axis: round(size, 6) for axis, size in zip("ijk", volume.geometry.spacing, strict=True)
        },
    }


def _concept(label: int, segmentation: Segmentation) -> dict[str, Any]:
    concept, provenance = segmentation.concept, segmentation.provenance
    extent = segmentation.extent
    return {
        "label": label,
        "typed": concept.typed,
        "concept": concept.phrase,
        "name": concept.name,
        "code": concept.code,
        "coding": _coding(concept.coding),
        "colour": list(concept.colour),
        "found": extent is not None,
        "voxels": segmentation.voxels,
        "ml": round(segmentation.volume_ml, 4) if segmentation.geometry.shape[0] > 1 else None,
        "extent": None if extent is None else {axis: list(getattr(extent, axis)) for axis in "ijk"},
        "slice_axis": grid_axis(segmentation),
        "slice_range": None if extent is None else list(slice_range(segmentation)),
        "score": _finite(segmentation.score),
        "slice_scores": {str(k): _finite(v) for k, v in sorted(segmentation.slice_scores.items())},
        "prompts": list(provenance.prompts),
        "boxes": list(provenance.boxes),
        "points": list(provenance.points),
        "model": {"name": provenance.model, "sha256": provenance.model_hash},
        "thresholds": {name: _finite(value) for name, value in provenance.thresholds.items()},
        "axis": provenance.axis,
        "window": provenance.window,
        "device": provenance.device,
        "created": provenance.created,
        "seconds": {stage: round(value, 3) for stage, value in segmentation.timings.items()},
        "notices": list(dict.fromkeys((*concept.notices, *provenance.notices))),
    }


def _coding(coding: Coding | None) -> dict[str, Any] | None:
    return None if coding is None else asdict(coding)


def _finite(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None


def absolute(path: Path | None) -> str | None:
    """A path for a report: absolute, links kept."""
    return None if path is None else str(path.absolute())
