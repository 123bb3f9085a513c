"""The agent in one blocking call: performs the machine's steps with a session and a judge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from MedSAM3Core.agent.facts import Outcome, Round
from MedSAM3Core.agent.judging import Judge, SegmenterSession
from MedSAM3Core.agent.machine import (
    JudgeStep,
    Machine,
    OverviewStep,
    PlanStep,
    RenderStep,
    SegmentStep,
    Step,
)
from MedSAM3Core.agent.pictures import PictureMaker
from MedSAM3Core.inference.plan import SlicePlan
from MedSAM3Core.progress import CancelToken, Progress, ProgressCallback

STAGES: dict[type, str] = {
    OverviewStep: "drawing",
    PlanStep: "planning",
    SegmentStep: "segmenting",
    RenderStep: "drawing",
    JudgeStep: "judging",
}
"""What each step is called while it runs."""


def picture_maker(session: SegmenterSession, most: int = 4) -> PictureMaker:
    """A maker of pictures for a session, cut as the session cuts its volume."""
    plan = getattr(session, "plan", None)
    if not isinstance(plan, SlicePlan):
        axis = getattr(session, "options", {}).get("axis", "auto")
        plan = SlicePlan.for_volume(session.volume, axis)
    return PictureMaker(session.volume, plan, most)


def run_agent(
    session: SegmenterSession,
    text: str,
    judge: Judge,
    rounds: int = 3,
    *,
    pictures: int = 4,
    window: str = "auto",
    threshold: float | None = None,
    progress: ProgressCallback | None = None,
    cancel: CancelToken | None = None,
    on_round: Callable[[Round], None] | None = None,
) -> Outcome:
    """Do what a request in plain words asks for.

    Args:
        session: A volume that is open on a model.
        text: The request, for example "the tumor in the left kidney, and its volume".
        judge: Plans and judges.
        rounds: Most rounds for each thing in the request.
        pictures: Most pictures shown to the judge at once.
        window: Of the pictures, as `Segmenter.open` takes it.
        threshold: First score threshold, None for the model's.
        progress: Receives a report at every step.
        cancel: Stops the call with `Cancelled`; the session stays usable.
        on_round: Receives each round when it has been judged.

    Raises:
        PromptError: If the request cannot be used, or names nothing to segment.
        EndpointError: If the judge is a language model that cannot be reached at all.
        Cancelled: If the token was cancelled.
    """
    machine = Machine(text, picture_maker(session, pictures), rounds, window, threshold)
    while (step := machine.step) is not None:
        if cancel is not None:
            cancel.check()
        if progress is not None:
            progress(Progress(STAGES[type(step)], 0, 0, machine.fraction))
        known = len(machine.rounds)
        machine.take(perform(step, session, judge, machine.maker, cancel))
        if on_round is not None and len(machine.rounds) > known:
            on_round(machine.rounds[-1])
    return machine.outcome()


def perform(
    step: Step,
    session: SegmenterSession,
    judge: Judge,
    maker: PictureMaker,
    cancel: CancelToken | None = None,
) -> Any:
    """Do one step and return what `Machine.take` wants of it."""
    if isinstance(step, SegmentStep):
        return segment(step, session, cancel)
    return perform_aside(step, judge, maker, cancel)


def perform_aside(step: Step, judge: Judge, maker: PictureMaker, cancel: CancelToken | None = None) -> Any:
    """Do a step that needs no segmenter; may run on any thread."""
    if isinstance(step, OverviewStep):
        return maker.overview(step.window)
    if isinstance(step, RenderStep):
        return maker.look_at(step.segmentation, step.before, step.window)
    if isinstance(step, PlanStep):
        return judge.plan(step.request, cancel)
    assert isinstance(step, JudgeStep)
    return judge.judge(step.look, cancel)


def segment(step: SegmentStep, session: SegmenterSession, cancel: CancelToken | None = None) -> Any:
    """Do a step that needs the segmenter."""
    if step.previous is None:
        return session.segment(step.concept, step.boxes, cancel=cancel, threshold=step.threshold)
    if step.is_cut:
        return step.previous
    return session.refine(step.previous, step.boxes, cancel=cancel)
