"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from MedSAM3Core.errors import OutputError


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write that takes its name only when the block ends well.

    It is written beside its place, flushed to the disk, and then renamed over what was there. Whatever ends the block
    otherwise, a full disk, a cancel or an error, removes what was written and leaves the former file as it was.

    Args:
        path: Where the file is to be.

    Yields:
        The open file, binary, seekable.

    Raises:
        OutputError: If the folder is absent, or the file cannot be written; other errors of the block pass.
    """
    target = Path(path)
    check_folder(target)
    partial = target.with_name(f".{_start(target.name)}.{secrets.token_hex(4)}.part")
    try:
        with partial.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, target)
    except OSError as error:
        raise _output_error(target, error) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _start(name: str) -> str:
    """The first 100 bytes of a name: file systems count bytes, and 85 Chinese characters already fill a name."""
    return os.fsencode(name)[:100].decode("utf-8", "ignore")


def check_folder(path: Path) -> None:
    """Raise `OutputError` unless ``path`` lies in a folder that can be written to, and is not a folder itself."""
    folder = path.parent
    try:
        is_folder, lies_in_one = path.is_dir(), folder.is_dir()
    except OSError as error:  # a name longer than the file system takes
        raise _output_error(path, error) from error
    if is_folder:
        raise OutputError(f"{path} is a folder; expected the name of a file in it.")
    if not lies_in_one:
        raise OutputError(f"The folder {folder} does not exist; create it first.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(
            f"The folder {folder} cannot be written to; choose another or change its permissions."
        )


def _output_error(path: Path, error: OSError) -> OutputError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(
            f"The disk is full: {path} was not written, and what was begun is removed; free some space."
        )
    reason = (error.strerror or str(error)).lower()
    return OutputError(
        f"{path} cannot be written ({reason}), and what was begun is removed; choose another place."
    )
