from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from MedSAM3Core.inference.postprocess import box_nms, fill_holes, mask_nms, remove_islands

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def literal_nms(overlaps: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    """Greedy suppression as every textbook has it: take the best, drop what overlaps it, repeat."""
    left = sorted(range(len(scores)), key=lambda n: -scores[n])
    kept = []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [n for n in left if overlaps[best, n] <= threshold]
    return sorted(kept)


def literal_components(mask: np.ndarray, offsets: list[tuple[int, ...]]) -> list[set[tuple[int, ...]]]:
    """Connected components by flood filling."""
    todo = set(map(tuple, np.argwhere(mask)))
    parts = []
    while todo:
        part, queue = set(), deque([todo.pop()])
        while queue:
            at = queue.popleft()
            part.add(at)
            for offset in offsets:
                near = tuple(a + b for a, b in zip(at, offset, strict=True))
                if near in todo:
                    todo.discard(near)
                    queue.append(near)
        parts.append(part)
    return parts


AROUND = [tuple(np.array(n) - 1) for n in np.ndindex(3, 3, 3) if n != (1, 1, 1)]
CROSS = [(0, 1), (0, -1), (1, 0), (-1, 0)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", range(5))
def test_mask_nms_is_greedy_suppression(seed: int, device: str) -> None:
    rng = np.random.default_rng(seed)
    masks = rng.random((3, 9, 6, 6)) < 0.5
    scores = rng.permutation(27).reshape(3, 9) / 27
    kept = (
        mask_nms(torch.tensor(masks, device=device), torch.tensor(scores, device=device), 0.35).cpu().numpy()
    )
    for n in range(3):
        flat = masks[n].reshape(9, -1)
        union = (flat[:, None] | flat[None]).sum(-1)
        overlaps = (flat[:, None] & flat[None]).sum(-1) / union
        assert np.flatnonzero(kept[n]).tolist() == literal_nms(overlaps, scores[n], 0.35)
    assert 0 < kept.sum() < kept.size


def test_equal_scores_keep_the_first_and_empty_masks_suppress_nothing() -> None:
    masks = torch.zeros(1, 4, 4, 4, dtype=torch.bool)
    masks[:, :2, :2] = True
    assert mask_nms(masks, torch.ones(1, 4), 0.5).tolist() == [[True, False, True, True]]


def test_box_nms() -> None:
    boxes = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 0.9], [0.5, 0.5, 1, 1], [0, 0, 0, 0]]])
    assert box_nms(boxes, torch.tensor([[0.5, 0.9, 0.1, 0.2]]), 0.5).tolist() == [[False, True, True, True]]


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(0, 6), st.floats(0.3, 0.8))
def test_holes_are_filled_by_their_definition(seed: int, largest: int, density: float) -> None:
    mask = np.random.default_rng(seed).random((2, 7, 8)) < density
    expected = mask.copy()
    for n, plane in enumerate(mask):
        for part in literal_components(~plane, CROSS):
            border = any(r in (0, 6) or c in (0, 7) for r, c in part)
            if not border and len(part) <= largest:
                expected[(n, *np.array(list(part)).T)] = True
    assert np.array_equal(fill_holes(mask, largest), expected)


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(0, 9), st.floats(0.02, 0.3))
def test_islands_are_removed_by_their_definition(seed: int, smallest: int, density: float) -> None:
    mask = np.random.default_rng(seed).random((4, 6, 6)) < density
    expected = mask.copy()
    parts = literal_components(mask, AROUND)
    for part in parts:
        if len(part) < smallest:
            expected[tuple(np.array(list(part)).T)] = False
    assert np.array_equal(remove_islands(mask, smallest), expected)
    half = np.zeros_like(mask)
    for part in parts:
        if len(part) >= max(map(len, parts)) / 2:
            half[tuple(np.array(list(part)).T)] = True
    assert np.array_equal(remove_islands(mask, share=0.5), half)


def test_a_limit_for_each_slice() -> None:
    ring = np.ones((2, 3, 3), bool)
    ring[:, 1, 1] = False
    assert fill_holes(ring, np.array([0, 1])).sum(axis=(1, 2)).tolist() == [8, 9]
