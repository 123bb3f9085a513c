import dataclasses

import numpy as np
import pytest
from inference_doubles import BRIGHT, DIM, SHAPE, UNNAMED, BrightModel, ball, concept, phantom, phantom_array

from MedSAM3Core import Box, Cancelled, CancelToken, Point, PromptError, Segmentation, Segmenter
from MedSAM3Core.segmentation import Extent


def box_of(mask: np.ndarray, k: int, margin: int = 1, positive: bool = True) -> Box:
    extent = Extent.of_mask(mask[k : k + 1])
    assert extent is not None
    i, j = extent.i, extent.j
    return Box.on_slice(k, (i[0] - margin, i[1] + margin), (j[0] - margin, j[1] + margin), positive)


def slices_of(mask: np.ndarray) -> set[int]:
    return set(np.flatnonzero(mask.any(axis=(1, 2))).tolist())


def model_that_follows(by: str) -> BrightModel:
    """The double, whose settled slices are carried on by the tracker or by the detector."""
    model = BrightModel()
    policy = model.card.recommended.model_copy(update={"follow": by})
    return dataclasses.replace(model, card=model.card.model_copy(update={"recommended": policy}))


@pytest.fixture(params=["tracker", "detector"])
def session(request):
    with Segmenter(model_that_follows(request.param)).open(phantom(), precision="float32") as session:
        yield session


def test_a_box_adds_the_object_where_the_concept_was_not_found(session) -> None:
    nothing = session.segment(concept("absent thing"))
    found = session.refine(nothing, boxes=[box_of(UNNAMED, 15)])
    assert np.array_equal(found.to_array(), UNNAMED)
    assert len(found.boxes) == 1
    assert nothing.empty


def test_a_box_with_the_text_adds_a_second_object_and_keeps_the_first(session) -> None:
    result = session.segment(concept("bright thing"), boxes=[box_of(UNNAMED, 15)])
    assert np.array_equal(result.to_array(), BRIGHT | UNNAMED)


def test_only_the_slices_up_to_the_next_anchors_change(session) -> None:
    tall = ball(SHAPE, (14, 22, 20), (13.5, 12, 9))
    array = phantom_array()
    array[BRIGHT] = 20
    array[tall] = 200
    with Segmenter(BrightModel()).open(phantom(array), anchor_spacing_mm=4) as session:
        before = session.segment(concept("bright thing"))
        wrong = before.to_array()
        wrong[14, 30:40, 30:40] = True
        broken = Segmentation.from_mask(
            before.concept,
            before.geometry,
            wrong,
            probability=before.probability_map(),
            slice_scores=before.slice_scores,
            provenance=before.provenance,
        )
        after = session.refine(broken, boxes=[Box.on_slice(14, (30, 39), (30, 39), positive=False)])
    changed = slices_of(after.to_array() ^ wrong)
    assert changed == {14}
    assert np.array_equal(after.to_array(), before.to_array())


def test_a_settled_slice_is_not_changed_by_later_boxes(session) -> None:
    first = session.refine(session.segment(concept("absent thing")), boxes=[box_of(UNNAMED, 15)])
    half = first.to_array()
    half[15, :14] = False
    edited = dataclasses.replace(first, mask=half[first.extent.slices])
    second = session.refine(edited, boxes=[box_of(UNNAMED, 12)])
    assert np.array_equal(second.to_array()[15], half[15])
    assert np.array_equal(second.to_array()[12], UNNAMED[12])


def test_a_hand_edited_slice_becomes_an_anchor(session) -> None:
    empty = session.segment(concept("absent thing"))
    drawn = np.zeros(SHAPE, bool)
    drawn[15] = UNNAMED[15]
    edited = Segmentation.from_mask(empty.concept, empty.geometry, drawn, provenance=empty.provenance)
    result = session.refine(edited, edited_slices=[15])
    assert np.array_equal(result.to_array(), UNNAMED)


def test_a_locked_slice_stays(session) -> None:
    before = session.segment(concept("bright thing"))
    holed = before.to_array()
    holed[13] = False
    edited = Segmentation.from_mask(
        before.concept, before.geometry, holed, provenance=before.provenance, slice_scores=before.slice_scores
    )
    after = session.refine(edited, boxes=[box_of(BRIGHT, 11)], locked_slices=[13])
    assert not after.to_array()[13].any()
    restricted = session.refine(
        before, boxes=[Box((0, 63), (0, 63), (14, 16))], locked_slices=[12]
    ).to_array()
    assert slices_of(restricted) == {12, 14, 15, 16}


def test_a_box_on_a_single_image_asks_the_tracker_too() -> None:
    model = BrightModel()
    # a phrase whose detector is blind in boxes, so that only the tracker's answer fits
    see = model.network.detect
    model.network.detect = lambda pyramid, text, boxes, labels, with_masks: see(pyramid, text, None, None)
    with Segmenter(model).open(phantom_array()[15]) as session:
        nothing = session.segment(concept("absent thing"))
        drawn = box_of(UNNAMED, 15)
        result = session.refine(nothing, boxes=[Box.on_slice(0, drawn.i, drawn.j)])
    assert np.array_equal(result.to_array()[0], UNNAMED[15])


def test_a_negative_box_removes_and_stops_propagation() -> None:
    # one pillar through all slices: a negative box on slice 20 is where an added object must end
    pillar = ball(SHAPE, (15, 32, 32), (500, 8, 8))
    array = np.where(pillar, 150 + 95, 20).astype(np.uint8)
    with Segmenter(BrightModel()).open(phantom(array), reach_mm=100) as session:
        nothing = session.segment(concept("absent thing"))
        k = [box_of(pillar, 10), box_of(pillar, 20, positive=False)]
        result = session.refine(nothing, boxes=k).to_array()
    assert slices_of(result) <= set(range(20))
    assert set(range(15)) <= slices_of(result)
    assert np.array_equal(result[:15], pillar[:15])


def test_boxes_through_several_slices_restrict_and_remove(session) -> None:
    deep = Box(i=(0, 63), j=(0, 63), k=(10, 12))
    result = session.segment(concept("bright thing"), boxes=[deep]).to_array()
    assert np.array_equal(result[10:13], BRIGHT[10:13])
    assert not result[:10].any()
    assert not result[13:].any()
    whole = session.segment(concept("bright thing"))
    removed = session.refine(whole, boxes=[dataclasses.replace(deep, positive=False)]).to_array()
    assert not removed[10:13].any()
    assert np.array_equal(removed[:10], BRIGHT[:10])


def test_a_deep_box_over_nothing_prompts_its_middle_slice(session) -> None:
    nothing = session.segment(concept("absent thing"))
    result = session.refine(nothing, boxes=[Box(i=(44, 60), j=(6, 22), k=(12, 18))]).to_array()
    assert np.array_equal(result[12:19], UNNAMED[12:19])
    assert not result[:12].any()


def test_a_box_over_nothing_gives_an_ellipse_and_says_so(session) -> None:
    result = session.refine(
        session.segment(concept("absent thing")), boxes=[Box.on_slice(2, (2, 11), (2, 9))]
    )
    assert 0.6 * 80 < result.to_array()[2].sum() < 80
    assert any("ellipse" in notice for notice in result.provenance.notices)


def test_what_cannot_be_refined_is_said(session) -> None:
    result = session.segment(concept("bright thing"))
    with pytest.raises(PromptError, match="one voxel thin"):
        session.refine(result, boxes=[Box(i=(5, 5), j=(3, 20), k=(4, 12))])
    with (
        Segmenter(BrightModel()).open(phantom_array()[:5]) as other,
        pytest.raises(PromptError, match="grid"),
    ):
        other.refine(result, boxes=[])


def test_cancelling_a_refinement_changes_nothing(session) -> None:
    before = session.segment(concept("dim thing"))
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        session.refine(before, boxes=[box_of(DIM, 18)], cancel=token)
    assert np.array_equal(before.to_array(), DIM)
    assert np.array_equal(session.refine(before, boxes=[box_of(DIM, 18)]).to_array(), DIM)


def test_a_rerun_encodes_nothing_that_is_encoded_already() -> None:
    model = BrightModel()
    with Segmenter(model).open(phantom(), mode="thorough", precision="float32") as session:
        before = session.segment(concept("bright thing"))
        encoded = model.network.encoded
        session.refine(before, boxes=[box_of(UNNAMED, 15)])
    assert model.network.encoded == encoded


def test_no_voxel_changes_outside_the_slices_between_the_neighbouring_anchors() -> None:
    """Fifteen volumes of noise, fifteen places of a box: noise outside the stretch comes back bit for bit."""
    rng = np.random.default_rng(7)
    tall = ball(SHAPE, (14, 30, 30), (40, 12, 12))
    with Segmenter(BrightModel()).open(phantom(np.where(tall, 200, 20).astype(np.uint8))) as session:
        empty = session.segment(concept("absent thing"))
        for _ in range(15):
            low, at, high = np.sort(rng.choice(30, 3, replace=False)).tolist()
            noise = rng.random(SHAPE) < 0.2
            settled = {low, high} - {at}
            before = dataclasses.replace(
                Segmentation.from_mask(empty.concept, empty.geometry, noise, probability=noise * 0.6),
                anchors=tuple(sorted(settled)),
                provenance=empty.provenance,
            )
            after = session.refine(before, boxes=[box_of(tall, at)])
            outside = np.r_[0 : low + 1, high:30]
            assert np.array_equal(after.to_array()[outside], noise[outside]), (low, at, high)
            assert np.array_equal(after.to_array()[at] & tall[at], tall[at])
            between = sorted(set(range(low + 1, high)) - {at})
            if between:
                assert (after.to_array()[between] != noise[between]).any()


def test_what_was_edited_by_hand_stays_an_anchor_in_every_later_rerun(session) -> None:
    empty = session.segment(concept("absent thing"))
    drawn = np.zeros(SHAPE, bool)
    drawn[15] = UNNAMED[15]
    edited = Segmentation.from_mask(empty.concept, empty.geometry, drawn, provenance=empty.provenance)
    first = session.refine(edited, edited_slices=[15])
    assert first.anchors == first.provenance.anchors == (15,)
    wrong = dataclasses.replace(first, mask=first.mask & (np.arange(15 - 10 + 1 + 5)[:, None, None] != 5))
    second = session.refine(wrong, boxes=[box_of(UNNAMED, 12)])
    assert second.anchors == (12, 15)
    assert not second.to_array()[15].any()
    assert np.array_equal(second.to_array()[12], UNNAMED[12])


def test_anchors_of_another_axis_are_not_taken_for_slices_of_this_one(session) -> None:
    found = session.segment(concept("bright thing"))
    along_rows = dataclasses.replace(found.provenance, axis="coronal (grid axis j)")
    other = dataclasses.replace(found, anchors=(11, 12), provenance=along_rows)
    assert session.refine(other, boxes=[box_of(BRIGHT, 14)]).anchors == (14,)


def test_earlier_negative_boxes_and_restrictions_hold_in_later_reruns(session) -> None:
    deep = Box((44, 60), (6, 22), (12, 18))
    gone = Box((44, 60), (6, 22), (17, 20), positive=False)
    first = session.refine(session.segment(concept("absent thing")), boxes=[deep, gone])
    second = session.refine(first, boxes=[box_of(UNNAMED, 15)])
    assert slices_of(second.to_array()) == {12, 13, 14, 15, 16}
    assert second.boxes[:2] == (deep, gone)


def test_two_boxes_through_several_slices_leave_both() -> None:
    with Segmenter(BrightModel()).open(phantom(), precision="float32") as session:
        low, high = Box((0, 63), (0, 63), (7, 9)), Box((0, 63), (0, 63), (14, 15))
        whole = session.segment(concept("bright thing"))
        assert slices_of(session.refine(whole, boxes=[low, high]).to_array()) == {7, 8, 9, 14, 15}


def test_a_click_adds_the_object_under_it_and_it_is_followed(session) -> None:
    nothing = session.segment(concept("absent thing"))
    result = session.refine(nothing, points=[Point(52, 14, 15)])
    assert np.array_equal(result.to_array(), UNNAMED)
    assert result.points == (Point(52, 14, 15),)
    assert result.anchors == (15,)
    assert result.provenance.points == ("15,52,14,+",)


def test_clicks_with_the_text_keep_what_is_there(session) -> None:
    result = session.segment(concept("bright thing"), points=[Point(52, 14, 15)])
    assert np.array_equal(result.to_array(), BRIGHT | UNNAMED)


def test_a_negative_click_takes_an_island_away_and_leaves_the_rest(session) -> None:
    both = session.segment(concept("bright thing"), points=[Point(52, 14, 15)])
    less = session.refine(both, points=[Point(52, 14, 15, positive=False)])
    assert np.array_equal(less.to_array()[15], BRIGHT[15])


def test_a_negative_click_trims_the_largest_piece(session) -> None:
    leaked = BRIGHT.copy()
    leaked[12, 22, 20:60] = True
    leaked[12, 30:50, 40:60] = DIM[12, 30:50, 40:60]
    leaked[12, 22:42, 45:47] = True
    before = session.segment(concept("bright thing"))
    wrong = Segmentation.from_mask(before.concept, before.geometry, leaked, provenance=before.provenance)
    row, column = np.argwhere(DIM[12] & leaked[12])[0]
    after = session.refine(wrong, points=[Point(int(column), int(row), 12, positive=False)])
    assert np.array_equal(after.to_array()[12], BRIGHT[12])


def test_a_click_on_nothing_leaves_a_spot_and_says_so(session) -> None:
    result = session.refine(session.segment(concept("absent thing")), points=[Point(3, 5, 2)])
    assert result.to_array()[2, 5, 3]
    assert 1 <= result.to_array()[2].sum() <= 12
    assert any("ellipse" in notice for notice in result.provenance.notices)


def test_clicks_without_a_tracker_use_what_the_detector_sees() -> None:
    model = BrightModel()
    model.card = model.card.model_copy(update={"tracks": False})
    with Segmenter(model).open(phantom(), precision="float32") as session:
        nothing = session.segment(concept("absent thing"))
        result = session.refine(nothing, points=[Point(52, 14, 15)])
        assert result.to_array()[15, 14, 52]
        found = session.segment(concept("bright thing"), points=[Point(20, 22, 12, positive=False)])
        assert not found.to_array()[12].any()
        assert np.array_equal(found.to_array()[10], BRIGHT[10])


def test_the_marked_slice_can_be_had_first_and_the_others_after_it(session) -> None:
    nothing = session.segment(concept("absent thing"))
    at_once = session.refine(nothing, boxes=[box_of(UNNAMED, 15)], propagate=False)
    assert slices_of(at_once.to_array()) == {15}
    followed = session.refine(at_once, edited_slices=[15])
    assert np.array_equal(followed.to_array(), UNNAMED)
    whole = session.refine(nothing, boxes=[box_of(UNNAMED, 15)])
    assert np.array_equal(followed.to_array(), whole.to_array())
    assert followed.boxes == whole.boxes
    assert followed.anchors == whole.anchors


def test_more_like_this_finds_the_same_kind_on_the_same_and_on_other_slices() -> None:
    array = phantom_array()
    twin = ball(SHAPE, (24, 50, 10), (3.5, 6, 6))
    beside = ball(SHAPE, (15, 40, 10), (3.5, 5, 5))
    array[twin | beside] = 245
    with Segmenter(BrightModel()).open(phantom(array), precision="float32") as session:
        one = session.refine(session.segment(concept("absent thing")), boxes=[box_of(UNNAMED, 15)])
        assert np.array_equal(one.to_array(), UNNAMED)
        open_again = dataclasses.replace(one, anchors=())
        all_of_them = session.refine(open_again, more_like_this=True)
    assert np.array_equal(all_of_them.to_array()[21:], twin[21:])
    assert np.array_equal(all_of_them.to_array() & UNNAMED, UNNAMED)
    assert not (all_of_them.to_array() & (BRIGHT | DIM)).any()


def test_more_like_this_stays_in_the_region_and_off_locked_slices(session) -> None:
    one = session.refine(
        session.segment(concept("absent thing")), boxes=[box_of(BRIGHT, 12)], propagate=False
    )
    region = Box((0, 63), (0, 63), (9, 14))
    found = session.refine(one, boxes=[region], more_like_this=True, locked_slices=[13])
    assert slices_of(found.to_array()) == {9, 10, 11, 12, 14}
    with pytest.raises(PromptError, match="empty"):
        session.refine(session.segment(concept("absent thing")), more_like_this=True)


def test_a_mark_on_a_locked_slice_or_outside_is_refused(session) -> None:
    before = session.segment(concept("bright thing"))
    with pytest.raises(PromptError, match="Slice 12 is locked"):
        session.refine(before, boxes=[box_of(BRIGHT, 12)], locked_slices=[12])
    with pytest.raises(PromptError, match="point i=64"):
        session.refine(before, points=[Point(64, 0, 0)])
    with pytest.raises(PromptError, match="expected K,I,J"):
        Point.parse("1,2")
    assert Point.parse("3,1,2,-") == Point(1, 2, 3, positive=False)
    assert Point.parse(Point(1, 2, 3).written()) == Point(1, 2, 3)
