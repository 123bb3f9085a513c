"""Messages and arrays over a pair of byte streams: the pipe between client and worker, or SSH's.

An array travels as a file of the shared folder where there is one, and otherwise, or when that folder's disk is full,
as chunks of compressed bytes between the lines. Each chunk is compressed on its own, so that its size is bounded before
it is unpacked. Nothing is ever unpickled.
"""

from __future__ import annotations

import logging
import re
import threading
import zlib
from collections.abc import Iterator
from itertools import count
from math import prod
from typing import BinaryIO

import numpy as np

from MedSAM3Core.errors import MedSAM3Error
from MedSAM3Core.worker.folder import SharedFolder
from MedSAM3Core.worker.protocol import (
    MAX_CHUNK,
    MAX_LINE,
    ArrayChunk,
    ArrayRef,
    ArrayStart,
    Message,
    ProtocolError,
    decode,
    encode,
    message_id,
)

try:
    import zstandard
except ImportError:  # Slicer's Python has none; zlib is a third as fast and always there
    zstandard = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

CODECS: tuple[str, ...] = ("zstd", "zlib") if zstandard is not None else ("zlib",)
"""How this side can compress, best first."""
RAW_CHUNK = MAX_CHUNK - (MAX_CHUNK >> 4)
"""Bytes of an array in a chunk; the rest of `MAX_CHUNK` is room for what does not compress."""
MAX_ARRAY = 16 << 30
"""Largest array in bytes, far above any volume, far below what a nonsense shape may claim."""
_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")
MAX_WAITING = 16
"""Arrays that may have arrived without a message that refers to them; more are dropped, oldest first."""

Outgoing = tuple[Message, bytes]
"""A message and the raw bytes that follow its line, none but for an `ArrayChunk`."""


class MalformedError(ProtocolError):
    """A line that is no message.

    Attributes:
        fault: What is wrong with it; a `PromptError` for a box that cannot be, otherwise a `ProtocolError`.
        request_id: The ``id`` it carried, if any.
    """

    def __init__(self, fault: MedSAM3Error | str, request_id: int | None = None) -> None:
        self.fault = ProtocolError(fault) if isinstance(fault, str) else fault
        self.request_id = request_id
        super().__init__(self.fault.message, self.fault.remedy)


class Channel:
    """Messages in both directions, and the arrays between them.

    Any thread may send; one thread receives.

    Args:
        reader: What the other side writes, binary, buffered.
        writer: What the other side reads, binary, buffered.
    """

    def __init__(self, reader: BinaryIO, writer: BinaryIO) -> None:
        self._reader = reader
        self._writer = writer
        self._sending = threading.Lock()
        self.arrays = IncomingArrays()

    def send(self, message: Message, payload: bytes = b"") -> None:
        """Write a message.

        Raises:
            OSError: If the other side is gone.
            ValueError: If this side was closed.
            ProtocolError: If the message is too long for a line.
        """
        line = encode(message)
        with self._sending:
            self._writer.write(line)
            if payload:
                self._writer.write(payload)
            self._writer.flush()

    def send_blank(self) -> None:
        """Write an empty line, which means nothing and ends whatever was on the line before."""
        self.send_raw(b"\n")

    def send_raw(self, line: bytes) -> None:
        """Write bytes that need be no message, to try the other side with."""
        with self._sending:
            self._writer.write(line)
            self._writer.flush()

    def close_writer(self) -> None:
        """Tell the other side that nothing more will come."""
        self._writer.close()

    def receive(self) -> Message:
        """The next message; arrays on the way are kept in `arrays`.

        Raises:
            EOFError: If the other side has closed, also in the middle of a message.
            MalformedError: If a line is no message; the next call goes on behind it.
        """
        while True:
            line = self._line()
            if not line.strip():
                continue
            message = _decoded(line)
            if isinstance(message, ArrayStart):
                self.arrays.start(message)
            elif isinstance(message, ArrayChunk):
                self.arrays.add(message, self._payload(message))
            else:
                return message

    def _line(self) -> bytes:
        try:
            line = self._reader.readline(MAX_LINE + 1)
        except ValueError as fault:  # closed on this side
            raise EOFError from fault
        if line.endswith(b"\n"):
            return line
        if len(line) <= MAX_LINE:
            raise EOFError
        while not (rest := self._reader.readline(MAX_CHUNK)).endswith(b"\n"):
            if not rest:
                raise EOFError
        raise MalformedError(f"A line is longer than {MAX_LINE} bytes; it was skipped, send shorter ones.")

    def _payload(self, chunk: ArrayChunk) -> bytes:
        if not 0 <= chunk.size <= MAX_CHUNK:
            raise MalformedError(f"A chunk claims {chunk.size} bytes; expected 0 to {MAX_CHUNK}.")
        payload = self._reader.read(chunk.size)
        if len(payload) < chunk.size:
            raise EOFError
        return payload


def _decoded(line: bytes) -> Message:
    try:
        return decode(line)
    except MedSAM3Error as fault:
        raise MalformedError(fault, message_id(line)) from fault


class IncomingArrays:
    """Arrays that arrive in chunks, until the message that refers to them takes them."""

    def __init__(self) -> None:
        self._arrays: dict[str, _Incoming] = {}

    def __len__(self) -> int:
        return len(self._arrays)

    def start(self, message: ArrayStart) -> None:
        """Make room for an array.

        Raises:
            MalformedError: If its type, shape or codec cannot be served.
        """
        while len(self._arrays) >= MAX_WAITING:
            self._arrays.pop(next(iter(self._arrays)))
        self._arrays[message.stream] = _Incoming(message)

    def add(self, chunk: ArrayChunk, payload: bytes) -> None:
        """Unpack a chunk into its array.

        Raises:
            MalformedError: If it does not belong to an array or is damaged; the array is dropped.
        """
        incoming = self._arrays.get(chunk.stream)
        if incoming is None:
            raise MalformedError(
                f"A chunk belongs to the array {chunk.stream[:40]!r}, which was not started."
            )
        try:
            incoming.add(chunk, payload)
        except ValueError as fault:
            del self._arrays[chunk.stream]
            raise MalformedError(
                f"A chunk of the array {chunk.stream[:40]!r} is damaged ({fault}); send it again."
            ) from fault

    def take(self, stream: str) -> np.ndarray:
        """The finished array, which is forgotten here.

        Raises:
            ProtocolError: If there is no such array or it is not finished.
        """
        incoming = self._arrays.pop(stream, None)
        if incoming is None or not incoming.finished:
            raise ProtocolError(f"The array {stream[:40]!r} did not arrive whole; send it again.")
        return incoming.array


class _Incoming:
    """One array that is being filled."""

    def __init__(self, message: ArrayStart) -> None:
        self.codec = message.codec
        self.finished = False
        self._filled = 0
        try:
            if (
                not _DTYPE.fullmatch(message.dtype)
                or message.codec not in CODECS
                or min(message.shape, default=0) < 0
            ):
                raise ValueError("not served here")
            dtype = np.dtype(message.dtype)
            if prod(message.shape) * dtype.itemsize > MAX_ARRAY:
                raise ValueError("too large")
            self.array = np.empty(message.shape, dtype)
        except (TypeError, ValueError, MemoryError, OverflowError) as fault:
            raise MalformedError(
                f"An array of type {message.dtype[:20]!r}, shape {message.shape[:4]} and codec {message.codec[:20]!r} "
                f"was announced; expected numbers of at most {MAX_ARRAY} bytes, compressed by one of {CODECS}."
            ) from fault
        self._bytes = self.array.reshape(-1).view(np.uint8)

    def add(self, chunk: ArrayChunk, payload: bytes) -> None:
        if zlib.crc32(payload) != chunk.crc32:
            raise ValueError("its checksum is wrong")
        raw = _unpack(payload, self.codec)
        end = self._filled + len(raw)
        if end > self._bytes.size or (chunk.last and end != self._bytes.size):
            raise ValueError(f"{end} bytes for an array of {self._bytes.size}")
        self._bytes[self._filled : end] = np.frombuffer(raw, np.uint8)
        self._filled = end
        self.finished = chunk.last


def _pack(raw: memoryview, codec: str) -> bytes:
    if codec == "zstd":
        return zstandard.ZstdCompressor(level=1).compress(raw)
    return zlib.compress(raw, 1)


def _unpack(payload: bytes, codec: str) -> bytes:
    """At most `MAX_CHUNK` bytes, whatever the payload claims; ValueError if it is damaged."""
    if codec == "zstd":
        try:
            if zstandard.frame_content_size(payload) > MAX_CHUNK:
                raise ValueError("it claims to be too large")
            return zstandard.ZstdDecompressor().decompress(payload, max_output_size=MAX_CHUNK)
        except zstandard.ZstdError as fault:
            raise ValueError(str(fault)) from fault
    try:
        return zlib.decompressobj().decompress(payload, MAX_CHUNK)
    except zlib.error as fault:
        raise ValueError(str(fault)) from fault


class ArrayOutlet:
    """Sends arrays the best way that works.

    Args:
        folder: The shared folder, or None when there is none.
        codec: How to compress what goes through the pipe.
        writer: Starts the names of this side's streams.
    """

    def __init__(self, folder: SharedFolder | None, codec: str, writer: str) -> None:
        self.folder = folder
        self._codec = codec if codec in CODECS else "zlib"
        self._writer = writer
        self._numbers = count(1)

    def refer(self, array: np.ndarray) -> tuple[ArrayRef, Iterator[Outgoing]]:
        """How a message refers to ``array``, and what must be sent before that message.

        Raises:
            ProtocolError: If it does not hold plain numbers.
        """
        if array.dtype.kind not in "biuf" or array.nbytes > MAX_ARRAY:
            raise ProtocolError(f"An array of type {array.dtype} and {array.nbytes} bytes cannot be sent.")
        if self.folder is not None and array.size:
            try:
                return ArrayRef(file=self.folder.write(array)), iter(())
            except OSError as fault:
                logger.warning(
                    "No array could be written in %s (%s); it goes through the pipe.", self.folder.path, fault
                )
        stream = f"{self._writer}{next(self._numbers)}"
        return ArrayRef(stream=stream), chunks(array, stream, self._codec)


def chunks(array: np.ndarray, stream: str, codec: str) -> Iterator[Outgoing]:
    """The messages that carry ``array`` under the name ``stream``."""
    yield ArrayStart(stream=stream, dtype=array.dtype.str, shape=array.shape, codec=codec), b""
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    for start in range(0, max(raw.size, 1), RAW_CHUNK):
        payload = _pack(raw[start : start + RAW_CHUNK].data, codec)
        last = start + RAW_CHUNK >= raw.size
        yield ArrayChunk(stream=stream, size=len(payload), crc32=zlib.crc32(payload), last=last), payload


def take(
    reference: ArrayRef, channel: Channel, folder: SharedFolder | None, mapped: bool = False
) -> np.ndarray:
    """The array that a message refers to.

    Raises:
        ProtocolError: If it is not there.
    """
    if reference.file and folder is not None:
        return folder.take(reference.file, mapped)
    return channel.arrays.take(reference.stream)
