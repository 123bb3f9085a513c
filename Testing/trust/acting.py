"""The tests' side of `doomed.py`: says what a process is to do, and looks at how it ended."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Done:
    """How a process ended: exit code (negative for a signal) and what it printed."""

    code: int
    output: str
    errors: str


class Acts:
    """Processes forked from one that has imported the library."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("doomed.py")
        self._server = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._server.stdout.readline() == "ready\n"

    def run(self, name: str, stage: str, folder: Path, *more: str) -> Done:
        """Let a process act, and wait for its end."""
        self._server.stdin.write(json.dumps([name, stage, str(folder), *more]) + "\n")
        self._server.stdin.flush()
        code = int(self._server.stdout.readline())
        output, errors = (Path(f"{folder}{suffix}") for suffix in (".out", ".err"))
        return Done(code, output.read_text(), errors.read_text())

    def killed(self, name: str, stage: str, folder: Path, *more: str) -> None:
        """Let a process act until it is killed."""
        done = self.run(name, stage, folder, *more)
        assert done.code == -signal.SIGKILL, done.errors

    def finished(self, name: str, folder: Path, *more: str) -> str:
        """Let a process act to its end, and give what it printed."""
        done = self.run(name, "none", folder, *more)
        assert done.code == 0, done.errors
        return done.output

    def close(self) -> None:
        """End the process that forks."""
        self._server.kill()
        self._server.wait()
        self._server.stdin.close()
        self._server.stdout.close()
