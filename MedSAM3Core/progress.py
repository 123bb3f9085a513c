"""How a long call reports what it does, and how it is stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from MedSAM3Core.errors import Cancelled


@dataclass(frozen=True)
class Progress:
    """One report of a long call.

    Attributes:
        stage: What is being done, a word or two: "encoding", "detecting", "propagating", "downloading", ...
        step: Units finished in this stage, 0..total.
        total: Units of this stage (slices, bytes, steps), 0 when unknown.
        fraction: Share of the whole call that is finished, 0..1.
        seconds_left: Estimate for the whole call, None while unknown.
    """

    stage: str
    step: int
    total: int
    fraction: float
    seconds_left: float | None = None


ProgressCallback = Callable[[Progress], None]


class CancelToken:
    """A flag that any thread may raise and a long call looks at between two slices."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        """Ask the call that holds this token to stop."""
        self._event.set()

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._event.is_set()

    def check(self) -> None:
        """Raise `Cancelled` if `cancel` was called."""
        if self._event.is_set():
            raise Cancelled()


@dataclass
class ProgressMeter:
    """Turns steps of weighted stages into `Progress` reports, and lets a cancel through at every step.

    Args:
        callback: Receives each report; None is silent.
        cancel: Looked at on every step; None never cancels.
        weights: Stage name to its expected share of the work; the shares need not add up to one.
    """

    callback: ProgressCallback | None = None
    cancel: CancelToken | None = None
    weights: dict[str, float] = field(default_factory=dict)
    _done: dict[str, float] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)

    def step(self, stage: str, step: int, total: int) -> None:
        """Report that `step` of `total` units of `stage` are finished.

        Raises:
            Cancelled: If the token was cancelled.
        """
        if self.cancel is not None:
            self.cancel.check()
        weight_sum = sum(self.weights.values()) or 1.0
        self._done[stage] = self.weights.get(stage, 0.0) * (step / total if total else 0.0)
        if self.callback is None:
            return
        fraction = min(1.0, sum(self._done.values()) / weight_sum)
        elapsed = time.monotonic() - self._started
        left = elapsed * (1 - fraction) / fraction if fraction > 0.02 else None
        self.callback(Progress(stage, step, total, fraction, left))
