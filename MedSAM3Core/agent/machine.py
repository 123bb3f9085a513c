"""The agent as a state machine: small typed steps that somebody else performs.

::

    overview -> plan -> segment -> render -> judge -+-> (accept, stop, rounds used up) next target, or done
                           ^                        |
                           +---------- act ---------+

The machine holds no segmenter, no language model and no thread. It says which step comes next (`Machine.step`) and is
told what came of it (`Machine.take`). `MedSAM3Core.agent.run` performs the steps one after the other in a blocking
call; 3D Slicer's panel performs the same steps from a timer, so that its window never waits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from MedSAM3Core.agent import measures
from MedSAM3Core.agent.acting import next_move, said_in
from MedSAM3Core.agent.facts import (
    MAX_ROUNDS,
    Answer,
    Attempt,
    Judgement,
    Outcome,
    Picture,
    Plan,
    Round,
    Target,
    Verdict,
)
from MedSAM3Core.agent.judging import Look, Request
from MedSAM3Core.agent.pictures import PictureMaker
from MedSAM3Core.agent.scoring import best_round, internal_score
from MedSAM3Core.errors import InputError, PromptError
from MedSAM3Core.prompts import Box, Concept
from MedSAM3Core.segmentation import Provenance, Segmentation
from MedSAM3Core.windowing import Window, choose_window

MAX_REQUEST = 500
"""Letters of a request; longer ones are refused rather than cut."""


@dataclass(frozen=True, eq=False)
class OverviewStep:
    """Draw some slices of the image alone; answered with pictures."""

    window: Window


@dataclass(frozen=True, eq=False)
class PlanStep:
    """Find out what the request means; answered with a `Plan`."""

    request: Request


@dataclass(frozen=True, eq=False)
class SegmentStep:
    """Run the segmenter; answered with a `Segmentation`.

    Attributes:
        concept: What to say.
        threshold: Score threshold, None for the model's.
        boxes: All boxes where there is no previous result, else the new ones.
        previous: Result to correct with the boxes; None segments anew.
    """

    concept: Concept
    threshold: float | None
    boxes: tuple[Box, ...]
    previous: Segmentation | None

    @property
    def is_cut(self) -> bool:
        """Whether the segmenter is not needed: only slices are dropped."""
        return self.previous is not None and not self.boxes


@dataclass(frozen=True, eq=False)
class RenderStep:
    """Draw the slices that tell most; answered with pictures."""

    segmentation: Segmentation
    before: Segmentation | None
    window: Window


@dataclass(frozen=True, eq=False)
class JudgeStep:
    """Judge a round; answered with a `Judgement`."""

    look: Look


Step = OverviewStep | PlanStep | SegmentStep | RenderStep | JudgeStep


@dataclass
class _Try:
    """The target at hand: what is being tried and what was tried."""

    index: int
    target: Target
    attempt: Attempt
    rounds: list[Round] = field(default_factory=list)
    segmentation: Segmentation | None = None
    pictures: tuple[Picture, ...] = ()


class Machine:
    """One request on one volume.

    Args:
        text: The request in plain words.
        maker: Draws the volume.
        rounds: Most rounds a target.
        window: Intensity window for the pictures, as `Segmenter.open` takes it.
        threshold: First score threshold; None takes the model's.

    Raises:
        PromptError: If the request is empty or longer than `MAX_REQUEST`.
        InputError: If the number of rounds is out of range.
    """

    def __init__(
        self,
        text: str,
        maker: PictureMaker,
        rounds: int = 3,
        window: str = "auto",
        threshold: float | None = None,
    ) -> None:
        self.text = " ".join(text.split())
        if not self.text:
            raise PromptError("The request is empty; say what to find, for example 'segment the liver'.")
        if len(self.text) > MAX_REQUEST:
            raise PromptError(
                f"The request has {len(self.text)} characters; expected at most {MAX_REQUEST}, so shorten it."
            )
        if not 1 <= rounds <= MAX_ROUNDS:
            raise InputError(f"The number of rounds is {rounds}; expected 1 to {MAX_ROUNDS}.")
        self.maker = maker
        self.most_rounds = rounds
        self.plan: Plan | None = None
        self.rounds: list[Round] = []
        self.notices: list[str] = []
        self._window_request = window
        self._threshold = threshold
        self._windows: dict[str, Window] = {}
        self._discarded: set[int] = set()
        self._chosen: list[Round | None] = []
        self._try: _Try | None = None
        self._step: Step | None = OverviewStep(self._window(None))

    # For whoever performs the steps --------------------------------------------------------------------------------

    @property
    def step(self) -> Step | None:
        """What to do next; None when the request is done."""
        return self._step

    @property
    def fraction(self) -> float:
        """Share of the largest possible number of rounds that is behind us, 0..1."""
        if self.plan is None:
            return 0.0
        total = len(self.plan.targets) * self.most_rounds
        here = len(self._try.rounds) if self._try is not None else 0
        return min(1.0, (len(self._chosen) * self.most_rounds + here) / total)

    def take(self, answer: Any) -> None:
        """Go on with what came of the step.

        Args:
            answer: Of the type that the step's class names.

        Raises:
            InputError: If there is no step to answer.
        """
        step = self._step
        if isinstance(step, OverviewStep):
            self._step = PlanStep(Request(self.text, answer, self.maker))
        elif isinstance(step, PlanStep):
            self._take_plan(answer)
        elif isinstance(step, SegmentStep):
            self._take_segmentation(answer)
        elif isinstance(step, RenderStep):
            self._take_pictures(answer)
        elif isinstance(step, JudgeStep):
            self._take_judgement(answer)
        else:
            raise InputError("The request is done; there is no step to answer.")

    # For a user who looks on ---------------------------------------------------------------------------------------

    def accept(self, number: int) -> None:
        """Take a round as its target's result, whatever the judge said; its target is not tried further.

        Raises:
            InputError: If there is no such round.
        """
        wanted = self._round(number)
        self._discarded.discard(number)
        if wanted.target < len(self._chosen):
            self._chosen[wanted.target] = wanted
        elif self._try is not None and self._try.index == wanted.target:
            self._finish_target(wanted)

    def discard(self, number: int) -> None:
        """Leave a round out of the choice; what is tried next starts from the round before it.

        Raises:
            InputError: If there is no such round.
        """
        unwanted = self._round(number)
        self._discarded.add(number)
        if unwanted.target < len(self._chosen):
            self._chosen[unwanted.target] = best_round(self._kept(unwanted.target))

    def outcome(self) -> Outcome:
        """What there is so far, or at the end."""
        plan = self.plan or Plan(())
        chosen = list(self._chosen)
        if self._try is not None:
            chosen.append(best_round(self._kept(self._try.index)))
        chosen += [None] * (len(plan.targets) - len(chosen))
        return Outcome(
            plan,
            tuple(self.rounds),
            tuple(chosen),
            tuple(self._answers(plan, chosen)),
            tuple(dict.fromkeys((*plan.notices, *self.notices, *_warnings(plan, chosen)))),
        )

    # Transitions ---------------------------------------------------------------------------------------------------

    def _take_plan(self, plan: Plan) -> None:
        if not plan.targets:
            raise PromptError(
                f"Nothing to segment was found in the request {self.text!r}; name a structure, such as 'liver'."
            )
        self.plan = plan
        self._start_target(0)

    def _start_target(self, index: int) -> None:
        assert self.plan is not None
        if index == len(self.plan.targets):
            self._try, self._step = None, None
            return
        target = self.plan.targets[index]
        self._try = _Try(index, target, Attempt(target.concept, self._threshold))
        self._step = SegmentStep(target.concept, self._threshold, (), None)

    def _take_segmentation(self, segmentation: Segmentation) -> None:
        now = self._now
        if now.attempt.slices is not None:
            segmentation = keep_slices(segmentation, self.maker.plan.axes[0], *now.attempt.slices)
        now.segmentation = segmentation
        before = now.rounds[-1].segmentation if now.rounds else None
        self._step = RenderStep(segmentation, before, self._window(now.attempt.concept.phrase))

    def _take_pictures(self, pictures: tuple[Picture, ...]) -> None:
        now = self._now
        assert now.segmentation is not None
        now.pictures = tuple(pictures)
        look = Look(
            text=self.text,
            target=now.target,
            attempt=now.attempt,
            segmentation=now.segmentation,
            pictures=now.pictures,
            score=internal_score(now.segmentation, now.target),
            earlier=tuple(now.rounds),
            rounds_left=self.most_rounds - len(now.rounds) - 1,
            maker=self.maker,
        )
        self._step = JudgeStep(look)

    def _take_judgement(self, judgement: Judgement) -> None:
        now, step = self._now, self._step
        assert isinstance(step, JudgeStep)
        look = step.look
        done = Round(
            len(self.rounds) + 1,
            now.index,
            now.attempt,
            look.segmentation,
            now.pictures,
            look.score,
            judgement,
        )
        now.rounds.append(done)
        self.rounds.append(done)
        move = None
        if judgement.verdict is not Verdict.ACCEPT and len(now.rounds) < self.most_rounds:
            move = next_move(now.target, done, now.rounds)
            self.notices += move.notices
        if move is None or move.attempt is None:
            self._finish_target(best_round(self._kept(now.index)))
        else:
            self._try_next(move.attempt, done)

    def _try_next(self, attempt: Attempt, last: Round) -> None:
        now = self._now
        kept = self._kept(now.index)
        base = last if last.number not in self._discarded else (kept[-1] if kept else None)
        now.attempt = attempt
        self._step = _segment_step(attempt, base)

    def _finish_target(self, chosen: Round | None) -> None:
        now = self._now
        self._chosen.append(chosen)
        self._start_target(now.index + 1)

    # Inside --------------------------------------------------------------------------------------------------------

    @property
    def _now(self) -> _Try:
        assert self._try is not None
        return self._try

    def _kept(self, target: int) -> list[Round]:
        return [one for one in self.rounds if one.target == target and one.number not in self._discarded]

    def _round(self, number: int) -> Round:
        if not 1 <= number <= len(self.rounds):
            raise InputError(f"There is no round {number}; expected 1 to {len(self.rounds)}.")
        return self.rounds[number - 1]

    def _window(self, phrase: str | None) -> Window:
        key = phrase or ""
        if key not in self._windows:
            self._windows[key] = choose_window(self.maker.volume, phrase, self._window_request)
        return self._windows[key]

    def _answers(self, plan: Plan, chosen: Sequence[Round | None]) -> list[Answer]:
        found = [one.segmentation if one is not None else None for one in chosen]
        return [
            measures.answer(question, found, self.maker.volume, self.maker.plan)
            for question in plan.questions
        ]


def _segment_step(attempt: Attempt, base: Round | None) -> SegmentStep:
    """How an attempt is made from the round it follows, with as little work as will do."""
    concept, threshold = attempt.concept, attempt.threshold
    if attempt.fresh and not (base is not None and base.attempt.fresh):
        geometry = base.segmentation.geometry if base is not None else None
        if geometry is not None:
            nothing = Segmentation.from_mask(
                concept,
                geometry,
                np.zeros(geometry.shape, bool),
                provenance=Provenance(concept.typed, "", prompts=(said_in(attempt),)),
            )
            return SegmentStep(concept, threshold, attempt.boxes, nothing)
    same = base is not None and (said_in(base.attempt), base.attempt.threshold) == (
        said_in(attempt),
        threshold,
    )
    if base is None or not same:
        return SegmentStep(concept, threshold, attempt.boxes, None)
    new = tuple(box for box in attempt.boxes if box not in base.attempt.boxes)
    return SegmentStep(concept, threshold, new, base.segmentation)


def keep_slices(segmentation: Segmentation, axis: int, first: int, last: int) -> Segmentation:
    """A segmentation without what lies outside of some slices.

    Args:
        segmentation: Of any grid.
        axis: Grid array axis (of (k, j, i): 0, 1, 2) of the slices.
        first: First slice to keep, grid index.
        last: Last slice to keep.
    """
    if segmentation.extent is None:
        return segmentation
    start = (segmentation.extent.k, segmentation.extent.j, segmentation.extent.i)[axis][0]
    places = start + np.arange(segmentation.mask.shape[axis])
    shape = [1, 1, 1]
    shape[axis] = -1
    inside = ((places >= first) & (places <= last)).reshape(shape)
    full, probability = segmentation.to_array(), segmentation.probability_map()
    full[segmentation.extent.slices] &= inside
    probability[segmentation.extent.slices] *= inside
    cut = Segmentation.from_mask(segmentation.concept, segmentation.geometry, full, probability=probability)
    shown = [score for place, score in segmentation.slice_scores.items() if first <= place <= last]
    return dataclasses.replace(
        segmentation,
        extent=cut.extent,
        mask=cut.mask,
        probability=cut.probability if segmentation.probability is not None else None,
        score=max(shown, default=segmentation.score) if cut.extent is not None else 0.0,
    )


def _warnings(plan: Plan, chosen: Sequence[Round | None]) -> list[str]:
    """What a user must know of rounds that nobody accepted."""
    sentences = []
    for target, one in zip(plan.targets, chosen, strict=True):
        name = target.concept.phrase
        if one is None:
            sentences.append(f"No round for {name!r} was kept, so it is not in the result.")
        elif one.judgement.verdict is Verdict.WRONG_OBJECT:
            sentences.append(
                f"Every round of {name!r} was judged to be another object; check it, or draw a box."
            )
        elif one.judgement.verdict is Verdict.UNJUDGED:
            sentences.append(f"{name!r} was not judged: {one.judgement.reason or 'no verdict came.'}")
        elif one.judgement.verdict is not Verdict.ACCEPT:
            sentences.append(
                f"{name!r} was not accepted within the rounds; its best round was judged {one.judgement.verdict.words}."
            )
    return sentences
