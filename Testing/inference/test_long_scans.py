"""Work follows the object, not the scan: slices are counted, not timed."""

import numpy as np
import pytest
from inference_doubles import BACKGROUND, GREY, SIZE, BrightModel, concept

from MedSAM3Core import Segmenter
from MedSAM3Core.inference.extents import coarse_step_mm
from MedSAM3Core.inference.finder import search
from MedSAM3Core.volume.volume import Volume

OBJECT = 80


def scan(slices: int, spacing: float) -> Volume:
    """A cylinder of 80 slices off the middle of a scan."""
    array = np.full((slices, SIZE, SIZE), BACKGROUND, np.uint8)
    first = max(0, (slices - OBJECT) // 3)
    array[first : first + OBJECT, 20:40, 20:44] = 200
    return Volume.from_array(array, spacing=(1, 1, spacing), modality="CT")


def run(volume: Volume, monkeypatch, **settings) -> tuple[int, np.ndarray]:
    monkeypatch.setitem(GREY, "liver", 200)
    with Segmenter(BrightModel()).open(volume, window="255,127.5", propagate=False, **settings) as session:
        found = session.segment(concept("liver")).to_array()
        return session.work.slices, found


def test_a_liver_in_a_long_scan_costs_little_more_than_alone(monkeypatch) -> None:
    alone, _ = run(scan(OBJECT, 2.5), monkeypatch)
    for slices, most in ((300, 1.4), (600, 1.8), (2000, 3.0)):
        work, found = run(scan(slices, 2.5), monkeypatch)
        assert np.array_equal(found, scan(slices, 2.5).array == 200)
        assert work <= most * alone, f"{work} of {slices} slices, {alone} alone"


def test_without_its_length_the_same_is_found_by_more_looks(monkeypatch) -> None:
    few, found = run(scan(600, 2.5), monkeypatch)
    many, expected = run(scan(600, 2.5), monkeypatch, use_extents=False)
    assert np.array_equal(found, expected)
    assert few < 0.7 * many


def looked_at(shown: range, count: int, coarse: int) -> tuple[list[int], list[int]]:
    one = search(0, count - 1, 3, 1, 0.5, coarse=coarse)
    looked: list[int] = []
    want = next(one)
    try:
        while True:
            assert not set(want) & set(looked), "no slice is looked at twice"
            looked += want
            want = one.send({n: float(n in shown) for n in want})
    except StopIteration as stop:
        return looked, stop.value


@pytest.mark.parametrize("coarse", [0, 12])
def test_coarse_looks_find_the_same_slices(coarse: int) -> None:
    _, answer = looked_at(range(71, 120), 400, coarse)
    assert answer == list(range(70, 121))


def test_what_coarse_looks_miss_is_still_searched_for() -> None:
    looked, answer = looked_at(range(100, 105), 400, 40)
    assert set(range(100, 105)) <= set(answer)
    assert len(looked) > 400 / 3


def test_sides_share_a_length_and_unknown_concepts_have_none() -> None:
    assert coarse_step_mm("Left kidney") == coarse_step_mm("kidney") == 25
    assert coarse_step_mm("lymph node") == 0
