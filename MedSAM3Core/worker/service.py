"""What the worker does for each request. Everything here runs on the one inference thread."""

from __future__ import annotations

import inspect
import logging
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from MedSAM3Core.errors import InputError, MedSAM3Error, WorkerError
from MedSAM3Core.progress import CancelToken, Progress
from MedSAM3Core.segmentation import Segmentation
from MedSAM3Core.version import __version__
from MedSAM3Core.volume.volume import Volume
from MedSAM3Core.worker import convert
from MedSAM3Core.worker.backend import Backend, SegmenterLike, SessionLike
from MedSAM3Core.worker.folder import SharedFolder
from MedSAM3Core.worker.memory import Step, run_stepping_down
from MedSAM3Core.worker.protocol import (
    PROTOCOL_VERSION,
    CloseVolume,
    Done,
    Hello,
    HelloReply,
    LoadModel,
    Memory,
    MemoryReport,
    Message,
    ModelLoaded,
    NeedEvent,
    Opened,
    OpenVolume,
    ProgressEvent,
    Refine,
    Release,
    Reply,
    Request,
    Segment,
    Segmented,
    SteppedDown,
    error_message,
    exception_of,
    to_plain,
)
from MedSAM3Core.worker.transport import CODECS, ArrayOutlet, Channel, take

logger = logging.getLogger(__name__)

T = TypeVar("T")

CAPABILITIES = (
    "segment",
    "segment_many",
    "refine",
    "cancel",
    "progress",
    "memory",
    "release",
    "step_down",
    "bytes",
)
PROGRESS_EVERY_S = 0.04
"""Reports of one stage that come faster than this are left out: a panel shows no more."""
MAX_SESSIONS = 256
_SESSION_FACTS = {
    "axis": "plan.description",
    "window": "window_request",
    "device": "model.device",
    "model": "model.card.name",
}


class Surroundings(Protocol):
    """What the service needs from the server."""

    channel: Channel

    def send(self, message: Message, payload: bytes = b"") -> None:
        """Send to the client; raises `Cancelled` if it is gone."""

    def ask(self, request_id: int, text: str, cancel: CancelToken) -> bool:
        """Ask the client's user and wait; raises `Cancelled` if the request is cancelled meanwhile."""


@dataclass
class ServedSession:
    """One open volume. ``live`` is None while its memory is released, or when it could not be opened."""

    volume: Volume
    model: str
    device: str
    options: dict[str, Any]
    live: SessionLike | None = None
    step: int = 0


class Service:
    """Models, open volumes, and what is done with them.

    Args:
        backend: Loads models and knows the machine.
        surroundings: The way to the client.
    """

    def __init__(self, backend: Backend, surroundings: Surroundings) -> None:
        self.folder: SharedFolder | None = None
        self._backend = backend
        self._surroundings = surroundings
        self._use(None, "zlib")
        self._segmenters: dict[tuple[str, str], SegmenterLike] = {}
        self._sessions: dict[int, ServedSession] = {}
        self._refused: OrderedDict[int, MedSAM3Error] = OrderedDict()
        self._handlers: dict[type[Request], Callable[[Any, CancelToken], Reply]] = {
            Hello: self._hello,
            LoadModel: self._load_model,
            OpenVolume: self._open_volume,
            Segment: self._segment,
            Refine: self._refine,
            CloseVolume: self._close_volume,
            Memory: self._memory,
            Release: self._release,
        }

    def handle(self, request: Request, cancel: CancelToken) -> Reply:
        """Do what ``request`` asks, sending events on the way; the returned message ends it.

        Raises:
            MedSAM3Error: If it cannot be done.
        """
        handler = self._handlers.get(type(request))
        if handler is None:
            raise WorkerError(f"The request {request.kind!r} cannot be served here.")
        cancel.check()
        return handler(request, cancel)

    def close(self) -> None:
        """Close every volume."""
        for served in self._sessions.values():
            _close_live(served)
        self._sessions.clear()

    # Requests ------------------------------------------------------------------------------------------------------

    def _hello(self, request: Hello, _: CancelToken) -> Reply:
        codec = next((name for name in CODECS if name in request.codecs), "zlib")
        folder = _shared_folder(request)
        self._use(folder, codec)
        return HelloReply(
            id=request.id,
            protocol=PROTOCOL_VERSION,
            version=__version__,
            pid=os.getpid(),
            device=self._backend.describe_device(),
            data="bytes" if folder is None else "files",
            codec=codec,
            capabilities=CAPABILITIES,
        )

    def _load_model(self, request: LoadModel, _: CancelToken) -> Reply:
        segmenter = self._segmenter(request.model, request.device)
        card = _plain_or_empty(_attribute(segmenter, "card", "model.card"))
        device = str(_attribute(segmenter, "device", "model.device") or "")
        return ModelLoaded(id=request.id, model=request.model, device=device, card=card)

    def _open_volume(self, request: OpenVolume, cancel: CancelToken) -> Reply:
        if request.session in self._sessions:
            raise WorkerError(f"The volume {request.session} is open already; close it first.")
        if len(self._sessions) >= MAX_SESSIONS:
            raise WorkerError(f"{MAX_SESSIONS} volumes are open already; close one.")
        try:
            array = take(request.array, self._surroundings.channel, self.folder, mapped=True)
            volume = convert.volume_of(array, request.grid, request.facts)
            served = ServedSession(volume, request.model, request.device, dict(request.options))
            session = self._run(request.id, served, lambda live: live, cancel)
        except Exception as fault:  # what was sent behind it must hear the same reason
            self._refuse(request, fault)
            raise
        self._sessions[request.session] = served
        return Opened(id=request.id, session=request.session, facts=_session_facts(session))

    def _refuse(self, request: OpenVolume, fault: Exception) -> None:
        self._refused[request.session] = exception_of(error_message(fault, request.id))
        if len(self._refused) > MAX_SESSIONS:
            self._refused.popitem(last=False)

    def _segment(self, request: Segment, cancel: CancelToken) -> Reply:
        served = self._served(request.session)
        concepts = [convert.given(concept) for concept in request.concepts]
        progress = _ProgressSender(request.id, self._surroundings.send)
        common = {"progress": progress, "cancel": cancel, **request.options}

        def run(session: SessionLike) -> list[Segmentation]:
            if request.many:
                return _call(session.segment_many, concepts, **common)
            marks = _marks(request)
            return [_call(session.segment, concept, **marks, **common) for concept in concepts]

        return self._send_results(request.id, self._run(request.id, served, run, cancel, len(concepts)))

    def _refine(self, request: Refine, cancel: CancelToken) -> Reply:
        served = self._served(request.session)
        previous = self._porter.unpack(request.previous, served.volume.geometry)
        progress = _ProgressSender(request.id, self._surroundings.send)

        def run(session: SessionLike) -> list[Segmentation]:
            common = {"progress": progress, "cancel": cancel, **request.options}
            return [_call(session.refine, previous, **_marks(request), **common)]

        return self._send_results(request.id, self._run(request.id, served, run, cancel, 1))

    def _close_volume(self, request: CloseVolume, _: CancelToken) -> Reply:
        self._refused.pop(request.session, None)
        served = self._sessions.pop(request.session, None)
        if served is not None:
            _close_live(served)
            del served  # the mapped volume goes with it, which Windows needs before its file can
        if self.folder is not None:
            self.folder.tidy()
        return Done(id=request.id)

    def _memory(self, request: Memory, _: CancelToken) -> Reply:
        facts = self._backend.memory()
        features = sum(feature_bytes(served.live) for served in self._sessions.values())
        models = tuple(f"{model} ({device})" for model, device in self._segmenters)
        return MemoryReport(
            id=request.id, features=features, sessions=len(self._sessions), models=models, **vars(facts)
        )

    def _release(self, request: Release, _: CancelToken) -> Reply:
        if request.what not in ("features", "model"):
            raise InputError(f"What to release is {request.what[:40]!r}; expected 'features' or 'model'.")
        self.release(request.what)
        return Done(id=request.id)

    def release(self, what: str = "model") -> None:
        """Give back the features of all open volumes, and with "model" the models; volumes stay open."""
        for served in self._sessions.values():
            _close_live(served)
        if what == "model":
            self._segmenters.clear()
        self._backend.give_back()

    # Inside --------------------------------------------------------------------------------------------------------

    def _use(self, folder: SharedFolder | None, codec: str) -> None:
        self.folder = folder
        outlet = ArrayOutlet(folder, codec, "w")
        self._porter = convert.SegmentationPorter(self._surroundings.channel, outlet, folder)

    def _served(self, number: int) -> ServedSession:
        if number in self._refused:
            raise self._refused[number]
        if number not in self._sessions:
            raise WorkerError(f"The volume {number} is not open here.", "Open it again.")
        return self._sessions[number]

    def _segmenter(self, model: str, device: str) -> SegmenterLike:
        key = (model, device)
        if key not in self._segmenters:
            self._segmenters[key] = self._backend.load(model, device)
        return self._segmenters[key]

    def _live(self, served: ServedSession, step: Step) -> SessionLike:
        if served.live is None:
            segmenter = self._segmenter(served.model, step.device or served.device)
            served.live = _call(segmenter.open, served.volume, **{**served.options, **step.options})
        return served.live

    def _run(
        self,
        request_id: int,
        served: ServedSession,
        run: Callable[[SessionLike], T],
        cancel: CancelToken,
        concepts: int = 0,
    ) -> T:
        """Run on the session, more modestly each time memory runs out; the step that served is remembered."""

        def attempt(step: Step) -> T:
            session = self._live(served, step)
            if concepts:
                self._say_need(request_id, session, concepts)
            return run(session)

        steering = _Steering(self, request_id, served, cancel)
        results, served.step = run_stepping_down(attempt, steering, served.step, self._is_on_cpu(served))
        return results

    def _is_on_cpu(self, served: ServedSession) -> bool:
        asked = served.device
        return asked == "cpu" or (asked == "auto" and self._backend.memory().device == "cpu")

    def _say_need(self, request_id: int, session: SessionLike, concepts: int) -> None:
        """Tell what the run will need and what is free."""
        facts = self._backend.memory()
        for device, need in self._backend.memory_needed(session, concepts).items():
            free = facts.host_free if device == "cpu" else facts.device_free
            self._surroundings.send(NeedEvent(id=request_id, device=device, need=int(need), free=free))

    def _send_results(self, request_id: int, results: Sequence[Segmentation]) -> Reply:
        for index, segmentation in enumerate(results):
            data, before = self._porter.pack(segmentation)
            for message, payload in before:
                self._surroundings.send(message, payload)
            self._surroundings.send(Segmented(id=request_id, index=index, segmentation=data))
        return Done(id=request_id)


class _Steering:
    """Lets `run_stepping_down` act on one served session."""

    def __init__(self, service: Service, request_id: int, served: ServedSession, cancel: CancelToken) -> None:
        self._service = service
        self._request_id = request_id
        self._served = served
        self._cancel = cancel

    def is_out_of_memory(self, fault: BaseException) -> bool:
        return self._service._backend.is_out_of_memory(fault)

    def give_back(self) -> None:
        """Other volumes' features go too: they come back at the price of time, a failed run does not."""
        self._service.release("features")

    def tell(self, step: Step) -> None:
        message = SteppedDown(id=self._request_id, step=step.name, sentence=step.sentence)
        self._service._surroundings.send(message)

    def ask(self, question: str) -> bool:
        return self._service._surroundings.ask(self._request_id, question, self._cancel)


class _ProgressSender:
    """A progress callback that sends; reports that come too fast are left out, the last of a stage never is."""

    def __init__(self, request_id: int, send: Callable[[Message], None]) -> None:
        self._request_id = request_id
        self._send = send
        self._stage = ""
        self._sent = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        last = progress.total and progress.step >= progress.total
        if progress.stage == self._stage and not last and now - self._sent < PROGRESS_EVERY_S:
            return
        self._stage, self._sent = progress.stage, now
        self._send(ProgressEvent(id=self._request_id, **vars(progress)))


def _call(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call with options that came by name over the wire; one that the function does not take is the user's fault."""
    try:
        inspect.signature(function).bind(*arguments, **options)
    except TypeError as fault:
        raise InputError(f"The worker cannot use an option ({fault}).", "Leave it out.") from fault
    return function(*arguments, **options)


def _marks(request: Segment | Refine) -> dict[str, Any]:
    """What was drawn, by the names of the session's arguments; no points are not mentioned."""
    return {"boxes": request.boxes, **({"points": request.points} if request.points else {})}


def _shared_folder(request: Hello) -> SharedFolder | None:
    """The client's folder if this process sees it and may write there, else None."""
    if not request.folder or not request.probe:
        return None
    folder = Path(request.folder)
    try:
        (folder / Path(request.probe).name).unlink()
    except (OSError, ValueError):
        return None
    return SharedFolder(folder, "w")


def _close_live(served: ServedSession) -> None:
    live, served.live = served.live, None
    if live is not None:
        live.close()


def feature_bytes(session: SessionLike | None) -> int:
    """Bytes of features that a session holds, 0 where it does not tell."""
    features = getattr(session, "features", None)
    return 0 if features is None else int(features.device_bytes) + int(features.host_bytes)


def _session_facts(session: SessionLike) -> dict[str, Any]:
    """What a session says about itself in plain words, where it does."""
    known = {name: _attribute(session, path) for name, path in _SESSION_FACTS.items()}
    return {name: str(value) for name, value in known.items() if value is not None}


def _attribute(thing: Any, *paths: str) -> Any:
    for path in paths:
        found = thing
        for name in path.split("."):
            found = getattr(found, name, None)
        if found is not None:
            return found
    return None


def _plain_or_empty(card: Any) -> dict[str, Any]:
    """A model card as plain values; it is a pydantic model in the library."""
    try:
        plain = to_plain(card.model_dump(mode="json") if hasattr(card, "model_dump") else card)
    except TypeError:
        return {}
    return plain if isinstance(plain, dict) else {}
