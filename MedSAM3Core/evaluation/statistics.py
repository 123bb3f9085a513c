"""How sure a figure is: confidence intervals over patients, and paired tests between models.

Patients are the unit: images of one patient are alike, and counting them one by one would make every interval too
narrow.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

DRAWS = 4000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval.

    Attributes:
        mean: Over patients.
        low: Lower end of the bootstrap interval; None with fewer than two patients.
        high: Upper end.
        patients: How many there are.
    """

    mean: float
    low: float | None
    high: float | None
    patients: int


@dataclass(frozen=True)
class PairedTest:
    """Two contenders on the same patients.

    Attributes:
        difference: First minus second, mean over patients, with its interval.
        p_value: Wilcoxon's signed-rank test, two-sided; 1 when no patient differs.
        adjusted: The same after Holm's correction for all tests of a report.
    """

    difference: Estimate
    p_value: float
    adjusted: float | None = None


def patient_means(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Mean of each patient's values; pairs are (patient, value)."""
    grouped: dict[str, list[float]] = defaultdict(list)
    for patient, value in values:
        grouped[patient].append(value)
    return {patient: float(np.mean(members)) for patient, members in grouped.items()}


def estimate(means: Sequence[float], seed: int = 0, draws: int = DRAWS) -> Estimate:
    """Mean of patients' means with a percentile bootstrap interval; patients are drawn with replacement.

    Args:
        means: One a patient, at least one.
        seed: The same values give the same interval.
        draws: Bootstrap samples.
    """
    values = np.asarray(means, float)
    if len(values) < 2:
        return Estimate(float(values.mean()), None, None, len(values))
    chosen = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(values[chosen].mean(axis=1), [tail, 100 - tail])
    return Estimate(float(values.mean()), float(low), float(high), len(values))


def compare(first: Mapping[str, float], second: Mapping[str, float]) -> PairedTest | None:
    """Test two contenders on the patients that both have.

    Args:
        first: Patient to mean.
        second: The same for the other.

    Returns:
        The test; None when they share no patient.
    """
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return None
    differences = np.array([first[patient] - second[patient] for patient in shared])
    moved = differences[differences != 0]
    p_value = float(stats.wilcoxon(moved).pvalue) if len(moved) else 1.0
    return PairedTest(estimate(differences.tolist()), p_value)


def holm(p_values: Mapping[Hashable, float]) -> dict[Hashable, float]:
    """Holm's adjusted p-values of a family of tests."""
    ordered = sorted(p_values, key=lambda key: p_values[key])
    adjusted: dict[Hashable, float] = {}
    largest = 0.0
    for place, key in enumerate(ordered):
        largest = max(largest, min(1.0, p_values[key] * (len(ordered) - place)))
        adjusted[key] = largest
    return adjusted
