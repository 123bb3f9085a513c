from contextlib import nullcontext

import numpy as np
import pytest
import torch
from inference_doubles import BRIGHT, SHAPE, SIZE, BrightTracker, ball, phantom_array

from MedSAM3Core.inference.plan import PlaneBox
from MedSAM3Core.inference.preprocess import to_pixels
from MedSAM3Core.inference.propagator import Anchor, EndRule, Propagator
from MedSAM3Core.models.network import Pyramid
from MedSAM3Core.windowing import Window

WINDOW = Window("as is", 0, 255)


def propagator(array: np.ndarray, batch: int = 16) -> Propagator:
    tracker = BrightTracker()

    def pyramids(window: Window, indices: list[int]) -> Pyramid:
        return tracker.pyramid(to_pixels(array[list(indices)], SIZE))

    return Propagator(tracker, pyramids, len(array), nullcontext, batch)


def anchor(index: int, mask: np.ndarray) -> Anchor:
    return Anchor(index, torch.from_numpy(mask[index]))


def masks(tracks: dict) -> dict[int, np.ndarray]:
    return {
        n: (torch.stack([t.probability for t in found]).amax(0) > 0.5).numpy() for n, found in tracks.items()
    }


def test_one_anchor_reaches_both_ends_of_its_object() -> None:
    found = masks(
        propagator(phantom_array()).propagate(WINDOW, [[anchor(12, BRIGHT)]], [(0, 29)], EndRule())[0]
    )
    for n in range(SHAPE[0]):
        if n != 12 and BRIGHT[n].any():
            assert np.array_equal(found[n], BRIGHT[n])
        elif n in found:
            assert not found[n].any()
    # One slice beyond each end is looked at, and no more.
    occupied = np.flatnonzero(BRIGHT.any(axis=(1, 2)))
    assert set(found) | {12} == set(range(occupied[0] - 1, occupied[-1] + 2))


def test_limits_hold() -> None:
    found = propagator(phantom_array()).propagate(WINDOW, [[anchor(12, BRIGHT)]], [(10, 13)], EndRule())[0]
    assert set(found) == {10, 11, 13}


def test_between_two_anchors_each_slice_is_reached_from_both() -> None:
    tracks = propagator(phantom_array()).propagate(
        WINDOW, [[anchor(9, BRIGHT), anchor(14, BRIGHT)]], [(9, 14)], EndRule()
    )[0]
    assert {n: sorted((t.distance, t.gap) for t in found) for n, found in tracks.items()} == {
        10: [(1, 5), (4, 5)],
        11: [(2, 5), (3, 5)],
        12: [(2, 5), (3, 5)],
        13: [(1, 5), (4, 5)],
    }


def test_a_run_that_ended_between_anchors_says_absent_for_the_rest() -> None:
    array = phantom_array()
    array[11][BRIGHT[11]] = 20
    tracks = propagator(array).propagate(
        WINDOW, [[anchor(9, BRIGHT), anchor(15, BRIGHT)]], [(9, 15)], EndRule()
    )[0]
    assert {n: len(found) for n, found in tracks.items()} == {n: 2 for n in range(10, 15)}
    by_distance = {t.distance: float(t.probability.max()) for t in tracks[13]}
    assert by_distance[4] == 0  # from slice 9, through the missing slice 11
    assert by_distance[2] > 0.9


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_batches_equal_single_runs(batch: int) -> None:
    other = ball(SHAPE, (18, 45, 44), (8.5, 10, 12))
    objects = [[anchor(9, BRIGHT), anchor(14, BRIGHT)], [anchor(18, other)]]
    together = propagator(phantom_array(), batch).propagate(WINDOW, objects, [(0, 29)] * 2, EndRule())
    for number, one in enumerate(objects):
        alone = propagator(phantom_array(), 1).propagate(WINDOW, [one], [(0, 29)], EndRule())[0]
        assert masks(alone).keys() == masks(together[number]).keys()
        assert all(np.array_equal(masks(alone)[n], masks(together[number])[n]) for n in alone)


def test_the_end_rule_by_area_and_by_blocks() -> None:
    found = propagator(phantom_array()).propagate(
        WINDOW, [[anchor(12, BRIGHT)]], [(0, 29)], EndRule(area_share=0.5)
    )[0]
    areas = BRIGHT.sum(axis=(1, 2))
    assert {n for n, m in masks(found).items() if m.any()} == {
        n for n in range(SHAPE[0]) if n != 12 and areas[n] > 0.5 * areas[12]
    }
    blocked = EndRule(blocked={14: torch.ones(SIZE, SIZE, dtype=torch.bool)})
    found = propagator(phantom_array()).propagate(WINDOW, [[anchor(12, BRIGHT)]], [(0, 29)], blocked)[0]
    assert max(n for n, m in masks(found).items() if m.any()) == 13


def test_steps_are_counted_to_the_end() -> None:
    steps = []
    propagator(phantom_array()).propagate(
        WINDOW,
        [[anchor(9, BRIGHT), anchor(14, BRIGHT)]],
        [(0, 29)],
        EndRule(),
        lambda n, total: steps.append((n, total)),
    )
    assert [n for n, _ in steps] == sorted(n for n, _ in steps)
    assert steps[-1][0] == steps[-1][1] == 2 * 4 + 9 + 15


def test_prompting_with_boxes_and_fitting_masks() -> None:
    mover = propagator(phantom_array())
    found = mover.prompt_boxes(WINDOW, 12, [PlaneBox((12, 12), (0, 40), (0, 32))], (SIZE, SIZE))
    assert np.array_equal((found > 0.5).numpy(), BRIGHT[12])
    assert mover.fit_mask(torch.ones(10, 20)).shape == (SIZE, SIZE)


@pytest.mark.parametrize("rebase", [False, True])
def test_no_memory_is_older_than_a_training_clip(rebase: bool) -> None:
    mover = propagator(phantom_array())
    mover.frames, mover.rebase = 4, rebase
    seen = []
    track = mover.tracker.track
    mover.tracker.track = lambda pyramid, bank, index: (
        seen.append((bank, index)) or track(pyramid, bank, index)
    )
    found = masks(mover.propagate(WINDOW, [[anchor(9, BRIGHT), anchor(17, BRIGHT)]], [(6, 17)], EndRule())[0])
    assert all(np.array_equal(found[n], BRIGHT[n]) for n in found)
    for bank, index in seen:
        offsets = [
            index - m.slice_index for m in bank.memories if m.features is not None and not m.conditioning
        ]
        assert all(0 < offset <= 2 for offset in offsets)
        assert (bank.recent, bank.pointers) == (2, 4)
    distances = {index - bank.anchors[0].slice_index for bank, index in seen}
    assert max(distances) == (3 if rebase else 7)
