"""How good a round is by the numbers alone, and those numbers in words.

Used beside a judge's verdict: between two rounds of the same rank the higher score is taken. It knows nothing of
what the object should look like, so it cannot tell a liver from a lung; that is the judge's part.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from MedSAM3Core.agent.facts import Round, Target
from MedSAM3Core.segmentation import Segmentation

SURE_SHARE = 0.5
"""Share of the score that stays when every voxel is as unsure as can be; a mask's certainty decides the other half."""
LEAST_OBJECT_SHARE = 0.02
"""Pieces smaller than this share of the largest are not counted as objects."""


def internal_score(segmentation: Segmentation, target: Target) -> float:
    """Presence score, times how sure the voxels are, times how well the number of objects fits; 0..1.

    Args:
        segmentation: A round's result; an empty one scores 0.
        target: Says how many objects are expected.
    """
    if segmentation.empty:
        return 0.0
    sure = SURE_SHARE + (1 - SURE_SHARE) * certainty(segmentation)
    return float(segmentation.score * sure * count_fit(segmentation, target.count))


def certainty(segmentation: Segmentation) -> float:
    """Mean distance of the mask's probabilities from one half, scaled to 0..1; 1 where they were not kept."""
    if segmentation.probability is None or segmentation.empty:
        return 1.0
    inside = segmentation.probability[segmentation.mask].astype(np.float32)
    return float(np.clip(np.abs(2 * inside - 1), 0, 1).mean())


def count_fit(segmentation: Segmentation, count: int | None) -> float:
    """Share of the voxels in the ``count`` largest pieces; 1 when the number is open."""
    if count is None or segmentation.empty:
        return 1.0
    sizes = sorted(piece_sizes(segmentation), reverse=True)
    return sum(sizes[: max(count, 1)]) / sum(sizes)


def piece_sizes(segmentation: Segmentation) -> list[int]:
    """Voxels of each connected piece (faces, edges and corners connect)."""
    if segmentation.empty:
        return []
    labels, count = ndimage.label(segmentation.mask, np.ones((3, 3, 3), bool))
    return [int(n) for n in np.bincount(labels.ravel(), minlength=count + 1)[1:]]


def object_count(segmentation: Segmentation) -> int:
    """Connected pieces that are not crumbs."""
    sizes = piece_sizes(segmentation)
    return sum(size >= LEAST_OBJECT_SHARE * max(sizes) for size in sizes)


def best_round(rounds: Sequence[Round]) -> Round | None:
    """The round of the best verdict, of equals the highest internal score, of equals the latest; None of none."""
    return max(rounds, key=lambda r: (r.judgement.verdict.rank, r.score, r.number), default=None)
