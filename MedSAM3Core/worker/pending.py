"""A request that was sent to the worker, and what comes of it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from MedSAM3Core.errors import Cancelled, WorkerError
from MedSAM3Core.progress import CancelToken, Progress, ProgressCallback
from MedSAM3Core.worker.protocol import Event, ProgressEvent

T = TypeVar("T")

_TOKEN_POLL_S = 0.02
"""How often a blocking call looks at a `CancelToken`, which cannot wake it."""


class PendingResult(Generic[T]):
    """What a ``submit_...`` call of the client returns.

    `done` tells whether the answer is here, `result` waits for it, `WorkerClient.poll` delivers progress and calls
    ``on_done`` on the thread that polls. All callbacks run on the thread that calls `result` or `WorkerClient.poll`,
    never on a thread of the client's own.

    Args:
        cancel_request: Asks the worker to stop; called at most once.
        progress: Receives the worker's `Progress`.
        on_event: Receives all events.
        on_done: Receives this object when the answer is here.
        check: Called before the answer is given out; what it raises becomes the answer.
        forget: Called once when nothing is left to deliver.
    """

    def __init__(
        self,
        cancel_request: Callable[[PendingResult[Any]], None],
        progress: ProgressCallback | None = None,
        on_event: Callable[[Event], None] | None = None,
        on_done: Callable[[PendingResult[T]], None] | None = None,
        check: Callable[[], None] | None = None,
        forget: Callable[[PendingResult[Any]], None] | None = None,
    ) -> None:
        self._cancel_request = cancel_request
        self._progress = progress
        self._on_event = on_event
        self._on_done = on_done
        self._check = check
        self._forget = forget
        self._events: deque[Event] = deque()
        self._wake = threading.Condition()
        self._settled = False
        self._announced = False
        self._cancelling = False
        self._value: Any = None
        self._error: BaseException | None = None

    @property
    def done(self) -> bool:
        """Whether the request has ended, well or badly."""
        return self._settled

    def result(self, timeout: float | None = None, cancel: CancelToken | None = None) -> T:
        """Wait for the answer, delivering this request's progress meanwhile.

        Args:
            timeout: Seconds; None waits as long as the worker lives.
            cancel: Cancels the request when it is cancelled.

        Raises:
            TimeoutError: If it was not there in time; the request goes on.
            Cancelled: If it was cancelled, or its volume changed since.
            MedSAM3Error: What the worker raised, or `WorkerError` if it died.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while not self._wait(deadline, cancel):
                self.deliver_events()
                if cancel is not None and cancel.cancelled:
                    self.cancel()
                if deadline is not None and time.monotonic() >= deadline and not self._settled:
                    raise TimeoutError(f"The worker has not answered within {timeout} s.")
            self.deliver()
        except BaseException as fault:
            if not isinstance(fault, TimeoutError):
                self.cancel()
            raise
        return self._outcome()

    def cancel(self) -> None:
        """Ask the worker to stop. Returns at once; `result` then raises `Cancelled` unless the answer was faster."""
        with self._wake:
            if self._settled or self._cancelling:
                return
            self._cancelling = True
        self._cancel_request(self)

    def add_done_callback(self, callback: Callable[[PendingResult[T]], None]) -> None:
        """Set what is called, once, on the polling thread, when the answer is here."""
        self._on_done = callback

    def exception(self) -> BaseException | None:
        """What `result` would raise, None for a good answer or one that is not here yet."""
        if not self._settled:
            return None
        try:
            self._outcome()
        except Exception as fault:  # handed over, not swallowed
            return fault
        return None

    # For the client ----------------------------------------------------------------------------------------------

    def add_event(self, event: Event) -> None:
        """Keep an event until the caller's thread asks for it."""
        with self._wake:
            self._events.append(event)
            self._wake.notify_all()

    def settle(self, value: Any = None, error: BaseException | None = None) -> bool:
        """End the request; False if it had ended already."""
        with self._wake:
            if self._settled:
                return False
            if self._cancelling and isinstance(error, WorkerError):
                error = Cancelled()
            self._value, self._error, self._settled = value, error, True
            self._wake.notify_all()
            silent = self._on_done is None and not self._events
        if silent:  # nobody need poll for it
            self.deliver()
        return True

    def deliver(self) -> bool:
        """Run the callbacks that are due, on this thread; True when nothing more will come."""
        self.deliver_events()
        with self._wake:
            if not self._settled or self._events:
                return False
            first, self._announced = not self._announced, True
        if first:
            self._announce()
        return True

    def _announce(self) -> None:
        forget, on_done = self._forget, self._on_done
        # The client keeps the last answers of a connection; they must not keep the client, nor a panel's widgets.
        self._cancel_request = _nothing
        self._progress = self._on_event = self._on_done = self._forget = None
        if forget is not None:
            forget(self)
        if on_done is not None:
            on_done(self)

    def deliver_events(self) -> None:
        """Hand over the events that have come, on this thread."""
        while True:
            with self._wake:
                if not self._events:
                    return
                event = self._events.popleft()
            if self._on_event is not None:
                self._on_event(event)
            if self._progress is not None and isinstance(event, ProgressEvent):
                self._progress(
                    Progress(event.stage, event.step, event.total, event.fraction, event.seconds_left)
                )

    def _wait(self, deadline: float | None, cancel: CancelToken | None) -> bool:
        """Wait for news; True when settled."""
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if cancel is not None:
            left = _TOKEN_POLL_S if left is None else min(left, _TOKEN_POLL_S)
        with self._wake:
            self._wake.wait_for(lambda: self._settled or bool(self._events), left)
            return self._settled

    def _outcome(self) -> T:
        if self._error is not None:
            raise self._error
        if self._check is not None:
            self._check()
        return self._value


def _nothing(_: PendingResult[Any]) -> None:
    """What cancelling an answered request does."""
