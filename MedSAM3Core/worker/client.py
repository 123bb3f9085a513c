"""Inference in a process of its own: what the panel, the command line and scripts hold.

No Qt and no torch here, only numpy and the standard library. A call from a script blocks::

    with WorkerClient() as client:
        with client.open(volume, model="demo") as session:
            liver = session.segment("liver")

A panel submits and drains the news on its own thread with a timer::

    pending = session.submit_segment("liver", progress=show, on_done=finish)
    timer.timeout -> client.poll()

The worker starts with the first request and again with the next one after it died; open sessions then send their
volume again. Whatever goes wrong on the other side is raised here as the exception it was.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shlex
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from MedSAM3Core.errors import WorkerError
from MedSAM3Core.progress import ProgressCallback
from MedSAM3Core.version import __version__
from MedSAM3Core.volume.geometry import Geometry
from MedSAM3Core.volume.volume import Volume
from MedSAM3Core.worker.convert import SegmentationPorter
from MedSAM3Core.worker.folder import PrivateFolder
from MedSAM3Core.worker.pending import PendingResult
from MedSAM3Core.worker.process import Job, WorkerProcess
from MedSAM3Core.worker.protocol import (
    FINAL,
    PROTOCOL_VERSION,
    Answer,
    Cancel,
    Done,
    Error,
    Event,
    Hello,
    HelloReply,
    LoadModel,
    Memory,
    MemoryReport,
    Message,
    ModelLoaded,
    Ping,
    Question,
    Release,
    Reply,
    Request,
    Shutdown,
    exception_of,
)
from MedSAM3Core.worker.transport import CODECS, ArrayOutlet, Outgoing

if TYPE_CHECKING:
    from MedSAM3Core.worker.remote import RemoteSession

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 180.0
"""A cold disk and a slow network home may take a minute to import torch; ssh may ask for a password."""
CANCEL_TIMEOUT_S = 5.0
"""A worker that has not answered a cancel for this long is stopped with all it started."""


_YIELD_S = 0.001
_YIELD_SENDING_S = 0.01


@dataclass(frozen=True)
class WorkerStarted:
    """The worker has introduced itself."""

    hello: HelloReply


@dataclass(frozen=True)
class WorkerEnded:
    """The worker is gone; ``reason`` is a sentence for the user, ``log`` its last words in full."""

    reason: str
    log: str


ClientEvent = Event | WorkerStarted | WorkerEnded


def default_command() -> list[str]:
    """The worker of this interpreter."""
    return [sys.executable, "-m", "MedSAM3Core.worker"]


def split_command(text: str) -> list[str]:
    """A worker command as a user types it, for example ``ssh host medsam3 worker``, as program and arguments.

    Raises:
        WorkerError: If it is empty or a quotation mark is not closed.
    """
    try:
        parts = shlex.split(text, posix=os.name != "nt")
    except ValueError as fault:
        raise WorkerError(
            f"The worker command {text!r} cannot be read ({fault}).", "Close the quotation."
        ) from fault
    if not parts:
        raise WorkerError("The worker command is empty.", "Leave it out to use this computer.")
    return [part.strip('"') for part in parts] if os.name == "nt" else parts


class WorkerClient:
    """A worker process and the way to it. Any thread may call; callbacks run on the thread that polls or waits.

    Args:
        command: Program and arguments; None starts a worker of this interpreter.
        env: Its environment, None for this process's own. (In Slicer: ``slicer.util.startupEnvironment()`` for a
            foreign Python.)
        on_event: Receives `WorkerStarted`, `WorkerEnded` and every event of every request, in `poll` and while a
            blocking call waits.
        on_question: Receives a question of the worker ("go on with the CPU?") and returns the answer; None says no.
        temporary: Where to make the folder for arrays; None is the system's.
        cancel_timeout_s: How long a cancel may stay unanswered before the worker is stopped.
        start_timeout_s: How long the worker may take to introduce itself.
        bytes_only: Never pass arrays as files, not even to a worker on this machine.
    """

    def __init__(
        self,
        command: Sequence[str] | None = None,
        env: Mapping[str, str] | None = None,
        on_event: Callable[[ClientEvent], None] | None = None,
        *,
        on_question: Callable[[str], bool] | None = None,
        temporary: Path | None = None,
        cancel_timeout_s: float = CANCEL_TIMEOUT_S,
        start_timeout_s: float = START_TIMEOUT_S,
        bytes_only: bool = False,
    ) -> None:
        self.command = list(command) if command is not None else default_command()
        self.cancel_timeout_s = cancel_timeout_s
        self.start_timeout_s = start_timeout_s
        self.bytes_only = bytes_only
        self._env = env
        self._on_event = on_event
        self._on_question = on_question
        self._temporary = temporary
        self.lock = threading.RLock()
        self._numbers = count(1)
        self._live: dict[int, PendingResult[Any]] = {}
        self._news: deque[ClientEvent] = deque()
        self.current: Connection | None = None
        self._last_log = ""
        self._closed = False
        self._belongings = _Belongings()
        # Also at the interpreter's end, and when the client is dropped without a word.
        weakref.finalize(self, self._belongings.discard)

    def __enter__(self) -> WorkerClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What the worker is --------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether a worker process is there now."""
        return self.current is not None

    @property
    def pid(self) -> int | None:
        """The process id of the worker command, None when none runs."""
        return self.current.process.pid if self.current else None

    @property
    def hello(self) -> HelloReply | None:
        """How the running worker introduced itself: version, device, capabilities; None while it has not."""
        return self.current.hello if self.current else None

    @property
    def log(self) -> str:
        """The last lines of the worker's standard error, of the one before if none runs."""
        return self.current.process.log if self.current else self._last_log

    # Requests ------------------------------------------------------------------------------------------------------

    def start(self) -> PendingResult[HelloReply]:
        """Start the worker if none runs; the result is its introduction. Returns at once."""
        with self.lock:
            return self._connect().introduction

    def open(
        self,
        volume: Volume | np.ndarray,
        geometry: Geometry | None = None,
        *,
        model: str = "demo",
        device: str = "auto",
        revision: Callable[[], object] | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> RemoteSession:
        """Open a volume and wait until the worker has it.

        Args:
            volume: A `Volume`, or an array (slices, rows, columns[, 3]). It must not be written to while open.
            geometry: The grid of an array; 1 mm voxels when absent.
            model: Registry name, or a path on the worker's machine.
            device: "auto", "cpu", "cuda" or "cuda:N" of the worker's machine.
            revision: Called on the caller's thread; anything that changes when the volume does (in Slicer its
                MTime). A result is dropped (`Cancelled`) when it is not what it was when the volume was opened.
            timeout: Seconds, None for no limit.
            options: Those of `Segmenter.open`: axis, window, mode, ...

        Raises:
            VolumeError: If the volume cannot be used.
            ModelError: If the model cannot be loaded.
            WorkerError: If the worker cannot be started or dies.
        """
        session = self.session(volume, geometry, model=model, device=device, revision=revision, **options)
        session.submit_open().result(timeout)
        return session

    def session(
        self,
        volume: Volume | np.ndarray,
        geometry: Geometry | None = None,
        *,
        model: str = "demo",
        device: str = "auto",
        revision: Callable[[], object] | None = None,
        **options: Any,
    ) -> RemoteSession:
        """As `open`, but sends nothing yet: the volume goes with the session's first request, and nothing blocks."""
        from MedSAM3Core.worker.remote import RemoteSession

        return RemoteSession(self, as_volume(volume, geometry), model, device, revision, options)

    def load_model(self, model: str, device: str = "auto", timeout: float | None = None) -> ModelLoaded:
        """Load a model before it is needed. Raises `ModelError` if it cannot be."""
        return self.submit_load_model(model, device).result(timeout)

    def submit_load_model(
        self, model: str, device: str = "auto", **callbacks: Any
    ) -> PendingResult[ModelLoaded]:
        """As `load_model`, without waiting."""
        return self.submit(lambda number: LoadModel(id=number, model=model, device=device), **callbacks)

    def memory(self, timeout: float | None = None) -> MemoryReport:
        """What the worker's memory holds."""
        return self.submit_memory().result(timeout)

    def submit_memory(self, **callbacks: Any) -> PendingResult[MemoryReport]:
        """As `memory`, without waiting."""
        return self.submit(lambda number: Memory(id=number), **callbacks)

    def release(self, what: str = "model", timeout: float | None = None) -> None:
        """Give the worker's memory back: "features", or "model" for these and the models. Sessions stay open."""
        if self.running:
            self.submit_release(what).result(timeout)

    def submit_release(self, what: str = "model", **callbacks: Any) -> PendingResult[Done]:
        """As `release`, without waiting."""
        return self.submit(lambda number: Release(id=number, what=what), **callbacks)

    def ping(self, timeout: float | None = None) -> float:
        """Seconds that an empty message takes there and back."""
        started = time.perf_counter()
        self.submit(lambda number: Ping(id=number)).result(timeout)
        return time.perf_counter() - started

    def poll(self) -> int:
        """Deliver all that has come since, on this thread; returns how many requests are still open.

        Call it from a timer, every 50 ms or so. What a callback raises is raised here, and the rest comes next time.
        Takes at least a millisecond, ten while arrays are on their way: an application whose main thread keeps
        Python's lock while it waits for its user, as Slicer's does, lets the client's threads run only in here.
        """
        connection = self.current
        if connection is not None:
            time.sleep(_YIELD_SENDING_S if connection.process.sending else _YIELD_S)
        self._deliver_news()
        for pending in list(self._live.values()):
            pending.deliver()
        return len(self._live)

    def close(self) -> None:
        """End the worker and remove its files; calls that wait raise `WorkerError`. Takes at most a few seconds."""
        with self.lock:
            self._closed = True
        self._belongings.discard()

    def restart(self) -> None:
        """Stop the worker now; the next request starts another and sends open volumes again."""
        connection = self.current
        if connection is not None:
            connection.process.kill("The worker was restarted.")
            connection.gone.wait(5.0)

    # For sessions --------------------------------------------------------------------------------------------------

    def submit(
        self,
        make: Callable[[int], Request],
        *,
        before: Iterator[Outgoing] | None = None,
        receive: Callable[[Message], Any] | None = None,
        progress: ProgressCallback | None = None,
        on_done: Callable[[PendingResult[Any]], None] | None = None,
        check: Callable[[], None] | None = None,
        prepare: Callable[[Connection, int], Iterator[Outgoing]] | None = None,
    ) -> PendingResult[Any]:
        """Send a request; starts the worker if none runs.

        Args:
            make: The request from its number.
            before: Messages that go before it.
            receive: Sees every message of the answer on the reader's thread; what it returns for the last one is
                the result. None gives the last message itself.
            progress: Receives progress.
            on_done: Called when the answer is here.
            check: See `PendingResult`.
            prepare: Makes all messages on the writer's thread, in place of ``make`` and ``before``.
        """
        with self.lock:
            pending, number = self._pending(progress, on_done, check)
            try:
                connection = self._connect()
            except WorkerError as fault:
                pending.settle(error=fault)
                return pending
            messages = prepare(connection, number) if prepare else _messages(before, make(number))
            connection.submit(number, pending, messages, receive)
        return pending

    def _pending(self, progress: Any, on_done: Any, check: Any) -> tuple[PendingResult[Any], int]:
        number = next(self._numbers)
        pending: PendingResult[Any] = PendingResult(
            self._cancel, progress, self._tell, on_done, check, partial(self._forget, number)
        )
        self._live[number] = pending
        return pending, number

    def _forget(self, number: int, _: PendingResult[Any]) -> None:
        self._live.pop(number, None)

    def _connect(self) -> Connection:
        if self._closed:
            raise WorkerError("The worker client was closed.", "Make a new one.")
        if self.current is None or self.current.gone.is_set():  # gone, and about to say so
            if self._belongings.folder is None and not self.bytes_only:
                self._belongings.folder = _private_folder(self._temporary)
            pending, number = self._pending(None, None, None)
            try:
                self.current = Connection(self, self._env, self._belongings.folder, number, pending)
            except WorkerError as fault:
                pending.settle(error=fault)
                raise
            self._belongings.process = self.current.process
        return self.current

    def _cancel(self, pending: PendingResult[Any]) -> None:
        connection = self.current
        if connection is not None:
            connection.cancel(pending, next(self._numbers))

    def _tell(self, event: ClientEvent) -> None:
        if isinstance(event, Question):
            yes = self._on_question is not None and bool(self._on_question(event.text))
            connection = self.current
            if connection is not None:
                connection.process.send_urgent(
                    Answer(id=next(self._numbers), question=event.question, yes=yes)
                )
        if self._on_event is not None:
            self._on_event(event)

    def _deliver_news(self) -> None:
        while self._news:
            self._tell(self._news.popleft())

    def connected(self, hello: HelloReply) -> None:
        """The connection's worker has introduced itself (called by the connection)."""
        self._news.append(WorkerStarted(hello))

    def disconnected(self, connection: Connection, reason: str) -> None:
        """The connection's worker is gone (called by the connection)."""
        with self.lock:
            self._last_log = connection.process.log
            if self.current is connection:
                self.current = None
        if not self._closed:
            self._news.append(WorkerEnded(reason, self._last_log))


class _Belongings:
    """What must not outlive the client: the process and the folder."""

    def __init__(self) -> None:
        self.process: WorkerProcess | None = None
        self.folder: PrivateFolder | None = None

    def discard(self) -> None:
        """End the one, remove the other; twice is once."""
        process, self.process = self.process, None
        if process is not None:
            process.send_urgent(Shutdown(id=0))
            process.close()
        folder, self.folder = self.folder, None
        if folder is not None:
            folder.discard()


class Connection:
    """One life of the worker process, with the requests it owes an answer."""

    def __init__(
        self,
        client: WorkerClient,
        env: Mapping[str, str] | None,
        folder: PrivateFolder | None,
        number: int,
        introduction: PendingResult[HelloReply],
    ) -> None:
        self._client = weakref.proxy(client)
        self._folder = folder
        self._open: dict[int, _Open] = {number: _Open(introduction, None, None)}
        self._lock = threading.Lock()
        self._ready = threading.Event()
        self.introduction = introduction
        self.hello: HelloReply | None = None
        self.gone = threading.Event()
        self.reason = ""
        self.probe = self._make_probe()
        self.process = WorkerProcess(client.command, env, self)
        self._porter: SegmentationPorter | None = None
        self._outlet: ArrayOutlet | None = None
        self._deadline = _timer(client.start_timeout_s, self._too_slow, client.start_timeout_s)
        self._ready.set()
        self.process.send_urgent(
            Hello(
                id=number,
                protocol=PROTOCOL_VERSION,
                client=__version__,
                folder=str(folder.path) if self.probe and folder else "",
                probe=self.probe,
                codecs=CODECS,
            )
        )

    @property
    def porter(self) -> SegmentationPorter:
        """Packs and unpacks segmentations; there once the worker has introduced itself."""
        assert self._porter is not None
        return self._porter

    @property
    def outlet(self) -> ArrayOutlet:
        """How arrays go to the worker; there once it has introduced itself."""
        assert self._outlet is not None
        return self._outlet

    def submit(
        self,
        number: int,
        pending: PendingResult[Any],
        messages: Iterator[Outgoing],
        receive: Callable[[Message], Any] | None,
    ) -> None:
        """Send ``messages``, the last of which is the request ``number``."""
        job = Job(messages, lambda fault: self._settle(number, error=fault))
        with self._lock:
            if not self.gone.is_set():
                self._open[number] = _Open(pending, receive, job)
                self.process.send(job)
                return
        pending.settle(error=self._death())

    def cancel(self, pending: PendingResult[Any], number: int) -> None:
        """Ask the worker to stop ``pending``, and stop the worker if it does not listen."""
        with self._lock:
            found = next(((n, o) for n, o in self._open.items() if o.pending is pending), None)
        if found is None:
            return
        target, entry = found
        if entry.job is not None and self.process.abandon(entry.job):
            self._settle(target, error=WorkerError("The request was cancelled before it was sent."))
            return
        self.process.send_urgent(Cancel(id=number, target=target))
        patience = self._client.cancel_timeout_s
        _timer(patience, self._deaf, pending, patience)

    def received(self, message: Message) -> None:
        """A message arrived (called on the reader's thread)."""
        self._ready.wait()
        number = getattr(message, "id", None)
        with self._lock:
            entry = self._open.get(number) if isinstance(number, int) else None
        if entry is None:
            if isinstance(message, Error):
                logger.debug("The worker reports: %s", message.message)
            return
        if isinstance(message, Error):
            self._settle(number, error=exception_of(message))
        elif isinstance(message, HelloReply):
            self._greet(number, message)
        else:
            self._advance(number, entry, message)

    def ended(self, reason: str) -> None:
        """The process is gone (called on one of its threads)."""
        self._ready.wait()
        self._deadline.cancel()
        with self._lock:
            self.reason = reason
            self.gone.set()
            entries, self._open = list(self._open.values()), {}
        with contextlib.suppress(ReferenceError):
            self._client.disconnected(self, reason)
        for entry in entries:
            entry.pending.settle(error=self._death())

    def _advance(self, number: Any, entry: _Open, message: Message) -> None:
        try:
            value = entry.receive(message) if entry.receive else message
        except Exception as fault:  # a damaged answer is its request's failure, not the reader's end
            self._settle(number, error=fault)
            return
        if isinstance(message, FINAL):
            self._settle(number, value)
        elif isinstance(message, Event):
            entry.pending.add_event(message)

    def _greet(self, number: Any, hello: HelloReply) -> None:
        if hello.protocol != PROTOCOL_VERSION:
            self.process.kill(
                f"The worker speaks protocol {hello.protocol}, this client protocol {PROTOCOL_VERSION}; "
                "install the same version of MedSAM3Core on both sides."
            )
            return
        self._deadline.cancel()
        self.hello = hello
        shared = self._folder if hello.data == "files" else None
        self._outlet = ArrayOutlet(shared, hello.codec, "c")
        self._porter = SegmentationPorter(self.process.channel, self._outlet, shared)
        self._settle(number, hello)
        with contextlib.suppress(ReferenceError):  # the client was dropped, and this process is about to end
            self._client.connected(hello)
        self.process.open_for_jobs()

    def _settle(self, number: Any, value: Any = None, error: BaseException | None = None) -> None:
        with self._lock:
            entry = self._open.pop(number, None)
        if entry is not None:
            entry.pending.settle(value, error)

    def _death(self) -> WorkerError:
        return WorkerError(
            self.reason or "The worker is gone.", "Try again: it starts anew with the next request."
        )

    def _deaf(self, pending: PendingResult[Any], patience_s: float) -> None:
        if not pending.done:
            self.process.kill(f"The worker did not answer a cancel within {patience_s:g} s and was stopped.")

    def _too_slow(self, patience_s: float) -> None:
        self.process.kill(f"The worker did not introduce itself within {patience_s:g} s and was stopped.")

    def _make_probe(self) -> str:
        """A file of a random name that only a worker on the same disk can find; its name, or empty without one."""
        if self._folder is None:
            return ""
        name = f"probe-{secrets.token_hex(8)}"
        try:
            (self._folder.path / name).touch(mode=0o600)
        except OSError:
            return ""
        return name


@dataclass(frozen=True)
class _Open:
    """A request without an answer yet."""

    pending: PendingResult[Any]
    receive: Callable[[Message], Any] | None
    job: Job | None


def as_volume(volume: Volume | np.ndarray, geometry: Geometry | None) -> Volume:
    """What `WorkerClient.open` takes, as a `Volume`.

    Raises:
        VolumeError: If it cannot be one.
    """
    if isinstance(volume, np.ndarray):
        return Volume.from_array(volume, ijk_to_ras=None if geometry is None else geometry.ijk_to_ras)
    return volume


def _messages(before: Iterator[Outgoing] | None, request: Request) -> Iterator[Outgoing]:
    if before is not None:
        yield from before
    yield request, b""


def _private_folder(parent: Path | None) -> PrivateFolder | None:
    """The client's folder, or None where none can be made: arrays then go through the pipe."""
    try:
        return PrivateFolder(parent)
    except OSError as fault:
        logger.warning("No temporary folder can be made (%s); arrays go through the pipe.", fault)
        return None


def _timer(seconds: float, function: Callable[..., None], *arguments: Any) -> threading.Timer:
    timer = threading.Timer(seconds, function, arguments)
    timer.daemon = True
    timer.start()
    return timer


__all__ = [
    "ClientEvent",
    "PendingResult",
    "Reply",
    "WorkerClient",
    "WorkerEnded",
    "WorkerStarted",
    "default_command",
    "split_command",
]
