"""Confidence intervals and paired tests, by drawing items again. Seeded: the same rows give the same numbers."""

from collections.abc import Callable

import numpy as np

Aggregate = Callable[[np.ndarray], dict[str, float]]


def confidence_intervals(
    rows: np.ndarray,
    aggregate: Aggregate,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    has_set_bias: bool = False,
) -> dict[str, tuple[float, float]]:
    """
    Percentile bootstrap of every score.

    Some scores grow when items are drawn again, since a draw holds fewer different items: a Frechet distance of 100
    items lay above all of its plain interval. With `has_set_bias` the interval is moved by as much as the mean of the
    draws lies off the score. It is then that of the score of so many items, and rather too wide than too narrow.

    Args:
        rows (`np.ndarray` of shape `(items, numbers)`): See [`ItemMetric.items`].
        aggregate (`Callable`): From rows to scores.
        resamples (`int`, *optional*, defaults to 1000): How often all items are drawn, with replacement.
        level (`float`, *optional*, defaults to 0.95): Of the interval.
        seed (`int`, *optional*, defaults to 0): Of the draws.
        has_set_bias (`bool`, *optional*, defaults to `False`): See above, and [`ItemMetric`].
    """
    generator = np.random.default_rng(seed)
    drawn = [aggregate(rows[generator.integers(len(rows), size=len(rows))]) for _ in range(resamples)]
    return _intervals(drawn, aggregate(rows), level, has_set_bias)


def _intervals(
    drawn: list[dict[str, float]], observed: dict[str, float], level: float, has_set_bias: bool
) -> dict[str, tuple[float, float]]:
    intervals = {}
    for name, value in observed.items():
        values = np.array([scores[name] for scores in drawn])
        bias = values.mean() - value if has_set_bias else 0.0
        intervals[name] = tuple(np.percentile(values - bias, (50 * (1 - level), 50 * (1 + level))).tolist())
    return intervals


def paired_difference(
    first: np.ndarray,
    second: np.ndarray,
    aggregate: Aggregate,
    resamples: int = 1000,
    seed: int = 0,
    has_set_bias: bool = False,
) -> dict[str, dict[str, float]]:
    """
    `second` minus `first` on the same items: its 95% bootstrap interval, and the p-value of a permutation test, in
    which the two systems change places at random, item by item (two-sided; never below `1 / (resamples + 1)`).

    Args:
        first, second (`np.ndarray` of shape `(items, numbers)`): Rows of the same items in the same order.
        aggregate (`Callable`), resamples, seed, has_set_bias: As in [`confidence_intervals`].
    """
    if first.shape != second.shape:
        raise ValueError(f"Paired rows must have one shape, but have {first.shape} and {second.shape}.")
    generator = np.random.default_rng(seed)

    def difference(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
        before, after = aggregate(a), aggregate(b)
        return {name: after[name] - before[name] for name in before}

    observed = difference(first, second)
    drawn, swapped = [], []
    for _ in range(resamples):
        indices = generator.integers(len(first), size=len(first))
        drawn.append(difference(first[indices], second[indices]))
        swap = generator.random(len(first))[:, None] < 0.5
        swapped.append(difference(np.where(swap, second, first), np.where(swap, first, second)))
    results = {}
    intervals = _intervals(drawn, observed, 0.95, has_set_bias)
    for name, value in observed.items():
        low, high = intervals[name]
        # Equal up to rounding counts as at least as large.
        extreme = sum(abs(values[name]) >= abs(value) * (1 - 1e-9) for values in swapped)
        results[name] = {"difference": value, "low": low, "high": high, "p": (extreme + 1) / (resamples + 1)}
    return results
