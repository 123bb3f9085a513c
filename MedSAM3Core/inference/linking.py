"""Which object of one time is which of the next: assignment by overlap. Imports no torch."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from MedSAM3Core.segmentation import Segmentation

LEAST_OVERLAP = 0.1
"""Least intersection over union at which two masks of neighbouring times are one object; SAM 3's published tracker
associates detections with masklets at the same value (facebookresearch/sam3, assoc_iou_thresh)."""


def overlaps(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> np.ndarray:
    """Intersection over union of every pair of masks.

    Args:
        ours: Boolean masks of one shape.
        theirs: Boolean masks of the same shape.

    Returns:
        (ours, theirs) float, 0..1.
    """
    table = np.zeros((len(ours), len(theirs)))
    sizes = [int(mask.sum()) for mask in theirs]
    for row, mine in enumerate(ours):
        size = int(mine.sum())
        for column, other in enumerate(theirs):
            both = int(np.logical_and(mine, other).sum())
            either = size + sizes[column] - both
            table[row, column] = both / either if either else 0.0
    return table


def assign(table: np.ndarray, least: float = LEAST_OVERLAP) -> list[tuple[int, int]]:
    """Pairs of rows and columns with the largest summed overlap, each used once at most.

    Args:
        table: (ours, theirs), from `overlaps`.
        least: Pairs that overlap less are none.
    """
    if table.size == 0:
        return []
    rows, columns = linear_sum_assignment(-table)
    return [(int(r), int(c)) for r, c in zip(rows, columns, strict=True) if table[r, c] >= least]


def split_objects(mask: np.ndarray, least_share: float = 0.05) -> list[np.ndarray]:
    """Connected parts of a mask, the largest first; parts below a share of the largest go with none.

    Args:
        mask: Boolean, any number of axes.
        least_share: Of the largest part.
    """
    labels, count = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    order = np.argsort(-sizes, kind="stable")
    return [labels == n + 1 for n in order if sizes[n] >= least_share * sizes.max()]


@dataclass
class Linker:
    """Gives the parts of a concept's masks identities that last through time.

    Attributes:
        least: Least overlap of one object at two times.
        patience: Times an object may be absent and still come back as itself, where it was.
    """

    least: float = LEAST_OVERLAP
    patience: int = 3
    _last: dict[int, tuple[int, np.ndarray]] = field(default_factory=dict)
    _time: int = -1
    _next: int = 1

    def link(self, masks: Sequence[np.ndarray]) -> list[int]:
        """Identities, from 1 on, of the masks of the next time.

        Args:
            masks: Boolean, all of one shape, which is that of all times.

        Returns:
            One identity for each mask, in their order.
        """
        self._time += 1
        self._last = {
            identity: (seen, mask)
            for identity, (seen, mask) in self._last.items()
            if self._time - seen <= self.patience + 1
        }
        known = list(self._last)
        table = overlaps([self._last[identity][1] for identity in known], masks)
        identities = {column: known[row] for row, column in assign(table, self.least)}
        for column, mask in enumerate(masks):
            if column not in identities:
                identities[column] = self._next
                self._next += 1
            self._last[identities[column]] = (self._time, mask)
        return [identities[column] for column in range(len(masks))]


def number_objects(found: Sequence[Sequence[Segmentation]]) -> list[list[Segmentation]]:
    """Split what was found through time into objects that keep their numbers.

    Args:
        found: For each time one segmentation a concept, always in the same order, all on grids of one shape.

    Returns:
        For each time its objects, "polyp 1", "polyp 2", ..., each with a colour of its own; the empty segmentations of
        a time at which nothing was found.
    """
    linkers = [Linker() for _ in (found[0] if found else ())]
    result = []
    for results in found:
        objects: list[Segmentation] = []
        for linker, whole in zip(linkers, results, strict=True):
            parts = [] if whole.empty else split_objects(whole.to_array())
            numbers = linker.link(parts)
            objects += [
                _numbered(whole, part, n) for n, part in sorted(zip(numbers, parts, strict=True), key=_first)
            ]
        result.append(objects or list(results))
    return result


def _first(pair: tuple[int, np.ndarray]) -> int:
    return pair[0]


def _numbered(whole: Segmentation, mask: np.ndarray, number: int) -> Segmentation:
    concept = whole.concept
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in concept.colour))
    turned = colorsys.hsv_to_rgb((hue + 0.382 * (number - 1)) % 1.0, max(saturation, 0.5), max(value, 0.7))
    red, green, blue = (round(255 * channel) for channel in turned)
    own = replace(
        concept,
        phrase=f"{concept.phrase} {number}",
        name=f"{concept.name or concept.phrase} {number}",
        colour=(red, green, blue),
    )
    part = Segmentation.from_mask(own, whole.geometry, mask)
    return replace(
        part,
        score=whole.score,
        slice_scores=whole.slice_scores,
        provenance=whole.provenance,
        timings=whole.timings,
    )
