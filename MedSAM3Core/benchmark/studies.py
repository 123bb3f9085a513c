"""What modes cost and give, and how work grows with the object and with the scan."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from MedSAM3Core.benchmark.comparison import dice
from MedSAM3Core.benchmark.measuring import HostMemory
from MedSAM3Core.benchmark.subject import Subject
from MedSAM3Core.progress import CancelToken, Progress, ProgressCallback, ProgressMeter
from MedSAM3Core.segmentation import Segmentation
from MedSAM3Core.volume.volume import Volume

MEGABYTE = 1_000_000
MODE_WEIGHTS = {"warm-up": 0.5, "thorough": 1.5, "recommended": 1.0, "fast": 0.5}
"""Share of a comparison's work."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of our path.

    Attributes:
        name: What is special of it.
        seconds: By the clock.
        processor: Of all threads.
        host_bytes: Most host memory held above the start.
        work: Slices encoded, pairs detected, tracker steps.
        found: One segmentation a concept.
        closely_from: Score from which a slice is looked at closely.
    """

    name: str
    seconds: float
    processor: float
    host_bytes: int
    work: dict[str, int]
    found: tuple[Segmentation, ...]
    closely_from: float


def run(subject: Subject, volume: Volume, name: str, meter: ProgressMeter, **settings: Any) -> Run:
    """Open a volume afresh and segment all of the subject's concepts; ``name`` is its stage of the meter."""
    slices, done = len(volume.array), 0

    def step(report: Progress) -> None:
        nonlocal done  # a search learns on its way how much it has to see, and its share falls then
        done = max(done, round(report.fraction * slices))
        meter.step(name, done, slices)

    meter.step(name, 0, slices)
    with (
        HostMemory() as memory,
        subject.segmenter.open(volume, **{**subject.settings, **settings}) as session,
    ):
        began, worked = time.perf_counter(), time.process_time()
        found = session.segment_many(subject.concepts, progress=step, cancel=meter.cancel)
        seconds, processor = time.perf_counter() - began, time.process_time() - worked
        work = dataclasses.asdict(session.work)
        closely_from = session.settings.low_share * session.policy.threshold
    meter.step(name, slices, slices)
    return Run(name, seconds, processor, memory.grown, work, tuple(found), closely_from)


def compare_modes(
    subject: Subject,
    truth: Sequence[np.ndarray] | None,
    cancel: CancelToken | None = None,
    progress: ProgressCallback | None = None,
) -> list[dict[str, Any]]:
    """Every mode on the same volume: seconds, work, and Dice with the reference and with the thorough mode.

    Args:
        subject: Its own mode is not looked at.
        truth: bool (slices, rows, columns) a concept; None where there is none.
        cancel: Stops between two slices.
        progress: Receives reports.
    """
    modes = ("thorough", "recommended", "fast")
    meter = ProgressMeter(progress, cancel, MODE_WEIGHTS)
    run(subject, subject.volume, "warm-up", meter, mode="fast")
    runs = [run(subject, subject.volume, mode, meter, mode=mode) for mode in modes]
    closest = [one.to_array() for one in runs[0].found]
    return [
        {
            **_figures(one),
            "dice_with_thorough": [dice(a.to_array(), b) for a, b in zip(one.found, closest, strict=True)],
            "dice_with_reference": None
            if truth is None
            else [dice(a.to_array(), b) for a, b in zip(one.found, truth, strict=True)],
        }
        for one in runs
    ]


def grow_scan(
    subject: Subject,
    lengths: Sequence[int],
    object_slices: int,
    cancel: CancelToken | None = None,
    progress: ProgressCallback | None = None,
) -> list[dict[str, Any]]:
    """The same object in scans of different lengths.

    A stack of ``object_slices`` slices of the subject's volume lies in the middle of air. The first length is what
    ratios refer to; it is run in the thorough mode before, which also warms up.

    Args:
        subject: Model, volume and concepts.
        lengths: Slices of the scans, each at least ``object_slices``.
        object_slices: Slices that are not air.
        cancel: Stops between two slices.
        progress: Receives reports; the time left is at most that, as if no air were passed over.
    """
    part = subject.volume.array[:object_slices]
    weights = {"thorough": lengths[0], **{_name(length): length for length in lengths}}
    meter = ProgressMeter(progress, cancel, {name: float(slices) for name, slices in weights.items()})
    scan, first = _in_air(part, lengths[0], subject.volume)
    whole = run(subject, scan, "thorough", meter, mode="thorough")
    thorough = [found.to_array()[first : first + len(part)] for found in whole.found]
    return [_grown(subject, part, length, thorough, meter) for length in lengths]


def _grown(
    subject: Subject, part: np.ndarray, length: int, thorough: Sequence[np.ndarray], meter: ProgressMeter
) -> dict[str, Any]:
    """One scan, and what is found of the object and beside it."""
    scan, first = _in_air(part, length, subject.volume)
    one = run(subject, scan, _name(length), meter)
    place = slice(first, first + len(part))
    masks = [found.to_array() for found in one.found]
    air = [n for n in range(length) if not first <= n < first + len(part)]
    return {
        **_figures(one),
        "slices": length,
        "dice_with_thorough": [dice(a[place], b) for a, b in zip(masks, thorough, strict=True)],
        "voxels_outside": int(sum(m.sum() - m[place].sum() for m in masks)),
        "closely_from": one.closely_from,
        "air_scores": [max((f.slice_scores.get(n, 0.0) for n in air), default=0.0) for f in one.found],
    }


def _name(length: int) -> str:
    return f"{length} slices"


def _in_air(part: np.ndarray, length: int, like: Volume) -> tuple[Volume, int]:
    """Slices in the middle of a scan of ``length`` slices of their lowest value, and the first one's index."""
    array = np.full((length, *part.shape[1:]), part.min(), part.dtype)
    first = (length - len(part)) // 2
    array[first : first + len(part)] = part
    return Volume.from_array(array, ijk_to_ras=like.geometry.ijk_to_ras, modality=like.modality), first


def _figures(one: Run) -> dict[str, Any]:
    return {
        "name": one.name,
        "seconds": one.seconds,
        "processor_seconds": one.processor,
        "host_bytes": one.host_bytes,
        "work": one.work,
    }


def notices(runs: Sequence[dict[str, Any]], concepts: Sequence[str]) -> list[str]:
    """What a model sees in air, if that is so much that its runs follow the scan and not the object."""
    seen: dict[str, float] = {}
    for one in runs:
        for concept, score in zip(concepts, one.get("air_scores", ()), strict=False):
            if score >= one["closely_from"]:
                seen[concept] = max(score, seen.get(concept, 0.0))
    if not seen:
        return []
    scores = ", ".join(f"{concept} {score:.2f}" for concept, score in seen.items())
    return [
        f"The model sees something in air ({scores}; slices are looked at closely from "
        f"{runs[-1]['closely_from']:.2f}), so the work followed the scan and not only the object."
    ]


STUDY_COLUMNS = (
    "run",
    "encoded",
    "pairs",
    "tracker steps",
    "seconds",
    "processor s",
    "times the first",
    "host MB",
    "voxels outside",
    "Dice with thorough",
    "Dice with reference",
)


def study_rows(runs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Runs as rows of `STUDY_COLUMNS`; the ratio is of processor time."""
    return [
        [
            one["name"],
            str(one["work"]["slices"]),
            str(one["work"]["pairs"]),
            str(one["work"]["steps"]),
            f"{one['seconds']:.2f}",
            f"{one['processor_seconds']:.2f}",
            f"{one['processor_seconds'] / runs[0]['processor_seconds']:.2f}",
            f"{one['host_bytes'] / MEGABYTE:.0f}",
            str(one.get("voxels_outside", "")),
            _written(one["dice_with_thorough"]),
            _written(one.get("dice_with_reference")),
        ]
        for one in runs
    ]


def _written(values: Sequence[float | None] | None) -> str:
    if values is None:
        return ""
    return ", ".join("both empty" if value is None else f"{value:.3f}" for value in values)
