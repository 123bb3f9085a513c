"""What the commands show: tables and JSON on stdout, progress, notices and errors on stderr."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TaskProgressColumn, TextColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table
from rich.text import Text

from MedSAM3Core.progress import CancelToken, Progress, ProgressCallback

UNITS = {
    "downloading": "MB",
    "checking": "MB",
    "converting": "MB",
    "dense": "step",
    "detector": "step",
    "tracker": "step",
    "evaluating": "case",
    "reading": "case",
    "following": "frame",
    "fine-tuning": "step",
}
"""What a stage counts, where it is not slices."""

MEGABYTE = 1_000_000

FIGURES = [("concept (source)", "left"), ("Dice", "right")]
"""Columns of a card's held-out figures, whose last row is no Dice but a share of slices."""


def complain(message: str) -> None:
    """Say what went wrong: one line on stderr."""
    print(f"medsam3: {' '.join(message.split())}", file=sys.stderr, flush=True)


def notify(notices: Sequence[str]) -> None:
    """Say what the user should know, each once, on stderr."""
    for notice in dict.fromkeys(notices):
        print(f"note: {notice}", file=sys.stderr, flush=True)


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False), flush=True)


def print_table(title: str, columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout.

    Args:
        title: Above it; may be empty.
        columns: Heading and justification ("left" or "right") of each.
        rows: One text for each column.
    """
    table = Table(title=title or None, title_justify="left")
    for heading, justify in columns:
        table.add_column(heading, justify=justify, no_wrap=heading != columns[-1][0])  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console()
    if not console.is_terminal:  # a pipe has no width; never cut a figure off
        console.width = 200
    console.print(table)


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Names and values on stdout, one a line."""
    width = max((len(name) for name, _ in facts), default=0)
    console = Console(soft_wrap=True, highlight=False)
    for name, value in facts:
        console.print(Text.assemble((f"{name:<{width}}  ", "bold"), value))


@contextmanager
def progress_bar() -> Iterator[ProgressCallback | None]:
    """A progress bar on stderr from the first report on; gives None, and shows nothing, where stderr is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        _Count(),
        _Left(),
    )
    bar = ProgressBar(*columns, console=console, transient=True)
    task = bar.add_task("starting", total=1.0, step=0, steps=0, left=None)

    def show(report: Progress) -> None:
        bar.start()  # not before: a licence may have to be shown and answered first
        bar.update(
            task,
            description=report.stage,
            completed=report.fraction,
            step=report.step,
            steps=report.total,
            left=report.seconds_left,
        )

    try:
        yield show
    finally:
        bar.stop()


class _Count(ProgressColumn):
    """How many slices (steps, megabytes) of the stage are done."""

    def render(self, task: Task) -> Text:
        return Text(
            count_of(task.description, task.fields["step"], task.fields["steps"]), style="progress.download"
        )


class _Left(ProgressColumn):
    """The time left of the whole call, as the call itself estimates it."""

    def render(self, task: Task) -> Text:
        return Text(time_left(task.fields["left"]), style="progress.remaining")


def count_of(stage: str, step: int, total: int) -> str:
    """Progress within a stage in words, for example "slice 12 of 80"."""
    if not total:
        return ""
    unit = UNITS.get(stage, "slice")
    if unit == "MB":
        return f"{step / MEGABYTE:.1f} of {total / MEGABYTE:.1f} MB"
    return f"{unit} {step} of {total}"


def time_left(seconds: float | None) -> str:
    """The rest of a call in words, for example "1:05 left"."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d} left" if hours else f"{minutes}:{rest:02d} left"


@contextmanager
def interrupted_at_once() -> Iterator[None]:
    """Let Ctrl-C end the block at once, inside `cancel_on_interrupt` too: a question has no next step to stop after."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def cancel_on_interrupt() -> Iterator[CancelToken]:
    """A token that Ctrl-C (or a polite request to terminate) cancels; a second Ctrl-C interrupts at once."""
    token = CancelToken()
    if threading.current_thread() is not threading.main_thread():  # signals can be handled nowhere else
        yield token
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if token.cancelled:
            raise KeyboardInterrupt
        token.cancel()
        if sys.stderr.isatty():  # a step on a large model can take a minute
            print("\nStopping after this step; press Ctrl-C again to stop at once.", file=sys.stderr)

    previous: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}
    for wanted in (signal.SIGINT, signal.SIGTERM):
        previous[wanted] = signal.signal(wanted, stop)
    try:
        yield token
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
