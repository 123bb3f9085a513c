"""What the worker costs and how it fails, measured: ``medsam3 benchmark --worker``.

Everything runs against real processes. The figures are those that ``docs/benchmarks.md`` states.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil

from MedSAM3Core.errors import Cancelled, WorkerError
from MedSAM3Core.progress import CancelToken, Progress, ProgressCallback, ProgressMeter
from MedSAM3Core.prompts import Concept
from MedSAM3Core.segmentation import Segmentation
from MedSAM3Core.volume.geometry import Geometry
from MedSAM3Core.volume.volume import Volume
from MedSAM3Core.worker.client import WorkerClient
from MedSAM3Core.worker.fuzz import fuzzed_lines
from MedSAM3Core.worker.remote import RemoteSession

logger = logging.getLogger(__name__)

PINGS = 1000
WARM_UP_CYCLES = 20
"""Allocators and caches reach their size in the first cycles; growth is counted after these."""
CANCELS = KILLS = 5
"""How often each is tried."""
_SMALL_SLICES = 2
_PING_EVERY = 100
_PAIR_S, _CYCLE_S, _START_S, _FUZZ_S, _CANCELLED_SHARE = 0.07, 0.4, 5.0, 3.0, 0.4
"""What takes how long with the demo model on two CPU cores, in seconds: one slice and concept of a run, one small
volume, starting with torch, the fuzzed lines; and how much of a run is over when it is cancelled. Only for the time
left."""


class _Segmenter(Protocol):
    def open(self, volume: Volume) -> Any:
        """As `MedSAM3Core.inference.session.Segmenter.open`."""


@dataclass(frozen=True)
class RoundTrip:
    """Seconds that an empty message takes there and back."""

    median: float
    p95: float


@dataclass(frozen=True)
class Overhead:
    """Seconds of opening, segmenting and closing, medians of the same number of runs each way, taken in turns.

    Processor time counts both processes; on a machine that does other things too it says more than the clock.
    """

    inside: float
    behind: float
    processor_inside: float
    processor_behind: float
    runs: int

    @property
    def percent(self) -> float:
        """What the worker adds by the clock, in percent."""
        return 100 * (self.behind / self.inside - 1)

    @property
    def processor_percent(self) -> float:
        """What the worker adds in processor time, in percent."""
        return 100 * (self.processor_behind / self.processor_inside - 1)


@dataclass(frozen=True)
class CancelLatency:
    """Seconds from a cancel to its answer, and of one slice: the whole run's by the volume's slices."""

    median: float
    worst: float
    slice_mean: float


@dataclass(frozen=True)
class Death:
    """Seconds until a killed worker is noticed, and until the next call has its result on a new one."""

    noticed_median: float
    noticed_worst: float
    next_call: float


@dataclass(frozen=True)
class Fuzz:
    """What 10,000 nearly messages did."""

    lines: int
    seconds: float
    survived: bool
    same_answer: bool


@dataclass(frozen=True)
class Growth:
    """What many open/segment/close cycles left behind, on both sides, after the warm-up."""

    cycles: int
    seconds_a_cycle: float
    worker_bytes: int
    client_bytes: int
    worker_descriptors: int
    client_descriptors: int
    files: int


@dataclass(frozen=True)
class WorkerFigures:
    """All figures, None for what was not asked for; ``slices`` and ``concepts`` are those of overhead and cancel."""

    device: str
    slices: int
    concepts: int
    start: float
    round_trip: RoundTrip
    overhead: Overhead | None
    cancel: CancelLatency
    death: Death
    fuzz: Fuzz
    growth: Growth


@dataclass(frozen=True)
class WorkerBenchmark:
    """What to measure with.

    Attributes:
        volume: The volume of the overhead and cancel figures.
        concepts: What is segmented in it.
        model: Registry name or path.
        device: As for `WorkerClient.open`.
        command: The worker; None is this interpreter's.
        options: Options of the session, the same in process and behind the worker.
        runs: Repetitions of each way for the overhead.
        fuzz_lines: How many lines.
        cycles: How many volumes are opened and closed, more than `WARM_UP_CYCLES`.
    """

    volume: Volume
    concepts: Sequence[Concept]
    model: str = "demo"
    device: str = "auto"
    command: Sequence[str] | None = None
    options: dict[str, Any] | None = None
    runs: int = 5
    fuzz_lines: int = 10_000
    cycles: int = 200

    @property
    def expected_seconds(self) -> dict[str, float]:
        """Part to what it takes with the demo model on two CPU cores."""
        run = _PAIR_S * self.volume.geometry.shape[0] * len(self.concepts)
        return {
            "start and first run": 2 * _START_S + run,
            "in process and behind the worker": (2 * self.runs + 1) * run,
            "cancel": (1 + CANCELS * _CANCELLED_SHARE) * run,
            "fuzzed lines": _FUZZ_S,
            "open, segment, close": self.cycles * _CYCLE_S,
            "killed worker": (KILLS + 2) * _START_S,
        }

    def measure(
        self,
        segmenter: _Segmenter | None = None,
        progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
    ) -> WorkerFigures:
        """Measure everything.

        Args:
            segmenter: The same model in this process; None leaves the overhead out.
            progress: Receives reports between two runs.
            cancel: Looked at between two runs.

        Raises:
            Cancelled: If the token was cancelled.
        """
        expected = self.expected_seconds
        if segmenter is None:
            del expected["in process and behind the worker"]
        meter = ProgressMeter(progress, cancel, expected)
        with tempfile.TemporaryDirectory() as folder, self._client(Path(folder)) as client:
            meter.step("start and first run", 0, 1)
            started = time.perf_counter()
            hello = client.start().result()
            start = time.perf_counter() - started
            # The model is loaded and warm from here on; neither is part of any figure.
            part, concept = self._part(self._segment(self._open(client)))
            meter.step("start and first run", 1, 1)
            round_trip = measure_round_trip(client)
            overhead = self._overhead(client, segmenter, meter) if segmenter is not None else None
            cancelled = self._cancel(client, meter)
            fuzz = self._fuzz(client, part, concept, meter)
            growth = self._growth(client, part, concept, Path(folder), meter)
            death = self._death(client, part, concept, meter)
        shape = (self.volume.geometry.shape[0], len(self.concepts))
        return WorkerFigures(
            hello.device, *shape, start, round_trip, overhead, cancelled, death, fuzz, growth
        )

    def _part(self, found: Sequence[Segmentation]) -> tuple[Volume, Concept]:
        """A few slices, and a concept of which something is there, so that small runs too bring a mask back."""
        largest = max(found, key=lambda one: one.voxels)
        middle = None
        if largest.extent is not None:
            middle = largest.extent.k[0] + int(largest.mask.sum((1, 2)).argmax())
        return small(self.volume, middle=middle), largest.concept

    def _client(self, folder: Path) -> WorkerClient:
        return WorkerClient(self.command, temporary=folder)

    def _open(self, client: WorkerClient, volume: Volume | None = None) -> RemoteSession:
        options = self.options or {}
        return client.open(volume or self.volume, model=self.model, device=self.device, **options)

    def _overhead(self, client: WorkerClient, segmenter: _Segmenter, meter: ProgressMeter) -> Overhead:
        options = self.options or {}
        worker = psutil.Process(client.start().result().pid)
        inside: list[tuple[float, float]] = []
        behind: list[tuple[float, float]] = []
        part, total = "in process and behind the worker", 2 * self.runs + 1
        meter.step(part, 0, total)
        self._segment(
            segmenter.open(self.volume, **options)
        )  # warms up, as the first run behind the worker did
        for run in range(self.runs):
            meter.step(part, 2 * run + 1, total)
            inside.append(_seconds_of([], lambda: self._segment(segmenter.open(self.volume, **options))))
            meter.step(part, 2 * run + 2, total)
            behind.append(_seconds_of([worker], lambda: self._segment(self._open(client))))
        meter.step(part, total, total)
        medians = [statistics.median(times) for way in (inside, behind) for times in zip(*way, strict=True)]
        return Overhead(medians[0], medians[2], medians[1], medians[3], self.runs)

    def _segment(self, session: Any) -> list[Segmentation]:
        with closing(session):
            return session.segment_many(list(self.concepts))

    def _cancel(self, client: WorkerClient, meter: ProgressMeter) -> CancelLatency:
        meter.step("cancel", 0, CANCELS + 1)
        with self._open(client) as session:
            whole = _seconds(lambda: session.segment_many(list(self.concepts)))
        times: list[float] = []
        for number in range(CANCELS):
            meter.step("cancel", number + 1, CANCELS + 1)
            with self._open(client) as session:
                times.append(_cancel_once(session, list(self.concepts)))
        meter.step("cancel", CANCELS + 1, CANCELS + 1)
        slices = self.volume.geometry.shape[0]
        return CancelLatency(statistics.median(times), max(times), whole / slices)

    def _fuzz(self, client: WorkerClient, part: Volume, concept: Concept, meter: ProgressMeter) -> Fuzz:
        meter.step("fuzzed lines", 0, 1)
        with self._open(client, part) as session:
            before = session.segment(concept)
            connection = client.current
            assert connection is not None
            started = time.perf_counter()
            survived = True
            try:
                for number, line in enumerate(fuzzed_lines(self.fuzz_lines, random.Random(7))):
                    connection.process.channel.send_raw(line)
                    if number % _PING_EVERY == 0:
                        client.ping(30)
                client.ping(60)
            except (WorkerError, OSError, TimeoutError):
                survived = False
            seconds = time.perf_counter() - started
            survived = survived and client.current is connection
            same = survived and np.array_equal(before.to_array(), session.segment(concept).to_array())
        meter.step("fuzzed lines", 1, 1)
        return Fuzz(self.fuzz_lines, seconds, survived, same)

    def _growth(
        self, client: WorkerClient, part: Volume, concept: Concept, folder: Path, meter: ProgressMeter
    ) -> Growth:
        worker = psutil.Process(client.start().result().pid)
        sizes: list[tuple[int, int]] = []
        opened_before = (0, 0)
        started = time.perf_counter()
        for cycle in range(self.cycles):
            meter.step("open, segment, close", cycle, self.cycles)
            with self._open(client, part) as session:
                session.segment(concept)
            if cycle == WARM_UP_CYCLES:
                opened_before = _descriptors_at_rest(client, worker)
            if cycle >= WARM_UP_CYCLES:
                sizes.append((worker.memory_info().rss, psutil.Process().memory_info().rss))
        seconds = (time.perf_counter() - started) / self.cycles
        meter.step("open, segment, close", self.cycles, self.cycles)
        opened_after = _descriptors_at_rest(client, worker)
        files = sum(path.is_file() and path.name != "lock" for path in folder.rglob("*"))
        tenth = max(1, len(sizes) // 10)
        first, last = sizes[:tenth], sizes[-tenth:]
        grown = [
            int(statistics.median(s[side] for s in last) - statistics.median(s[side] for s in first))
            for side in (0, 1)
        ]
        opened = [after - before for after, before in zip(opened_after, opened_before, strict=True)]
        return Growth(self.cycles, seconds, grown[0], grown[1], opened[0], opened[1], files)

    def _death(self, client: WorkerClient, part: Volume, concept: Concept, meter: ProgressMeter) -> Death:
        noticed = []
        for number in range(KILLS):
            meter.step("killed worker", number, KILLS + 2)
            pid = client.start().result().pid
            connection = client.current
            assert connection is not None
            killed = time.perf_counter()
            os.kill(pid, 9)
            connection.gone.wait(10)
            noticed.append(time.perf_counter() - killed)
        meter.step("killed worker", KILLS, KILLS + 2)
        with self._open(client, part) as session:
            os.kill(client.start().result().pid, 9)
            next_call = _seconds(lambda: _until_it_works(session, concept))
        meter.step("killed worker", KILLS + 2, KILLS + 2)
        return Death(statistics.median(noticed), max(noticed), next_call)


def _descriptors_at_rest(client: WorkerClient, worker: psutil.Process) -> tuple[int, int]:
    """Open descriptors of the worker and of this process, when the last volume is closed on both sides.

    A mapped volume holds a descriptor until its close is done, and a session's close does not wait for that; the
    memory report is answered behind it.
    """
    client.memory()
    gc.collect()  # sockets and pipes of this process that only a cycle still holds are no growth
    return worker.num_fds(), psutil.Process().num_fds()


def measure_round_trip(client: WorkerClient, count: int = PINGS) -> RoundTrip:
    """Round trips of the empty message, one after the other."""
    times = sorted(client.ping() for _ in range(count))
    return RoundTrip(times[count // 2], times[int(count * 0.95)])


def small(volume: Volume, slices: int = _SMALL_SLICES, middle: int | None = None) -> Volume:
    """Some slices of a volume around ``middle``, by default those in its middle, where they are."""
    count = volume.geometry.shape[0]
    wanted = (count if middle is None else 2 * middle + 1) - slices
    first = max(0, min(wanted // 2, count - slices))
    array = volume.array[first : first + slices]
    affine = volume.geometry.ijk_to_ras.copy()
    affine[:, 3] = affine @ np.array([0, 0, first, 1.0])
    shape = (array.shape[0], array.shape[1], array.shape[2])
    return replace(volume, array=array, geometry=Geometry(shape, affine), files=())


def _cancel_once(session: RemoteSession, concepts: list[Concept]) -> float:
    """Seconds from a cancel in the middle of a run to its answer."""
    reports: list[Progress] = []
    pending = session.submit_segment_many(concepts, progress=reports.append)
    while not pending.done and not (reports and reports[-1].fraction > 0.1):
        session.client.poll()
        time.sleep(0.001)
    cancelled = time.perf_counter()
    pending.cancel()
    try:
        pending.result(60)
    except Cancelled:
        return time.perf_counter() - cancelled
    logger.warning("A run was faster than its cancel; use a larger volume.")
    return time.perf_counter() - cancelled


def _until_it_works(session: RemoteSession, concept: Concept) -> None:
    """The call after the death: it fails at most once, while the death is not noticed yet."""
    try:
        session.segment(concept)
    except WorkerError:
        session.segment(concept)


def _seconds(action: Callable[[], Any]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _seconds_of(others: Sequence[psutil.Process], action: Callable[[], Any]) -> tuple[float, float]:
    """Seconds by the clock, and of processor time in this process and the others."""
    before = _processor_seconds(others)
    seconds = _seconds(action)
    return seconds, _processor_seconds(others) - before


def _processor_seconds(others: Sequence[psutil.Process]) -> float:
    return time.process_time() + sum(sum(process.cpu_times()[:2]) for process in others)
