"""What the client and the worker say to each other: every message, in one place.

A message is one JSON object on one line, at most `MAX_LINE` bytes, with the name of its kind under ``"type"``. A
request carries an ``id`` of the client's choice; whatever answers it carries the same. A request is answered by exactly
one message of the classes in `FINAL`; any number of events may come before it. Fields that the reader does not know
are ignored, so that either side may be newer; kinds it does not know are answered with `Error`. Only `ArrayChunk` is
followed by raw bytes. ``docs/protocol.md`` tells the same for readers who do not read Python.

Voxel indices are ijk and inclusive, shapes are (slices, rows, columns[, channels]), affines are ijk to RAS in mm.
"""

from __future__ import annotations

import dataclasses
import json
import types
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Union, get_args, get_origin, get_type_hints

from MedSAM3Core import errors
from MedSAM3Core.prompts import Box, Concept, Point
from MedSAM3Core.segmentation import Extent, Provenance

PROTOCOL_VERSION = 1
MAX_LINE = 8 << 20
"""Longest line in bytes. A result of 2,000 slices needs 60 KB; what is longer than this is not ours."""
MAX_CHUNK = 1 << 20
"""Most raw bytes after one `ArrayChunk`, so that a cancel never waits behind a whole volume."""


class ProtocolError(errors.WorkerError):
    """A line that is no message; the connection goes on."""


# What messages are made of ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ArrayRef:
    """Where an array is: a file of the shared folder, or the name of an array sent as bytes before this message."""

    file: str = ""
    stream: str = ""


@dataclass(frozen=True)
class Grid:
    """A `Geometry` as plain values: shape (slices, rows, columns) and the 4x4 ijk-to-RAS affine, row by row."""

    shape: tuple[int, ...]
    ijk_to_ras: tuple[float, ...]


@dataclass(frozen=True)
class ConceptAsked:
    """A concept as typed, or as the caller resolved it already."""

    typed: str = ""
    resolved: Concept | None = None


@dataclass(frozen=True)
class SegmentationData:
    """A `Segmentation` without its grid: the crop ``mask`` (and ``probability``) sits at ``extent``."""

    concept: Concept
    extent: Extent | None = None
    mask: ArrayRef | None = None
    probability: ArrayRef | None = None
    score: float = 0.0
    slice_scores: dict[int, float] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=lambda: Provenance("", ""))
    boxes: tuple[Box, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)
    points: tuple[Point, ...] = ()
    anchors: tuple[int, ...] = ()


# Messages -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Message:
    """Base of all messages."""

    kind: ClassVar[str] = ""


KINDS: dict[str, type[Message]] = {}
"""Every kind of message by its name on the wire."""


def _message(name: str) -> Any:
    def register(cls: type[Message]) -> type[Message]:
        cls.kind = name
        KINDS[name] = cls
        return cls

    return register


@dataclass(frozen=True, kw_only=True)
class Request(Message):
    """What the client asks; ``id`` comes back with every answer."""

    id: int


@_message("hello")
@dataclass(frozen=True, kw_only=True)
class Hello(Request):
    """First message. ``folder`` holds a file named ``probe``: a worker that can read it shares the client's disk."""

    protocol: int
    client: str = ""
    folder: str = ""
    probe: str = ""
    codecs: tuple[str, ...] = ("zlib",)


@_message("ping")
@dataclass(frozen=True, kw_only=True)
class Ping(Request):
    """The empty message; answered at once, also in the middle of a run."""


@_message("load_model")
@dataclass(frozen=True, kw_only=True)
class LoadModel(Request):
    """Load a model now, so that the first run need not wait. ``model`` is a registry name or a path on the worker."""

    model: str
    device: str = "auto"


@_message("open_volume")
@dataclass(frozen=True, kw_only=True)
class OpenVolume(Request):
    """Open a volume under the number ``session``, which the client chose and uses once.

    ``facts`` are the plain fields of the `Volume` beside its array and grid, ``options`` those of `Segmenter.open`.
    """

    session: int
    array: ArrayRef
    grid: Grid
    model: str
    device: str = "auto"
    facts: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


@_message("segment")
@dataclass(frozen=True, kw_only=True)
class Segment(Request):
    """Segment concepts; answered by one `Segmented` for each, then `Done`. ``options`` are those of the session."""

    session: int
    concepts: tuple[ConceptAsked, ...]
    boxes: tuple[Box, ...] = ()
    many: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    points: tuple[Point, ...] = ()


@_message("refine")
@dataclass(frozen=True, kw_only=True)
class Refine(Request):
    """Rerun ``previous`` with more boxes and points; answered by one `Segmented`, then `Done`."""

    session: int
    previous: SegmentationData
    boxes: tuple[Box, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    points: tuple[Point, ...] = ()


@_message("close_volume")
@dataclass(frozen=True, kw_only=True)
class CloseVolume(Request):
    """Forget a volume and its features. Closing one that is not open is no error."""

    session: int


@_message("cancel")
@dataclass(frozen=True, kw_only=True)
class Cancel(Request):
    """Stop the request ``target``, which is then answered with `Error` of kind ``Cancelled``."""

    target: int


@_message("answer")
@dataclass(frozen=True, kw_only=True)
class Answer(Request):
    """The user's answer to a `Question`."""

    question: int
    yes: bool


@_message("memory")
@dataclass(frozen=True, kw_only=True)
class Memory(Request):
    """Ask for a `MemoryReport`."""


@_message("release")
@dataclass(frozen=True, kw_only=True)
class Release(Request):
    """Give memory back: the ``features`` of all open volumes, or these and the ``model``. Volumes stay open."""

    what: str = "model"


@_message("shutdown")
@dataclass(frozen=True, kw_only=True)
class Shutdown(Request):
    """End the worker after what is running was cancelled; closing its standard input does the same."""


@_message("array_start")
@dataclass(frozen=True, kw_only=True)
class ArrayStart(Message):
    """An array follows in chunks: numpy's name of its ``dtype``, its shape, how the chunks are compressed."""

    stream: str
    dtype: str
    shape: tuple[int, ...]
    codec: str = "zlib"


@_message("array_chunk")
@dataclass(frozen=True, kw_only=True)
class ArrayChunk(Message):
    """``size`` raw bytes follow the end of this line. ``crc32`` is theirs; ``last`` closes the array."""

    stream: str
    size: int
    crc32: int
    last: bool = False


@dataclass(frozen=True, kw_only=True)
class Reply(Message):
    """What the worker answers; ``id`` is that of the request."""

    id: int


@_message("hello_reply")
@dataclass(frozen=True, kw_only=True)
class HelloReply(Reply):
    """Who the worker is. ``data`` is "files" if it could read the client's folder, else "bytes"."""

    protocol: int
    version: str = ""
    pid: int = 0
    device: str = ""
    data: str = "bytes"
    codec: str = "zlib"
    capabilities: tuple[str, ...] = ()


@_message("pong")
@dataclass(frozen=True, kw_only=True)
class Pong(Reply):
    """The answer to `Ping`."""


@_message("model_loaded")
@dataclass(frozen=True, kw_only=True)
class ModelLoaded(Reply):
    """A model is ready. ``card`` holds the plain fields of its `ModelCard`."""

    model: str
    device: str = ""
    card: dict[str, Any] = field(default_factory=dict)


@_message("opened")
@dataclass(frozen=True, kw_only=True)
class Opened(Reply):
    """A volume is open. ``facts`` are what the session says about itself: axis, window, model, device."""

    session: int
    facts: dict[str, Any] = field(default_factory=dict)


@_message("done")
@dataclass(frozen=True, kw_only=True)
class Done(Reply):
    """A request without a result of its own has succeeded, or all its results were sent."""


@_message("memory_report")
@dataclass(frozen=True, kw_only=True)
class MemoryReport(Reply):
    """Memory in bytes; None where it cannot be told.

    ``host_used`` is the worker's resident set, ``features`` what the open volumes' features take, ``device_free`` what
    the driver calls free, ``device_used`` what this process holds.
    """

    device: str = "cpu"
    host_used: int | None = None
    host_free: int | None = None
    device_used: int | None = None
    device_free: int | None = None
    device_total: int | None = None
    features: int = 0
    sessions: int = 0
    models: tuple[str, ...] = ()


@_message("error")
@dataclass(frozen=True, kw_only=True)
class Error(Message):
    """A request failed, or (``id`` null) a line was no message. ``error`` names a class of `MedSAM3Core.errors`."""

    id: int | None = None
    error: str = "WorkerError"
    message: str = ""
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class Event(Reply):
    """What happens before a request is answered; ``id`` is that of the request."""


@_message("segmented")
@dataclass(frozen=True, kw_only=True)
class Segmented(Event):
    """Result ``index`` of a `Segment` or `Refine`."""

    index: int
    segmentation: SegmentationData


@_message("progress")
@dataclass(frozen=True, kw_only=True)
class ProgressEvent(Event):
    """A `MedSAM3Core.progress.Progress`: stage, slice ``step`` of ``total``, share of the call, seconds left."""

    stage: str
    step: int = 0
    total: int = 0
    fraction: float = 0.0
    seconds_left: float | None = None


@_message("need")
@dataclass(frozen=True, kw_only=True)
class NeedEvent(Event):
    """Before a run: bytes it will need and bytes that are free, on the ``device`` and in host memory ("cpu")."""

    device: str
    need: int
    free: int | None = None


@_message("stepped_down")
@dataclass(frozen=True, kw_only=True)
class SteppedDown(Event):
    """Memory ran out and the run goes on more modestly; ``sentence`` says how, for the user."""

    step: str
    sentence: str


@_message("question")
@dataclass(frozen=True, kw_only=True)
class Question(Event):
    """The run waits for an `Answer` to ``question``; cancelling is an answer too."""

    question: int
    text: str


FINAL = (HelloReply, Pong, ModelLoaded, Opened, Done, MemoryReport, Error)
"""What ends a request."""


# Lines --------------------------------------------------------------------------------------------------------------


def encode(message: Message) -> bytes:
    """The message as one line, newline included.

    Raises:
        ProtocolError: If the line would be longer than `MAX_LINE`.
    """
    plain = {"type": message.kind, **to_plain(message)}
    line = json.dumps(plain, separators=(",", ":")).encode("ascii") + b"\n"
    if len(line) > MAX_LINE:
        raise ProtocolError(
            f"The message {message.kind!r} has {len(line)} bytes; expected at most {MAX_LINE}."
        )
    return line


def decode(line: bytes) -> Message:
    """The message of one line.

    Raises:
        ProtocolError: If the line is not JSON, not a message of a known kind, or lacks a field or has one of a
            wrong type. `message_id` tells whom to answer all the same.
    """
    plain = _json_object(line)
    name = plain.get("type")
    cls = KINDS.get(name) if isinstance(name, str) else None
    if cls is None:
        known = ", ".join(KINDS)
        raise ProtocolError(f"The message type {_short(name)} is unknown; expected one of {known}.")
    try:
        return from_plain(cls, plain)
    except (TypeError, ValueError, OverflowError, RecursionError) as fault:
        raise ProtocolError(f"The message {name!r} cannot be used: {_short(str(fault))}.") from fault


def message_id(line: bytes) -> int | None:
    """The ``id`` of a line that `decode` refused, if it has one."""
    try:
        found = _json_object(line).get("id")
    except ProtocolError:
        return None
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def _json_object(line: bytes) -> dict[str, Any]:
    try:
        plain = json.loads(line)
    except (ValueError, RecursionError):
        plain = None
    if not isinstance(plain, dict):
        raise ProtocolError(f"The line {_short(line)} is not a message; expected one JSON object on a line.")
    return plain


def _short(value: Any, limit: int = 120) -> str:
    text = repr(value[:limit]) if isinstance(value, str | bytes) else repr(value)
    return text if len(text) <= limit + 4 else text[:limit] + "..."


# Dataclasses and plain values ---------------------------------------------------------------------------------------


def to_plain(value: Any) -> Any:
    """Dataclasses, tuples and numpy numbers as what JSON can hold; anything else as it is.

    Raises:
        TypeError: If the value cannot be said in JSON.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if hasattr(value, "tolist"):
        return to_plain(value.tolist())
    raise TypeError(f"{type(value).__name__} is not plain; expected numbers, texts, lists or dataclasses")


def from_plain(expected: Any, value: Any) -> Any:
    """What `to_plain` made, as ``expected``: a dataclass or an annotation of one of its fields.

    Raises:
        TypeError: If a field is missing or of another type.
    """
    if dataclasses.is_dataclass(expected):
        return _dataclass_from_plain(expected, value)
    origin, arguments = get_origin(expected), get_args(expected)
    if origin in (Union, types.UnionType):
        return _union_from_plain(arguments, value)
    if origin is tuple:
        return _tuple_from_plain(arguments, value)
    if origin is dict:
        return _dict_from_plain(arguments, value)
    return _scalar_from_plain(expected, value)


def _dataclass_from_plain(cls: Any, value: Any) -> Any:
    if not isinstance(value, dict):
        raise TypeError(f"received {_short(value)} for {cls.__name__}, expected an object")
    hints = _hints(cls)
    fields = {name: from_plain(hint, value[name]) for name, hint in hints.items() if name in value}
    return cls(**fields)


@cache
def _hints(cls: Any) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}


def _union_from_plain(arguments: tuple[Any, ...], value: Any) -> Any:
    if value is None and type(None) in arguments:
        return None
    (expected,) = (a for a in arguments if a is not type(None))
    return from_plain(expected, value)


def _tuple_from_plain(arguments: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise TypeError(f"received {_short(value)}, expected a list")
    if arguments[-1] is Ellipsis:
        return tuple(from_plain(arguments[0], item) for item in value)
    if len(value) != len(arguments):
        raise TypeError(f"received {len(value)} items, expected {len(arguments)}")
    return tuple(from_plain(a, item) for a, item in zip(arguments, value, strict=True))


def _dict_from_plain(arguments: tuple[Any, ...], value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"received {_short(value)}, expected an object")
    as_key = int if arguments[0] is int else str
    return {as_key(key): from_plain(arguments[1], item) for key, item in value.items()}


def _scalar_from_plain(expected: Any, value: Any) -> Any:
    if expected is Any:
        return value
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, expected) and (expected is bool or not isinstance(value, bool)):
        return value
    raise TypeError(f"received {_short(value)}, expected {expected.__name__}")


# Errors as data -----------------------------------------------------------------------------------------------------


def error_message(fault: BaseException, request_id: int | None) -> Error:
    """An exception as data. What is not of our own tree becomes a `WorkerError` that names it."""
    if isinstance(fault, errors.MedSAM3Error):
        return Error(id=request_id, error=_public_name(fault), message=fault.message, remedy=fault.remedy)
    if isinstance(fault, MemoryError):
        return Error(
            id=request_id,
            error="ResourceError",
            message="The worker ran out of memory.",
            remedy="Close other programs, choose a smaller region or a smaller model, and try again.",
        )
    described = f"{type(fault).__name__}: {_short(str(fault), 400)}"
    return Error(
        id=request_id,
        message=f"The worker met an unexpected fault ({described}).",
        remedy="Try again; if it comes back, report it with the worker's log.",
    )


def exception_of(error: Error) -> errors.MedSAM3Error:
    """The exception that `error_message` described; a kind this version does not know becomes `WorkerError`."""
    cls = _public_errors().get(error.error, errors.WorkerError)
    return cls(error.message, error.remedy)


@cache
def _public_errors() -> dict[str, type[errors.MedSAM3Error]]:
    public = {name: cls for name, cls in vars(errors).items() if isinstance(cls, type)}
    return {name: cls for name, cls in public.items() if issubclass(cls, errors.MedSAM3Error)}


def _public_name(fault: errors.MedSAM3Error) -> str:
    return next(
        (cls.__name__ for cls in type(fault).__mro__ if cls.__name__ in _public_errors()), "WorkerError"
    )
