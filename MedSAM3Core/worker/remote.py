"""A session whose inference happens in the worker: the same methods as `MedSAM3Core.inference.session.Session`."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np

from MedSAM3Core.errors import Cancelled, PromptError, VolumeError, WorkerError
from MedSAM3Core.progress import CancelToken, ProgressCallback
from MedSAM3Core.prompts import Box, Concept, Point
from MedSAM3Core.segmentation import Segmentation
from MedSAM3Core.volume.volume import Volume
from MedSAM3Core.worker.client import Connection, WorkerClient
from MedSAM3Core.worker.convert import asked, facts_of, grid_of
from MedSAM3Core.worker.pending import PendingResult
from MedSAM3Core.worker.protocol import (
    CloseVolume,
    Done,
    Message,
    Opened,
    OpenVolume,
    Refine,
    Segment,
    Segmented,
)
from MedSAM3Core.worker.transport import Outgoing

_numbers = count(1)


class RemoteSession:
    """One open volume of a worker. Made by `WorkerClient.open` or `WorkerClient.session`.

    Its methods are those of a session in process; each has a ``submit_`` twin that returns at once, for a panel. A
    worker that died is replaced with the next call, which sends the volume again.

    Args:
        client: The way to the worker.
        volume: The volume; its array must not be written to while the session is open.
        model: Registry name, or a path on the worker's machine.
        device: On the worker's machine.
        revision: See `WorkerClient.open`.
        options: Those of `Segmenter.open`.
    """

    def __init__(
        self,
        client: WorkerClient,
        volume: Volume,
        model: str,
        device: str,
        revision: Callable[[], object] | None,
        options: dict[str, Any],
    ) -> None:
        self.client = client
        self.volume = volume
        self.model = model
        self.device = device
        self.options = dict(options)
        self.facts: dict[str, Any] = {}
        self._revision = revision
        self._opened_revision = revision() if revision else None
        self._number = next(_numbers)
        self._opened_in: weakref.ref[Connection] | None = None
        self._running: weakref.WeakSet[PendingResult[Any]] = weakref.WeakSet()
        self._closed = False

    def __enter__(self) -> RemoteSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # As in process -------------------------------------------------------------------------------------------------

    def segment(
        self,
        concept: str | Concept,
        boxes: Sequence[Box] = (),
        progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
        **options: Any,
    ) -> Segmentation:
        """Segment one concept; see `Session.segment` for the arguments and errors.

        Raises:
            WorkerError: If the worker died; the next call starts another.
        """
        return self.submit_segment(concept, boxes, progress, **options).result(cancel=cancel)

    def segment_many(
        self,
        concepts: Sequence[str | Concept],
        progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
        **options: Any,
    ) -> list[Segmentation]:
        """Segment several concepts on one set of features; see `Session.segment_many`."""
        return self.submit_segment_many(concepts, progress, **options).result(cancel=cancel)

    def refine(
        self,
        segmentation: Segmentation,
        boxes: Sequence[Box] = (),
        progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
        **options: Any,
    ) -> Segmentation:
        """Rerun a segmentation with more boxes; see `Session.refine`."""
        return self.submit_refine(segmentation, boxes, progress, **options).result(cancel=cancel)

    def close(self) -> None:
        """Cancel what runs on this volume and forget it on both sides. Returns at once; closing twice is no error."""
        if self._closed:
            return
        self._closed = True
        for pending in list(self._running):
            pending.cancel()
        if self._is_open_in_running_worker():
            self.client.submit(lambda number: CloseVolume(id=number, session=self._number))

    # For a panel ---------------------------------------------------------------------------------------------------

    def submit_open(self, **callbacks: Any) -> PendingResult[RemoteSession]:
        """Send the volume now; the result is this session. Otherwise it goes with the first request."""
        self._check_open()
        return self._submit_open(**callbacks)

    def submit_segment(
        self,
        concept: str | Concept,
        boxes: Sequence[Box] = (),
        progress: ProgressCallback | None = None,
        on_done: Callable[[PendingResult[Segmentation]], None] | None = None,
        points: Sequence[Point] = (),
        **options: Any,
    ) -> PendingResult[Segmentation]:
        """As `segment`, without waiting.

        Raises:
            PromptError: If the concept is neither a phrase nor a concept.
            VolumeError: If the volume has changed since it was opened.
        """
        wanted = (asked(concept),)
        return self._submit_run(
            lambda number, _: (
                None,
                Segment(
                    id=number,
                    session=self._number,
                    concepts=wanted,
                    boxes=tuple(boxes),
                    points=tuple(points),
                    options=options,
                ),
            ),
            1,
            lambda results: results[0],
            progress,
            on_done,
        )

    def submit_segment_many(
        self,
        concepts: Sequence[str | Concept],
        progress: ProgressCallback | None = None,
        on_done: Callable[[PendingResult[list[Segmentation]]], None] | None = None,
        **options: Any,
    ) -> PendingResult[list[Segmentation]]:
        """As `segment_many`, without waiting; raises as `submit_segment`."""
        wanted = tuple(asked(concept) for concept in concepts)
        return self._submit_run(
            lambda number, _: (
                None,
                Segment(id=number, session=self._number, concepts=wanted, many=True, options=options),
            ),
            len(wanted),
            lambda results: results,
            progress,
            on_done,
        )

    def submit_refine(
        self,
        segmentation: Segmentation,
        boxes: Sequence[Box] = (),
        progress: ProgressCallback | None = None,
        on_done: Callable[[PendingResult[Segmentation]], None] | None = None,
        points: Sequence[Point] = (),
        **options: Any,
    ) -> PendingResult[Segmentation]:
        """As `refine`, without waiting; raises as `submit_segment`."""

        def message(number: int, connection: Connection) -> tuple[Iterator[Outgoing], Refine]:
            data, before = connection.porter.pack(segmentation)
            request = Refine(
                id=number,
                session=self._number,
                previous=data,
                boxes=tuple(boxes),
                points=tuple(points),
                options=options,
            )
            return before, request

        return self._submit_run(message, 1, lambda results: results[0], progress, on_done)

    # Inside --------------------------------------------------------------------------------------------------------

    def _submit_run(
        self,
        message: Callable[[int, Connection], tuple[Iterator[Outgoing] | None, Any]],
        expected: int,
        finish: Callable[[list[Segmentation]], Any],
        progress: ProgressCallback | None,
        on_done: Callable[[PendingResult[Any]], None] | None,
    ) -> PendingResult[Any]:
        """Send a run whose request ``message`` makes on the writer's thread, after the volume if need be."""
        self._check_open()
        collector = _Collector(self, expected, finish)

        def prepare(connection: Connection, number: int) -> Iterator[Outgoing]:
            collector.connection = connection
            before, request = message(number, connection)
            if before is not None:
                yield from before
            yield request, b""

        with self.client.lock:  # the volume and its request go to the same worker
            if not self._is_open_in_running_worker():
                self._submit_open()
            pending = self.client.submit(
                _no_message,
                prepare=prepare,
                receive=collector.receive,
                progress=progress,
                on_done=on_done,
                check=self._check_result,
            )
        self._running.add(pending)
        return pending

    def _submit_open(self, **callbacks: Any) -> PendingResult[RemoteSession]:
        def prepare(connection: Connection, number: int) -> Iterator[Outgoing]:
            reference, before = connection.outlet.refer(self.volume.array)
            yield from before
            request = OpenVolume(
                id=number,
                session=self._number,
                array=reference,
                grid=grid_of(self.volume.geometry),
                model=self.model,
                device=self.device,
                facts=facts_of(self.volume),
                options=self.options,
            )
            yield request, b""

        with self.client.lock:
            self._number = next(_numbers)
            pending = self.client.submit(
                _no_message, prepare=prepare, receive=self._opened, check=self._check_result, **callbacks
            )
            connection = self.client.current
            self._opened_in = weakref.ref(connection) if connection is not None else None
        return pending

    def _opened(self, message: Message) -> Any:
        if isinstance(message, Opened):
            self.facts = dict(message.facts)
            return self
        return None

    def _is_open_in_running_worker(self) -> bool:
        connection = self._opened_in() if self._opened_in else None
        return connection is not None and connection is self.client.current and not connection.gone.is_set()

    def _check_open(self) -> None:
        if self._closed:
            raise PromptError("The session is closed; open the volume again.")
        if self._changed():
            raise VolumeError("The volume has changed since it was opened.", "Open it again.")

    def _check_result(self) -> None:
        """A result for a volume that is no longer what it was must not reach a scene."""
        if self._closed:
            raise Cancelled("The volume was closed while the run was going; its result was dropped.")
        if self._changed():
            raise Cancelled("The volume changed while the run was going; its result was dropped.")

    def _changed(self) -> bool:
        return self._revision is not None and self._revision() != self._opened_revision


class RemoteSegmenter:
    """A model behind a worker, with the ``open`` of `MedSAM3Core.inference.session.Segmenter`.

    Args:
        client: The way to the worker, which stays the caller's to close.
        model: Registry name, or a path on the worker's machine.
        device: On the worker's machine.
    """

    def __init__(self, client: WorkerClient, model: str = "demo", device: str = "auto") -> None:
        self.client = client
        self.model = model
        self.device = device

    def open(self, volume: Volume | np.ndarray, **options: Any) -> RemoteSession:
        """Open a volume; options and errors as for `WorkerClient.open`."""
        return self.client.open(volume, model=self.model, device=self.device, **options)


class _Collector:
    """Puts the results of one run together, on the reader's thread."""

    def __init__(
        self, session: RemoteSession, expected: int, finish: Callable[[list[Segmentation]], Any]
    ) -> None:
        self._session = session
        self._expected = expected
        self._finish = finish
        self._results: dict[int, Segmentation] = {}
        self.connection: Connection | None = None

    def receive(self, message: Message) -> Any:
        """Keep a result; the last message of the run returns them all."""
        if isinstance(message, Segmented) and self.connection is not None:
            data = message.segmentation
            segmentation = self.connection.porter.unpack(data, self._session.volume.geometry)
            self._results[message.index] = segmentation
        if isinstance(message, Done):
            if len(self._results) != self._expected:
                raise WorkerError(f"The worker sent {len(self._results)} results; expected {self._expected}.")
            return self._finish([self._results[index] for index in sorted(self._results)])
        return None


def _no_message(_: int) -> Any:
    raise AssertionError("the request is prepared on the writer's thread")
