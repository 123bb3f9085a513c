import numpy as np
import pytest
from scipy import stats

from MedSAM3Core.evaluation.statistics import compare, estimate, holm, patient_means


def test_images_of_one_patient_count_as_one():
    means = patient_means([("a", 0.2), ("a", 0.4), ("b", 0.9)])
    assert means == pytest.approx({"a": 0.3, "b": 0.9})


def test_the_interval_covers_the_mean_as_often_as_it_says():
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        found = estimate(random.normal(0.7, 0.1, 40), draws=400)
        hits += found.low <= 0.7 <= found.high
    assert 0.90 <= hits / 200 <= 0.99


def test_the_interval_agrees_with_scipys_bootstrap():
    values = np.random.default_rng(1).beta(5, 2, 30)
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=4000, rng=2
    ).confidence_interval
    ours = estimate(values)
    assert ours.low == pytest.approx(theirs.low, abs=0.01)
    assert ours.high == pytest.approx(theirs.high, abs=0.01)


def test_one_patient_has_no_interval():
    assert estimate([0.5]).low is None


def test_only_shared_patients_are_compared():
    first = {"a": 0.9, "b": 0.8, "only": 0.0} | {f"p{n}": 0.7 + n / 100 for n in range(8)}
    second = {"a": 0.8, "b": 0.6} | {f"p{n}": 0.6 for n in range(8)}
    found = compare(first, second)
    assert found.difference.patients == 10
    differences = [first[p] - second[p] for p in sorted(second)]
    assert found.p_value == pytest.approx(stats.wilcoxon(differences).pvalue)
    assert compare({"x": 1.0}, {"y": 1.0}) is None


def test_equal_contenders_do_not_differ():
    same = {"a": 0.5, "b": 0.6}
    found = compare(same, same)
    assert (found.difference.mean, found.p_value) == (0.0, 1.0)


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
