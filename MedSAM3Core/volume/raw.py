"""What a reader of one format gives back, before it becomes checked volumes.

*Contract* of a reader: it takes a path that is known to exist and returns a `RawImage`, or raises
`VolumeError` with one sentence, or one of `FOREIGN_ERRORS`, which `reading` turns into a sentence. It never
returns less than the file promises.
"""

from __future__ import annotations

import logging
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase, BufferedReader, FileIO
from pathlib import Path

import numpy as np
from pydicom.errors import BytesLengthException, InvalidDicomError

from MedSAM3Core.errors import VolumeError
from MedSAM3Core.excerpts import excerpt

FOREIGN_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    SyntaxError,
    AssertionError,
    struct.error,
    zlib.error,
    BytesLengthException,
    InvalidDicomError,
)
"""What Pillow, SimpleITK and pydicom were seen to raise on damaged files. Named one by one instead of
``Exception``, so
that a cancel, an exit and our own errors pass."""

_NOISY = ("PIL", "pydicom", "highdicom")
for _name in _NOISY:
    # Without any handler Python prints their warnings to stderr; the application's own handlers still get them.
    logging.getLogger(_name).addHandler(logging.NullHandler())


@contextmanager
def foreign_warnings_silenced() -> Iterator[None]:
    """Keep the format libraries' warnings about odd headers from stderr, which belongs to the user.

    pydicom also logs what each of its decoders says of a damaged frame; what it says last is in our own error.
    """
    library = logging.getLogger("pydicom")
    level = library.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if logging.getLogger().level != logging.DEBUG:
            library.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            library.setLevel(level)


def reason(error: BaseException) -> str:
    """What a library's message says, in one short line: its last line, without markers."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = (lines[-1] if lines else type(error).__name__).removeprefix("sitk::ERROR: ").rstrip(".")
    return excerpt(text)


MAX_DEFLATE_RATIO = 1032
"""No deflate stream expands by more (zlib's technical details): a header that promises more than that is not
true, and
nothing is allocated for it."""


_PIECE = 2**20
"""Bytes that may be asked for in any file: libraries look for the end of things piece by piece."""


class SizedFile(BufferedReader):
    """A file that refuses to be asked for more bytes than it has.

    Python sets memory aside for all bytes that are asked for before it looks how many there are, and pydicom and Pillow
    ask for what a damaged length says: of 3,333 damaged DICOM files 174 asked for more than 1 GiB.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(FileIO(path))
        self._most = max(_PIECE, os.fstat(self.fileno()).st_size)

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as any file does.

        Raises:
            ValueError: If more is asked for than the whole file has.
        """
        if size is not None and size > self._most:
            raise ValueError(f"a part of it claims {size} bytes, more than the whole file has")
        return super().read(size)


def read_exactly(stream: BufferedIOBase, count: int) -> bytearray:
    """Read ``count`` bytes.

    Raises:
        VolumeError: If the stream ends before.
    """
    data = bytearray(count)
    view, got = memoryview(data), 0
    while got < count:
        read = stream.readinto(view[got : got + (1 << 24)])
        if not read:
            raise VolumeError(
                f"The file is cut short: {got} of {count} bytes of voxels are there; copy it again."
            )
        got += read
    return data


def read_to_end(stream: BufferedIOBase) -> None:
    """Read what is left and drop it: only at its end does a gzip stream compare its checksum."""
    while stream.read(1 << 20):
        pass


@dataclass(frozen=True, eq=False)
class RawImage:
    """The content of a file or series.

    Attributes:
        array: (times, slices, rows, columns) or (times, slices, rows, columns, channels).
        ijk_to_ras: 4x4 affine from voxel indices (i, j, k) to RAS in mm, the same for all times.
        modality: As `Volume.modality`, None when the file does not say.
        files: For each time the DICOM files of its slices, in their order; empty for other formats.
        body_part: As `Volume.body_part`.
        times_s: Seconds of each time since the first; empty when not known.
        time_name: What the first axis is, in words: "time", "echo", "frame", ...
        calibrated: Whether the file gives the size of its voxels.
        notices: Sentences for the user.
    """

    array: np.ndarray
    ijk_to_ras: np.ndarray
    modality: str | None = None
    files: tuple[tuple[Path, ...], ...] = ()
    body_part: str | None = None
    times_s: tuple[float, ...] = ()
    time_name: str = "time"
    calibrated: bool = True
    notices: tuple[str, ...] = ()
