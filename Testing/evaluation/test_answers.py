"""From answers to scores, kinds of failure, calibration and figures."""

import dataclasses

import numpy as np
import pytest

from MedSAM3Core.errors import InputError
from MedSAM3Core.evaluation.calibration import calibrate
from MedSAM3Core.evaluation.contenders import Mode, reference_boxes
from MedSAM3Core.evaluation.failures import Failure, classify
from MedSAM3Core.evaluation.peers import _BoxDesk, boxes_on_every_slice, peer_of
from MedSAM3Core.evaluation.published import figures_for, published_figures
from MedSAM3Core.evaluation.scoring import Answer, Question, Score, judge
from MedSAM3Core.evaluation.summary import Contestant, summarise
from MedSAM3Core.evaluation.thresholding import split
from MedSAM3Core.inference.plan import SlicePlan
from MedSAM3Core.volume import Volume

SHAPE = (10, 20, 20)
QUESTION = Question("case", "patient", "data", "liver", "model", "text")


def block(k=(3, 7), j=(5, 15), i=(5, 15)):
    mask = np.zeros(SHAPE, bool)
    mask[k[0] : k[1], j[0] : j[1], i[0] : i[1]] = True
    return mask


SPLEEN = block(i=(16, 20))


@pytest.mark.parametrize(
    ("answer", "kind", "instead"),
    [
        (block(), Failure.NONE, ""),
        (block(k=(0, 0)), Failure.BLANK, ""),
        (SPLEEN, Failure.WRONG_ORGAN, "spleen"),
        (block(i=(0, 4)), Failure.MISALIGNED, ""),
        (block(k=(0, 10)), Failure.RAN_ON, ""),
        (block(i=(5, 9)), Failure.PARTIAL, ""),
        (block(j=(0, 20), i=(0, 20)), Failure.SPILLED, ""),
        (block(j=(9, 19), i=(8, 15)), Failure.ROUGH, ""),
    ],
    ids=lambda value: str(value) if isinstance(value, Failure) else "",
)
def test_what_went_wrong(answer, kind, instead):
    assert classify(answer, block(), {"spleen": SPLEEN}) == (kind, instead)


def test_an_absent_concept():
    nothing = block(k=(0, 0))
    assert classify(nothing, nothing, {}) == (Failure.NONE, "")
    assert classify(block(), nothing, {})[0] == Failure.FALSE_ALARM


def test_a_score_is_in_millimetres_of_the_volume():
    volume = Volume.from_array(np.zeros(SHAPE, np.int16), spacing=(0.5, 1.0, 4.0))
    shifted = block(k=(4, 8))
    score = judge(QUESTION, Answer(shifted, 0.8, "liver"), block(), volume, {}, None, tolerance=2.0)
    assert (score.unit, score.hd95) == ("mm", 4.0)
    assert score.dice == pytest.approx(0.75)
    assert score.reference_ml == pytest.approx(400 * 2 / 1000)
    assert (score.clean_slices, score.empty_slices) == (5, 6)


def test_an_image_without_a_pixel_size_is_judged_in_pixels():
    volume = Volume.from_array(np.zeros((20, 20), np.uint8))
    mask = block()[3:4]
    score = judge(QUESTION, Answer(mask), mask, volume, {}, mask.astype(int), tolerance=2.0)
    assert (score.unit, score.hd95, score.f1, score.volume_ml) == ("px", 0.0, 1.0, None)


def row(**changes):
    values = dict(
        case="c", patient="p", source="busi", concept="breast tumor", model="medsam3-v1", mode="text", present=True,
        dice=0.5, iou=0.4, hd95=3.0, nsd=0.5, unit="px", f1=None, ap=None, score=0.5, volume_ml=None, reference_ml=None,
        clean_slices=0, empty_slices=0, failure="", instead="", prompt="x", seconds=0.1,
    )  # fmt: skip
    return Score(**values | changes)


def test_calibration_by_hand():
    rows = [row(score=0.95, dice=0.9), row(score=0.95, dice=0.2), row(score=0.15, dice=0.1)]
    found = calibrate(rows)
    assert [(one.count, one.right) for one in found.bins] == [(1, 0.0), (2, 0.5)]
    assert found.error == pytest.approx((0.15 + 2 * 0.45) / 3)
    assert found.brier == pytest.approx((0.05**2 + 0.95**2 + 0.15**2) / 3)
    assert calibrate([row(score=None)]) is None


def test_figures_are_means_over_patients_and_compared_on_them():
    rows = []
    for number in range(8):
        for image in range(2):
            rows.append(row(case=f"{number}{image}", patient=f"p{number}", dice=0.6 + image / 10))
            rows.append(row(case=f"{number}{image}", patient=f"p{number}", model="demo", dice=0.5))
    rows.append(row(case="absent", patient="p9", present=False, dice=None, iou=None, hd95=None, nsd=None))
    found = summarise(rows)
    best = next(one for one in found.concepts if one.contestant.model == "medsam3-v1")
    assert (best.metrics["dice"].patients, best.cases, best.missed) == (8, 16, 0)
    assert best.metrics["dice"].mean == pytest.approx(0.65)
    (test,) = found.comparisons
    assert test.test.difference.mean == pytest.approx(-0.15)  # demo first, by name
    assert test.test.adjusted < 0.05
    assert found.foreign_clean == {Contestant("medsam3-v1", "text"): 1.0}


def test_missed_answers_have_no_hd95_but_count_in_nsd():
    rows = [
        row(case="a", patient="a", hd95=None, nsd=0.0, dice=0.0),
        row(case="b", patient="b", hd95=4.0, nsd=0.8),
    ]
    (found,) = summarise(rows).concepts
    assert (found.missed, found.metrics["hd95"].mean, found.metrics["nsd"].mean) == (
        1,
        4.0,
        pytest.approx(0.4),
    )


def test_published_measured_and_difference():
    found = summarise([row(dice=0.35), row(dice=0.25, mode="text+box")])
    rows = {(one.figure.model, one.figure.mode): one for one in found.published}
    assert rows["medsam3-v1", "text"].difference == pytest.approx(0.35 - 0.267)
    assert rows["medsam3-v1", "text+box"].difference == pytest.approx(0.25 - 0.777)
    assert rows["sam3", "text"].difference is None


def test_every_published_figure_has_a_source():
    figures = published_figures()
    assert len(figures) > 30
    assert all(0 <= one.dice <= 1 and one.source.url.startswith("https://") for one in figures)
    assert {one.dice for one in figures_for("busi", "breast tumor") if one.mode == "text"} == {0, 0.267}


@pytest.mark.parametrize(("text", "kind", "count"), [("text", "text", 0), ("boxes:3", "boxes", 3)])
def test_modes(text, kind, count):
    mode = Mode.parse(text)
    assert (mode.kind, mode.count, mode.name) == (kind, count, text)


@pytest.mark.parametrize("text", ["boxes", "boxes:0", "boxes:x", "text:3", "magic"])
def test_modes_that_are_none(text):
    with pytest.raises(InputError, match="expected text, text\\+box, agent, or boxes:N"):
        Mode.parse(text)


def test_reference_boxes_lie_on_the_largest_slice_one_for_each_component():
    volume = Volume.from_array(np.zeros(SHAPE, np.int16), spacing=(1, 1, 3))
    mask = block(k=(2, 8), i=(5, 9)) | block(k=(4, 5), i=(12, 18))
    mask[0, 0, 0] = True
    boxes = reference_boxes(mask, SlicePlan.for_volume(volume))
    assert [(box.k, box.i) for box in boxes] == [((4, 4), (12, 17)), ((4, 4), (5, 8))]
    assert reference_boxes(np.zeros(SHAPE, bool), SlicePlan.for_volume(volume)) == []


def test_litemedsam_gets_a_box_on_every_slice():
    plan = SlicePlan.for_volume(Volume.from_array(np.zeros(SHAPE, np.int16), spacing=(1, 1, 3)))
    boxes = boxes_on_every_slice(block(), plan)
    assert [box.k for box in boxes] == [(k, k) for k in range(3, 7)]

    class Fake:
        def segment(self, volume, plan, phrase, boxes):
            mask = np.zeros(SHAPE, bool)
            for box in boxes:
                mask[box.k[0], box.j[0] : box.j[1] + 1, box.i[0] : box.i[1] + 1] = True
            return mask

    desk = _BoxDesk(Fake(), None, plan)
    (answer,) = desk.answer({"liver": block()}, Mode("text+box"), None)
    np.testing.assert_array_equal(answer.mask, block())
    assert not desk.supports(Mode("text"))


def test_litemedsam_that_is_not_installed_says_how_to_get_it(tmp_path):
    with pytest.raises(InputError, match="pip install"):
        peer_of(f"litemedsam={tmp_path}")
    assert peer_of("demo") is None


@pytest.mark.parametrize("bright", [True, False])
def test_thresholding_takes_the_side_that_does_not_touch_the_box(bright):
    mask = np.zeros((1, 20, 20), bool)
    mask[0, 5:15, 5:15] = True
    grey = np.where(mask, 200, 50) if bright else np.where(mask, 50, 200)
    np.testing.assert_array_equal(split(grey), mask)


def test_scores_are_plain_values():
    assert dataclasses.asdict(row())["dice"] == 0.5
