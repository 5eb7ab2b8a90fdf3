"""Intervals and tests against what theory says they are."""

import numpy as np
import pytest
from scipy import stats

from uniaudio2.evaluation.metrics import load_metric
from uniaudio2.evaluation.resampling import confidence_intervals, paired_difference


def mean(rows):
    return {"mean": float(rows.mean())}


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    rows = np.random.default_rng(0).standard_normal((500, 1))
    low, high = confidence_intervals(rows, mean, resamples=4000)["mean"]
    error = 1.96 * rows.std() / np.sqrt(len(rows))
    assert (low, high) == pytest.approx((rows.mean() - error, rows.mean() + error), abs=0.1 * error)
    assert confidence_intervals(rows, mean, resamples=50) == confidence_intervals(rows, mean, resamples=50)


def test_one_item_has_an_interval_of_no_width():
    assert confidence_intervals(np.ones((1, 1)), mean)["mean"] == (1, 1)


def test_the_permutation_test_agrees_with_scipy():
    generator = np.random.default_rng(2)
    a = generator.standard_normal((30, 1))
    b = a + 0.2 + 0.6 * generator.standard_normal((30, 1))
    result = paired_difference(a, b, mean, resamples=4000)["mean"]
    expected = stats.permutation_test(
        ((b - a)[:, 0],), np.mean, permutation_type="samples", n_resamples=9999, rng=np.random.default_rng(0)
    )
    assert result["difference"] == pytest.approx((b - a).mean())
    assert result["p"] == pytest.approx(expected.pvalue, abs=0.03)
    assert result["low"] < result["difference"] < result["high"]


def test_the_interval_of_a_distance_of_sets_is_about_its_value():
    """A draw holds fewer different items, so that its Frechet distance is larger: the plain interval lies above it."""
    metric = load_metric("frechet_distance")
    generator = np.random.default_rng(0)
    draw = lambda: np.concatenate([generator.standard_normal((60, 8)), 1.2 * generator.standard_normal((60, 8))], 1)  # noqa: E731
    expected = np.mean([metric.aggregate(draw())["frechet_distance"] for _ in range(200)])
    covered = []
    for _ in range(20):
        rows = draw()
        low, high = confidence_intervals(rows, metric.aggregate, 50, has_set_bias=True)["frechet_distance"]
        assert low < metric.aggregate(rows)["frechet_distance"] < high
        covered.append(low < expected < high)
    assert sum(covered) >= 18
    plain = confidence_intervals(rows, metric.aggregate, 50)["frechet_distance"]
    assert plain[1] - plain[0] == pytest.approx(high - low) and plain[0] > low


def test_pairs_need_one_shape():
    with pytest.raises(ValueError, match="one shape"):
        paired_difference(np.zeros((2, 1)), np.zeros((3, 1)), mean)
