"""The whole comparison: every contender, in every mode, on every concept of every case."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from MedSAM3Core.errors import InputError
from MedSAM3Core.evaluation.cases import LabelledCase
from MedSAM3Core.evaluation.contenders import Contender, Desk, Mode
from MedSAM3Core.evaluation.scoring import Answer, Question, Score, judge
from MedSAM3Core.progress import CancelToken, ProgressCallback, ProgressMeter
from MedSAM3Core.volume import Volume

STAGE = "evaluating"


@dataclass(frozen=True, eq=False)
class Exhibit:
    """A judged answer with what it takes to draw it; lives until the next case.

    Attributes:
        score: The judgement.
        volume: The image.
        reference: bool (slices, rows, columns).
        answer: bool (slices, rows, columns).
    """

    score: Score
    volume: Volume
    reference: np.ndarray
    answer: np.ndarray


@dataclass(frozen=True)
class Plan:
    """What is asked.

    Attributes:
        contenders: Who.
        modes: How.
        concepts: Which concepts; empty for all that the cases know.
        tolerance: For NSD, in mm, or in pixels for images without a known size.
        ask_absent: Whether concepts that cannot be in the picture are asked for too, in mode "text".
    """

    contenders: Sequence[Contender]
    modes: Sequence[Mode]
    concepts: tuple[str, ...] = ()
    tolerance: float = 2.0
    ask_absent: bool = True


@dataclass
class _Case:
    """A case in hand."""

    case: LabelledCase
    volume: Volume
    references: dict[str, np.ndarray]
    objects: dict[str, np.ndarray] = field(default_factory=dict)


def evaluate(
    cases: Sequence[LabelledCase],
    plan: Plan,
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
    on_exhibit: Callable[[Exhibit], None] = lambda exhibit: None,
) -> list[Score]:
    """Ask and judge.

    Args:
        cases: Labelled images.
        plan: What is asked.
        progress: Receives a report a case.
        cancel: Stops between two questions.
        on_exhibit: Receives every judged answer while its image is at hand.

    Returns:
        One score a case, concept, contender and mode that the contender supports.

    Raises:
        InputError: If no case has a concept that is asked for.
        VolumeError: If an image or a mask cannot be read.
    """
    wanted = set(plan.concepts)
    known = {concept for case in cases for concept in case.references}
    if wanted and not wanted & known:
        raise InputError(
            f"None of the cases has {', '.join(sorted(wanted))}; they have {', '.join(sorted(known)) or 'no concept'}."
        )
    meter = ProgressMeter(progress, cancel, {STAGE: 1.0})
    scores: list[Score] = []
    for number, case in enumerate(cases):
        meter.step(STAGE, number, len(cases))
        for exhibit in _judge_case(_open_case(case, plan), plan, cancel):
            on_exhibit(exhibit)
            scores.append(exhibit.score)
    meter.step(STAGE, len(cases), len(cases))
    return scores


def _open_case(case: LabelledCase, plan: Plan) -> _Case:
    volume = case.read()
    references = case.read_references(volume)
    opened = _Case(case, volume, references)
    for concept, reference in case.references.items():
        if reference.counts_objects:
            opened.objects[concept] = reference.read_objects(volume)
    return opened


def _judge_case(opened: _Case, plan: Plan, cancel: CancelToken | None) -> list[Exhibit]:
    asked = {
        concept: mask
        for concept, mask in opened.references.items()
        if not plan.concepts or concept in plan.concepts
    }
    absent = {
        concept: np.zeros(opened.volume.geometry.shape, bool)
        for concept in opened.case.absent
        if plan.ask_absent and concept not in opened.references
    }
    exhibits = []
    for contender in plan.contenders if asked else ():
        with contender.open(opened.volume) as desk:
            for mode in plan.modes:
                if desk.supports(mode):
                    questions = asked | absent if mode.kind == "text" else asked
                    exhibits += _judge_mode(opened, contender.name, desk, mode, questions, plan, cancel)
    return exhibits


def _judge_mode(
    opened: _Case,
    model: str,
    desk: Desk,
    mode: Mode,
    questions: Mapping[str, np.ndarray],
    plan: Plan,
    cancel: CancelToken | None,
) -> list[Exhibit]:
    answers: list[Answer] = list(desk.answer(questions, mode, cancel))
    exhibits = []
    for (concept, reference), answer in zip(questions.items(), answers, strict=True):
        case = opened.case
        question = Question(case.name, case.patient, case.source, concept, model, mode.name)
        others = {name: mask for name, mask in opened.references.items() if name != concept}
        objects = opened.objects.get(concept)
        score = judge(question, answer, reference, opened.volume, others, objects, plan.tolerance, desk.axis)
        exhibits.append(Exhibit(score, opened.volume, reference, answer.mask))
    return exhibits
