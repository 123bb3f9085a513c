import dataclasses
import itertools
import json

import numpy as np
import pytest
from inference_doubles import BRIGHT, DIM, SHAPE, BrightModel, concept, phantom, phantom_array

from MedSAM3Core import Box, Cancelled, CancelToken, Progress, PromptError, Segmenter, VolumeError
from MedSAM3Core.errors import InputError
from MedSAM3Core.models.card import ModelCard, Policy
from MedSAM3Core.volume.volume import axial_affine


@pytest.fixture
def model() -> BrightModel:
    return BrightModel()


def test_concepts_are_found_where_they_are(model: BrightModel) -> None:
    with Segmenter(model).open(phantom()) as session:
        bright = session.segment(concept("bright thing"))
        assert np.array_equal(bright.to_array(), BRIGHT)
        assert np.array_equal(session.segment(concept("dim thing")).to_array(), DIM)
        probability = bright.probability_map()
        assert probability[BRIGHT].min() > 0.9
        assert probability[~BRIGHT].max() < 0.1


def test_several_at_once_equal_one_by_one_in_any_order(model: BrightModel) -> None:
    names = ["bright thing", "dim thing", "absent thing"]
    with Segmenter(model).open(phantom()) as session:
        single = {name: session.segment(concept(name)) for name in names}
        for order in itertools.permutations(names):
            for name, result in zip(order, session.segment_many([concept(n) for n in order]), strict=True):
                assert np.array_equal(result.to_array(), single[name].to_array())
                assert result.slice_scores == single[name].slice_scores


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (1, -1, -1)])
def test_storage_order_changes_nothing_but_the_order(model: BrightModel, order: tuple, signs: tuple) -> None:
    flips = tuple(slice(None, None, s) for s in signs)
    # array axes are (k, j, i), affine columns (i, j, k): permute and flip both alike
    array = phantom_array().transpose(order)[flips]
    affine = np.eye(4)
    original = axial_affine((1, 1, 2))
    for axis, source in enumerate(order):
        affine[:, 2 - axis] = original[:, 2 - source] * signs[axis]
    with Segmenter(model).open(phantom(np.ascontiguousarray(array), affine), axis="axial") as session:
        result = session.segment(concept("dim thing"))
    assert np.array_equal(result.to_array(), DIM.transpose(order)[flips])


def test_only_occupied_slices_are_encoded_and_the_mask_is_the_same() -> None:
    results, encoded = [], []
    for mode in ("recommended", "thorough"):
        model = BrightModel()
        with Segmenter(model).open(phantom(), mode=mode, precision="float32") as session:
            results.append(session.segment(concept("bright thing")).to_array())
        encoded.append(model.network.encoded)
    assert np.array_equal(*results)
    assert encoded[1] == SHAPE[0]
    assert BRIGHT.any((1, 2)).sum() <= encoded[0] < SHAPE[0]


def test_features_are_computed_once(model: BrightModel) -> None:
    with Segmenter(model).open(phantom(), mode="thorough", precision="float32") as session:
        session.segment_many([concept("bright thing"), concept("dim thing")])
        session.segment(concept("absent thing"))
        assert model.network.encoded == SHAPE[0]


@pytest.mark.parametrize(
    "changes", [{"batch_slices": 1, "batch_pairs": 1}, {"keep": "trunk"}, {"device_bytes": 300_000}]
)
def test_batches_and_bounds_do_not_change_masks(model: BrightModel, changes: dict) -> None:
    with Segmenter(model).open(phantom(), **changes) as session:
        found = session.segment_many([concept("bright thing"), concept("dim thing")])
        assert session.features.device_bytes <= session.settings.device_bytes
    assert np.array_equal(found[0].to_array(), BRIGHT)
    assert np.array_equal(found[1].to_array(), DIM)


def test_a_concept_found_nowhere_is_empty_with_a_notice(model: BrightModel) -> None:
    with Segmenter(model).open(phantom()) as session:
        result = session.segment(concept("absent thing"))
    assert result.empty
    assert result.to_array().shape == SHAPE
    assert any("found nowhere" in notice for notice in result.provenance.notices)


def test_a_volume_of_one_value_is_empty_with_a_notice(model: BrightModel) -> None:
    with Segmenter(model).open(phantom(np.full(SHAPE, 7, np.int16))) as session:
        result = session.segment(concept("bright thing"))
    assert result.empty
    assert model.network.encoded == 0
    assert any("one value" in notice for notice in result.provenance.notices)


def test_what_is_wrong_is_said_at_once(model: BrightModel) -> None:
    segmenter = Segmenter(model)
    with pytest.raises(VolumeError, match="expected auto, axial"):
        segmenter.open(phantom(), axis="oblique")
    with pytest.raises(InputError, match="mode"):
        segmenter.open(phantom(), mode="best")
    with pytest.raises(InputError, match="expected auto"):
        segmenter.open(phantom(), window="foo")
    with pytest.raises(InputError, match="setting"):
        segmenter.open(phantom(), colour="red")
    with segmenter.open(phantom()) as session:
        with pytest.raises(PromptError):
            session.segment("  ")
        with pytest.raises(PromptError, match=r"i=0\.\.63, j=0\.\.63, k=0\.\.29"):
            session.segment(concept("bright thing"), boxes=[Box.on_slice(30, (0, 3), (0, 3))])
        with pytest.raises(PromptError, match="threshold"):
            session.segment(concept("bright thing"), threshold=1.5)
    with pytest.raises(PromptError, match="closed"):
        session.segment(concept("bright thing"))


def test_cancelling_at_any_report_leaves_the_session_usable() -> None:
    reports: list[Progress] = []
    with Segmenter(BrightModel()).open(phantom(), batch_slices=4) as session:
        session.segment(concept("bright thing"), progress=reports.append)
    assert len(reports) > 6
    for stop_at in range(len(reports)):
        token = CancelToken()
        seen = itertools.count()

        def stop(report: Progress, token: CancelToken = token, seen=seen, stop_at: int = stop_at) -> None:
            if next(seen) == stop_at:
                token.cancel()

        with Segmenter(BrightModel()).open(phantom(), batch_slices=4) as session:
            if stop_at < len(reports) - 1:
                with pytest.raises(Cancelled):
                    session.segment(concept("bright thing"), progress=stop, cancel=token)
            again = session.segment(concept("bright thing"))
            assert np.array_equal(again.to_array(), BRIGHT)


def test_progress_ends_at_the_whole(model: BrightModel) -> None:
    reports: list[Progress] = []
    with Segmenter(model).open(phantom()) as session:
        session.segment_many([concept("bright thing"), concept("dim thing")], progress=reports.append)
    assert reports[-1].fraction == pytest.approx(1.0)
    assert {"searching", "propagating", "fusing"} <= {report.stage for report in reports}
    assert all(0 <= report.step <= report.total for report in reports)


def test_provenance_and_timings(model: BrightModel) -> None:
    with Segmenter(model).open(phantom(), precision="float32") as session:
        result = session.segment(concept("bright thing"), boxes=[Box.on_slice(12, (8, 33), (8, 36))])
    record = result.provenance
    assert json.loads(json.dumps(dataclasses.asdict(record)))["model"] == "bright"
    assert record.model_hash == "0" * 64
    assert record.prompts == ("bright thing",)
    assert record.boxes == ("8,8,12,33,36,12,+",)
    assert record.axis == "axial (grid axis k)"
    assert record.device == "cpu, float32"
    assert {"encoding", "detecting", "propagating", "fusing", "refining"} <= result.timings.keys()


def test_a_single_image_is_detected_without_propagation(model: BrightModel) -> None:
    with Segmenter(model).open(phantom_array()[12]) as session:
        result = session.segment(concept("bright thing"))
    assert np.array_equal(result.to_array()[0], BRIGHT[12])
    assert model.tracker.steps == 0


def test_colour_and_numpy_go_in(model: BrightModel) -> None:
    rgb = np.repeat(phantom_array()[12][..., None], 3, axis=-1)
    with Segmenter(model).open(rgb) as session:
        assert np.array_equal(session.segment(concept("bright thing")).to_array()[0], BRIGHT[12])


def test_a_gap_between_two_anchors_is_bridged_by_propagation() -> None:
    array = phantom_array()
    for index, grey in ((12, 181), (13, 179), (14, 181)):
        # 181 is just inside the detector's tolerance of 200, 179 just outside, but near enough to the tracker's 181
        array[index][BRIGHT[index]] = grey
    masks = {}
    for propagate in (True, False):
        settings = {"propagate": propagate, "agreement_mm": 0, "anchor_spacing_mm": 1}
        with Segmenter(BrightModel()).open(phantom(array), **settings) as session:
            masks[propagate] = session.segment(concept("bright thing")).to_array()
    assert not masks[False][13].any()
    assert np.array_equal(masks[True], BRIGHT)


def test_exemplars_leave_a_certain_answer_as_it_is() -> None:
    model = BrightModel()
    with Segmenter(model).open(phantom(), exemplars=True) as session:
        assert np.array_equal(session.segment(concept("bright thing")).to_array(), BRIGHT)
    plain = BrightModel()
    with Segmenter(plain).open(phantom()) as session:
        session.segment(concept("bright thing"))
    assert model.network.detected > plain.network.detected


def clip_model(slices: int) -> BrightModel:
    policy = Policy(score_rule="presence", propagation="clips", clip_slices=slices)
    return BrightModel(card=ModelCard(name="clips", published=policy))


def test_clips_detect_on_their_first_slice_only_and_track_from_there() -> None:
    model = clip_model(4)
    with Segmenter(model).open(phantom(), mode="published") as session:
        found = session.segment(concept("bright thing")).to_array()
    assert model.network.detected == 8  # slices 0, 4, ..., 28
    starts = [n for n in range(0, 30, 4) if BRIGHT[n].any()]
    reached = {n for start in starts for n in range(start, start + 4)}
    for n in range(SHAPE[0]):
        assert np.array_equal(found[n], BRIGHT[n] if n in reached else np.zeros_like(BRIGHT[n]))


def test_each_slice_on_its_own_when_the_policy_says_so() -> None:
    model = BrightModel(
        card=ModelCard(name="alone", published=Policy(score_rule="presence", propagation="none"))
    )
    with Segmenter(model).open(phantom(), mode="published") as session:
        assert np.array_equal(session.segment(concept("bright thing")).to_array(), BRIGHT)
    assert model.tracker.steps == 0


@pytest.mark.parametrize(
    ("slices", "thickness", "settings", "mended"),
    [
        (1.5, 2.0, {}, True),
        (0.0, 2.0, {}, False),
        (1.5, 2.0, {"smoothing_mm": 0.0}, False),
        (1.5, 12.0, {}, False),  # neighbours 12 mm away say little of a slice
    ],
)
def test_neighbouring_slices_outvote_one_where_the_policy_smooths(
    slices: float, thickness: float, settings: dict, mended: bool
) -> None:
    policy = Policy(score_rule="presence", propagation="none", smoothing_slices=slices)
    model = BrightModel(card=ModelCard(name="uneven", recommended=policy))
    array = phantom_array()
    lost = BRIGHT[12] & (np.arange(SHAPE[1]) < 18)[:, None]
    array[12][lost] = array[0, 0, 0]
    with Segmenter(model).open(phantom(array, axial_affine((1, 1, thickness))), **settings) as session:
        found = session.segment(concept("bright thing")).to_array()
    assert lost.sum() > 50
    assert found[12][lost].mean() == pytest.approx(1.0 if mended else 0.0, abs=0.1)


def test_other_settings_share_the_features(model: BrightModel) -> None:
    with Segmenter(model).open(phantom(), mode="thorough", precision="float32") as session:
        session.segment(concept("bright thing"))
        other = session.with_settings(propagate=False, island_share=0.5)
        steps = model.tracker.steps
        assert np.array_equal(other.segment(concept("dim thing")).to_array(), DIM)
        assert (model.network.encoded, model.tracker.steps) == (SHAPE[0], steps)
        assert session.settings.propagate
    with pytest.raises(PromptError, match="closed"):
        other.segment(concept("dim thing"))
