"""Judges of known accuracy, and base results that are wrong on purpose."""

from __future__ import annotations

import numpy as np
import pytest
from agent_doubles import VALUES, ValueSession, ct

from MedSAM3Core.evaluation.ablation import AblationScore, summarise
from MedSAM3Core.evaluation.agent import DEGRADATIONS, DegradedSession, SimulatedJudge, run_agent_case
from MedSAM3Core.evaluation.heldout import dice

LIVER = ct().array == VALUES["liver"]


def recovered(kind, accuracy, seed=0, rounds=3):
    session = DegradedSession(ValueSession(), kind, "spleen")
    found = run_agent_case(session, "the liver", SimulatedJudge("liver", LIVER, accuracy, seed), rounds)
    return dice(session.segment("liver").to_array(), LIVER), dice(found.to_array(), LIVER)


@pytest.mark.parametrize("kind", DEGRADATIONS[1:])
def test_degraded_results_are_wrong_and_a_perfect_judge_makes_them_better(kind):
    base, after = recovered(kind, 1.0, rounds=6)
    assert base < 0.75
    assert after > base


def test_what_is_right_stays_right_under_a_perfect_judge():
    assert recovered("none", 1.0) == (1.0, 1.0)


def test_a_judge_that_is_never_right_recovers_less_than_one_that_always_is():
    good = np.mean([recovered("wrong concept", 1.0, seed)[1] for seed in range(4)])
    poor = np.mean([recovered("wrong concept", 0.0, seed)[1] for seed in range(4)])
    assert poor < good


def test_the_same_seed_says_the_same():
    assert recovered("shifted", 0.3, 7) == recovered("shifted", 0.3, 7)


def test_boxes_of_a_judge_are_drawn_on_pictures_it_was_shown():
    session = DegradedSession(ValueSession(), "truncated")
    judge = SimulatedJudge("liver", LIVER)
    seen = []
    real = judge.judge

    def watch(look, cancel=None):
        seen.append((look, real(look)))
        return seen[-1][1]

    judge.judge = watch
    run_agent_case(session, "the liver", judge)
    drawn = [(look, action.box) for look, said in seen for action in said.actions if hasattr(action, "box")]
    assert drawn
    for look, box in drawn:
        assert box.k[0] in {picture.slice_index for picture in look.pictures}


def test_rows_are_means_over_the_cases():
    scores = [
        AblationScore("a", "liver", "shifted", 0.2, 0.5, {1.0: 0.8, 0.0: 0.2}),
        AblationScore("b", "liver", "shifted", 0.4, 0.7, {1.0: 0.6, 0.0: 0.0}),
    ]
    row = summarise(scores)[0]
    assert (row.degradation, row.cases) == ("shifted", 2)
    assert row.base == pytest.approx(0.3)
    assert row.agent == {1.0: pytest.approx(0.7), 0.0: pytest.approx(0.1)}
