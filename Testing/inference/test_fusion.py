import numpy as np
import pytest
import torch

from MedSAM3Core.inference import fusion
from MedSAM3Core.inference.plan import SlicePlan
from MedSAM3Core.inference.propagator import Track
from MedSAM3Core.volume.geometry import Geometry
from MedSAM3Core.volume.volume import axial_affine


def flat(value: float) -> torch.Tensor:
    return torch.full((2, 2), value)


def track(value: float, distance: int, gap: int) -> Track:
    return Track(flat(value).half(), value, distance, gap)


def test_slices_are_accepted_by_score_alone() -> None:
    assert list(fusion.accept_slices({0: 0.2, 1: 0.5, 2: 0.49}, 0.5, 1.0, 0)) == [1]


def test_a_weak_slice_is_accepted_beside_a_strong_one_and_so_on() -> None:
    scores = {0: 0.3, 1: 0.3, 2: 0.9, 3: 0.1, 4: 0.3}
    assert list(fusion.accept_slices(scores, 0.5, 0.5, 0)) == [0, 1, 2]


def test_a_lone_hit_among_misses_is_not_believed_and_a_lone_miss_among_hits_is() -> None:
    hit = dict.fromkeys(range(7), 0.0) | {3: 0.9}
    miss = dict.fromkeys(range(7), 0.9) | {3: 0.1}
    assert not fusion.accept_slices(hit, 0.5, 1.0, 1)
    assert 3 in fusion.accept_slices(miss, 0.5, 1.0, 1)


def test_an_object_thinner_than_the_window_is_found_where_its_slices_are_sure() -> None:
    scores = dict.fromkeys(range(20), 0.02) | {7: 0.97, 8: 0.96, 14: 0.8}
    assert not fusion.accept_slices(scores, 0.5, 0.5, 4)
    found = fusion.accept_slices(scores, 0.5, 0.5, 4, sure_share=0.8)
    assert {7, 8} <= set(found) <= {6, 7, 8, 9}
    assert found[7] == 0.5


def test_sure_ends_of_an_object_do_not_come_before_its_middle() -> None:
    scores = dict.fromkeys(range(20), 0.02) | dict.fromkeys(range(5, 15), 0.98)
    found = fusion.accept_slices(scores, 0.5, 0.5, 4, sure_share=0.8)
    assert found[9] > found[5] >= 0.5


def test_a_threshold_of_zero_ends() -> None:
    assert list(fusion.accept_slices({4: 0.0, 5: 0.0}, 0.0, 0.5, 2)) == [4, 5]


def test_anchors_are_the_best_and_apart() -> None:
    scores = {n: 1 - abs(n - 10) / 20 for n in range(21)}
    assert fusion.choose_anchors(scores, 0.7, 4) == [6, 10, 14]
    assert fusion.choose_anchors(scores, 0.7, 4, required=[8]) == [4, 8, 12, 16]
    assert fusion.choose_anchors({}, 0.7, 4) == []


def test_tracks_count_by_nearness() -> None:
    both = [track(1.0, 1, 4), track(0.0, 3, 4)]
    assert fusion.blend_tracks(both)[0, 0] == pytest.approx(0.75)
    assert fusion.blend_tracks([track(0.5, 9, 0)])[0, 0] == pytest.approx(0.5)


def test_detections_and_tracks_are_averaged_where_both_speak() -> None:
    fused = fusion.fuse({1: flat(0.8), 2: flat(0.8)}, {1: 1.0, 2: 1.0}, {2: [track(0.4, 1, 0)]}, weight=0.25)
    assert fused[1][0, 0] == pytest.approx(0.8)
    assert fused[2][0, 0] == pytest.approx(0.7, abs=1e-3)


def test_tracks_fill_between_anchors_but_do_not_run_on_beyond() -> None:
    tracks = {3: [track(1.0, 1, 2), track(1.0, 1, 2)], 9: [track(1.0, 1, 0)]}
    assert set(fusion.fuse({}, {}, tracks, 0.3)) == {3}


def test_smoothing_weighs_neighbours_and_keeps_constants() -> None:
    same = fusion.smooth_along_axis({n: flat(0.6) for n in range(4)}, 1.0)
    assert all(torch.allclose(p, flat(0.6)) for p in same.values())
    step = fusion.smooth_along_axis({0: flat(1.0), 1: flat(0.0)}, 1.0)
    assert step[0][0, 0] == pytest.approx(1 / (1 + np.exp(-0.5)))
    assert fusion.smooth_along_axis({0: flat(1.0)}, 0.0)[0].equal(flat(1.0))


def test_a_slab_has_the_planes_own_pixels() -> None:
    plan = SlicePlan.choose(Geometry((9, 6, 4), axial_affine((1, 1, 1))))
    slab = fusion.to_slab({3: flat(0.9), 5: flat(0.2)}, plan, 0.5)
    assert slab is not None
    assert (slab.first, slab.mask.shape) == (3, (3, 6, 4))
    assert slab.mask.any(axis=(1, 2)).tolist() == [True, False, False]
    assert fusion.to_slab({}, plan, 0.5) is None


def test_enlarging_keeps_pixel_centres() -> None:
    ramp = torch.arange(8.0).expand(8, 8)[None]
    assert torch.allclose(fusion.enlarge(ramp, (16, 16))[0, 0, 1:-1:2], torch.arange(7.0) + 0.25)
    assert fusion.enlarge(ramp, (4, 4)).mean() == pytest.approx(float(ramp.mean()), abs=1e-5)


def test_cleaning() -> None:
    mask = np.zeros((3, 12, 12), bool)
    mask[1, 1:9, 1:9] = True
    mask[1, 4, 4] = False
    mask[1, 11, 11] = True
    cleaned = fusion.clean(mask, island_share=0.05, hole_share=0.05)
    assert cleaned[1, 4, 4]
    assert not cleaned[1, 11, 11]
    assert np.array_equal(fusion.clean(mask, 0.0, 0.0), mask)
    assert not fusion.clean(np.zeros((2, 2, 2), bool), 0.1, 0.1).any()


def test_boxes_of_masks_in_the_planes_pixels() -> None:
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[1:3, 2:4] = True
    box = fusion.box_of(mask, (8, 8))
    assert box is not None
    assert (box.rows, box.columns) == ((2, 5), (2, 3))
    assert fusion.box_of(torch.zeros(4, 4, dtype=torch.bool), (8, 8)) is None
    other = fusion.PlaneBox((0, 0), (4, 7), (6, 7))
    between = fusion.box_between(box, other, 0.5, 9)
    assert (between.slices, between.rows, between.columns) == ((9, 9), (3, 6), (4, 5))
