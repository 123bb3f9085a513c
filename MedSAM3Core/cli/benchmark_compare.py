"""``medsam3 benchmark``: our path beside the published ones, in one run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from MedSAM3Core.cli import benchmark_progress, terminal
from MedSAM3Core.cli.outputs import check_destination

if TYPE_CHECKING:
    from MedSAM3Core.benchmark.subject import Subject

SCAN_LENGTHS = (100, 300, 600, 2000)
"""Slices of the scans that an object is put into."""
SLICE_S = 0.2
"""What a slice takes that is looked at for three concepts, with the demo model on two CPU cores; for the notice."""


def compare(
    subject: Subject, repeats: int, reference_slices: int | None, plot: Path | None, table: Path | None
) -> dict[str, Any]:
    """Measure, and write the picture and the table that were asked for.

    Raises:
        Cancelled: On Ctrl-C; then nothing is written.
        OutputError: If a file cannot be written.
    """
    from MedSAM3Core.benchmark import figures
    from MedSAM3Core.benchmark.comparison import Comparison

    for path, suffix in ((plot, ".png"), (table, ".md")):
        if path is not None:
            check_destination(path, (suffix,))

    def say(sentence: str) -> None:
        terminal.notify([f"measuring {sentence}"])

    with terminal.cancel_on_interrupt() as cancel:
        document = Comparison(subject, repeats, reference_slices, cancel, say).run()
    if plot is not None:
        figures.plot(document, plot)
    if table is not None:
        table.write_text(figures.markdown(document), encoding="utf-8")
    return document


def study(subject: Subject, kind: str, longest: int, table: Path | None) -> dict[str, Any]:
    """Modes side by side ("modes"), or one object in longer and longer scans ("length").

    Args:
        subject: What is measured.
        kind: Which of them.
        longest: Slices of the longest scan.
        table: File for the table.

    Raises:
        Cancelled: On Ctrl-C; then nothing is written.
        OutputError: If the table cannot be written.
    """
    from MedSAM3Core.benchmark import figures, studies

    if table is not None:
        check_destination(table, (".md",))
    count = len(subject.volume.array)
    lengths = scan_lengths(count, longest)
    if kind == "length":
        terminal.notify([_length_notice(count, lengths)])
    with terminal.cancel_on_interrupt() as cancel, benchmark_progress.announced() as progress:
        if kind == "modes":
            runs = studies.compare_modes(subject, subject.truth, cancel, progress)
        else:
            runs = studies.grow_scan(subject, lengths, count, cancel, progress)
    if table is not None:
        text = figures.as_table(studies.STUDY_COLUMNS, studies.study_rows(runs))
        table.write_text(text, encoding="utf-8")
    return {"subject": subject.title, "concepts": [c.phrase for c in subject.concepts], "runs": runs}


def scan_lengths(count: int, longest: int) -> list[int]:
    """Slices of the scans that an object of ``count`` slices is put into: itself first, ``longest`` last."""
    return [count, *(n for n in SCAN_LENGTHS if count < n < longest), *([longest] if longest > count else [])]


def _length_notice(count: int, lengths: list[int]) -> str:
    scans = ", ".join(f"{length:,}" for length in lengths)
    likely = benchmark_progress.about((count + sum(lengths)) * SLICE_S)
    return (
        f"{count} slices are looked at in scans of {scans} slices: {likely}, less where air is passed over."
    )


def show_study(document: dict[str, Any]) -> None:
    """One table on stdout, and on stderr what it cannot say."""
    from MedSAM3Core.benchmark import studies

    title = f"{document['subject']}; {', '.join(document['concepts'])}"
    columns = [(name, "left" if not number else "right") for number, name in enumerate(studies.STUDY_COLUMNS)]
    terminal.print_table(title, columns, studies.study_rows(document["runs"]))
    terminal.notify(studies.notices(document["runs"], document["concepts"]))


def show(document: dict[str, Any]) -> None:
    """Tables and facts on stdout."""
    from MedSAM3Core.benchmark import figures

    for columns, rows in (
        (figures.PATH_COLUMNS, figures.path_rows(document)),
        (figures.STAGE_COLUMNS, figures.stage_rows(document)),
        (figures.PART_COLUMNS, figures.part_rows(document)),
    ):
        headings = [(name, "left" if not number else "right") for number, name in enumerate(columns)]
        terminal.print_table("", headings, rows)
    terminal.print_facts(figures.facts(document))
