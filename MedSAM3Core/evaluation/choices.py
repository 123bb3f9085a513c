"""Which settings are better, measured on one set of features a case: how the choices in `docs/decisions` are made.

Used on validation patients, never on those of the held-out test split.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from MedSAM3Core.evaluation.heldout import absent_concepts, dice, reference_masks
from MedSAM3Core.progress import CancelToken, ProgressCallback, ProgressMeter
from MedSAM3Core.training.pack import Case
from MedSAM3Core.volume import read_volume

if TYPE_CHECKING:
    from MedSAM3Core.inference.session import Segmenter, Session


@dataclass(frozen=True)
class ChoiceScore:
    """One variant over all cases.

    Attributes:
        variant: Its name.
        dice: Data set to the mean, over concepts, of the mean Dice of its cases.
        clean_share: Share of slices without the concept that are left empty, where the case has the concept.
        foreign_share: The same for concepts that cannot be in the picture.
    """

    variant: str
    dice: dict[str, float]
    clean_share: float
    foreign_share: float

    @property
    def mean(self) -> float:
        """Mean over the data sets."""
        return float(np.mean(list(self.dice.values()))) if self.dice else 0.0


class _Tally:
    def __init__(self) -> None:
        self.dice: dict[tuple[str, str], list[float]] = defaultdict(list)
        self.clean: list[float] = []
        self.foreign: list[float] = []


def compare_settings(
    segmenter: Segmenter,
    cases: Sequence[Case],
    groups: Mapping[str, Sequence[str]],
    variants: Mapping[str, Mapping[str, object]],
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
) -> list[ChoiceScore]:
    """Run every variant of the settings on every case.

    Args:
        segmenter: The model.
        cases: Validation cases.
        groups: Broader term to its parts.
        variants: Name to the attributes of `InferenceSettings` that it changes.
        progress: Receives a report a case and variant.
        cancel: Stops between two of them.

    Returns:
        One score a variant, in the order given.
    """
    meter = ProgressMeter(progress, cancel, {"comparing": 1.0})
    tallies = {name: _Tally() for name in variants}
    total = len(cases) * len(variants)
    for number, case in enumerate(cases):
        references = reference_masks(case, groups)
        absent = absent_concepts(case, number)
        with segmenter.open(read_volume(case.image)) as session:
            for place, (name, changes) in enumerate(variants.items()):
                meter.step("comparing", number * len(variants) + place, total)
                _judge(session.with_settings(**changes), case, references, absent, tallies[name])
    meter.step("comparing", total, total)
    return [_summarise(name, tally) for name, tally in tallies.items()]


def _judge(
    session: Session, case: Case, references: Mapping[str, np.ndarray], absent: Sequence[str], tally: _Tally
) -> None:
    answers = session.segment_many([*references, *absent])
    for answer, concept in zip(answers, [*references, *absent], strict=True):
        mask = session.plan.to_plane(answer.to_array())
        if concept not in references:
            tally.foreign.append(float((~mask.any(axis=(1, 2))).mean()))
            continue
        reference = session.plan.to_plane(references[concept])
        if reference.any():
            tally.dice[case.source, concept].append(dice(mask, reference))
        without = ~reference.any(axis=(1, 2))
        if without.any():
            tally.clean.append(float((~mask[without].any(axis=(1, 2))).mean()))


def _summarise(name: str, tally: _Tally) -> ChoiceScore:
    by_source: dict[str, list[float]] = defaultdict(list)
    for (source, _), values in tally.dice.items():
        by_source[source].append(float(np.mean(values)))
    return ChoiceScore(
        name,
        {source: float(np.mean(values)) for source, values in by_source.items()},
        float(np.mean(tally.clean)) if tally.clean else 1.0,
        float(np.mean(tally.foreign)) if tally.foreign else 1.0,
    )
