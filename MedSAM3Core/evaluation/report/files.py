"""``cases.csv``, ``summary.json`` and ``report.html`` of an evaluation."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from MedSAM3Core.errors import OutputError
from MedSAM3Core.evaluation.failures import EXPLANATIONS
from MedSAM3Core.evaluation.report.gallery import Gallery
from MedSAM3Core.evaluation.report.plots import COLOURS, Strip, reliability_plot, strip_plot
from MedSAM3Core.evaluation.scoring import Score
from MedSAM3Core.evaluation.statistics import Estimate
from MedSAM3Core.evaluation.summary import ConceptFigure, Contestant, Summary
from MedSAM3Core.resources import resource_path
from MedSAM3Core.volume.atomic import atomic_file

TEMPLATE = "report/evaluation.html"
CASES_FILE, SUMMARY_FILE, REPORT_FILE = "cases.csv", "summary.json", "report.html"


@dataclass(frozen=True)
class Provenance:
    """What a report must say about how it came about.

    Attributes:
        dataset: Title of the data set.
        homepage: Where it is published, or an empty string.
        citation: What to cite, or an empty string.
        split: Which cases.
        patient_note: What counts as a patient.
        cases: How many.
        patients: How many.
        models: Model to what is known of it, in words.
        settings: Name to value of what was chosen.
        notices: Sentences for the reader.
        created: UTC time, ISO 8601.
        version: Of this package.
    """

    dataset: str
    homepage: str
    citation: str
    split: str
    patient_note: str
    cases: int
    patients: int
    models: Mapping[str, str]
    settings: Mapping[str, str]
    notices: Sequence[str]
    created: str
    version: str


def write_report(
    folder: Path, scores: Sequence[Score], summary: Summary, gallery: Gallery, provenance: Provenance
) -> dict[str, Path]:
    """Write the three files.

    Args:
        folder: Where to; made if it is absent.
        scores: All rows.
        summary: Their figures.
        gallery: Pictures of the worst.
        provenance: How they came about.

    Returns:
        Kind of file to its path.

    Raises:
        OutputError: If a file cannot be written.
    """
    texts = {
        CASES_FILE: _csv(scores),
        SUMMARY_FILE: json.dumps(as_json(summary, provenance), indent=2, ensure_ascii=False) + "\n",
        REPORT_FILE: render(scores, summary, gallery, provenance),
    }
    check_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"The folder {folder} cannot be made ({error.strerror or error}); choose another."
        ) from error
    paths = {}
    for name, text in texts.items():
        with atomic_file(folder / name) as stream:
            stream.write(text.encode("utf-8"))
        paths[name] = folder / name
    return paths


def check_folder(folder: Path) -> None:
    """Raise `OutputError` if a report cannot go into ``folder``, because a file is in its place."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; give a folder for the report.")


def as_json(summary: Summary, provenance: Provenance) -> dict[str, Any]:
    """The figures as plain values."""
    return {
        "provenance": asdict(provenance),
        "overall": {who.label: asdict(value) for who, value in summary.overall.items()},
        "concepts": [asdict(one) for one in summary.concepts],
        "comparisons": [asdict(one) for one in summary.comparisons],
        "published": [asdict(one) | {"difference": one.difference} for one in summary.published],
        "failures": {who.label: dict(kinds) for who, kinds in summary.failures.items()},
        "calibration": {who.label: asdict(one) for who, one in summary.calibration.items()},
        "absent_left_empty": {who.label: share for who, share in summary.foreign_clean.items()},
    }


def _csv(scores: Sequence[Score]) -> str:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    names = [field.name for field in fields(Score)]
    writer.writerow(names)
    for score in scores:
        writer.writerow([_cell(getattr(score, name)) for name in names])
    return stream.getvalue()


def _cell(value: object) -> object:
    return "" if value is None else round(value, 5) if isinstance(value, float) else value


def render(scores: Sequence[Score], summary: Summary, gallery: Gallery, provenance: Provenance) -> str:
    """The page: everything in one file, no script, nothing loaded from anywhere."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"figure": figure, "interval": interval, "percent": percent}
    contestants = list(summary.failures)
    places = {who: n for n, who in enumerate(contestants)}
    template = environment.from_string(resource_path(TEMPLATE).read_text(encoding="utf-8"))
    return template.render(
        provenance=provenance,
        summary=summary,
        contestants=contestants,
        colours=[COLOURS[n % len(COLOURS)] for n in range(len(contestants))],
        strips=Markup(strip_plot(_strips(scores, summary, places), "Dice of every case")),
        reliability={
            who: Markup(reliability_plot(one, who.label, places[who]))
            for who, one in summary.calibration.items()
        },
        pictures={who: gallery.pictures(who.model, who.mode) for who in contestants},
        kinds=[kind for kind in EXPLANATIONS if any(summary.failures[who].get(kind) for who in contestants)],
        explanations=EXPLANATIONS,
        objects=any("f1" in one.metrics for one in summary.concepts),
    )


def _strips(scores: Sequence[Score], summary: Summary, places: Mapping[Contestant, int]) -> list[Strip]:
    strips = []
    for one in sorted(summary.concepts, key=lambda f: (f.source, f.concept, places[f.contestant])):
        members = [s for s in scores if _belongs(s, one)]
        label = f"{one.concept} | {one.contestant.label}"
        values = [s.dice for s in members if s.dice is not None]
        strips.append(
            Strip(label, values, [s.case for s in members], one.metrics["dice"], places[one.contestant])
        )
    return strips


def _belongs(score: Score, figure: ConceptFigure) -> bool:
    who = figure.contestant
    return score.present and (score.source, score.concept, score.model, score.mode) == (
        figure.source,
        figure.concept,
        who.model,
        who.mode,
    )


def figure(value: float | None, digits: int = 3) -> str:
    """A number for a table; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def interval(value: Estimate | None, digits: int = 3) -> str:
    """A mean with its interval for a table."""
    if value is None:
        return "–"
    if value.low is None or value.high is None:
        return f"{value.mean:.{digits}f}"
    return f"{value.mean:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def percent(value: float | None) -> str:
    """A share for a table."""
    return "–" if value is None else f"{100 * value:.0f}%"
