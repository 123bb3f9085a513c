"""``medsam3 benchmark --worker``: what the worker process costs, and what it survives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from MedSAM3Core.cli import benchmark_progress, terminal

if TYPE_CHECKING:
    from MedSAM3Core import Segmenter
    from MedSAM3Core.prompts import Concept
    from MedSAM3Core.volume import Volume
    from MedSAM3Core.worker.benchmark import WorkerFigures

MEGABYTE = 1_000_000


def measure(
    segmenter: Segmenter,
    volume: Volume,
    concepts: Sequence[Concept],
    model: str,
    device: str,
    repeats: int,
    cycles: int,
) -> WorkerFigures:
    """Measure a worker of this interpreter against ``segmenter``, the same model in this process.

    Raises:
        Cancelled: On Ctrl-C, after the run that is under way.
    """
    from MedSAM3Core.worker.benchmark import WorkerBenchmark

    benchmark = WorkerBenchmark(volume, concepts, model, device, runs=repeats, cycles=cycles)
    runs = f"{2 * repeats + 3} runs of {len(volume.array)} slices and {len(concepts)} concepts"
    likely = benchmark_progress.about(sum(benchmark.expected_seconds.values()))
    terminal.notify(
        [f"The worker is measured by {runs}, 10,000 damaged messages and {cycles} volumes: {likely}."]
    )
    with terminal.cancel_on_interrupt() as cancel, benchmark_progress.announced() as progress:
        return benchmark.measure(segmenter, progress, cancel)


def as_document(figures: WorkerFigures, machine: dict[str, Any]) -> dict[str, Any]:
    """The figures as plain values; times in seconds, memory in bytes."""
    return {"machine": machine, **asdict(figures)}


def show(figures: WorkerFigures) -> None:
    """The figures as a table beside what is wanted of them."""
    columns = [("figure", "left"), ("measured", "right"), ("wanted", "left")]
    title = f"Worker on {figures.device}, runs of {figures.slices} slices and {figures.concepts} concepts"
    terminal.print_table(title, columns, rows(figures))


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
