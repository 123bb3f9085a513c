"""``medsam3 demo``: the whole path on the sample data that ships, judged against its reference."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from MedSAM3Core.cli import options, terminal
from MedSAM3Core.cli import report as reports
from MedSAM3Core.cli.files import write_overlay, write_segmentation
from MedSAM3Core.cli.outputs import OutputSet, check_folder

if TYPE_CHECKING:
    from MedSAM3Core import Segmenter
    from MedSAM3Core.progress import CancelToken, ProgressCallback
    from MedSAM3Core.prompts import Concept
    from MedSAM3Core.samples import Sample
    from MedSAM3Core.segmentation import Segmentation
    from MedSAM3Core.volume import Volume

COLUMNS = [
    ("concept", "left"),
    ("code", "left"),
    ("voxels", "right"),
    ("ml", "right"),
    ("seconds", "right"),
    ("Dice", "right"),
]


@dataclass(frozen=True)
class Outcome:
    """What came of one sample.

    Attributes:
        sample: The sample.
        volume: Its image.
        segmentations: One for each of its concepts, in order.
        dice: Phrase to Dice against the reference.
        seconds: For the whole sample, reading and writing included.
        files: Kind of file to its path.
    """

    sample: Sample
    volume: Volume
    segmentations: list[Segmentation]
    dice: dict[str, float]
    seconds: float
    files: dict[str, str]


def demo(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help="Folder for the results; created if absent."),
    ] = Path("demo-output"),
    model: options.ModelName = "demo",
    device: options.Device = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Segment the sample images by typed concepts and compare with their reference masks.

    The samples are patients that the demo model was not trained on. Writes for each a .seg.nrrd for 3D Slicer and an
    overlay PNG.
    """
    from MedSAM3Core.samples import read_samples

    check_folder(output)
    samples = read_samples()
    started = time.perf_counter()
    from MedSAM3Core import Segmenter

    segmenter = Segmenter.from_pretrained(model, device=device)
    loading = time.perf_counter() - started
    with terminal.cancel_on_interrupt() as cancel:
        outcomes = [segment_sample(segmenter, sample, output, cancel) for sample in samples]
    if as_json:
        terminal.print_json(
            {"seconds_to_load": round(loading, 3), "samples": [as_document(o) for o in outcomes]}
        )
        return
    for outcome in outcomes:
        title = f"{outcome.sample.title} ({outcome.sample.licence})"
        terminal.print_table(
            title, COLUMNS, [row(outcome, segmentation) for segmentation in outcome.segmentations]
        )
    files = [(kind, path) for outcome in outcomes for kind, path in outcome.files.items()]
    total = sum(outcome.seconds for outcome in outcomes)
    terminal.print_facts([*files, ("time", f"{total:.1f} s, and {loading:.1f} s to load the model")])


def segment_sample(segmenter: Segmenter, sample: Sample, folder: Path, cancel: CancelToken) -> Outcome:
    """Segment one sample, compare, and write its files together.

    Raises:
        Cancelled: If the token was cancelled; this sample's files are then not written.
        OutputError: If a file cannot be written.
    """
    from MedSAM3Core.concepts import resolve
    from MedSAM3Core.evaluation.heldout import dice

    started = time.perf_counter()
    volume = sample.read()
    concepts = [resolve(phrase) for phrase in sample.concepts]
    with terminal.progress_bar() as progress:
        found = one_by_one(segmenter, volume, concepts, progress, cancel)
    reference = sample.read_reference()
    scores = {s.concept.typed: dice(s.to_array(), reference[s.concept.typed]) for s in found}
    files = {"segmentation": folder / f"{sample.name}.seg.nrrd", "overlay": folder / f"{sample.name}.png"}
    folder.mkdir(parents=True, exist_ok=True)
    with OutputSet() as outputs:
        outputs.write(files["segmentation"], lambda path: write_segmentation(path, volume, found))
        outputs.write(files["overlay"], lambda path: write_overlay(path, volume, found))
        cancel.check()
    written = {kind: str(path) for kind, path in files.items()}
    return Outcome(sample, volume, found, scores, time.perf_counter() - started, written)


def one_by_one(
    segmenter: Segmenter,
    volume: Volume,
    concepts: Sequence[Concept],
    progress: ProgressCallback | None,
    cancel: CancelToken,
) -> list[Segmentation]:
    """Segment concepts one after the other, so that each has its own time; the first one pays for the features."""
    with segmenter.open(volume) as session:
        return [session.segment(concept, progress=progress, cancel=cancel) for concept in concepts]


def row(outcome: Outcome, segmentation: Segmentation) -> list[str]:
    """One row under `COLUMNS`."""
    concept = segmentation.concept
    return [
        concept.name or concept.phrase,
        f"SCT {concept.code}" if concept.code else "none",
        f"{segmentation.voxels:,}",
        reports.millilitres(segmentation),
        f"{sum(segmentation.timings.values()):.1f}",
        f"{outcome.dice[concept.typed]:.2f}",
    ]


def as_document(outcome: Outcome) -> dict[str, Any]:
    """A sample's outcome for JSON."""
    document = reports.report(
        outcome.volume, outcome.segmentations, outcome.files, {"total": outcome.seconds}
    )
    for entry in document["concepts"]:
        entry["dice"] = round(outcome.dice[entry["typed"]], 4)
    sample = outcome.sample
    return {
        "sample": sample.name,
        "title": sample.title,
        "licence": sample.licence,
        "source": sample.source,
    } | document
