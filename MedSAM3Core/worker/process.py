"""One worker process with its pipes, its log, and a way to end it with all it started.

Knows nothing of the protocol's meaning beyond moving messages; `MedSAM3Core.worker.client` gives them sense.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any, BinaryIO, Protocol, cast

from MedSAM3Core.errors import WorkerError
from MedSAM3Core.worker.protocol import Message, Request
from MedSAM3Core.worker.transport import Channel, MalformedError, Outgoing

try:
    import psutil
except ImportError:  # not bundled in Slicer; process groups serve there
    psutil = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

LOG_LINES = 400
LOG_LINE_LENGTH = 2000
DRAIN_S = 0.3
"""How long a dead process's pipes may still hold what it said; a grandchild may keep them open for ever."""
LAST_WORDS_S = 2.0
"""How long they are read once that grandchild is stopped too: a busy machine gives the readers their turn late."""
EXIT_S = 5.0
"""How long a process that has closed its output may take to end."""


class Listener(Protocol):
    """Who hears from a process, on the process's own threads."""

    def received(self, message: Message) -> None:
        """A message arrived."""

    def ended(self, reason: str) -> None:
        """The process is gone; ``reason`` is a sentence. Called once, last."""


class Job:
    """Messages that are made and sent one by one on the writer thread, and can be abandoned in between."""

    def __init__(self, messages: Iterator[Outgoing], on_error: Callable[[Exception], None]) -> None:
        self.messages = messages
        self.on_error = on_error
        self.abandoned = False
        self.sent = False


class WorkerProcess:
    """A running worker command.

    Args:
        command: Program and arguments.
        env: Environment, None for this process's own.
        listener: Who hears what it says.

    Raises:
        WorkerError: If it cannot be started.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None, listener: Listener) -> None:
        self._listener = listener
        self._process = _start(command, env)
        self.pid = self._process.pid
        self.channel = Channel(_pipe(self._process.stdout), _pipe(self._process.stdin))
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        self._urgent: deque[Message] = deque()
        self._jobs: deque[Job] = deque()
        self._wake = threading.Condition()
        self._open_for_jobs = False
        self._closing = False
        self._reason = ""
        self._readers = [
            _thread(self._read, "medsam3-worker-read"),
            _thread(self._read_log, "medsam3-worker-log"),
        ]
        self._writer = _thread(self._write, "medsam3-worker-write")
        self._waiter = _thread(self._wait, "medsam3-worker-wait")

    @property
    def alive(self) -> bool:
        """Whether the process has not ended yet."""
        return self._process.poll() is None

    @property
    def sending(self) -> bool:
        """Whether messages wait to be made and sent."""
        return bool(self._jobs)

    @property
    def log(self) -> str:
        """The last lines of the worker's standard error, and what it said that was no message."""
        return "\n".join(list(self._log))

    def send_urgent(self, message: Message) -> None:
        """Send before any job that waits or is on its way."""
        with self._wake:
            self._urgent.append(message)
            self._wake.notify_all()

    def send(self, job: Job) -> None:
        """Send a job's messages when those before it are sent and `open_for_jobs` was called."""
        with self._wake:
            self._jobs.append(job)
            self._wake.notify_all()

    def abandon(self, job: Job) -> bool:
        """Drop a job whose request was not sent yet; False if it was and the worker must be asked to cancel."""
        with self._wake:
            job.abandoned = not job.sent
            return job.abandoned

    def open_for_jobs(self) -> None:
        """Let jobs through: the worker has said what it can do."""
        with self._wake:
            self._open_for_jobs = True
            self._wake.notify_all()

    def close(self, patience_s: float = 2.0) -> None:
        """Close its standard input, after which it ends on its own; stop it if it has not after ``patience_s``."""
        self._reason = self._reason or "The worker was closed."
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._writer.join(patience_s / 2)
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.kill(self._reason)
        self._waiter.join(2.0)

    def kill(self, reason: str) -> None:
        """Stop it and all it started, now; ``reason`` is the sentence its listener hears."""
        if self._process.poll() is None:
            self._reason = reason
            _kill_tree(self._process)

    def _write(self) -> None:
        try:
            while (batch := self._next_outgoing()) is not None:
                self.channel.send(*batch)
        except (OSError, ValueError) as fault:
            logger.debug("The worker's standard input is closed (%s).", fault)
        finally:
            with contextlib.suppress(OSError, ValueError):
                self.channel.close_writer()

    def _next_outgoing(self) -> Outgoing | None:
        """What to send next; None at the end."""
        while True:
            with self._wake:
                self._wake.wait_for(self._has_outgoing)
                if self._urgent:
                    return self._urgent.popleft(), b""
                if self._closing:
                    return None
                job = self._jobs[0]
            if (outgoing := self._step(job)) is not None:
                return outgoing

    def _has_outgoing(self) -> bool:
        return bool(self._urgent or self._closing or (self._open_for_jobs and self._jobs))

    def _step(self, job: Job) -> Outgoing | None:
        """The job's next message, or None when it is finished, which takes it off the queue."""
        outgoing = None
        if not job.abandoned:
            try:
                outgoing = next(job.messages, None)
            except Exception as fault:  # a job's own fault must reach its caller, not end this thread
                job.on_error(fault)
        with self._wake:
            if outgoing is None or job.abandoned:
                self._jobs.popleft()
                return None
            job.sent = job.sent or isinstance(outgoing[0], Request)
        return outgoing

    def _read(self) -> None:
        while True:
            try:
                message = self.channel.receive()
            except MalformedError as fault:
                self._note(f"[no message] {fault.message}")
                continue
            except (EOFError, OSError, ValueError):
                break
            self._listener.received(message)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_S)
            return
        self.kill(self._reason or "The worker closed its output without ending; it was stopped.")

    def _read_log(self) -> None:
        stream = _pipe(self._process.stderr)
        with contextlib.suppress(OSError, ValueError):
            while line := stream.readline(LOG_LINE_LENGTH):
                self._note(line.decode("utf-8", "backslashreplace").rstrip())

    def _note(self, line: str) -> None:
        self._log.append(line)
        logger.debug("worker %d: %s", self.pid, line)

    def _wait(self) -> None:
        self._process.wait()
        if not self._drained(DRAIN_S):
            _kill_tree(self._process)
            self._drained(LAST_WORDS_S)
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._listener.ended(self._reason or self._obituary())
        if self._drained(DRAIN_S):
            for pipe in (self._process.stdout, self._process.stderr):
                _pipe(pipe).close()

    def _drained(self, patience_s: float) -> bool:
        """Whether all that the process said was read; not so while a process it started holds its pipes."""
        for thread in self._readers:
            thread.join(patience_s)
        return not any(thread.is_alive() for thread in self._readers)

    def _obituary(self) -> str:
        code = self._process.returncode
        last = next((line for line in reversed(list(self._log)) if line.strip()), "")
        words = f"; its last words were: {last[:200]!r}" if last else ""
        return f"The worker process ended by itself ({_code_in_words(code)}){words}."


def _pipe(stream: IO[bytes] | None) -> BinaryIO:
    return cast(BinaryIO, stream)


def _thread(target: Callable[[], None], name: str) -> threading.Thread:
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread


def _start(command: Sequence[str], env: Mapping[str, str] | None) -> subprocess.Popen[bytes]:
    options: dict[str, Any] = {"start_new_session": True}
    if os.name == "nt":
        flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW  # type: ignore[attr-defined]
        options = {"creationflags": flags}
    for name in ("stdin", "stdout", "stderr"):
        options[name] = subprocess.PIPE
    try:
        return subprocess.Popen(list(command), env=None if env is None else dict(env), **options)
    except (OSError, ValueError) as fault:
        raise WorkerError(
            f"The worker command {' '.join(command)!r} could not be started ({fault}).",
            "Check the worker command.",
        ) from fault


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Stop a process with its children and grandchildren, also when it is dead itself and they are not."""
    family = []
    if psutil is not None:
        with contextlib.suppress(psutil.Error):
            family = psutil.Process(process.pid).children(recursive=True)
    if os.name == "nt":
        if process.poll() is None:
            subprocess.run(
                ["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True, check=False
            )
    else:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    for member in family:
        with contextlib.suppress(psutil.Error):
            member.kill()


def _code_in_words(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"
