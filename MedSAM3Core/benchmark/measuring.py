"""Seconds, processor time and the most memory held while something runs."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
import psutil
import torch

SAMPLE_SECONDS = 0.02
"""Distance of two looks at the process's memory: far shorter than a batch of slices."""


@dataclass(frozen=True)
class Answer:
    """What a path gives back.

    Attributes:
        masks: bool, (concepts, slices, rows, columns).
        stages: Stage to seconds.
        counts: What was done, by name: slices encoded, pairs detected, tracker steps.
    """

    masks: np.ndarray
    stages: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Measured:
    """One path, measured.

    Attributes:
        seconds: By the clock, each repetition.
        processor: Seconds of processor time of all threads, each repetition; on a busy machine the truer figure.
        stages: Stage to the seconds of each repetition.
        host_bytes: Most host memory held above what was held before the first repetition.
        device_bytes: Most GPU memory held by torch, the model included; None without a GPU.
        answer: Of the last repetition.
    """

    seconds: tuple[float, ...]
    processor: tuple[float, ...]
    stages: dict[str, tuple[float, ...]]
    host_bytes: int
    device_bytes: int | None
    answer: Answer


def measure(run: Callable[[], Answer], repeats: int, device: torch.device) -> Measured:
    """Run a path ``repeats`` times.

    Args:
        run: The path; the device is waited for after it.
        repeats: At least one.
        device: Where it computes.
    """
    seconds, processor, answers = [], [], []
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with HostMemory() as memory:
        for _ in range(repeats):
            began, worked = time.perf_counter(), time.process_time()
            answer = run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - began)
            processor.append(time.process_time() - worked)
            answers.append(answer.stages)
    stages = {name: tuple(one.get(name, 0.0) for one in answers) for name in answer.stages}
    used = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return Measured(tuple(seconds), tuple(processor), stages, memory.grown, used, answer)


class HostMemory:
    """Watches this process's resident memory from a thread of its own while a block runs.

    Attributes:
        grown: Most bytes held above the start.
    """

    def __init__(self) -> None:
        self.grown = 0
        self._process = psutil.Process()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> HostMemory:
        self._start = self._process.memory_info().rss
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            self._look()

    def _look(self) -> None:
        self.grown = max(self.grown, self._process.memory_info().rss - self._start)


def median(values: tuple[float, ...]) -> float:
    """Of at least one value."""
    return float(np.median(values))


def p95(values: tuple[float, ...]) -> float:
    """95th percentile of at least one value."""
    return float(np.percentile(values, 95))
