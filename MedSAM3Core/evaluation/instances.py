"""Objects counted one by one: how many nuclei were found, and how many were made up.

A model here answers with one mask for a concept; its objects are the mask's connected components. Touching nuclei are
then one object, and the figures say so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

F1_IOU = 0.5
AP_IOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""Overlaps of the 2018 Data Science Bowl, whose AP is the mean over them of TP / (TP + FP + FN)."""


@dataclass(frozen=True)
class InstanceScore:
    """Objects of one image.

    Attributes:
        f1: 2 TP / (2 TP + FP + FN) at an overlap of one half.
        ap: Mean over `AP_IOUS` of TP / (TP + FP + FN).
        found: Objects in the answer.
        expected: Objects in the reference.
    """

    f1: float
    ap: float
    found: int
    expected: int


def components(mask: np.ndarray) -> np.ndarray:
    """Number the connected components of a boolean mask from 1, diagonal neighbours counted as touching."""
    return ndimage.label(mask, structure=np.ones((3,) * mask.ndim))[0]


def score_instances(answer: np.ndarray, reference: np.ndarray) -> InstanceScore:
    """Match objects one to one and count.

    Args:
        answer: Integer map, 0 background, any other value an object.
        reference: The same shape.

    Returns:
        The score; F1 and AP are 1 when both are empty.
    """
    overlaps = iou_table(answer, reference)
    found, expected = overlaps.shape
    counts = [_matches(overlaps, least) for least in (F1_IOU, *AP_IOUS)]
    jaccards = [_ratio(hits, found + expected - hits) for hits in counts]
    return InstanceScore(
        _ratio(2 * counts[0], found + expected), float(np.mean(jaccards[1:])), found, expected
    )


def iou_table(answer: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """IoU of every pair, (objects of the answer, objects of the reference)."""
    first, ours = np.unique(answer, return_inverse=True)
    second, theirs = np.unique(reference, return_inverse=True)
    common = np.zeros((len(first), len(second)))
    np.add.at(common, (ours.ravel(), theirs.ravel()), 1)
    union = common.sum(1, keepdims=True) + common.sum(0, keepdims=True) - common
    return (common / union)[np.ix_(first != 0, second != 0)]


def _matches(overlaps: np.ndarray, least: float) -> int:
    """Most pairs, one to one, that overlap at least so much."""
    rows, columns = linear_sum_assignment(overlaps >= least, maximize=True)
    return int((overlaps[rows, columns] >= least).sum())


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 1.0
