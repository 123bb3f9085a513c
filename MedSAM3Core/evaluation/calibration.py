"""Whether a score of .8 means right eight times in ten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from MedSAM3Core.evaluation.scoring import Score, found_something

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Answers of similar confidence.

    Attributes:
        low: Least score.
        high: Score from which the next bin begins.
        count: Answers.
        confidence: Their mean score.
        right: Share of them that are right.
    """

    low: float
    high: float
    count: int
    confidence: float
    right: float


@dataclass(frozen=True)
class Calibration:
    """All answers of one contender.

    Attributes:
        bins: Those that hold an answer, by rising score.
        error: Expected calibration error: mean distance of confidence and share of right answers, weighted by count.
        brier: Mean squared distance of score and outcome.
        count: Answers.
    """

    bins: tuple[Bin, ...]
    error: float
    brier: float
    count: int


def calibrate(scores: Sequence[Score]) -> Calibration | None:
    """Compare confidence with outcome: "the concept is here, and this is it" (Dice of at least one half).

    An empty answer claims nothing; its score counts against an outcome that is true where the concept was there to be
    found and the mask hit it, which an empty mask never does.

    Returns:
        The calibration; None where no answer has a score.
    """
    pairs = [
        (min(max(s.score, 0.0), 1.0), s.present and found_something(s)) for s in scores if s.score is not None
    ]
    if not pairs:
        return None
    confidence = np.array([value for value, _ in pairs])
    outcome = np.array([float(hit) for _, hit in pairs])
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = tuple(
        Bin(
            n / BINS,
            (n + 1) / BINS,
            int(members.sum()),
            float(confidence[members].mean()),
            float(outcome[members].mean()),
        )
        for n in range(BINS)
        if (members := place == n).any()
    )
    error = sum(b.count * abs(b.confidence - b.right) for b in bins) / len(pairs)
    return Calibration(bins, float(error), float(np.mean((confidence - outcome) ** 2)), len(pairs))
