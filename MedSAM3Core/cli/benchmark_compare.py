"""``medsam3 benchmark``: our path beside the published ones, in one run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from MedSAM3Core.cli import terminal
from MedSAM3Core.cli.outputs import check_destination

if TYPE_CHECKING:
    from MedSAM3Core.benchmark.subject import Subject

SCAN_LENGTHS = (100, 300, 600, 2000)
"""Slices of the scans that an object is put into."""


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


def study(subject: Subject, kind: str, table: Path | None) -> dict[str, Any]:
    """Modes side by side ("modes"), or one object in longer and longer scans ("length").

    Raises:
        Cancelled: On Ctrl-C; then nothing is written.
        OutputError: If the table cannot be written.
    """
    from MedSAM3Core.benchmark import figures, studies

    if table is not None:
        check_destination(table, (".md",))
    with terminal.cancel_on_interrupt() as cancel:
        if kind == "modes":
            runs = studies.compare_modes(subject, subject.truth, cancel)
        else:
            count = len(subject.volume.array)
            lengths = sorted({count, *(n for n in SCAN_LENGTHS if n > count)})
            runs = studies.grow_scan(subject, lengths, count, cancel)
    if table is not None:
        text = figures.as_table(studies.STUDY_COLUMNS, studies.study_rows(runs))
        table.write_text(text, encoding="utf-8")
    return {"subject": subject.title, "concepts": [c.phrase for c in subject.concepts], "runs": runs}


def show_study(document: dict[str, Any]) -> None:
    """One table on stdout."""
    from MedSAM3Core.benchmark import studies

    title = f"{document['subject']}; {', '.join(document['concepts'])}"
    columns = [(name, "left" if not number else "right") for number, name in enumerate(studies.STUDY_COLUMNS)]
    terminal.print_table(title, columns, studies.study_rows(document["runs"]))


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
