"""``medsam3 batch``: many images, one command, gone on with after any interruption."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as ProgressBar

from MedSAM3Core.cli import options, terminal
from MedSAM3Core.cli.outputs import check_folder
from MedSAM3Core.errors import InputError
from MedSAM3Core.plurals import counted

if TYPE_CHECKING:
    from MedSAM3Core.batch import BatchSettings, Engine, Found, Summary, Tally

MOST_ERRORS_SHOWN = 10
ENGINES = ("local", "ray")
FORMATS = (".seg.nrrd", ".nrrd", ".nii.gz", ".nii", ".dcm", ".png")

Inputs = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="INPUT...",
        help="Images, folders (searched through; DICOM by series), or quoted patterns such as 'data/**/*.nii.gz'.",
    ),
]
BatchConcepts = Annotated[
    list[str] | None,
    typer.Option(
        "--concept", "-c", metavar="CONCEPT", help="What to look for, in at most three words. Repeatable."
    ),
]
Manifest = Annotated[
    Path | None,
    typer.Option(
        "--manifest",
        metavar="CSV",
        help="A table in the place of INPUT: a CSV with the column path and, if wanted, concepts (separated by "
        ";), name and modality.",
    ),
]
Output = Annotated[
    Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder for the results; created if absent.")
]
Format = Annotated[
    str,
    typer.Option("--format", metavar="SUFFIX", help=f"Format of the segmentations: {', '.join(FORMATS)}."),
]
Modality = Annotated[
    str | None,
    typer.Option("--modality", metavar="CT[,MR]", help="Only DICOM series of these modalities."),
]
SeriesWords = Annotated[
    str | None,
    typer.Option("--series", metavar="TEXT", help="Only DICOM series whose description contains this text."),
]
EngineName = Annotated[
    str,
    typer.Option(
        "--engine",
        metavar="ENGINE",
        help="Where the cases run: local (on this machine) or ray (on a Ray cluster).",
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="ADDRESS",
        help="With --engine ray: the cluster, auto (the one this machine belongs to) or HOST:PORT; when not "
        "given, one is started here.",
    ),
]
Actors = Annotated[
    int | None,
    typer.Option(
        "--actors",
        metavar="N",
        min=1,
        help="With --engine ray: how many models work at once; one for each GPU when not given.",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the batch in FOLDER.")]
Retry = Annotated[bool, typer.Option("--retry-failed", help="With --resume: run failed cases again.")]
NoSheet = Annotated[bool, typer.Option("--no-sheet", help="Make no contact sheets (pictures of all cases).")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="List the cases and run none.")]


def batch(
    output: Output,
    inputs: Inputs = None,
    concept: BatchConcepts = None,
    manifest: Manifest = None,
    format_: Format = ".seg.nrrd",
    modality: Modality = None,
    series: SeriesWords = None,
    engine: EngineName = "local",
    address: Address = None,
    actors: Actors = None,
    resume: Resume = False,
    retry_failed: Retry = False,
    no_sheet: NoSheet = False,
    dry_run: DryRun = False,
    model: options.ModelName = "demo",
    device: options.Device = "auto",
    axis: options.Axis = "auto",
    window: options.Window = "auto",
    threshold: options.Threshold = None,
    mode: options.Mode = "recommended",
    as_json: options.AsJson = False,
) -> int:
    """Segment many images by typed concepts.

    [bold]medsam3 batch scans/ -c liver -c spleen -o results/[/bold]

    Results lie in FOLDER as the images do in theirs, with results.csv, results.parquet and contact sheets. A case that
    fails is named in the tables, and the others go on. After an interruption of any kind, add --resume.
    """
    from MedSAM3Core.batch import BatchSettings, run_batch

    _check(engine, format_, address, actors, retry_failed, resume)
    check_folder(output)
    found = _find(inputs or [], manifest, concept or [], output, modality, series)
    if dry_run:
        _list(found, as_json)
        return 0
    settings = BatchSettings(output, format_, model, axis, window, mode, threshold, tiles=not no_sheet)
    if not as_json:
        terminal.notify(found.notices)
    with (
        _engine(engine, settings, device, address, actors) as running,
        terminal.cancel_on_interrupt() as cancel,
        _bar() as report,
    ):
        summary = run_batch(
            found.cases,
            settings,
            running,
            resume=resume,
            retry_failed=retry_failed,
            report=report,
            cancel=cancel,
        )
    return _tell(summary, found, settings, as_json)


def _check(
    engine: str, suffix: str, address: str | None, actors: int | None, retry_failed: bool, resume: bool
) -> None:
    if engine not in ENGINES:
        raise InputError(f"The engine is {engine!r}; expected local or ray.")
    if suffix not in FORMATS:
        raise InputError(f"The format is {suffix!r}; expected one of {', '.join(FORMATS)}.")
    if engine == "local" and (address is not None or actors is not None):
        raise InputError("--address and --actors belong to --engine ray; add it, or leave them out.")
    if retry_failed and not resume:
        raise InputError("--retry-failed runs failed cases of an earlier run again; add --resume.")


def _find(
    inputs: list[str],
    manifest: Path | None,
    concepts: list[str],
    output: Path,
    modality: str | None,
    series: str | None,
) -> Found:
    from MedSAM3Core.batch import Wanted, find_cases, read_manifest

    if manifest is not None:
        if inputs or modality or series:
            raise InputError("--manifest names the images itself; leave INPUT, --modality and --series out.")
        return read_manifest(manifest, concepts)
    if not inputs:
        raise InputError("There is no input; name images or folders, or a table of them with --manifest.")
    codes = tuple(code.strip().upper() for code in (modality or "").split(",") if code.strip())
    return find_cases(inputs, concepts, output, Wanted(codes, series or ""))


def _list(found: Found, as_json: bool) -> None:
    rows = [
        (case.key, case.series, "; ".join(case.concepts), str(case.path), case.problem)
        for case in found.cases
    ]
    names = ("case", "series", "concepts", "input", "problem")
    if as_json:
        cases = [dict(zip(names, row, strict=True)) for row in rows]
        terminal.print_json({"cases": cases, "notices": list(found.notices)})
        return
    terminal.notify(found.notices)
    terminal.print_table(counted(len(rows), "case"), [(name, "left") for name in names], rows)


@contextmanager
def _engine(
    name: str, settings: BatchSettings, device: str, address: str | None, actors: int | None
) -> Iterator[Engine]:
    """The engine, its model loaded.

    Raises:
        ModelError: If the model cannot be loaded.
        InputError: If Ray is not installed or the cluster cannot be reached.
    """
    if name == "ray":
        from MedSAM3Core.batch.rayengine import ray_engine

        with ray_engine(settings, device=device, address=address, actors=actors) as engine:
            yield engine
        return
    from MedSAM3Core import Segmenter
    from MedSAM3Core.batch import LocalEngine

    yield LocalEngine(Segmenter.from_pretrained(settings.model, device=device), settings)


@contextmanager
def _bar() -> Iterator[Callable[[Tally], None]]:
    """A bar with cases, failures, rate and time left; nothing where stderr is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda tally: None
        return
    columns = (
        SpinnerColumn(),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.fields[facts]}", markup=False),
    )
    with ProgressBar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("cases", total=None, facts="starting")

        def show(tally: Tally) -> None:
            bar.update(task, total=tally.total, completed=tally.ended, facts=facts_of(tally))

        yield show


def facts_of(tally: Tally) -> str:
    """Where a batch stands, in words for its bar."""
    parts = []
    if tally.failed:
        parts.append(f"{tally.failed} failed")
    if tally.ended > tally.before:
        parts.append(f"{tally.per_minute:.1f} a minute")
    left = terminal.time_left(tally.seconds_left)
    return " | ".join([part for part in (*parts, left, tally.current[-40:]) if part])


def _tell(summary: Summary, found: Found, settings: BatchSettings, as_json: bool) -> int:
    failures = summary.failures
    files = [str(path.absolute()) for path in (*summary.tables, *summary.sheets)]
    if as_json:
        terminal.print_json(_document(summary, found, files))
    else:
        facts = [
            ("cases", f"{len(summary.outcomes):,}, of which {summary.resumed:,} were over before this run"),
            ("done", f"{summary.done:,}"),
            ("failed", f"{len(failures):,}"),
            ("seconds", f"{summary.seconds:.1f}"),
            *(("file", name) for name in files),
        ]
        terminal.print_facts(facts)
    for one in failures[:MOST_ERRORS_SHOWN]:
        terminal.notify([f"{one.key}: {one.problem}"])
    if not failures:
        return 0
    terminal.complain(
        f"{len(failures)} of {len(summary.outcomes)} cases failed; results.csv in {settings.output} says why for each."
    )
    return 1


def _document(summary: Summary, found: Found, files: list[str]) -> dict[str, Any]:
    return {
        "cases": len(summary.outcomes),
        "done": summary.done,
        "failed": [{"case": one.key, "error": one.problem} for one in summary.failures],
        "resumed": summary.resumed,
        "seconds": round(summary.seconds, 3),
        "infer_seconds": round(sum(one.seconds.get("infer", 0.0) for one in summary.outcomes), 3),
        "files": files,
        "notices": list(found.notices),
    }
