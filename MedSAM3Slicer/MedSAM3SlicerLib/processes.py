"""A command in the background whose output is read by threads; a timer asks how far it is."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence

from MedSAM3Core.errors import Cancelled, WorkerError


class BackgroundCommand:
    """A process that is waited for like an answer of the worker.

    ``PythonSlicer`` is a launcher whose child does the work, so stopping means the whole process group.

    Args:
        command: Program and arguments.
        env: Its environment, None for this process's own.
        onLine: Receives each line of its standard output, on a thread of its own.
    """

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str] | None = None,
        onLine: Callable[[str], None] | None = None,
    ) -> None:
        self.command = list(command)
        self.lines: list[str] = []
        self.errorLines: list[str] = []
        self._onLine = onLine
        self._cancelled = False
        self._fault: OSError | None = None
        self._process: subprocess.Popen[str] | None = None
        self._threads: list[threading.Thread] = []
        try:
            self._process = _start(self.command, env)
        except OSError as fault:
            self._fault = fault
            return
        for stream, lines, listener in (
            (self._process.stdout, self.lines, onLine),
            (self._process.stderr, self.errorLines, None),
        ):
            thread = threading.Thread(target=self._read, args=(stream, lines, listener), daemon=True)
            thread.start()
            self._threads.append(thread)

    @property
    def done(self) -> bool:
        """Whether it has ended and all its output is here."""
        if self._process is None:
            return True
        return self._process.poll() is not None and not any(thread.is_alive() for thread in self._threads)

    @property
    def output(self) -> str:
        """Its standard output so far."""
        return "\n".join(self.lines)

    @property
    def log(self) -> str:
        """Everything it said, for a report."""
        return "\n".join([f"$ {' '.join(self.command)}", *self.lines, *self.errorLines])

    def result(self, timeout: float | None = None) -> str:
        """Its standard output.

        Raises:
            Cancelled: If it was cancelled.
            WorkerError: If it could not be started or failed, with the last thing it said.
        """
        if self._process is None:
            raise WorkerError(
                f"{self.command[0]} could not be started ({self._fault}).",
                "Choose another Python under Advanced.",
            )
        self._process.wait(timeout)
        for thread in self._threads:
            thread.join(timeout)
        if self._cancelled:
            raise Cancelled("Stopped.")
        if self._process.returncode != 0:
            said = [line for line in (*self.lines, *self.errorLines) if line.strip()]
            last = said[-1].strip() if said else "it said nothing"
            raise WorkerError(f"{os.path.basename(self.command[0])} failed ({last}).", "See the report.")
        return self.output

    def cancel(self) -> None:
        """Stop it with everything that it started."""
        if self._process is None or self._process.poll() is not None:
            return
        self._cancelled = True
        with contextlib.suppress(OSError):
            if os.name == "nt":
                subprocess.run(
                    ["taskkill", "/F", "/T", "/PID", str(self._process.pid)], check=False, capture_output=True
                )
            else:
                os.killpg(self._process.pid, signal.SIGTERM)

    def _read(self, stream: object, lines: list[str], listener: Callable[[str], None] | None) -> None:
        for line in stream:  # type: ignore[attr-defined]
            lines.append(line.rstrip("\n"))
            if listener is not None:
                listener(lines[-1])


def _start(command: list[str], env: Mapping[str, str] | None) -> subprocess.Popen[str]:
    hidden = getattr(subprocess, "CREATE_NO_WINDOW", 0)
    return subprocess.Popen(
        command,
        env=dict(env) if env is not None else None,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=os.name != "nt",
        creationflags=hidden,
    )
