"""``medsam3 benchmark``: where the time of a run goes, and how much memory it takes, on this machine."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from MedSAM3Core.cli import benchmark_compare, benchmark_worker, options, terminal
from MedSAM3Core.cli import report as reports
from MedSAM3Core.cli.files import write_segmentation
from MedSAM3Core.cli.segment import run
from MedSAM3Core.errors import InputError
from MedSAM3Core.prompts import PromptSet

if TYPE_CHECKING:
    from MedSAM3Core import Segmenter
    from MedSAM3Core.progress import CancelToken
    from MedSAM3Core.prompts import Concept
    from MedSAM3Core.samples import Sample
    from MedSAM3Core.volume import Volume

MEBIBYTE = 1 << 20
COMPARED_SLICES, OBJECT_SLICES, WORKER_SLICES = 100, 80, 16
"""Slices of the volume when none are given: of the comparison, of a study of the length, of the worker's runs."""


@dataclass(frozen=True)
class Measurement:
    """Seconds by stage for one repetition, "total" among them."""

    seconds: dict[str, float]


Size = Annotated[
    Literal["demo", "full"],
    typer.Option(
        help="What is measured: demo (--model on the sample CT) or full (the published architecture, with its "
        "weights if they are installed, else random ones)."
    ),
]
Repeats = Annotated[int, typer.Option(min=1, max=20, help="How often each is measured; medians are shown.")]
Slices = Annotated[
    int | None,
    typer.Option(
        min=2,
        max=5000,
        help="Slices of the volume, which is cut from the sample CT or continued by its mirror image; when not "
        f"given {COMPARED_SLICES}, with --study length {OBJECT_SLICES}, with --worker {WORKER_SLICES}.",
    ),
]
Concepts = Annotated[
    int | None,
    typer.Option(
        min=1, max=8, help="How many concepts to look for; 3 for demo and 1 for full when not given."
    ),
]
ReferenceSlices = Annotated[
    int | None,
    typer.Option(
        min=2,
        help="Measure transformers' models on this many slices only, and scale their time up; all when not "
        "given.",
    ),
]
Tracker = Annotated[
    bool | None,
    typer.Option(
        "--tracker/--no-tracker",
        help="With demo: propagate through the volume or not; as the model's card says when not given.",
    ),
]
Reduce = Annotated[
    int, typer.Option(metavar="N", help="With full: divide the layers' widths by 1, 2, 4 or 8.")
]
Side = Annotated[
    int,
    typer.Option(metavar="PIXELS", help="With full: side of the model's input in pixels, a multiple of 336."),
]
Plot = Annotated[Path | None, typer.Option(metavar="PNG", help="Also write a picture of the comparison.")]
Table = Annotated[Path | None, typer.Option(metavar="MD", help="Also write the tables, as Markdown.")]
Study = Annotated[
    Literal["modes", "length"] | None,
    typer.Option(
        help="In place of the comparison: modes (every --mode side by side) or length (the volume within "
        "longer and longer scans of air)."
    ),
]
Longest = Annotated[
    int,
    typer.Option(
        min=2,
        max=20_000,
        metavar="SLICES",
        help="With --study length: the longest scan, after those of 100, 300, 600 and 2000 slices that are shorter.",
    ),
]
Alone = Annotated[
    bool,
    typer.Option(
        "--alone", help="In place of the comparison: the stages of MedSAM3 alone, on the whole sample CT."
    ),
]
Worker = Annotated[
    bool,
    typer.Option(
        "--worker",
        help="In place of the comparison: the worker process beside inference in this process.",
    ),
]
Cycles = Annotated[
    int,
    typer.Option(
        min=40,
        max=100_000,
        help="With --worker: how many volumes are opened, segmented and closed to see whether memory grows.",
    ),
]


def benchmark(
    size: Size = "demo",
    model: options.ModelName = "demo",
    device: options.Device = "auto",
    repeats: Repeats = 3,
    slices: Slices = None,
    concepts: Concepts = None,
    reference_slices: ReferenceSlices = None,
    mode: options.Mode = "recommended",
    tracker: Tracker = None,
    reduce: Reduce = 1,
    side: Side = 1008,
    plot: Plot = None,
    table: Table = None,
    study: Study = None,
    longest: Longest = 600,
    alone: Alone = False,
    worker: Worker = False,
    cycles: Cycles = 200,
    as_json: options.AsJson = False,
) -> None:
    """Measure MedSAM3 on this machine, beside transformers' models and the least time its arithmetic takes.

    The video and the image model of transformers get the same weights, in the same run. Every repetition opens the
    volume anew, so no features are reused. The full size on a CPU takes hours: use
    [bold]--reduce 8 --side 336 --slices 20[/bold].
    """
    if worker:
        _benchmark_worker(model, device, slices or WORKER_SLICES, repeats, cycles, as_json)
        return
    if alone:
        _benchmark_alone(model, device, repeats, as_json)
        return
    from MedSAM3Core.benchmark.subject import demo_subject, full_subject

    slices = slices or (OBJECT_SLICES if study == "length" else COMPARED_SLICES)
    if size == "full":
        subject = full_subject(device, slices, concepts or 1, reduce, side)
    else:
        subject = demo_subject(model, device, slices, concepts or 3, tracker, mode)
    if study is not None:
        document = {"machine": machine(), **benchmark_compare.study(subject, study, longest, table)}
        if as_json:
            terminal.print_json(document)
        else:
            benchmark_compare.show_study(document)
        return
    document = benchmark_compare.compare(subject, repeats, reference_slices, plot, table)
    document = {"machine": machine(), **document}
    if as_json:
        terminal.print_json(document)
        return
    benchmark_compare.show(document)
    terminal.print_facts([("machine", ", ".join(f"{value}" for value in document["machine"].values()))])


def _benchmark_worker(model: str, device: str, slices: int, repeats: int, cycles: int, as_json: bool) -> None:
    """The worker beside inference in this process, on some slices of the sample CT and all its concepts."""
    from MedSAM3Core import Segmenter
    from MedSAM3Core.benchmark.subject import stack
    from MedSAM3Core.concepts import resolve

    sample = _sample_ct()
    volume = stack(sample.read(), slices)
    concepts = [resolve(phrase) for phrase in sample.concepts]
    segmenter = Segmenter.from_pretrained(model, device=device)
    figures = benchmark_worker.measure(segmenter, volume, concepts, model, device, repeats, cycles)
    if as_json:
        terminal.print_json(benchmark_worker.as_document(figures, machine()))
    else:
        benchmark_worker.show(figures)


def _benchmark_alone(model: str, device: str, repeats: int, as_json: bool) -> None:
    """The stages of our own path on the sample CT and all its concepts."""
    from MedSAM3Core.concepts import resolve

    sample = _sample_ct()
    started = time.perf_counter()
    volume = sample.read()
    once = {"read": time.perf_counter() - started}
    started = time.perf_counter()
    from MedSAM3Core import Segmenter

    segmenter = Segmenter.from_pretrained(model, device=device)
    once["load"] = time.perf_counter() - started
    concepts = [resolve(phrase) for phrase in sample.concepts]
    with terminal.cancel_on_interrupt() as cancel:
        measured = [measure(segmenter, volume, concepts, cancel) for _ in range(repeats)]
    document = summarise(volume, concepts, once, measured, model)
    if as_json:
        terminal.print_json(document)
    else:
        show(document)


def _sample_ct() -> Sample:
    from MedSAM3Core.samples import read_samples

    sample = next((sample for sample in read_samples() if sample.modality == "CT"), None)
    if sample is None:
        raise InputError("The sample data holds no CT volume; install MedSAM3Core again.")
    return sample


def measure(
    segmenter: Segmenter, volume: Volume, concepts: Sequence[Concept], cancel: CancelToken
) -> Measurement:
    """One repetition on fresh features.

    Raises:
        Cancelled: If the token was cancelled.
    """
    started = time.perf_counter()
    with terminal.progress_bar() as progress:
        found = run(segmenter, volume, [PromptSet(c) for c in concepts], None, {}, progress, cancel)
    seconds = reports.stage_seconds(found)
    writing = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        write_segmentation(Path(folder) / "benchmark.seg.nrrd", volume, found)
    finished = time.perf_counter()
    return Measurement(seconds | {"writing": finished - writing, "total": finished - started})


def summarise(
    volume: Volume,
    concepts: Sequence[Concept],
    once: dict[str, float],
    measured: list[Measurement],
    model: str,
) -> dict[str, Any]:
    """The measurements as plain values: medians over the repetitions, and each repetition's total."""
    stages = list(dict.fromkeys(stage for one in measured for stage in one.seconds))
    medians = {stage: statistics.median(one.seconds.get(stage, 0.0) for one in measured) for stage in stages}
    return {
        "machine": machine(),
        "model": model,
        "volume": {"name": volume.name, "shape": list(volume.geometry.shape)},
        "concepts": [concept.phrase for concept in concepts],
        "repeats": len(measured),
        "seconds": {stage: round(value, 3) for stage, value in (once | medians).items()},
        "totals": [round(one.seconds["total"], 3) for one in measured],
        "peak_memory_mib": peak_memory_mib(),
        "peak_gpu_memory_mib": peak_gpu_memory_mib(),
    }


def show(document: dict[str, Any]) -> None:
    """The summary as a table and a few facts."""
    slices, rows, columns = document["volume"]["shape"]
    title = f"{slices} slices of {rows} x {columns}, {len(document['concepts'])} concepts, model {document['model']}"
    rows_shown = [[stage, f"{value:.2f}"] for stage, value in document["seconds"].items()]
    terminal.print_table(title, [("stage", "left"), ("seconds", "right")], rows_shown)
    facts = [
        ("repetitions", f"{document['repeats']}, totals {document['totals']} s; the table shows medians")
    ]
    facts.append(("peak memory", f"{document['peak_memory_mib']} MiB"))
    if document["peak_gpu_memory_mib"] is not None:
        facts.append(("peak GPU memory", f"{document['peak_gpu_memory_mib']} MiB"))
    facts.append(("machine", ", ".join(f"{value}" for value in document["machine"].values())))
    terminal.print_facts(facts)


def machine() -> dict[str, Any]:
    """What the figures hold for."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": f"{os.cpu_count()} cores",
        "threads": f"{torch.get_num_threads()} threads",
        "gpu": device,
        "python": f"Python {platform.python_version()}",
        "torch": f"torch {torch.__version__}",
    }


def peak_memory_mib() -> int:
    """Most memory this process has held, in MiB."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset // MEBIBYTE
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return peak // MEBIBYTE if sys.platform == "darwin" else peak // 1024


def peak_gpu_memory_mib() -> int | None:
    """Most GPU memory that torch has held, in MiB; None without a GPU."""
    import torch

    return torch.cuda.max_memory_allocated() // MEBIBYTE if torch.cuda.is_available() else None
