"""From a verdict to the next attempt. The only place where a judge's actions take effect, and all they can do."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from MedSAM3Core.agent.facts import (
    MAX_ACTIONS,
    THRESHOLDS,
    Action,
    AddBox,
    Attempt,
    Judgement,
    KeepSlices,
    Rephrase,
    Round,
    SetThreshold,
    Stop,
    Synonym,
    Target,
    Verdict,
)
from MedSAM3Core.prompts import Concept

THRESHOLD_STEP = 0.15
"""How far a threshold is moved when a verdict asks for more or less and names no action that can be used."""
DEFAULT_THRESHOLD = 0.5
"""Where a segmentation does not say which threshold it was made with."""


@dataclass(frozen=True)
class Move:
    """What follows a verdict.

    Attributes:
        attempt: The next one; None when nothing more is to be tried.
        notices: Actions that were set aside, and why.
    """

    attempt: Attempt | None
    notices: tuple[str, ...] = ()


def next_move(target: Target, current: Round, earlier: Sequence[Round]) -> Move:
    """The next attempt at a target after a verdict that was not "accept".

    The actions are applied one after the other. What repeats an earlier attempt is not tried again; then, and when no
    action can be used, the verdict itself says what to change: the next synonym, or a threshold a step up or down.

    Args:
        target: What is looked for.
        current: The round that was judged last.
        earlier: All rounds of this target, ``current`` among them.
    """
    judgement = current.judgement
    if judgement.verdict in (Verdict.ACCEPT, Verdict.UNJUDGED):
        return Move(None)
    tried = [one.attempt for one in earlier]
    attempt = current.attempt
    notices: list[str] = []
    for action in judgement.actions[:MAX_ACTIONS]:
        if isinstance(action, Stop):
            return Move(None, tuple(notices))
        changed = _apply(action, attempt, target, tried, judgement)
        if changed is None:
            notices.append(f"The action {_name(action)} changes nothing that was not tried before.")
        else:
            attempt = changed
    if attempt in tried:
        return Move(_by_rule(judgement.verdict, current, target, tried), tuple(notices))
    return Move(attempt, tuple(notices))


def _apply(
    action: Action, attempt: Attempt, target: Target, tried: Sequence[Attempt], judgement: Judgement
) -> Attempt | None:
    """The attempt with one action worked in; None if it changes nothing new."""
    change = dataclasses.replace
    if isinstance(action, Rephrase):
        said = {said_in(one) for one in tried} | {said_in(attempt)}
        if action.concept.phrase in said:
            return None
        return change(attempt, concept=saying(action.concept, action.concept.phrase), fresh=False)
    if isinstance(action, Synonym):
        return _next_synonym(attempt, target, tried)
    if isinstance(action, AddBox):
        if action.box in attempt.boxes:
            return None
        fresh = attempt.fresh or (judgement.verdict is Verdict.WRONG_OBJECT and action.box.positive)
        return change(attempt, boxes=(*attempt.boxes, action.box), fresh=fresh)
    if isinstance(action, KeepSlices):
        kept = (action.first, action.last)
        return None if kept == attempt.slices else change(attempt, slices=kept)
    if isinstance(action, SetThreshold):
        return (
            None
            if action.value == attempt.threshold
            else change(attempt, threshold=action.value, fresh=False)
        )
    return None


def said_in(attempt: Attempt) -> str:
    """The phrase that an attempt says to the model."""
    return (attempt.concept.prompts or (attempt.concept.phrase,))[0]


def saying(concept: Concept, phrase: str) -> Concept:
    """A concept that says one phrase to the model and keeps its name, code and colour."""
    return dataclasses.replace(concept, prompts=(phrase,))


def _next_synonym(attempt: Attempt, target: Target, tried: Sequence[Attempt]) -> Attempt | None:
    said = {said_in(one) for one in tried} | {said_in(attempt)}
    names = (target.concept.phrase, *target.concept.prompts)
    phrase = next((name for name in names if name not in said), None)
    if phrase is None:
        return None
    return dataclasses.replace(attempt, concept=saying(target.concept, phrase), fresh=False)


def _by_rule(verdict: Verdict, current: Round, target: Target, tried: Sequence[Attempt]) -> Attempt | None:
    """What the verdict alone suggests; None if that was tried too."""
    attempt = current.attempt
    if verdict is Verdict.WRONG_OBJECT or current.segmentation.empty:
        candidate = _next_synonym(attempt, target, tried)
        if candidate is not None or not current.segmentation.empty:
            return candidate
    up = verdict in (Verdict.TOO_LARGE, Verdict.WRONG_SLICES)
    base = attempt.threshold
    if base is None:
        base = current.segmentation.provenance.thresholds.get("score", DEFAULT_THRESHOLD)
    value = round(
        min(max(base + (THRESHOLD_STEP if up else -THRESHOLD_STEP), THRESHOLDS[0]), THRESHOLDS[1]), 4
    )
    moved = dataclasses.replace(attempt, threshold=value, fresh=False)
    return None if moved in tried or value == base else moved


def _name(action: Action) -> str:
    return type(action).__name__.lower()
