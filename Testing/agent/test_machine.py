"""The loop: which steps follow which, what a verdict may bring about, which round is returned."""

from __future__ import annotations

import numpy as np
import pytest
from agent_doubles import VALUES, ScriptedJudge, ValueSession, ct

from MedSAM3Core.agent import run_agent
from MedSAM3Core.agent.facts import (
    AddBox,
    Judgement,
    KeepSlices,
    MeasureKind,
    Question,
    Rephrase,
    SetThreshold,
    Stop,
    Synonym,
    Verdict,
)
from MedSAM3Core.agent.machine import JudgeStep, Machine, OverviewStep, PlanStep, RenderStep, SegmentStep
from MedSAM3Core.agent.run import perform, picture_maker
from MedSAM3Core.concepts import resolve
from MedSAM3Core.errors import Cancelled, InputError, PromptError
from MedSAM3Core.progress import CancelToken
from MedSAM3Core.prompts import Box

ACCEPT = Judgement(Verdict.ACCEPT, "good")


def bad(verdict=Verdict.TOO_LARGE, *actions):
    return Judgement(verdict, "bad", actions)


def test_the_steps_of_a_good_round():
    session, judge = ValueSession(), ScriptedJudge(["liver"], [ACCEPT])
    machine = Machine("the liver please", picture_maker(session))
    kinds = []
    while (step := machine.step) is not None:
        kinds.append(type(step))
        machine.take(perform(step, session, judge, machine.maker))
    assert kinds == [OverviewStep, PlanStep, SegmentStep, RenderStep, JudgeStep]
    np.testing.assert_array_equal(
        machine.outcome().segmentations[0].to_array(), ct().array == VALUES["liver"]
    )
    assert machine.outcome().notices == ()


def test_rounds_end_and_the_best_is_returned_not_the_last():
    boxes = [Box.on_slice(3, (0, 3 + n), (0, 3)) for n in range(3)]
    said = [
        bad(Verdict.WRONG_SLICES, AddBox(boxes[0])),
        *(bad(Verdict.WRONG_OBJECT, AddBox(b)) for b in boxes[1:]),
    ]
    session, judge = ValueSession(), ScriptedJudge(["liver"], said)
    outcome = run_agent(session, "liver", judge, rounds=3)
    assert len(outcome.rounds) == 3
    assert outcome.chosen[0].number == 1
    assert "was not accepted" in " ".join(outcome.notices)


def test_between_equal_verdicts_the_internal_score_decides():
    said = [
        bad(Verdict.TOO_SMALL, Rephrase(resolve("gallbladder"))),
        bad(Verdict.TOO_SMALL, Rephrase(resolve("spleen"))),
        bad(),
    ]
    outcome = run_agent(ValueSession(), "liver", ScriptedJudge(["liver"], said), rounds=3)
    assert [r.score > 0 for r in outcome.rounds] == [True, False, True]
    assert outcome.chosen[0].number == 3  # as good as the first, and later


def test_several_targets_each_have_their_rounds():
    said = [bad(Verdict.TOO_SMALL, SetThreshold(0.3)), ACCEPT, ACCEPT]
    outcome = run_agent(ValueSession(), "liver and spleen", ScriptedJudge(["liver", "spleen"], said))
    assert [(r.target, r.judgement.verdict) for r in outcome.rounds] == [
        (0, Verdict.TOO_SMALL),
        (0, Verdict.ACCEPT),
        (1, Verdict.ACCEPT),
    ]
    assert [s.concept.phrase for s in outcome.segmentations] == ["liver", "spleen"]


def test_a_box_refines_and_a_box_on_another_object_starts_from_nothing():
    box, other = Box.on_slice(3, (5, 9), (5, 9)), Box.on_slice(4, (5, 9), (5, 9))
    session = ValueSession()
    said = [bad(Verdict.MISSING_PARTS, AddBox(box)), bad(Verdict.WRONG_OBJECT, AddBox(other)), ACCEPT]
    outcome = run_agent(session, "liver", ScriptedJudge(["liver"], said))
    liver = int((ct().array == VALUES["liver"]).sum())
    assert session.calls[1] == ("refine", liver, (box,))
    assert session.calls[2] == ("refine", 0, (box, other))
    assert outcome.segmentations[0].voxels == 50


def test_slices_are_kept_without_asking_the_segmenter_again():
    session = ValueSession()
    outcome = run_agent(
        session, "liver", ScriptedJudge(["liver"], [bad(Verdict.WRONG_SLICES, KeepSlices(3, 5)), ACCEPT])
    )
    assert len(session.calls) == 1
    assert outcome.segmentations[0].extent.k == (3, 5)
    full = outcome.segmentations[0].to_array()
    np.testing.assert_array_equal(full[3:6], ct().array[3:6] == VALUES["liver"])


def test_rephrasing_changes_what_is_said_and_what_it_is():
    session = ValueSession()
    said = [bad(Verdict.WRONG_OBJECT, Rephrase(resolve("spleen"))), ACCEPT]
    outcome = run_agent(session, "the left upper organ", ScriptedJudge(["liver"], said))
    assert session.calls[-1][1] == "spleen"
    assert outcome.segmentations[0].concept.code == resolve("spleen").code


def test_a_synonym_keeps_the_name_and_the_code():
    session = ValueSession()
    concept = resolve("trachea")
    said = [bad(Verdict.WRONG_OBJECT, Synonym()), ACCEPT]
    outcome = run_agent(session, "trachea", ScriptedJudge(["trachea"], said))
    assert session.calls[-1][1] != concept.phrase
    assert session.calls[-1][1] in concept.prompts
    assert outcome.chosen[0].attempt.concept.code == concept.code


def test_what_was_tried_is_not_tried_again():
    said = [bad(Verdict.TOO_LARGE, SetThreshold(0.7))] * 10
    session = ValueSession()
    outcome = run_agent(session, "liver", ScriptedJudge(["liver"], said), rounds=10)
    thresholds = [call[3] for call in session.calls]
    assert len(thresholds) == len(set(thresholds))
    assert len(outcome.rounds) < 10


def test_stop_ends_the_target():
    session = ValueSession()
    run_agent(session, "liver", ScriptedJudge(["liver"], [bad(Verdict.TOO_LARGE, Stop())]), rounds=3)
    assert len(session.calls) == 1


def test_more_actions_than_allowed_are_left_out():
    many = [SetThreshold(round(0.1 + n / 100, 2)) for n in range(50)]
    session = ValueSession()
    run_agent(session, "liver", ScriptedJudge(["liver"], [bad(Verdict.TOO_LARGE, *many), ACCEPT]))
    assert session.calls[-1][3] == 0.13


def test_an_unjudged_round_is_returned_and_said():
    outcome = run_agent(
        ValueSession(), "liver", ScriptedJudge(["liver"], [Judgement(Verdict.UNJUDGED, "no answer")])
    )
    assert outcome.segmentations
    assert any("not judged" in n for n in outcome.notices)


def test_answers_come_from_the_masks():
    questions = [
        Question(MeasureKind.VOLUME, 0),
        Question(MeasureKind.SHARE, 0, 1),
        Question(MeasureKind.COUNT, 1),
    ]
    judge = ScriptedJudge(["liver", "spleen"], [ACCEPT, ACCEPT], questions)
    outcome = run_agent(ValueSession(), "how large is the liver", judge)
    assert outcome.answers[0].value == pytest.approx(6 * 15 * 20 * 2 / 1000)
    assert outcome.answers[0].unit == "ml"
    assert outcome.answers[1].value == 0
    assert outcome.answers[2].value == 1


def test_the_answer_about_what_was_not_found_has_no_number():
    judge = ScriptedJudge(["gallbladder"], [ACCEPT], [Question(MeasureKind.VOLUME, 0)])
    outcome = run_agent(ValueSession(), "gallbladder volume", judge)
    assert outcome.answers[0].value is None
    assert "was not found" in outcome.answers[0].sentence


def test_a_user_may_accept_a_round_while_it_goes_on():
    session, judge = (
        ValueSession(),
        ScriptedJudge(["liver"], [bad(Verdict.WRONG_OBJECT, Rephrase(resolve("spleen")))]),
    )
    machine = Machine("liver", picture_maker(session))
    while not machine.rounds:
        machine.take(perform(machine.step, session, judge, machine.maker))
    assert machine.step is not None
    machine.accept(1)
    assert machine.step is None
    assert machine.outcome().chosen[0].number == 1


def test_a_discarded_round_is_not_chosen():
    said = [bad(Verdict.TOO_LARGE, SetThreshold(0.7)), bad(Verdict.TOO_SMALL, Stop())]
    session, judge = ValueSession(), ScriptedJudge(["liver"], said)
    machine = Machine("liver", picture_maker(session))
    while machine.step is not None:
        machine.take(perform(machine.step, session, judge, machine.maker))
    assert machine.outcome().chosen[0].number == 2
    machine.discard(2)
    assert machine.outcome().chosen[0].number == 1
    machine.discard(1)
    assert machine.outcome().segmentations == []
    machine.accept(1)
    assert machine.outcome().chosen[0].number == 1


def test_bad_requests_are_refused_before_anything_runs():
    maker = picture_maker(ValueSession())
    with pytest.raises(PromptError, match="empty"):
        Machine("  ", maker)
    with pytest.raises(PromptError, match="501 characters"):
        Machine("a" * 501, maker)
    with pytest.raises(InputError, match="rounds is 0"):
        Machine("liver", maker, rounds=0)


def test_a_plan_without_targets_is_an_error():
    with pytest.raises(PromptError, match="Nothing to segment"):
        run_agent(ValueSession(), "what is the weather", ScriptedJudge([], []))


def test_cancelling_stops_between_two_steps():
    token = CancelToken()
    session, judge = (
        ValueSession(),
        ScriptedJudge(["liver"], [bad(Verdict.TOO_LARGE, SetThreshold(0.7)), ACCEPT]),
    )
    with pytest.raises(Cancelled):
        run_agent(session, "liver", judge, cancel=token, on_round=lambda _: token.cancel())
    assert len(session.calls) == 1
