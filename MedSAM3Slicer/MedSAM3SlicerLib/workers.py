"""How the worker process is started: in Slicer's own Python, in another one, or by a command of the user's."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import MedSAM3Core
from MedSAM3Core.errors import WorkerError
from MedSAM3Core.worker import split_command


@dataclass(frozen=True)
class WorkerSetup:
    """A command and the environment it runs in.

    Attributes:
        command: Program and arguments.
        env: Environment, None for this process's own.
        place: Where it computes, in words, for the panel.
    """

    command: tuple[str, ...]
    env: Mapping[str, str] | None
    place: str


def coreFolder() -> Path:
    """The folder that holds the package ``MedSAM3Core`` that this process uses."""
    return Path(MedSAM3Core.__file__).resolve().parent.parent


def ownPython() -> str:
    """The interpreter that belongs to this Slicer (``PythonSlicer``), or this very interpreter outside of Slicer."""
    return shutil.which("PythonSlicer") or sys.executable


def workerSetup(text: str, startupEnvironment: Mapping[str, str] | None = None) -> WorkerSetup:
    """What to start for the panel's worker field.

    Args:
        text: "" for Slicer's own Python; the path of a Python interpreter, of an environment's folder, or a whole
            command.
        startupEnvironment: The environment that Slicer itself was started in, which a foreign Python needs
            (``slicer.util.startupEnvironment()``); None takes this process's.

    Raises:
        WorkerError: If the program does not exist.
    """
    if not text.strip():
        return WorkerSetup(_module(ownPython()), _withCore(os.environ), "in Slicer's own Python")
    interpreter = _interpreter(Path(text.strip().strip('"')).expanduser())
    outside = startupEnvironment if startupEnvironment is not None else os.environ
    if interpreter is not None:
        return WorkerSetup(_module(str(interpreter)), _withCore(outside), f"in {interpreter}")
    command = split_command(text)
    if shutil.which(command[0]) is None:
        raise WorkerError(
            f"The worker command starts with {command[0]!r}, which is no program on this computer.",
            "Enter a Python interpreter, a command such as 'ssh host medsam3 worker', or nothing.",
        )
    return WorkerSetup(tuple(command), dict(outside), f"by {command[0]}")


def _module(python: str) -> tuple[str, ...]:
    return (python, "-m", "MedSAM3Core.worker")


def _withCore(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with this very core in front, so that both sides speak the same version."""
    folders = [str(coreFolder()), environment.get("PYTHONPATH", "")]
    return {**environment, "PYTHONPATH": os.pathsep.join(folder for folder in folders if folder)}


def _interpreter(path: Path) -> Path | None:
    """The Python interpreter that a path means: the file itself, or that of an environment's folder."""
    names = ("bin/python3", "bin/python", "python.exe", "Scripts/python.exe")
    if path.is_dir():
        return next((path / name for name in names if (path / name).is_file()), None)
    return path if path.is_file() and path.name.lower().startswith(("python", "pypy")) else None
