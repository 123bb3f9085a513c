"""What the panel says: stages, times, results and reports in words."""

from __future__ import annotations

import platform
import traceback
from collections.abc import Mapping, Sequence

from slicer.i18n import tr as _

from MedSAM3Core.errors import MedSAM3Error
from MedSAM3Core.progress import Progress
from MedSAM3Core.version import __version__
from MedSAM3SlicerLib.adapter.segments import WrittenSegment
from MedSAM3SlicerLib.runs import Outcome, Run
from MedSAM3SlicerLib.segmenttable import formatMillilitres

NOT_SLICES = ("fusing",)
"""Stages that count concepts."""


def stage(progress: Progress) -> str:
    """One line about where a run is: stage, slice, time left."""
    text = progress.stage[:1].upper() + progress.stage[1:]
    if progress.total > 0:
        count = _(", {step} of {total}") if progress.stage in NOT_SLICES else _(", slice {step} of {total}")
        text += count.format(step=progress.step, total=progress.total)
    if progress.seconds_left is not None:
        text += _(", about {time} left").format(time=duration(progress.seconds_left))
    return text


def duration(seconds: float) -> str:
    """8 s, 2 min, 1 h 5 min."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def outcome(result: Outcome) -> str:
    """What a run found, in a sentence or two."""
    found = _found(result.written)
    parts = []
    if found:
        parts.append(
            _("Found in {time}: {what}.").format(time=duration(result.seconds), what=", ".join(found))
        )
    if result.missing:
        missing = ", ".join(result.missing)
        parts.append(
            _("Not found: {what}. Try another word, Thorough, or a lower threshold.").format(what=missing)
        )
    return " ".join([*parts, *result.notices])


def _found(written: Sequence[WrittenSegment]) -> list[str]:
    """Name and millilitres of each segment; of one that is in several frames of a sequence, the range."""
    frames: dict[str, list[WrittenSegment]] = {}
    for segment in written:
        frames.setdefault(segment.segmentId, []).append(segment)
    sentences = []
    for one in frames.values():
        low, high = (formatMillilitres(end(segment.volumeMl for segment in one)) for end in (min, max))
        volume = low if low == high else _("{low} to {high}").format(low=low, high=high)
        times = "" if len(one) == 1 else _(" in {n} frames").format(n=len(one))
        sentences.append(f"{one[0].name} {volume} ml{times}")
    return sentences


def need(needed: Mapping[str, tuple[int, int | None]]) -> str:
    """What a run will need and what is free, in bytes by device, as a sentence; empty while nothing is known."""
    parts = []
    for device, (wanted, free) in needed.items():
        place = _("of memory") if device == "cpu" else _("on {device}").format(device=device)
        parts.append(
            _("about {need:.1f} GB {place}").format(need=wanted / 1e9, place=place)
            if free is None
            else _("about {need:.1f} GB {place} ({free:.1f} GB free)").format(
                need=wanted / 1e9, place=place, free=free / 1e9
            )
        )
    return _("Needs {what}.").format(what=_(" and ").join(parts)) if parts else ""


def memory(need: int, free: int | None) -> str:
    """A warning before a run that needs more memory (bytes) than is free; empty when there is enough."""
    if free is None or need <= free:
        return ""
    text = _("This run needs about {need:.1f} GB and {free:.1f} GB are free; it goes on, but may be slow.")
    return text.format(need=need / 1e9, free=free / 1e9)


def failure(fault: BaseException) -> str:
    """What went wrong, in a sentence; what is not of our own making only by its kind."""
    if isinstance(fault, MedSAM3Error):
        return str(fault)
    text = _(
        "Something unexpected went wrong ({kind}); nothing was changed. Copy the report and send it to us."
    )
    return text.format(kind=type(fault).__name__)


def report(run: Run | None, facts: Mapping[str, object], workerLog: str, setupLog: str) -> str:
    """Everything that helps to find a fault; the user copies it."""
    lines = [f"MedSAM3 {__version__}, Python {platform.python_version()}, {platform.platform()}"]
    lines += [f"{name}: {value}" for name, value in facts.items()]
    if run is not None:
        lines.append(f"last run: {run.title}, {run.state.value}")
        if run.error is not None:
            lines += traceback.format_exception(run.error)
    for title, text in (("worker", workerLog), ("set-up", setupLog)):
        if text:
            lines += [f"--- {title} ---", text]
    return "\n".join(lines)
