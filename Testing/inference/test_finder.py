import pytest
from hypothesis import given
from hypothesis import strategies as st

from MedSAM3Core.inference.finder import key_slices, search


def walk(occupied: set[int], first: int, last: int, stride: int, margin: int) -> tuple[list[int], list[int]]:
    seen: list[int] = []
    one = search(first, last, stride, margin, 0.5)
    want = next(one)
    while True:
        seen += want
        try:
            want = one.send({n: float(n in occupied) for n in want})
        except StopIteration as end:
            return end.value, seen


@given(st.integers(1, 60), st.integers(1, 20))
def test_key_slices_cover_the_scan(count: int, stride: int) -> None:
    keys = key_slices(count, stride)
    assert all(min(abs(n - k) for k in keys) <= stride // 2 for n in range(count))
    assert all(0 <= k < count for k in keys)


@given(st.integers(0, 59), st.integers(0, 59), st.integers(1, 12), st.integers(0, 3))
def test_an_object_as_tall_as_the_stride_is_found_to_its_ends(
    a: int, b: int, stride: int, margin: int
) -> None:
    first, last = min(a, b), max(a, b)
    occupied = set(range(first, last + 1))
    found, seen = walk(occupied, 0, 59, stride, margin)
    assert len(seen) == len(set(seen))
    assert set(found) <= set(seen)
    if len(occupied) >= stride:
        assert found == [n for n in range(first - margin, last + margin + 1) if 0 <= n < 60]


def test_work_grows_with_the_object_and_not_with_the_scan() -> None:
    seen = {count: len(walk(set(range(40, 60)), 0, count - 1, 10, 2)[1]) for count in (100, 1000)}
    assert seen[1000] - seen[100] == 90  # the key slices


@pytest.mark.parametrize("occupied", [set(), {3}, {3, 40}])
def test_every_slice_is_looked_at_with_a_stride_of_one(occupied: set[int]) -> None:
    found, seen = walk(occupied, 0, 49, 1, 0)
    assert sorted(seen) == list(range(50))
    assert set(found) == occupied


def test_a_part_of_the_scan() -> None:
    found, seen = walk(set(range(60)), 10, 30, 5, 4)
    assert (min(seen), max(seen)) == (10, 30)
    assert found == list(range(10, 31))
