"""``medsam3 track``: a film, a cine loop or a 4D image, typed concepts, objects that keep their numbers."""

from __future__ import annotations

import csv
import io
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from MedSAM3Core.cli import options, terminal
from MedSAM3Core.cli.outputs import check_destination
from MedSAM3Core.errors import InputError, OutputError
from MedSAM3Core.progress import CancelToken, Progress, ProgressCallback

if TYPE_CHECKING:
    from MedSAM3Core import Segmenter, Volume
    from MedSAM3Core.inference.sequence import FrameObjects
    from MedSAM3Core.inference.sequence_volumes import VolumeObjects
    from MedSAM3Core.prompts import Concept
    from MedSAM3Core.volume.geometry import Geometry

COLUMNS = (
    "frame",
    "seconds",
    "object",
    "concept",
    "name",
    "code",
    "detected",
    "score",
    "voxels",
    "ml",
    "i",
    "j",
    "k",
)

TrackInput = Annotated[
    Path,
    typer.Argument(
        metavar="INPUT",
        help="The film or series: MP4, AVI and others, a DICOM cine loop or series of several times, or a 4D NRRD "
        "or NIfTI.",
    ),
]
LabelsPath = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="OUTPUT.seq.nrrd",
        help="File for the labels through time: the value of a voxel is the number of its object. 3D Slicer opens "
        "it as a sequence.",
    ),
]
FilmPath = Annotated[
    Path | None,
    typer.Option(
        "--film", metavar="MP4|AVI", help="Also write a film with the objects drawn on it (2D only)."
    ),
]
TablePath = Annotated[
    Path | None,
    typer.Option("--table", metavar="CSV", help="Also write a table with one row for each object and frame."),
]


@dataclass
class Sighting:
    """What is known of an object so far.

    Attributes:
        name: Its concept's name.
        first: First frame it is on.
        last: Last frame.
        frames: How many frames it is on.
        largest: Most voxels it had.
    """

    name: str
    first: int
    last: int = 0
    frames: int = 0
    largest: int = 0


def track(
    input_path: TrackInput,
    concept: options.Concepts,
    output: LabelsPath,
    film: FilmPath = None,
    table: TablePath = None,
    model: options.ModelName = "demo",
    device: options.Device = "auto",
    window: options.Window = "auto",
    threshold: options.Threshold = None,
    series: options.Series = None,
    as_json: options.AsJson = False,
) -> None:
    """Follow typed concepts through time; every object keeps its number.

    [bold]medsam3 track colonoscopy.mp4 -c polyp -o polyps.seq.nrrd --film polyps.mp4 --table polyps.csv[/bold]

    Films are read frame by frame, so their length costs no memory. Nothing is written unless all is done.
    """
    concepts = _check(concept, output, film, table)
    source = open_source(input_path, series)
    if film is not None and not source.flat:
        raise InputError("A film can be drawn of 2D images only; leave --film out.")
    from MedSAM3Core import Segmenter

    segmenter = Segmenter.from_pretrained(model, device=device)
    seen: dict[int, Sighting] = {}
    with terminal.cancel_on_interrupt() as cancel, terminal.progress_bar() as progress:
        results = _results(segmenter, source, concepts, window, threshold, cancel)
        _write(_counted(results, source, progress), source, output, film, table, seen)
    terminal.notify(source.notices)
    _tell(seen, [path for path in (output, film, table) if path is not None], as_json)


def _check(typed: list[str], output: Path, film: Path | None, table: Path | None) -> list[Concept]:
    from MedSAM3Core.batch.discover import check_concepts
    from MedSAM3Core.concepts import resolve

    check_destination(output, (".seq.nrrd",))
    for path, suffixes in ((film, (".mp4", ".avi")), (table, (".csv",))):
        if path is not None:
            check_destination(path, suffixes)
    named = [path.absolute() for path in (output, film, table) if path is not None]
    if len(set(named)) != len(named):
        raise OutputError("Two of the outputs have the same name; give each its own.")
    return [resolve(phrase) for phrase in check_concepts(typed)]


@dataclass
class Source:
    """What is followed.

    Attributes:
        frames: Its times, read as they are needed where that is possible.
        flat: Whether they are 2D.
        count: How many, 0 when not known.
        rate: Times a second.
        notices: Sentences for the user; may grow while frames are read.
    """

    frames: Iterable[Volume]
    flat: bool
    count: int
    rate: float
    notices: list[str]


def open_source(path: Path, series: str | None = None) -> Source:
    """A film, or any image with several times.

    Raises:
        VolumeError: If it cannot be read.
        InputError: If it has one time only.
    """
    from MedSAM3Core.volume import video
    from MedSAM3Core.volume.dicom import looks_like_dicom
    from MedSAM3Core.volume.dicom.cine import open_cine
    from MedSAM3Core.volume.reading import read_sequence

    if path.suffix.lower() in video.SUFFIXES and path.is_file():
        film = video.open_film(path)
        return Source(film.frames(), True, film.promised, film.rate, film.notices)
    cine = open_cine(path) if path.is_file() and looks_like_dicom(path) else None
    if cine is not None:
        rate = 1 / cine.series.frame_time_s if cine.series.frame_time_s else video.USUAL_RATE
        return Source(cine.frames(), True, cine.count, rate, [])
    volumes = read_sequence(path, series)
    if len(volumes) < 2:
        raise InputError(f"{path.name} has one time only; use medsam3 segment.")
    seconds = volumes[-1].time_s - volumes[0].time_s
    rate = (len(volumes) - 1) / seconds if seconds > 0 else video.USUAL_RATE
    notices = list(dict.fromkeys(notice for volume in volumes for notice in volume.notices))
    return Source(volumes, volumes[0].is_2d, len(volumes), rate, notices)


def _results(
    segmenter: Segmenter,
    source: Source,
    concepts: list[Concept],
    window: str,
    threshold: float | None,
    cancel: CancelToken,
) -> Iterator[tuple[Volume, FrameObjects | VolumeObjects]]:
    """Each time with its objects. A result comes a few frames late; those frames are all that is held."""
    held: deque[Volume] = deque()

    def passing() -> Iterator[Volume]:
        for frame in source.frames:
            held.append(frame)
            yield frame

    if source.flat:
        from MedSAM3Core.inference.sequence import ObjectTracker

        tracker = ObjectTracker(segmenter.model, concepts, window=window, threshold=threshold)
        for objects in tracker.run(passing(), cancel):
            yield held.popleft(), objects
        return
    from MedSAM3Core.inference.sequence_volumes import VolumeTracker

    for volumes in VolumeTracker(segmenter, concepts, threshold, window=window).run(passing(), cancel):
        yield held.popleft(), volumes


def _counted(
    results: Iterable[tuple[Volume, Any]], source: Source, progress: ProgressCallback | None
) -> Iterator[tuple[Volume, Any]]:
    started = time.monotonic()
    for number, result in enumerate(results, start=1):
        yield result
        if progress is not None:
            share = min(1.0, number / source.count) if source.count else 0.0
            left = (time.monotonic() - started) / number * (source.count - number) if source.count else None
            progress(Progress("following", number, source.count, share, left))


def _write(
    results: Iterable[tuple[Volume, Any]],
    source: Source,
    output: Path,
    film: Path | None,
    table: Path | None,
    seen: dict[int, Sighting],
) -> None:
    """Write all outputs as the results come; none appears unless all is done."""
    from MedSAM3Core.volume.atomic import atomic_file
    from MedSAM3Core.volume.seqnrrd import write_label_sequence

    results = iter(results)
    first = next(results, None)
    if first is None:
        raise InputError("There is no frame to follow anything in.")
    with ExitStack() as stack:
        rows = _table(stack.enter_context(atomic_file(table))) if table is not None else None
        labels = stack.enter_context(write_label_sequence(output, first[0].geometry))

        def pass_on() -> Iterator[np.ndarray]:
            for frame, objects in _chain(first, results):
                values = objects.labels()
                labels.add(values.reshape(frame.geometry.shape), objects.time_s)
                for one in objects.objects:
                    row = _row(frame.geometry, objects, one)
                    _note(seen, row)
                    if rows is not None:
                        rows.writerow(row)
                if film is not None:
                    yield draw(frame, objects)

        if film is not None:
            from MedSAM3Core.volume.video import write_film

            write_film(film, pass_on(), source.rate)
        else:
            for _ in pass_on():
                pass


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _table(stream: Any) -> csv.DictWriter[str]:
    rows = csv.DictWriter(io.TextIOWrapper(stream, "utf-8", newline="", write_through=True), COLUMNS)
    rows.writeheader()
    return rows


def _row(geometry: Geometry, objects: Any, one: Any) -> dict[str, Any]:
    """One object at one time; extents as "first-last", voxel indices."""
    part = getattr(one, "segmentation", one)
    voxels = int(part.mask.sum())
    flat = geometry.shape[0] == 1
    return {
        "frame": objects.index,
        "seconds": round(objects.time_s, 4),
        "object": one.identity,
        "concept": part.concept.typed,
        "name": part.concept.name or part.concept.phrase,
        "code": part.concept.code or "",
        "detected": one.detected,
        "score": round(part.score, 4),
        "voxels": voxels,
        "ml": "" if flat else round(voxels * geometry.voxel_volume_ml, 4),
        **{axis: "{}-{}".format(*getattr(part.extent, axis)) for axis in "ijk"},
    }


def _note(seen: dict[int, Sighting], row: dict[str, Any]) -> None:
    one = seen.setdefault(row["object"], Sighting(row["name"], row["frame"]))
    one.last, one.frames, one.largest = row["frame"], one.frames + 1, max(one.largest, row["voxels"])


def draw(frame: Volume, objects: FrameObjects) -> np.ndarray:
    """A frame with its objects filled, outlined and numbered: uint8 (rows, columns, 3)."""
    from PIL import ImageDraw

    from MedSAM3Core.overlay.sheet import distinct_colours
    from MedSAM3Core.overlay.tile import paint_slice, write_text
    from MedSAM3Core.windowing import choose_window

    shown = choose_window(frame).apply(frame.array[0])
    size = (shown.shape[1], shown.shape[0])
    most = max((one.identity for one in objects.objects), default=0)
    named = {one.identity: one.concept.colour for one in objects.objects}
    colours = distinct_colours([named.get(n, (220, 80, 80)) for n in range(1, most + 1)], [None] * most)
    masks = []
    for one in objects.objects:
        mask = np.zeros(objects.shape, bool)
        (i0, i1), (j0, j1) = one.extent.i, one.extent.j
        mask[j0 : j1 + 1, i0 : i1 + 1] = one.mask
        masks.append((mask, colours[one.identity - 1]))
    picture = paint_slice(np.ascontiguousarray(shown), masks, size)
    pen = ImageDraw.Draw(picture)
    for one in objects.objects:
        write_text(pen, one.centre, str(one.identity), "mm", max(12, size[1] // 24))
    return np.asarray(picture)


def _tell(seen: dict[int, Sighting], files: list[Path], as_json: bool) -> None:
    names = [str(path.absolute()) for path in files]
    if as_json:
        objects = [{"object": number, **vars(one)} for number, one in sorted(seen.items())]
        terminal.print_json({"objects": objects, "outputs": names})
        return
    rows = [
        [str(number), one.name, f"{one.first}-{one.last}", f"{one.frames:,}", f"{one.largest:,}"]
        for number, one in sorted(seen.items())
    ]
    columns = [
        ("object", "right"),
        ("concept", "left"),
        ("frames", "left"),
        ("seen on", "right"),
        ("largest", "right"),
    ]
    terminal.print_table("", columns, rows)
    terminal.print_facts([("file", name) for name in names])
