"""One run, from the press of the button to the segments in the scene, in steps that never block."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from MedSAM3Core.errors import Cancelled, MedSAM3Error
from MedSAM3Core.progress import Progress
from MedSAM3Core.segmentation import Segmentation
from MedSAM3SlicerLib.adapter.segments import WrittenSegment
from MedSAM3SlicerLib.signals import Signal

logger = logging.getLogger(__name__)


class Pending(Protocol):
    """What a run needs of `MedSAM3Core.worker.PendingResult`."""

    @property
    def done(self) -> bool:
        """Whether the answer is here."""

    def result(self, timeout: float | None = None) -> Any:
        """The answer, or the exception that it is."""

    def cancel(self) -> None:
        """Ask the worker to stop."""


class State(Enum):
    """Where a run is."""

    WAITING = "waiting"
    RUNNING = "running"
    WRITING = "writing"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


ENDED = frozenset({State.FINISHED, State.CANCELLED, State.FAILED})


@dataclass(frozen=True)
class Outcome:
    """What a run left.

    Attributes:
        written: Segments in the scene, in the order of the concepts that were found.
        missing: Phrases that were found nowhere.
        notices: Sentences of the core about what was found.
        seconds: From the press of the button to the last segment.
    """

    written: Sequence[WrittenSegment] = ()
    missing: Sequence[str] = ()
    notices: Sequence[str] = ()
    seconds: float = 0.0


@dataclass
class Work:
    """What the steps of a run share with it: the answer that is waited for and what was found."""

    pending: Pending | None = None
    results: list[Segmentation] = field(default_factory=list)
    written: list[WrittenSegment] = field(default_factory=list)
    state: State = State.WAITING
    segmentationNode: Any = None
    report: Callable[[Progress], None] = lambda _: None


Steps = Generator[None, None, None]


class Run:
    """A run that a timer drives.

    Args:
        steps: Does the work on the `Work` it is given and yields whenever the window may repaint.
        title: What is being done, for the status line.
    """

    def __init__(self, steps: Callable[[Work], Steps], title: str) -> None:
        self.title = title
        self.progressed = Signal()
        self.ended = Signal()
        self.error: BaseException | None = None
        self.outcome = Outcome()
        self.startedAt = time.monotonic()
        self._work = Work(report=self.report)
        self._steps = steps(self._work)
        self._cancelled = False
        self._reason = ""

    @property
    def state(self) -> State:
        """Where the run is."""
        return self._work.state

    @property
    def segmentationNode(self) -> Any:
        """Where the segments went; None while, or if, there are none."""
        return self._work.segmentationNode

    @property
    def isOver(self) -> bool:
        """Whether nothing more will happen."""
        return self._work.state in ENDED

    @property
    def pending(self) -> Pending | None:
        """The answer that the run waits for, None when it waits for none."""
        return self._work.pending

    def report(self, progress: Progress) -> None:
        """Pass the worker's progress on to whoever shows it."""
        if not self.isOver:
            self.progressed.emit(progress)

    def cancel(self, reason: str = "Cancelled; nothing was changed.") -> None:
        """Stop; what is being written already is finished, since it takes milliseconds and is one undo step.

        Args:
            reason: A sentence for the status line.
        """
        if self.isOver or self._cancelled or self.state is State.WRITING:
            return
        self._cancelled, self._reason = True, reason
        if self._work.pending is not None:
            self._work.pending.cancel()

    def abandon(self, reason: str) -> None:
        """End at once without touching the scene again: the scene is being closed or Slicer quits."""
        if self.isOver:
            return
        self.cancel(reason)
        self._steps.close()
        self._end(State.CANCELLED, Cancelled(reason))

    def step(self) -> bool:
        """Go on as far as possible without waiting; returns whether the run is over."""
        if self.isOver:
            return True
        try:
            self._advance()
        except StopIteration:
            self._finish()
        except Cancelled as stopped:
            self._end(State.CANCELLED, Cancelled(self._reason or str(stopped)))
        except MedSAM3Error as fault:
            self._end(State.FAILED, fault)
        except Exception as fault:  # a run is the boundary: its fault is shown, the window lives on
            logger.exception("The run %s failed.", self.title)
            self._end(State.FAILED, fault)
        return self.isOver

    def _advance(self) -> None:
        if self._cancelled and self._work.pending is None and self.state is not State.WRITING:
            self._steps.close()
            raise Cancelled(self._reason)
        next(self._steps)

    def _finish(self) -> None:
        found = {id(result): result for result in self._work.results}.values()
        seen = {result.concept.phrase for result in found if not result.empty}  # in any frame of a sequence
        missing = dict.fromkeys(r.concept.phrase for r in found if r.concept.phrase not in seen)
        notices = dict.fromkeys(n for result in found if not result.empty for n in result.provenance.notices)
        seconds = time.monotonic() - self.startedAt
        self.outcome = Outcome(tuple(self._work.written), tuple(missing), tuple(notices), seconds)
        self._end(State.FINISHED, None)

    def _end(self, state: State, error: BaseException | None) -> None:
        self._work.state, self.error = state, error
        self._work.pending = None
        self.ended.emit(self)


class InThread:
    """A call on a thread of its own, waited for like an answer of the worker.

    Args:
        function: Must not touch MRML or Qt.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._call, daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether the call has returned."""
        return not self._thread.is_alive()

    def result(self, timeout: float | None = None) -> Any:
        """What it returned, or the exception that it raised."""
        self._thread.join(timeout)
        if self._error is not None:
            raise self._error
        return self._value

    def cancel(self) -> None:
        """Nothing: such a call is short and is waited for."""

    def _call(self) -> None:
        try:
            self._value = self._function()
        except Exception as fault:  # handed over to the waiting thread
            self._error = fault


def waitFor(work: Work, pending: Pending) -> Generator[None, None, Any]:
    """Yield until the answer is here; returns it."""
    work.pending = pending
    while not pending.done:
        yield
    work.pending = None
    return pending.result(0)
