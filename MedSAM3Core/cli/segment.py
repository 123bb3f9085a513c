"""``medsam3 segment``: one image, typed concepts, coded masks."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MedSAM3Core.cli import options, terminal
from MedSAM3Core.cli import report as reports
from MedSAM3Core.cli.files import check_segmentation_path, write_overlay, write_segmentation
from MedSAM3Core.cli.marks import parse_marks
from MedSAM3Core.cli.outputs import OutputSet, check_destination
from MedSAM3Core.errors import InputError, OutputError
from MedSAM3Core.progress import CancelToken, ProgressCallback
from MedSAM3Core.prompts import Concept, PromptSet

if TYPE_CHECKING:
    from MedSAM3Core import Segmenter
    from MedSAM3Core.segmentation import Segmentation
    from MedSAM3Core.volume import Volume
    from MedSAM3Core.worker import RemoteSegmenter


@dataclass(frozen=True)
class Request:
    """What is asked of one call, checked as far as that goes without the image and the model.

    Attributes:
        prompts: What to look for, each concept once, with the boxes and clicks that are for it.
        output: Where the segmentation goes.
        overlay: Where the overlay goes, or None.
        report: Where the report goes, or None.
        notices: Sentences for the user.
    """

    prompts: tuple[PromptSet, ...]
    output: Path
    overlay: Path | None
    report: Path | None
    notices: tuple[str, ...]


@dataclass
class Stopwatch:
    """Seconds of the command's own stages."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Count the block to ``stage``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started


def segment(
    input_path: options.InputPath,
    concept: options.Concepts,
    output: options.SegmentationPath,
    box: options.Boxes = None,
    box3d: options.Boxes3D = None,
    point: options.Points = None,
    model: options.ModelName = "demo",
    device: options.Device = "auto",
    axis: options.Axis = "auto",
    window: options.Window = "auto",
    threshold: options.Threshold = None,
    mode: options.Mode = "recommended",
    tiles: options.Tiles = "auto",
    overlay: options.OverlayPath = None,
    report: options.ReportPath = None,
    series: options.Series = None,
    time_index: options.TimeIndex = None,
    worker: options.WorkerCommand = None,
    as_json: options.AsJson = False,
) -> None:
    """Segment an image by typed concepts.

    [bold]medsam3 segment ct.nii.gz -c liver -c "left kidney" -o out.seg.nrrd --overlay out.png[/bold]

    A concept that is nowhere in the image gives an empty segment and a note. Nothing is written unless all is done.
    """
    watch = Stopwatch()
    request = check_request(concept, box or [], box3d or [], output, overlay, report, point or [])
    if series is not None and input_path.is_file():
        raise InputError(
            f"--series chooses among the series of a folder, but {input_path.name} is a file; leave it out."
        )
    with watch.measure("read"):
        from MedSAM3Core.volume.reading import read_volume

        volume = read_volume(input_path, time=time_index, series=series)
        for prompt in request.prompts:
            for drawn in prompt.boxes:
                drawn.check_inside(volume.geometry.shape)
            for clicked in prompt.points:
                clicked.check_inside(volume.geometry.shape)
        check_segmentation_path(output, volume)
    how = {"axis": axis, "window": window, "mode": mode}
    if tiles != "auto":
        how["tiles"] = tiles
    with ExitStack() as stack:
        with watch.measure("load"):
            segmenter = stack.enter_context(loaded(model, device, worker))
        cancel = stack.enter_context(terminal.cancel_on_interrupt())
        with watch.measure("segment"), terminal.progress_bar() as progress:
            found = run(segmenter, volume, request.prompts, threshold, how, progress, cancel)
        document = write(request, volume, found, how, watch, cancel)
    terminal.notify([*document["notices"], *(n for entry in document["concepts"] for n in entry["notices"])])
    if as_json:
        terminal.print_json(document)
    else:
        terminal.print_table("", reports.TABLE_COLUMNS, [reports.table_row(s) for s in found])


@contextmanager
def loaded(model: str, device: str, worker: str | None) -> Iterator[Segmenter | RemoteSegmenter]:
    """The model, in this process or, given a command, in a worker that lives as long as the block.

    Raises:
        ModelError: If the model cannot be loaded.
        WorkerError: If the worker cannot be started.
    """
    if worker is None:
        from MedSAM3Core import Segmenter

        yield Segmenter.from_pretrained(model, device=device)
        return
    from MedSAM3Core.worker import RemoteSegmenter, SteppedDown, WorkerClient, split_command

    def tell(event: object) -> None:
        if isinstance(event, SteppedDown):
            terminal.notify([event.sentence])

    with WorkerClient(split_command(worker), on_event=tell) as client:
        client.load_model(model, device)
        yield RemoteSegmenter(client, model, device)


def check_request(
    typed: Sequence[str],
    boxes: Sequence[str],
    boxes_3d: Sequence[str],
    output: Path,
    overlay: Path | None,
    report: Path | None,
    points: Sequence[str] = (),
) -> Request:
    """Everything that can be wrong before the image is read.

    Raises:
        PromptError: For a concept, a box or a point.
        OutputError: For a place that cannot be written to.
    """
    from MedSAM3Core.concepts import resolve, split_concepts

    concepts: dict[str, Concept] = {}
    notices: list[str] = []
    for phrase in (part for text in typed for part in split_concepts(text)):
        found = resolve(phrase)
        if found.phrase in concepts:
            means = "" if phrase.strip().lower() == found.phrase else f" means '{found.phrase}', which"
            notices.append(f"'{phrase}'{means} was given before; it is segmented once.")
        concepts.setdefault(found.phrase, found)
    marks = parse_marks(boxes, boxes_3d, points, tuple(concepts.values()))
    if marks.unaddressed and len(concepts) > 1:
        notices.append(
            f"The {' and '.join(marks.unaddressed)} without a name are used for each of the {len(concepts)} "
            f"concepts; '{next(iter(concepts))}=' before the numbers draws for that one alone."
        )
    check_segmentation_path(output)
    for path, suffix in ((overlay, ".png"), (report, ".json")):
        if path is not None:
            check_destination(path, (suffix,))
    named = [path.absolute() for path in (output, overlay, report) if path is not None]
    if len(set(named)) != len(named):
        raise OutputError("Two of the outputs have the same name; give each its own.")
    prompts = marks.prompts(tuple(concepts.values()))
    return Request(prompts, output, overlay, report, tuple(notices))


def run(
    segmenter: Segmenter | RemoteSegmenter,
    volume: Volume,
    prompts: Sequence[PromptSet],
    threshold: float | None,
    how: dict[str, str],
    progress: ProgressCallback | None,
    cancel: CancelToken,
) -> list[Segmentation]:
    """Segment the concepts of one volume on one set of features: those with marks one by one, the others together.

    Returns:
        One segmentation a concept, in the order given.
    """
    typed = [prompt.concept for prompt in prompts if not prompt.marked]
    with segmenter.open(volume, **how) as session:
        together = (
            session.segment_many(typed, progress=progress, cancel=cancel, threshold=threshold)
            if typed
            else []
        )
        of_words = iter(together)
        return [
            session.segment(
                prompt.concept,
                boxes=prompt.boxes,
                points=prompt.points,
                progress=progress,
                cancel=cancel,
                threshold=threshold,
            )
            if prompt.marked
            else next(of_words)
            for prompt in prompts
        ]


def write(
    request: Request,
    volume: Volume,
    found: Sequence[Segmentation],
    how: dict[str, str],
    watch: Stopwatch,
    cancel: CancelToken,
) -> dict[str, Any]:
    """Write everything that was asked for, together.

    Returns:
        The report.

    Raises:
        OutputError: If a file cannot be written; then none is.
        Cancelled: If the token was cancelled; then none is written either.
    """
    paths = {"segmentation": request.output, "overlay": request.overlay, "report": request.report}
    named = {kind: str(path.absolute()) for kind, path in paths.items() if path is not None}
    with OutputSet() as outputs:
        with watch.measure("write"):
            said = outputs.write(request.output, lambda path: write_segmentation(path, volume, found))
            if request.overlay is not None:
                outputs.write(
                    request.overlay,
                    lambda path: write_overlay(path, volume, found, how["axis"], how["window"]),
                )
        notices = [*request.notices, *volume.notices, *said]
        document = reports.report(volume, found, named, watch.seconds, notices)
        if request.report is not None:
            text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
            outputs.write(request.report, lambda path: path.write_text(text, encoding="utf-8"))
        cancel.check()
    return document
