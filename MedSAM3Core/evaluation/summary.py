"""Scores to figures: means with intervals per concept and contender, tests between contenders, kinds of failure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from MedSAM3Core.evaluation.calibration import Calibration, calibrate
from MedSAM3Core.evaluation.published import PublishedFigure, figures_for
from MedSAM3Core.evaluation.scoring import Score
from MedSAM3Core.evaluation.statistics import Estimate, PairedTest, compare, estimate, holm, patient_means

METRICS = ("dice", "iou", "hd95", "nsd", "f1", "ap")


@dataclass(frozen=True, order=True)
class Contestant:
    """A contender in a mode: one row of a table.

    Attributes:
        model: Who.
        mode: How.
    """

    model: str
    mode: str

    @property
    def label(self) -> str:
        """For tables."""
        return f"{self.model}, {self.mode}"


@dataclass(frozen=True)
class ConceptFigure:
    """One concept in one data set, by one contestant.

    Attributes:
        source: Data set.
        concept: What was asked for.
        contestant: By whom.
        metrics: Metric to its mean over patients with its interval; metrics without a value are left out.
        cases: Images that show the concept.
        missed: Answers among them that are empty; they have no HD95.
        case_dice: Mean Dice over images, as the papers report it.
        unit: Of HD95.
        clean_share: Share of slices without the concept that are left empty; None where there are none.
    """

    source: str
    concept: str
    contestant: Contestant
    metrics: Mapping[str, Estimate]
    cases: int
    missed: int
    case_dice: float
    unit: str
    clean_share: float | None


@dataclass(frozen=True)
class Comparison:
    """Two contestants on one concept.

    Attributes:
        source: Data set.
        concept: What was asked for.
        first: Contestant.
        second: Contestant.
        test: On Dice, first minus second.
    """

    source: str
    concept: str
    first: Contestant
    second: Contestant
    test: PairedTest


@dataclass(frozen=True)
class AgainstPublished:
    """A published figure and the one measured here under the same name and mode.

    Attributes:
        figure: As published.
        measured: Mean Dice over images; None where this model and mode were not run.
        cases: Images it was measured on.
    """

    figure: PublishedFigure
    measured: float | None
    cases: int

    @property
    def difference(self) -> float | None:
        """Measured minus published."""
        return None if self.measured is None else self.measured - self.figure.dice


@dataclass(frozen=True)
class Summary:
    """Everything that a report says in figures.

    Attributes:
        concepts: By source, concept, contestant.
        overall: Contestant to the mean Dice over concepts, each concept counted once.
        comparisons: Paired tests, corrected for their number.
        published: What the papers say about the same sets and concepts.
        failures: Contestant to kind of failure to its count; "" are answers without one.
        calibration: Contestant to its calibration, where it has scores.
        foreign_clean: Contestant to the share of absent-concept questions that were rightly left empty.
    """

    concepts: tuple[ConceptFigure, ...]
    overall: Mapping[Contestant, Estimate]
    comparisons: tuple[Comparison, ...]
    published: tuple[AgainstPublished, ...]
    failures: Mapping[Contestant, Mapping[str, int]]
    calibration: Mapping[Contestant, Calibration]
    foreign_clean: Mapping[Contestant, float]


def summarise(scores: Sequence[Score]) -> Summary:
    """Figures of some scores."""
    by_contestant = _group(scores, lambda s: Contestant(s.model, s.mode))
    by_concept = _group(
        [s for s in scores if s.present], lambda s: (s.source, s.concept, Contestant(s.model, s.mode))
    )
    figures = tuple(
        _figure(key, members, [s for s in by_contestant[key[2]] if (s.source, s.concept) == key[:2]])
        for key, members in sorted(by_concept.items())
    )
    return Summary(
        figures,
        {who: _overall(figures, who) for who in by_contestant if any(f.contestant == who for f in figures)},
        _compare(by_concept),
        _published(figures),
        {who: Counter(s.failure for s in members) for who, members in by_contestant.items()},
        {who: found for who, members in by_contestant.items() if (found := calibrate(members)) is not None},
        _foreign(by_contestant),
    )


def _group(scores: Sequence[Score], key) -> dict:
    grouped: dict = defaultdict(list)
    for score in scores:
        grouped[key(score)].append(score)
    return dict(grouped)


def _figure(
    key: tuple[str, str, Contestant], present: Sequence[Score], everything: Sequence[Score]
) -> ConceptFigure:
    source, concept, contestant = key
    metrics = {}
    for name in METRICS:
        values = [(s.patient, value) for s in present if (value := getattr(s, name)) is not None]
        if values:
            metrics[name] = estimate(list(patient_means(values).values()))
    empty = sum(s.empty_slices for s in everything)
    return ConceptFigure(
        source,
        concept,
        contestant,
        metrics,
        len(present),
        sum(s.hd95 is None for s in present),
        float(np.mean([s.dice for s in present if s.dice is not None])),
        present[0].unit,
        sum(s.clean_slices for s in everything) / empty if empty else None,
    )


def _overall(figures: Sequence[ConceptFigure], who: Contestant) -> Estimate:
    return estimate([f.metrics["dice"].mean for f in figures if f.contestant == who])


def _compare(by_concept: Mapping[tuple[str, str, Contestant], Sequence[Score]]) -> tuple[Comparison, ...]:
    questions = sorted({key[:2] for key in by_concept})
    found = []
    for source, concept in questions:
        entrants = sorted(key[2] for key in by_concept if key[:2] == (source, concept))
        means = {who: _dice_by_patient(by_concept[source, concept, who]) for who in entrants}
        for first, second in combinations(entrants, 2):
            test = compare(means[first], means[second])
            if test is not None:
                found.append(Comparison(source, concept, first, second, test))
    adjusted = holm({n: one.test.p_value for n, one in enumerate(found)})
    return tuple(replace(one, test=replace(one.test, adjusted=adjusted[n])) for n, one in enumerate(found))


def _dice_by_patient(scores: Sequence[Score]) -> dict[str, float]:
    return patient_means((s.patient, s.dice) for s in scores if s.dice is not None)


def _published(figures: Sequence[ConceptFigure]) -> tuple[AgainstPublished, ...]:
    """What is published of the sets and concepts that were measured, beside the measurement if the model is the
    same.
    """
    rows = []
    for source, concept in dict.fromkeys((f.source, f.concept) for f in figures):
        measured = {f.contestant: f for f in figures if (f.source, f.concept) == (source, concept)}
        for figure in figures_for(source, concept):
            own = measured.get(Contestant(figure.model, figure.mode))
            rows.append(AgainstPublished(figure, own.case_dice if own else None, own.cases if own else 0))
    return tuple(rows)


def _foreign(by_contestant: Mapping[Contestant, Sequence[Score]]) -> dict[Contestant, float]:
    """Share of questions about what is not in the image that got an empty answer."""
    shares = {}
    for who, members in by_contestant.items():
        absent = [s for s in members if not s.present]
        if absent:
            shares[who] = sum(s.failure == "" for s in absent) / len(absent)
    return shares
