"""Dice of a model on the held-out patients of a data pack, asked by text alone, through the same door as a user.

Every concept that was looked for in a case is asked for, and some that are surely absent. Broader terms ("hippocampus")
are asked for where all their parts were looked for.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from MedSAM3Core.progress import CancelToken, ProgressCallback, ProgressMeter
from MedSAM3Core.training.knowledge import ANYWHERE, CONCEPT_REGIONS, SOURCE_REGIONS
from MedSAM3Core.training.pack import Case
from MedSAM3Core.volume import read_volume

if TYPE_CHECKING:
    from MedSAM3Core.inference.session import Segmenter

logger = logging.getLogger(__name__)

ABSENT_PER_CASE = 3
"""Surely absent concepts asked of each case."""


@dataclass(frozen=True)
class Score:
    """One concept in one case.

    Attributes:
        case: File name of the image.
        patient: Of the case.
        source: Data set.
        concept: What was asked for.
        dice: Of the whole case, 0..1; None when the concept is absent.
        slices: Slices without the concept in the reference.
        clean: How many of these are empty in the answer.
        foreign: Whether the concept cannot be in the picture at all.
    """

    case: str
    patient: str
    source: str
    concept: str
    dice: float | None
    slices: int
    clean: int
    foreign: bool = False


@dataclass(frozen=True)
class ConceptSummary:
    """A concept over all its cases.

    Attributes:
        concept: The phrase.
        source: Data set.
        cases: Cases that have it.
        dice: Mean of the cases' Dice.
        clean_share: Share of slices without it that the answer leaves empty, None where there was none.
    """

    concept: str
    source: str
    cases: int
    dice: float
    clean_share: float | None


def dice(answer: np.ndarray, reference: np.ndarray) -> float:
    """Dice of two boolean masks of one shape; 1 when both are empty."""
    total = int(answer.sum()) + int(reference.sum())
    return 2.0 * int((answer & reference).sum()) / total if total else 1.0


def evaluate_cases(
    segmenter: Segmenter,
    cases: Sequence[Case],
    groups: Mapping[str, Sequence[str]],
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
    **settings: object,
) -> list[Score]:
    """Ask a model for every known and some absent concepts of each case.

    Args:
        segmenter: The model.
        cases: Held-out cases.
        groups: Broader term to its parts.
        progress: Receives a report a case.
        cancel: Stops between two cases.
        settings: Passed to `Segmenter.open`.
    """
    meter = ProgressMeter(progress, cancel, {"evaluating": 1.0})
    scores: list[Score] = []
    for number, case in enumerate(cases):
        meter.step("evaluating", number, len(cases))
        scores.extend(_evaluate_case(segmenter, case, groups, number, settings))
    meter.step("evaluating", len(cases), len(cases))
    return scores


def _evaluate_case(
    segmenter: Segmenter, case: Case, groups: Mapping[str, Sequence[str]], seed: int, settings: dict
) -> Iterator[Score]:
    volume = read_volume(case.image)
    references = reference_masks(case, groups)
    absent = absent_concepts(case, seed)
    with segmenter.open(volume, **settings) as session:
        answers = session.segment_many([*references, *absent])
    for answer, concept in zip(answers, [*references, *absent], strict=True):
        reference = references.get(concept, np.zeros(volume.geometry.shape, bool))
        mask = answer.to_array()
        without = ~reference.any(axis=(1, 2))
        yield Score(
            case=case.image.name,
            patient=case.patient,
            source=case.source,
            concept=concept,
            dice=dice(mask, reference) if reference.any() else None,
            slices=int(without.sum()),
            clean=int((without & ~mask.any(axis=(1, 2))).sum()),
            foreign=concept in absent,
        )


def reference_masks(case: Case, groups: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """Concept to its reference, bool (slices, rows, columns), broader terms included."""
    masks = {}
    if case.is_volume:
        labels = read_volume(next(iter(case.masks.values()))).array
        masks = {concept: labels == value for value, concept in case.labels.items()}
    else:
        for concept, path in case.masks.items():
            array = read_volume(path).array
            masks[concept] = (array if array.ndim == 3 else array[..., 0]) > 0
    for term, parts in groups.items():
        if all(part in masks for part in parts):
            masks[term] = np.any([masks[part] for part in parts], axis=0)
    return masks


def absent_concepts(case: Case, seed: int) -> list[str]:
    """`ABSENT_PER_CASE` concepts that cannot be in the case's picture, the same ones for the same seed."""
    regions = SOURCE_REGIONS[case.source]
    foreign = [
        concept
        for concept, where in CONCEPT_REGIONS.items()
        if where is not ANYWHERE and not where & regions and concept not in case.concepts
    ]
    order = np.random.default_rng(seed).permutation(len(foreign))[:ABSENT_PER_CASE]
    return [foreign[index] for index in order]


def summarise(scores: Sequence[Score]) -> list[ConceptSummary]:
    """Mean Dice a concept and source, most cases first."""
    grouped: dict[tuple[str, str], list[Score]] = defaultdict(list)
    for score in scores:
        if not score.foreign:
            grouped[score.concept, score.source].append(score)
    summaries = []
    for (concept, source), members in grouped.items():
        found = [member.dice for member in members if member.dice is not None]
        if not found:
            continue
        slices = sum(member.slices for member in members)
        clean = sum(member.clean for member in members)
        summaries.append(
            ConceptSummary(
                concept, source, len(found), float(np.mean(found)), clean / slices if slices else None
            )
        )
    return sorted(summaries, key=lambda summary: (-summary.cases, summary.concept))


def absent_share(scores: Sequence[Score]) -> float:
    """Share of slices that stay empty when a concept is asked for that cannot be in the picture."""
    foreign = [score for score in scores if score.foreign]
    return sum(score.clean for score in foreign) / max(sum(score.slices for score in foreign), 1)
