"""The worker process: ``medsam3 worker`` or ``python -m MedSAM3Core.worker``.

Two threads: the reader, which answers what needs no model (ping, cancel, answers) even in the middle of a run, and the
main thread, on which all inference happens, since cuDNN keeps its plans per thread (1.2 s against 0.11 s). It ends when
its standard input does, so that no client leaves an orphan behind.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Sequence
from typing import BinaryIO

from MedSAM3Core.errors import Cancelled, MedSAM3Error
from MedSAM3Core.progress import CancelToken
from MedSAM3Core.worker.backend import Backend, TorchBackend
from MedSAM3Core.worker.folder import discard_if_abandoned
from MedSAM3Core.worker.protocol import (
    Answer,
    Cancel,
    Done,
    Error,
    Message,
    Ping,
    Pong,
    Question,
    Request,
    Shutdown,
    error_message,
)
from MedSAM3Core.worker.service import Service
from MedSAM3Core.worker.transport import Channel, MalformedError

logger = logging.getLogger(__name__)

IDLE_RELEASE_S = 900.0
"""A model nobody has used for a quarter of an hour gives its GPU back."""
GRACE_S = 3.0
"""How long a run may take to notice that the client is gone before the process ends all the same."""
CLIENT_DEATH_S = 1.0
"""A dying client's pipes may close before its lock does."""
_ASK_POLL_S = 0.05


class Server:
    """Reads requests on one thread, does them on the calling one, and ends with its input.

    Args:
        channel: The way to the client.
        backend: Loads models and knows the machine.
        idle_release_s: Seconds without a request after which models and features are released; None never does.
    """

    def __init__(
        self, channel: Channel, backend: Backend, idle_release_s: float | None = IDLE_RELEASE_S
    ) -> None:
        self.channel = channel
        self._service = Service(backend, self)
        self._idle_release_s = idle_release_s
        self._queue: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._tokens: dict[int, CancelToken] = {}
        self._started: set[int] = set()
        self._lock = threading.Lock()
        self._question = 0
        self._answer: bool | None = None
        self._stopping = threading.Event()
        self._dismissed = False
        self._finished = threading.Event()

    def serve(self) -> None:
        """Serve until the client closes its end or asks for the end."""
        threading.Thread(target=self._read, name="medsam3-read", daemon=True).start()
        try:
            while (request := self._next()) is not None:
                self._do(request)
        finally:
            self._stop()
            self._service.close()
            self._discard_folder()
            self._finished.set()

    def send(self, message: Message, payload: bytes = b"") -> None:
        """Send to the client.

        Raises:
            Cancelled: If it is gone, which ends whatever was done for it.
        """
        try:
            self.channel.send(message, payload)
        except (OSError, ValueError) as fault:
            self._stop()
            raise Cancelled("The client is gone.") from fault

    def ask(self, request_id: int, text: str, cancel: CancelToken) -> bool:
        """Ask the client's user and wait for the answer; raises `Cancelled` if the request is cancelled meanwhile."""
        with self._lock:
            self._question, self._answer = self._question + 1, None
        self.send(Question(id=request_id, question=self._question, text=text))
        while self._answer is None:
            cancel.check()
            time.sleep(_ASK_POLL_S)
        cancel.check()  # who cancels and answers has cancelled
        return self._answer

    # The reader's thread -------------------------------------------------------------------------------------------

    def _read(self) -> None:
        with contextlib.suppress(Cancelled):
            while not self._stopping.is_set():
                try:
                    self._receive(self.channel.receive())
                except MalformedError as fault:
                    self.send(error_message(fault.fault, fault.request_id))
                except (EOFError, OSError):
                    break
                except Cancelled:
                    raise
                except Exception as fault:  # no line, whatever it holds, may end the worker
                    logger.exception("A line could not be read.")
                    self.send(error_message(fault, None))
        self._stop()
        if not self._finished.wait(GRACE_S):
            logger.warning("A run did not notice the end within %s s; the worker ends without it.", GRACE_S)
            self._discard_folder()
            os._exit(1)

    def _receive(self, message: Message) -> None:
        if isinstance(message, Ping):
            self.send(Pong(id=message.id))
        elif isinstance(message, Cancel):
            self._cancel(message)
        elif isinstance(message, Answer):
            with self._lock:
                if message.question == self._question:
                    self._answer = message.yes
            self.send(Done(id=message.id))
        elif isinstance(message, Shutdown):
            self.send(Done(id=message.id))
            self._dismissed = True
            self._stop()
        elif isinstance(message, Request):
            self._enqueue(message)
        else:
            self.send(
                Error(message=f"The message {message.kind!r} is no request; the worker sends it itself.")
            )

    def _enqueue(self, request: Request) -> None:
        with self._lock:
            taken = request.id in self._tokens
            if not taken:
                self._tokens[request.id] = CancelToken()
        if taken:
            self.send(
                Error(message=f"The number {request.id} belongs to a request that is not answered yet.")
            )
        else:
            self._queue.put(request)

    def _cancel(self, message: Cancel) -> None:
        """Stop a run, or answer at once for a request whose turn has not come."""
        with self._lock:
            token = self._tokens.get(message.target)
            waiting = token is not None and message.target not in self._started
            if token is not None:
                token.cancel()
            if waiting:
                del self._tokens[message.target]
        if waiting:
            self.send(error_message(Cancelled(), message.target))
        self.send(Done(id=message.id))

    # The inference thread ------------------------------------------------------------------------------------------

    def _next(self) -> Request | None:
        while True:
            try:
                return self._queue.get(timeout=self._idle_release_s)
            except queue.Empty:
                logger.info("Idle for %s s: models and features are released.", self._idle_release_s)
                self._service.release()
                return self._queue.get()

    def _do(self, request: Request) -> None:
        with self._lock:
            token = self._tokens.get(request.id)
            if token is None:
                return  # cancelled and answered while it waited
            self._started.add(request.id)
        try:
            reply: Message = self._service.handle(request, token)
        except Exception as fault:  # the process boundary: every fault becomes an answer
            if not isinstance(fault, MedSAM3Error):
                logger.exception("The request %r failed.", request.kind)
            reply = error_message(fault, request.id)
        with self._lock:
            self._tokens.pop(request.id, None)
            self._started.discard(request.id)
        with contextlib.suppress(Cancelled):
            self.send(reply)

    def _stop(self) -> None:
        self._stopping.set()
        with self._lock:
            for token in self._tokens.values():
                token.cancel()
        self._queue.put(None)

    def _discard_folder(self) -> None:
        """Tidy up after a client that died; one that said goodbye does it itself."""
        folder = self._service.folder
        if folder is None or self._dismissed:
            return
        deadline = time.monotonic() + CLIENT_DEATH_S
        while not discard_if_abandoned(folder.path) and time.monotonic() < deadline:
            time.sleep(0.02)


def reserve_stdio() -> Channel:
    """Take standard input and output for the protocol, so that nothing a library prints or reads can disturb it.

    What is printed from now on goes to standard error; standard input is empty.
    """
    sys.stdout.flush()
    reader, writer = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    try:
        os.dup2(2, 1)
    except OSError:  # started without a standard error
        os.dup2(nothing, 1)
    os.close(nothing)
    if os.name == "nt":
        import msvcrt

        for descriptor in (reader, writer):
            msvcrt.setmode(descriptor, os.O_BINARY)  # type: ignore[attr-defined]
    return Channel(_open(reader, "rb"), _open(writer, "wb"))


def _open(descriptor: int, mode: str) -> BinaryIO:
    return os.fdopen(descriptor, mode)  # type: ignore[return-value]


def serve_stdio(backend: Backend | None = None, idle_release_s: float | None = IDLE_RELEASE_S) -> None:
    """Serve the process that started this one until it closes our standard input.

    Args:
        backend: None is the library itself.
        idle_release_s: See `Server`.
    """
    channel = reserve_stdio()
    with contextlib.suppress(OSError, ValueError, AttributeError):
        faulthandler.enable(sys.stderr)
    # A login script on the way (ssh) may have printed without ending its line.
    channel.send_blank()
    Server(channel, backend or TorchBackend(), idle_release_s).serve()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the worker from a command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="medsam3 worker", description="Serve the protocol on stdin and stdout."
    )
    parser.add_argument(
        "--idle-release",
        type=float,
        default=IDLE_RELEASE_S,
        metavar="SECONDS",
        help="release models and features after so many seconds without a request, 0 never",
    )
    parser.add_argument("--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING", "ERROR"))
    options = parser.parse_args(arguments)
    logging.basicConfig(
        stream=sys.stderr, level=options.log_level, format="%(levelname)s %(name)s: %(message)s"
    )
    try:
        serve_stdio(idle_release_s=options.idle_release or None)
    except KeyboardInterrupt:
        return 130
    return 0
