"""Find, then look closely (DESIGN decision 4): which slices does a concept occupy?

Key slices a few mm apart are looked at first; between a key slice that shows the concept and one that does
not, the end is found by bisection; then every slice in between, and a margin, is looked at. Work grows with
the object, not with the scan.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator

Search = Generator[list[int], dict[int, float], list[int]]
"""Yields slices to look at, is sent their scores, and returns the slices to look at closely, in ascending
order."""


def key_slices(count: int, stride: int) -> list[int]:
    """Slices ``stride`` apart, centred, so that both ends of the volume are at most half a stride away."""
    stride = max(1, min(stride, count))
    first = ((count - 1) % stride) // 2
    return list(range(first, count, stride))


def search(
    first: int, last: int, stride: int, margin: int, threshold: float, fine: int = 1, coarse: int = 0
) -> Search:
    """Look for a concept from slice ``first`` to slice ``last``.

    A generator, so that the searches for several concepts share their slices and batches; no slice is
    yielded twice, and each slice of the answer was yielded.

    Args:
        first: First slice.
        last: Last slice.
        stride: Distance of the key slices, in slices; 1 looks at every slice.
        margin: Slices looked at beyond each end.
        threshold: Score from which a slice is occupied.
        fine: Most slices from one that is looked at closely to the next; 1 looks at every occupied slice.
        coarse: Distance of first looks, of which several fall on the concept wherever it is; key slices farther than
            that from any hit are left out. 0, or no hit at all, looks at every key slice.
    """
    keys = [first + n for n in key_slices(last - first + 1, stride)]
    scores: dict[int, float] = {}
    if coarse > stride:
        scores.update((yield [first + n for n in key_slices(last - first + 1, coarse)]))
        hits = [n for n in scores if scores[n] >= threshold]
        keys = [n for n in keys if not hits or min(abs(n - hit) for hit in hits) <= coarse]
    if unseen := [n for n in keys if n not in scores]:
        scores.update((yield unseen))
    while middles := _middles(scores, first, last, threshold):
        scores.update((yield middles))
    occupied = [n for n in close_ranges(scores, threshold, margin) if first <= n <= last]
    chosen = thin(occupied, set(scores), fine)
    if unseen := [n for n in chosen if n not in scores]:
        yield unseen
    return chosen


def thin(slices: list[int], required: set[int], fine: int) -> list[int]:
    """As few of consecutive slices as leave gaps of at most ``fine``, those that are required among them.

    Args:
        slices: In ascending order; each run of consecutive ones keeps its two ends.
        required: Slices that are looked at already.
        fine: Most slices from one to the next.
    """
    chosen: list[int] = []
    for n in slices:
        begins, ends = n - 1 not in slices, n + 1 not in slices
        if begins or ends or n in required or n - chosen[-1] >= fine:
            chosen.append(n)
    return chosen


def search_starts(first: int, last: int, length: int) -> Search:
    """Look at the first slice of every clip of ``length`` slices, and nowhere else."""
    starts = list(range(first, last + 1, length))
    yield starts
    return starts


def close_ranges(scores: dict[int, float], threshold: float, margin: int) -> list[int]:
    """Every slice between neighbouring occupied ones among those scored, and ``margin`` slices around."""
    seen = sorted(scores)
    occupied: set[int] = set()
    for n in seen:
        if scores[n] >= threshold:
            occupied.update(range(n - margin, n + margin + 1))
    for a, b in itertools.pairwise(seen):
        if scores[a] >= threshold and scores[b] >= threshold:
            occupied.update(range(a, b + 1))
    return sorted(occupied)


def _middles(scores: dict[int, float], first: int, last: int, threshold: float) -> list[int]:
    """One slice in the middle of every gap in which the concept begins or ends, and the range's own ends."""
    seen = sorted(scores)
    beyond = [
        end for end, key in ((first, seen[0]), (last, seen[-1])) if end != key and scores[key] >= threshold
    ]
    return beyond + [
        (a + b) // 2
        for a, b in itertools.pairwise(seen)
        if b - a > 1 and (scores[a] >= threshold) != (scores[b] >= threshold)
    ]
