"""The papers' own figures, kept as data with their sources, to print beside what is measured here."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import yaml

from MedSAM3Core.resources import resource_path


@dataclass(frozen=True)
class Source:
    """A publication.

    Attributes:
        short: For a table.
        title: As it is cited.
        url: Where it is.
        note: How its figures are meant.
    """

    short: str
    title: str
    url: str
    note: str = ""


@dataclass(frozen=True)
class PublishedFigure:
    """One figure of a table.

    Attributes:
        dataset: Layout name of the data set.
        concept: What was asked for; empty where the publication does not name it.
        model: Registry name, or the name of a model that is not in the registry.
        mode: "text", "text+box", "agent", "box" or "supervised".
        dice: 0..1.
        source: Where it was published.
    """

    dataset: str
    concept: str
    model: str
    mode: str
    dice: float
    source: Source


@lru_cache(maxsize=1)
def published_figures() -> tuple[PublishedFigure, ...]:
    """All figures that ship."""
    folder = resource_path("published")
    sources = read_sources()
    with (folder / "dice.csv").open(newline="", encoding="utf-8") as file:
        return tuple(
            PublishedFigure(
                row["dataset"],
                row["concept"],
                row["model"],
                row["mode"],
                float(row["dice"]),
                sources[row["source"]],
            )
            for row in csv.DictReader(file)
        )


def read_sources() -> Mapping[str, Source]:
    """Publications by short name."""
    text = (resource_path("published") / "sources.yaml").read_text(encoding="utf-8")
    return {name: Source(**values) for name, values in yaml.safe_load(text).items()}


def figures_for(dataset: str, concept: str) -> tuple[PublishedFigure, ...]:
    """What is published of a concept in a data set."""
    return tuple(f for f in published_figures() if f.dataset == dataset and f.concept == concept)
