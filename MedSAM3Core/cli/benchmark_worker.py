"""``medsam3 benchmark --worker``: what the worker process costs, and what it survives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from MedSAM3Core.cli import terminal

if TYPE_CHECKING:
    from MedSAM3Core import Segmenter
    from MedSAM3Core.prompts import Concept
    from MedSAM3Core.volume import Volume
    from MedSAM3Core.worker.benchmark import WorkerFigures

MEGABYTE = 1_000_000


def measure(
    segmenter: Segmenter, volume: Volume, concepts: Sequence[Concept], model: str, device: str, repeats: int
) -> WorkerFigures:
    """Measure a worker of this interpreter against ``segmenter``, the same model in this process."""
    from MedSAM3Core.worker.benchmark import WorkerBenchmark

    terminal.notify(
        ["The worker is measured: its costs, 10,000 damaged messages, 200 volumes; some minutes."]
    )
    return WorkerBenchmark(volume, concepts, model, device, runs=repeats).measure(segmenter)


def as_document(figures: WorkerFigures, machine: dict[str, Any]) -> dict[str, Any]:
    """The figures as plain values; times in seconds, memory in bytes."""
    return {"machine": machine, **asdict(figures)}


def show(figures: WorkerFigures) -> None:
    """The figures as a table beside what is wanted of them."""
    columns = [("figure", "left"), ("measured", "right"), ("wanted", "left")]
    terminal.print_table(f"Worker on {figures.device}", columns, rows(figures))


def rows(figures: WorkerFigures) -> list[list[str]]:
    """Name, measured and wanted of each figure."""
    trip, cancel, death = figures.round_trip, figures.cancel, figures.death
    fuzz, growth, over = figures.fuzz, figures.growth, figures.overhead
    table = [
        ["start to introduction", f"{figures.start:.2f} s", ""],
        ["round trip of an empty message, median", f"{trip.median * 1e3:.2f} ms", "at most 1 ms"],
        ["the same, 95th percentile", f"{trip.p95 * 1e3:.2f} ms", ""],
    ]
    if over is not None:
        table += [
            ["in process, median", f"{over.inside:.2f} s", ""],
            ["behind the worker, median", f"{over.behind:.2f} s", ""],
            ["overhead by the clock", f"{over.percent:+.1f} %", "at most 2 %"],
            ["overhead in processor time", f"{over.processor_percent:+.1f} %", "at most 2 %"],
        ]
    return [
        *table,
        ["cancel to answer, median", f"{cancel.median * 1e3:.0f} ms", "within one slice"],
        ["cancel to answer, worst", f"{cancel.worst * 1e3:.0f} ms", ""],
        ["one slice of that run, mean", f"{cancel.slice_mean * 1e3:.0f} ms", ""],
        ["kill -9 to notice, median", f"{death.noticed_median * 1e3:.1f} ms", "at most 50 ms"],
        ["kill -9 to notice, worst", f"{death.noticed_worst * 1e3:.1f} ms", "at most 50 ms"],
        ["kill -9 to the next call's result", f"{death.next_call:.2f} s", "succeeds"],
        [f"{fuzz.lines:,} fuzzed lines", f"{fuzz.seconds:.1f} s", ""],
        ["worker alive, answer unchanged", f"{fuzz.survived}, {fuzz.same_answer}", "True, True"],
        [f"{growth.cycles} volumes, each", f"{growth.seconds_a_cycle:.3f} s", ""],
        ["memory grown, worker", f"{growth.worker_bytes / MEGABYTE:+.1f} MB", "none"],
        ["memory grown, client", f"{growth.client_bytes / MEGABYTE:+.1f} MB", "none"],
        ["descriptors grown", f"{growth.worker_descriptors:+d}, {growth.client_descriptors:+d}", "none"],
        ["files left", str(growth.files), "none"],
    ]
