"""What went wrong with an answer, in the words of the papers where they have one.

Liu et al. (2025) name two: semantic misalignment (a mask of something else, though the words are known) and concept
blindness (a blank mask, or the wrong organ). The others are what a tracker and a box can do wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import numpy as np

from MedSAM3Core.evaluation.metrics import Overlap

ELSEWHERE_DICE = 0.1
"""An answer with less overlap than this is not a bad outline of the concept but something else."""
MOSTLY = 0.5
GOOD_DICE = 0.7
SURE = 0.8


class Failure(StrEnum):
    """Kinds of failure; each answer has at most one."""

    NONE = ""
    BLANK = "blank mask"
    WRONG_ORGAN = "wrong organ"
    MISALIGNED = "semantic misalignment"
    FALSE_ALARM = "false alarm"
    RAN_ON = "ran on past the end"
    PARTIAL = "part missing"
    SPILLED = "spilled over"
    ROUGH = "rough outline"


EXPLANATIONS: Mapping[Failure, str] = {
    Failure.BLANK: "concept blindness: the concept is there, the answer is empty",
    Failure.WRONG_ORGAN: "concept blindness: most of the answer lies in another labelled concept of the case",
    Failure.MISALIGNED: "the answer is elsewhere, in nothing that is labelled (Dice under 0.1)",
    Failure.FALSE_ALARM: "the concept is not there, the answer is not empty",
    Failure.RAN_ON: "most of what is wrong lies on slices beyond the object's first and last",
    Failure.PARTIAL: "what was found is right, much is missing (precision at least 0.8)",
    Failure.SPILLED: "all was found and much beside it (recall at least 0.8)",
    Failure.ROUGH: "the right object, Dice under 0.7 for no single reason",
}


def classify(
    answer: np.ndarray, reference: np.ndarray, others: Mapping[str, np.ndarray], axis: int = 0
) -> tuple[Failure, str]:
    """What went wrong, and with what.

    Args:
        answer: Boolean (slices, rows, columns).
        reference: The same shape.
        others: Masks of the case's other concepts.
        axis: Array axis along which the volume is cut into slices.

    Returns:
        The kind, and for `Failure.WRONG_ORGAN` the concept that was found instead, else an empty string.
    """
    overlap = Overlap.of(answer, reference)
    if not overlap.reference:
        return (Failure.FALSE_ALARM, "") if overlap.answer else (Failure.NONE, "")
    if not overlap.answer:
        return Failure.BLANK, ""
    if overlap.dice < ELSEWHERE_DICE:
        return _elsewhere(answer, reference, others)
    if overlap.dice >= GOOD_DICE:
        return Failure.NONE, ""
    if _ran_on(answer, reference, axis):
        return Failure.RAN_ON, ""
    if overlap.precision >= SURE:
        return Failure.PARTIAL, ""
    return (Failure.SPILLED if overlap.recall >= SURE else Failure.ROUGH), ""


def _elsewhere(
    answer: np.ndarray, reference: np.ndarray, others: Mapping[str, np.ndarray]
) -> tuple[Failure, str]:
    """The other concept that holds most of an answer, if one that is not a part of the reference does."""
    size = np.count_nonzero(answer)
    shares = {
        name: np.count_nonzero(answer & mask) / size
        for name, mask in others.items()
        if not (mask & reference).any()
    }
    found = max(shares, key=lambda name: shares[name], default="")
    return (Failure.WRONG_ORGAN, found) if found and shares[found] > MOSTLY else (Failure.MISALIGNED, "")


def _ran_on(answer: np.ndarray, reference: np.ndarray, axis: int) -> bool:
    rest = tuple(a for a in range(3) if a != axis)
    occupied = np.flatnonzero(reference.any(axis=rest))
    wrong = (answer != reference).sum(axis=rest)
    beyond = wrong[: occupied[0]].sum() + wrong[occupied[-1] + 1 :].sum()
    return bool(beyond > MOSTLY * wrong.sum())
