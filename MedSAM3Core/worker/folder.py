"""The folder through which client and worker on one machine pass arrays, as ``.npy`` files that are mapped, not copied.

The client makes it with mode 0700 and holds a lock on a file in it for as long as it lives. Whoever reads an array
removes its file, the client removes the folder at its end, the worker does so when the client is gone, and the next
client to start removes the folders whose lock nobody holds: those of processes that died together.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import stat
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import BinaryIO

import numpy as np

from MedSAM3Core.worker.protocol import ProtocolError

if os.name == "nt":
    import msvcrt
else:
    import fcntl

logger = logging.getLogger(__name__)

PREFIX = "medsam3-worker-"
LOCK_NAME = "lock"
SWEEP_AFTER_S = 10.0
"""A folder younger than this may still be waiting for its lock and is left alone."""
_FILE_NAME = re.compile(r"[a-z]+[0-9]+\.npy")


class SharedFolder:
    """Arrays as files of a folder that both sides can read and write.

    Args:
        path: The folder, which exists.
        writer: Lower-case letters that start the names of this side's files, so that the sides never collide.
    """

    def __init__(self, path: Path, writer: str) -> None:
        self.path = path
        self._writer = writer
        self._numbers = count(1)
        self._left: set[Path] = set()

    def write(self, array: np.ndarray) -> str:
        """Write ``array`` and return the file's name.

        Raises:
            OSError: If it cannot be written, for example because the disk is full; nothing is left behind.
        """
        path = self.path / f"{self._writer}{next(self._numbers)}.npy"
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
        except OSError:
            self._remove(path)
            raise
        return path.name

    def take(self, name: str, mapped: bool = False) -> np.ndarray:
        """The array of file ``name``, whose file is removed; ``mapped`` leaves its bytes on the disk, copied on write.

        Raises:
            ProtocolError: If the name is not one of this folder's, or the file is absent or not an array.
        """
        if not _FILE_NAME.fullmatch(name):
            raise ProtocolError(
                f"The array file {name[:80]!r} cannot be meant; expected a name like 'c1.npy'."
            )
        path = self.path / name
        try:
            array = np.load(path, mmap_mode="c" if mapped else None, allow_pickle=False)
        except (OSError, ValueError, EOFError) as fault:
            raise ProtocolError(
                f"The array file {name!r} cannot be read ({fault}); send it again."
            ) from fault
        self._remove(path)
        return np.asarray(array)

    def tidy(self) -> None:
        """Try again to remove files that could not be removed while they were mapped (Windows)."""
        for path in list(self._left):
            self._remove(path)

    def discard(self) -> None:
        """Remove the folder with all it holds."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _remove(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
            self._left.discard(path)
        except OSError:
            self._left.add(path)


class PrivateFolder(SharedFolder):
    """The client's own folder, locked while it lives.

    Args:
        parent: Where to make it; None is the system's folder for temporary files.

    Raises:
        OSError: If it cannot be made.
    """

    def __init__(self, parent: Path | None = None) -> None:
        root = Path(parent if parent is not None else tempfile.gettempdir())
        sweep(root)
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
        try:
            self._lock = _locked(path / LOCK_NAME)
        except OSError:
            shutil.rmtree(path, ignore_errors=True)
            raise
        if self._lock is None:
            raise OSError(f"the new folder {path} is locked by another process")
        super().__init__(path, "c")

    def discard(self) -> None:
        """Give up the lock and remove the folder with all it holds."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        super().discard()


def sweep(root: Path) -> list[Path]:
    """Remove the folders below ``root`` whose client is dead; returns them. Other users' folders are left alone."""
    removed = []
    for path in root.glob(PREFIX + "*"):
        if _is_ours(path) and _is_abandoned(path):
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path)
            logger.info("Removed %s, which a dead process had left.", path)
    return removed


def discard_if_abandoned(path: Path) -> bool:
    """Remove a client's folder if the client is dead; a living one removes it itself. True when it is gone."""
    if path.is_dir() and path.name.startswith(PREFIX) and _is_abandoned(path):
        shutil.rmtree(path, ignore_errors=True)
    return not path.is_dir()


def _is_ours(path: Path) -> bool:
    try:
        facts = path.lstat()
    except OSError:
        return False
    old_enough = time.time() - facts.st_mtime > SWEEP_AFTER_S
    return stat.S_ISDIR(facts.st_mode) and old_enough and (os.name == "nt" or facts.st_uid == os.getuid())


def _is_abandoned(path: Path) -> bool:
    lock = None
    with contextlib.suppress(OSError):
        lock = _locked(path / LOCK_NAME)
    if lock is None:
        return False
    lock.close()
    return True


def _locked(path: Path) -> BinaryIO | None:
    """The file, locked for this process, or None if another process holds it."""
    file = open(path, "a+b")  # noqa: SIM115 - open as long as the lock is held
    try:
        if os.name == "nt":
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file
