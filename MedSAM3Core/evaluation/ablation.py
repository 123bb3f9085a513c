"""What can an agent recover when the base result is wrong, with a good judge and with a poor one?

The third open question of the MedSAM-3 paper, answered with judges of known accuracy (`SimulatedJudge`) on held-out
cases: base results as they are, and degraded on purpose (`DegradedSession`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from MedSAM3Core.evaluation.agent import DEGRADATIONS, DegradedSession, SimulatedJudge, run_agent_case
from MedSAM3Core.evaluation.heldout import dice, reference_masks
from MedSAM3Core.inference.plan import PlaneBox
from MedSAM3Core.progress import CancelToken, ProgressCallback, ProgressMeter
from MedSAM3Core.prompts import Box
from MedSAM3Core.training.pack import Case
from MedSAM3Core.volume import read_volume

if TYPE_CHECKING:
    from MedSAM3Core.inference.session import Segmenter, Session

ACCURACIES = (1.0, 0.75, 0.25, 0.0)
"""Judges that are compared: always right, mostly, seldom, never but by chance."""
OTHERS = ("spleen", "lung", "bone")
"""What a wrong judge may rename the target to where the case knows no other structure."""
LEAST_VOXELS = 50
"""A reference smaller than this is not asked for."""


@dataclass(frozen=True)
class AblationScore:
    """One case under one degradation.

    Attributes:
        case: File name of the image.
        concept: What was asked for.
        degradation: One of `DEGRADATIONS`.
        base: Dice of the (degraded) answer to text alone.
        box: Dice of text with the reference's box on its largest slice, from the same base.
        agent: Judge's accuracy to the Dice of the agent's answer.
    """

    case: str
    concept: str
    degradation: str
    base: float
    box: float
    agent: dict[float, float]


def degrade_and_recover(
    segmenter: Segmenter,
    cases: Sequence[Case],
    rounds: int = 3,
    accuracies: Sequence[float] = ACCURACIES,
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
) -> list[AblationScore]:
    """Run every degradation with every judge on the largest structure of each case.

    Args:
        segmenter: The model.
        cases: Held-out cases; one with a single known structure has no wrong one and is left out there.
        rounds: Most rounds of the agent.
        accuracies: Judges, by how often they are right.
        progress: Receives a report a case.
        cancel: Stops between two cases.
    """
    meter = ProgressMeter(progress, cancel, {"evaluating": 1.0})
    scores: list[AblationScore] = []
    for number, case in enumerate(cases):
        meter.step("evaluating", number, len(cases))
        masks = {name: mask for name, mask in reference_masks(case, {}).items() if mask.sum() >= LEAST_VOXELS}
        order = sorted(masks, key=lambda name: -int(masks[name].sum()))
        if not order:
            continue
        with segmenter.open(read_volume(case.image)) as session:
            scores.extend(_of_case(session, case, order, masks[order[0]], number, rounds, accuracies))
    meter.step("evaluating", len(cases), len(cases))
    return scores


def _of_case(
    session: Session,
    case: Case,
    order: Sequence[str],
    reference: np.ndarray,
    seed: int,
    rounds: int,
    accuracies: Sequence[float],
) -> Iterator[AblationScore]:
    concept, wrong = order[0], order[1] if len(order) > 1 else ""
    drawn = largest_box(session, reference)
    for kind in DEGRADATIONS:
        if kind == "wrong concept" and not wrong:
            continue
        degraded = DegradedSession(session, kind, wrong)
        base = degraded.segment(concept)
        boxed = degraded.segment(concept, [drawn])
        recovered = {}
        for accuracy in accuracies:
            judge = SimulatedJudge(concept, reference, accuracy, seed, order[1:] or OTHERS)
            found = run_agent_case(degraded, f"segment the {concept}", judge, rounds)
            recovered[accuracy] = dice(found.to_array(), reference)
        yield AblationScore(
            case.image.name,
            concept,
            kind,
            dice(base.to_array(), reference),
            dice(boxed.to_array(), reference),
            recovered,
        )


def largest_box(session: Session, reference: np.ndarray) -> Box:
    """The reference's box on the slice where it is largest, as an annotator would draw it first."""
    plan = session.plan
    plane = plan.to_plane(reference)
    index = int(plane.sum(axis=(1, 2)).argmax())
    rows, columns = np.nonzero(plane[index])
    height, width = (int(rows.min()), int(rows.max())), (int(columns.min()), int(columns.max()))
    return plan.box_to_grid(PlaneBox((index, index), height, width))


@dataclass(frozen=True)
class AblationRow:
    """Means over the cases of one degradation.

    Attributes:
        degradation: One of `DEGRADATIONS`.
        cases: How many.
        base: Mean Dice of the base result.
        box: Mean Dice of text and one reference box.
        agent: Judge's accuracy to mean Dice.
    """

    degradation: str
    cases: int
    base: float
    box: float
    agent: dict[float, float]


def summarise(scores: Sequence[AblationScore]) -> list[AblationRow]:
    """One row a degradation, in the order of `DEGRADATIONS`."""
    grouped: dict[str, list[AblationScore]] = defaultdict(list)
    for score in scores:
        grouped[score.degradation].append(score)
    return [
        AblationRow(
            kind,
            len(members),
            float(np.mean([one.base for one in members])),
            float(np.mean([one.box for one in members])),
            {key: float(np.mean([one.agent[key] for one in members])) for key in members[0].agent},
        )
        for kind in DEGRADATIONS
        if (members := grouped.get(kind))
    ]
