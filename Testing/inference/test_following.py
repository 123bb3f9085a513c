"""A settled slice carried on by the detector, on the double, whose answers to boxes and phrases are exact."""

import dataclasses

import numpy as np
import pytest
from inference_doubles import BRIGHT, UNNAMED, UNNAMED_GREY, BrightModel, concept, phantom, phantom_array
from test_refine import box_of, model_that_follows, slices_of

from MedSAM3Core import Segmenter


def test_a_model_without_a_tracker_follows_a_box_too() -> None:
    model = BrightModel()
    model.card = model.card.model_copy(update={"tracks": False})
    with Segmenter(model).open(phantom()) as session:
        found = session.refine(session.segment(concept("absent thing")), boxes=[box_of(UNNAMED, 15)])
    assert model.tracker.steps == 0
    assert np.array_equal(found.to_array(), UNNAMED)


def test_a_walk_ends_where_the_phrase_alone_finds_no_more() -> None:
    """With a box the detector always answers: below the object lies something else in the same place."""
    array = phantom_array()
    array[:, 10:36, 8:32][~BRIGHT[:, 10:36, 8:32]] = 20
    last = max(slices_of(BRIGHT))
    array[last + 1 : last + 8][:, BRIGHT[last]] = UNNAMED_GREY
    with Segmenter(model_that_follows("detector")).open(phantom(array)) as session:
        before = session.segment(concept("bright thing"))
        after = session.refine(before, boxes=[box_of(BRIGHT, 12)])
    assert np.array_equal(after.to_array(), BRIGHT)


def test_scores_by_the_phrase_alone_are_asked_for_once() -> None:
    model = model_that_follows("detector")
    with Segmenter(model).open(phantom(), mode="thorough") as session:
        before = session.segment(concept("bright thing"))
        asked = model.network.detected
        after = session.refine(before, boxes=[box_of(BRIGHT, 12)])
    walked = len(slices_of(BRIGHT)) - 1
    assert np.array_equal(after.to_array(), BRIGHT)
    # One pair to settle the slice, one a slice walked, and one beyond each end.
    assert model.network.detected - asked <= 1 + walked + 2


@pytest.mark.parametrize("by", ["tracker", "detector"])
def test_both_ways_give_the_exact_object_of_the_double(by: str) -> None:
    with Segmenter(model_that_follows(by)).open(phantom()) as session:
        hollow = session.segment(concept("bright thing"))
        wrong = hollow.to_array()
        wrong[9:16] = False
        edited = dataclasses.replace(hollow, mask=wrong[hollow.extent.slices])
        after = session.refine(edited, boxes=[box_of(BRIGHT, 12)])
    assert np.array_equal(after.to_array(), BRIGHT)
