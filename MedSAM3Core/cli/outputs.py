"""Output files that appear whole or not at all.

Everything a command writes goes to a temporary name beside its destination and is renamed when all of it has succeeded.
An error, a full disk or Ctrl-C leaves the folder as it was, older files of the same names included.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from MedSAM3Core.errors import MedSAM3Error, OutputError

T = TypeVar("T")

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_LOW_SPACE = 1 << 20
"""With less than this many bytes free, a writer that failed without saying why failed for lack of space."""


def check_destination(path: Path, suffixes: Sequence[str]) -> None:
    """Raise `OutputError` unless a file of this name could be written now.

    Args:
        path: Where to write.
        suffixes: Accepted endings, lower case, with the dot.
    """
    if not path.name.lower().endswith(tuple(suffixes)):
        raise OutputError(f"The output is {path.name!r}; expected a name that ends in {_either(suffixes)}.")
    try:
        is_folder = path.is_dir()
    except OSError as error:  # a name longer than the file system takes
        raise OutputError(_reason(path, error)) from error
    if is_folder:
        raise OutputError(f"The output {path} is a folder; give the name of a file in it.")
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"The output folder {folder} does not exist; create it first.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"The output folder {folder} cannot be written to; choose another one.")
    if path.exists() and not os.access(path, os.W_OK):
        raise OutputError(f"The output {path} exists and cannot be overwritten; choose another name.")


def _either(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


class OutputSet:
    """Files that are written together. Use it as a context manager; leaving it in good order makes them appear."""

    def __init__(self) -> None:
        self._pending: list[tuple[Path, Path]] = []

    def __enter__(self) -> OutputSet:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._commit()
        finally:
            self._discard()

    def write(self, path: Path, writer: Callable[[Path], T]) -> T:
        """Let ``writer`` write a file for ``path`` under a temporary name.

        Returns:
            What the writer returned.

        Raises:
            OutputError: If the disk is full or the place cannot be written to.
        """
        temporary = path.with_name(f".partial-{os.getpid()}-{len(self._pending)}-{_end(path.name)}")
        self._pending.append((temporary, path))
        with say_why_it_failed(path):
            try:
                return writer(temporary)
            except OutputError as error:  # it speaks of the name that it was given
                raise OutputError(error.message.replace(temporary.name, path.name), error.remedy) from error

    def _commit(self) -> None:
        for temporary, path in self._pending:
            with say_why_it_failed(path):
                os.replace(temporary, path)

    def _discard(self) -> None:
        for temporary, _ in self._pending:
            temporary.unlink(missing_ok=True)
        self._pending.clear()


def _end(name: str) -> str:
    """The last 100 bytes of a name, suffix included: with what stands before it, a name must not exceed 255 bytes."""
    return os.fsencode(name)[-100:].decode("utf-8", "ignore")


@contextmanager
def say_why_it_failed(path: Path) -> Iterator[None]:
    """Turn what a writer of any library raises into an `OutputError` about ``path``.

    Raises:
        OutputError: In place of an `OSError`, and of any other error of a writer when the disk is full.
    """
    try:
        yield
    except MedSAM3Error:
        raise
    except OSError as error:
        raise OutputError(_reason(path, error)) from error
    except RuntimeError as error:  # SimpleITK's only kind of error
        raise OutputError(_reason(path, error)) from error


def _reason(path: Path, error: OSError | RuntimeError) -> str:
    full = isinstance(error, OSError) and error.errno in _FULL
    if full or _free_bytes(path.parent) < _LOW_SPACE:
        return (
            f"The disk that holds {path.parent} is full, so {path.name} was not written; make room or choose "
            "another place."
        )
    lines = str(error).strip().splitlines() or [type(error).__name__]
    detail = (error.strerror if isinstance(error, OSError) else None) or lines[-1]
    return f"{path} cannot be written ({detail}); choose another place."


def _free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return _LOW_SPACE


def check_folder(folder: Path) -> None:
    """Raise `OutputError` unless files can be written into a folder, or the folder can be made.

    Args:
        folder: May not exist yet; what it lies in must.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"The output folder {folder} is a file; give the name of a folder.")
    place = folder if folder.is_dir() else folder.absolute().parent
    if not place.is_dir():
        raise OutputError(
            f"The output folder {folder} cannot be made, for {place} does not exist; create that first."
        )
    if not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(f"The output folder {folder} cannot be written to; choose another one.")
