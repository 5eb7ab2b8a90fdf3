"""Confidence intervals and paired tests, by drawing items again. Seeded: the same rows give the same numbers."""

from collections.abc import Callable

import numpy as np

Aggregate = Callable[[np.ndarray], dict[str, float]]


def confidence_intervals(
    rows: np.ndarray, aggregate: Aggregate, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """
    Percentile bootstrap of every score.

    Args:
        rows (`np.ndarray` of shape `(items, numbers)`): See [`ItemMetric.items`].
        aggregate (`Callable`): From rows to scores.
        resamples (`int`, *optional*, defaults to 1000): How often all items are drawn, with replacement.
        level (`float`, *optional*, defaults to 0.95): Of the interval.
        seed (`int`, *optional*, defaults to 0): Of the draws.
    """
    generator = np.random.default_rng(seed)
    drawn = [aggregate(rows[generator.integers(len(rows), size=len(rows))]) for _ in range(resamples)]
    tails = (50 * (1 - level), 50 * (1 + level))
    return {name: tuple(np.percentile([values[name] for values in drawn], tails).tolist()) for name in drawn[0]}


def paired_difference(
    first: np.ndarray, second: np.ndarray, aggregate: Aggregate, resamples: int = 1000, seed: int = 0
) -> dict[str, dict[str, float]]:
    """
    `second` minus `first` on the same items: its 95% bootstrap interval, and the p-value of a permutation test, in
    which the two systems change places at random, item by item (two-sided; never below `1 / (resamples + 1)`).

    Args:
        first, second (`np.ndarray` of shape `(items, numbers)`): Rows of the same items in the same order.
        aggregate (`Callable`), resamples, seed: As in [`confidence_intervals`].
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
    for name, value in observed.items():
        low, high = np.percentile([values[name] for values in drawn], (2.5, 97.5)).tolist()
        # Equal up to rounding counts as at least as large.
        extreme = sum(abs(values[name]) >= abs(value) * (1 - 1e-9) for values in swapped)
        results[name] = {"difference": value, "low": low, "high": high, "p": (extreme + 1) / (resamples + 1)}
    return results
