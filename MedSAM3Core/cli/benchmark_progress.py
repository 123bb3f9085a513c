"""What a benchmark shows while it runs: minutes without a word look like a hang."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from MedSAM3Core.cli import terminal
from MedSAM3Core.progress import Progress, ProgressCallback


@contextmanager
def announced() -> Iterator[ProgressCallback]:
    """A progress bar on a terminal; elsewhere a line for each part that begins, with the time left."""
    with terminal.progress_bar() as bar:
        yield bar or _Lines()


class _Lines:
    """Says each part once, on stderr."""

    def __init__(self) -> None:
        self._stage = ""

    def __call__(self, report: Progress) -> None:
        if report.stage == self._stage:
            return
        self._stage = report.stage
        left = terminal.time_left(report.seconds_left)
        terminal.notify([f"measuring {report.stage}" + (f", about {left}" if left else "")])


def about(seconds: float) -> str:
    """A time for the demo model on two CPU cores, in words."""
    minutes = max(1, round(seconds / 60))
    return f"about {minutes} min with the demo model on two CPU cores"
