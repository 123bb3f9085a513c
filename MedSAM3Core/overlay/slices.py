"""Which slices of a segmentation are worth looking at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from MedSAM3Core.inference.plan import SlicePlan
from MedSAM3Core.segmentation import Segmentation

WORTH_SHOWING = 0.15
"""A slice with less of an object than this share of the object's largest section shows little of it."""
COVERED = 0.8
"""An object is well shown by a slice with this share of its largest section; the neighbour would show the same."""


def areas_by_slice(segmentations: Sequence[Segmentation], plan: SlicePlan) -> np.ndarray:
    """Pixels of each segmentation in each slice.

    Returns:
        (segmentations, slices of the plan).
    """
    areas = np.zeros((len(segmentations), plan.count))
    for row, one in zip(areas, segmentations, strict=True):
        if one.extent is None:
            continue
        axis = plan.axes[0]
        first = (one.extent.k, one.extent.j, one.extent.i)[axis][0]
        counts = one.mask.sum(axis=tuple(a for a in range(3) if a != axis))
        for n, count in enumerate(counts):
            row[plan.grid_slice(first + n)] = count
    return areas


def mask_in_slice(segmentation: Segmentation, plan: SlicePlan, index: int) -> np.ndarray | None:
    """The section of a segmentation, without a mask of the whole grid.

    Args:
        segmentation: On the plan's grid.
        plan: How the grid is cut.
        index: Slice of the plan.

    Returns:
        Boolean (rows, columns) of the plan's slices; None where the segmentation does not reach.
    """
    extent, axis = segmentation.extent, plan.axes[0]
    if extent is None:
        return None
    ends = (extent.k, extent.j, extent.i)
    place = plan.grid_slice(index) - ends[axis][0]
    if not 0 <= place < segmentation.mask.shape[axis]:
        return None
    shape, window = list(plan.geometry.shape), list(extent.slices)
    shape[axis], window[axis] = 1, slice(0, 1)
    section = np.zeros(shape, bool)
    section[tuple(window)] = np.take(segmentation.mask, [place], axis)
    return plan.to_plane(section)[0]


def key_slices(areas: np.ndarray, count: int) -> list[int]:
    """Slices that show every object near its largest section, and then spread along the objects.

    Args:
        areas: (objects, slices), from `areas_by_slice`.
        count: How many slices at most.

    Returns:
        Slice indices in ascending order; spread over the whole when there are no objects.
    """
    total = areas.shape[1]
    largest = areas.max(axis=1)
    found = areas[largest > 0] / largest[largest > 0, np.newaxis]
    if found.size == 0:
        return sorted(
            {round((n + 1) * (total - 1) / (min(count, total) + 1)) for n in range(min(count, total))}
        )
    candidates = np.flatnonzero(found.max(axis=0) >= WORTH_SHOWING)
    found = np.minimum(found, COVERED)
    content = found.sum(axis=0) / found.sum(axis=0).max()
    chosen: list[int] = []
    while len(chosen) < min(count, len(candidates)):
        gains = _coverage_gain(found, candidates, chosen) + content[candidates] * _spread_gain(
            candidates, chosen
        )
        gains[np.isin(candidates, chosen)] = -1
        chosen.append(int(candidates[int(gains.argmax())]))
    return sorted(chosen)


def _coverage_gain(found: np.ndarray, candidates: np.ndarray, chosen: list[int]) -> np.ndarray:
    """How much nearer to its largest section a further slice would bring the objects, summed over them."""
    best = found[:, chosen].max(axis=1, initial=0)
    return np.maximum(found[:, candidates] - best[:, np.newaxis], 0).sum(axis=0)


def _spread_gain(candidates: np.ndarray, chosen: list[int]) -> np.ndarray:
    """Distance to the nearest chosen slice, as a share of the objects' extent."""
    if not chosen:
        return np.zeros(len(candidates))
    distances = np.abs(candidates[:, np.newaxis] - np.array(chosen)).min(axis=1)
    return distances / max(1, int(candidates[-1] - candidates[0]))
