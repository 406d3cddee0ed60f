"""p-values that hold in the tail, where Holm's correction reads them, with few prompts or few labelers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product

import numpy as np

from instructgpt.statistics.arrays import FloatArray, IntArray, cross_keys, unique_with_counts

_RESAMPLES = 9_999
_WEBB_WEIGHTS = np.sqrt([0.5, 1.0, 1.5])
"""Absolute values of Webb's six-point distribution (2014), each with either sign."""
_MAX_ENUMERATED_CLUSTERS = 5
"""Up to this number of clusters all combinations of weights are visited."""
_MAX_CACHED_CLUSTERS = 50
"""Weights of up to so many clusters are kept for the next comparison: drawing them takes half of a test's time."""
_MAX_STEPS = 200_000
"""Largest reach of the exact sign-flip distribution; coarser steps above it."""
_ROUNDING = 1 - 1e-7


def sign_flip_p_value(sums: FloatArray) -> float:
    """Return the exact two-sided p that cluster sums (G,) are symmetric around 0 (Fisher, 1935).

    The null distribution is that of the total over all 2^G choices of signs, by convolution. For rows that no two
    clusters share: one labeler or judge, G prompts (Canay, Romano and Shaikh, 2017).

    Args:
        sums: multiples of one half (wins less losses); other numbers are rounded to a fine grid.
    """
    doubled = np.abs(2 * sums)
    scale = 1.0 if np.allclose(doubled, np.round(doubled)) else _MAX_STEPS / 2 / doubled.sum()
    scale = min(scale, _MAX_STEPS / max(doubled.sum(), 1.0))
    steps = np.round(doubled * scale).astype(np.int64)
    observed = abs(int((np.sign(sums) * steps).sum()))
    reach = int(steps.sum())
    probability = np.zeros(2 * reach + 1)
    probability[reach] = 1.0
    for step in steps[steps > 0].tolist():
        moved = np.zeros_like(probability)
        moved[step:] += probability[:-step] / 2
        moved[:-step] += probability[step:] / 2
        probability = moved
    distance = np.abs(np.arange(-reach, reach + 1))
    return min(1.0, float(probability[distance >= observed].sum()))


def wild_cluster_p_value(excess: FloatArray, weight: FloatArray, a: IntArray, b: IntArray, seed: int = 0) -> float:
    """Return the two-sided p that a mean is 0 for rows that share two keys: restricted wild cluster bootstrap.

    Whole clusters of the scarcer key get random weights under the null hypothesis (Cameron, Gelbach and Miller, 2008;
    Webb, 2014); the statistic is the mean over its two-way clustered delete-one deviation, recomputed each time
    (MacKinnon, Nielsen and Webb, 2021). Few clusters have few combinations: p is at least 1/6 with two, 0.028 with
    three, 0.005 with four.

    Args:
        excess: (N,) numerators less what the null hypothesis says.
        weight: (N,) denominators.
        a, b: (N,) keys from 0, both with two clusters or more.
    """
    scarce, numerous = sorted((unique_with_counts(key)[1] for key in (a, b)), key=lambda key: int(key.max()))
    statistic = _TwoWayStatistic(excess / weight.sum(), weight / weight.sum(), scarce, numerous)
    count = int(scarce.max()) + 1
    observed = statistic(np.ones((1, count)))[0]
    multipliers = (_webb_multipliers if count <= _MAX_CACHED_CLUSTERS else _webb_multipliers.__wrapped__)(count, seed)
    as_far = int((statistic(multipliers) >= observed * _ROUNDING).sum())
    return as_far / len(multipliers) if count <= _MAX_ENUMERATED_CLUSTERS else (as_far + 1) / (_RESAMPLES + 1)


@lru_cache(maxsize=4)
def _webb_multipliers(count: int, seed: int) -> FloatArray:
    """Return the weights of clusters (R, C): all combinations of few, otherwise drawn."""
    if count <= _MAX_ENUMERATED_CLUSTERS:
        return np.array(list(product([*-_WEBB_WEIGHTS, *_WEBB_WEIGHTS], repeat=count)))
    rng = np.random.default_rng(seed)
    sizes = rng.choice(_WEBB_WEIGHTS, (_RESAMPLES, count))
    return np.asarray(sizes * rng.choice([-1.0, 1.0], (_RESAMPLES, count)))


def holm_correction(p_values: Sequence[float | None]) -> list[float | None]:
    """Return Holm-adjusted p-values (Holm, 1979)."""
    ordered = sorted((value, index) for index, value in enumerate(p_values) if value is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (value, index) in enumerate(ordered):
        highest = max(highest, min(1.0, value * (len(ordered) - rank)))
        adjusted[index] = highest
    return adjusted


class _TwoWayStatistic:
    """|mean| over its two-way deviation, for rows multiplied by a weight per cluster of the scarcer key.

    Cluster sums are linear in the weights and the mean, so each variance is a quadratic form of (weights, mean): a
    resample costs the square of the number of scarce clusters, whatever the number of rows.
    """

    def __init__(self, excess: FloatArray, share: FloatArray, scarce: IntArray, numerous: IntArray) -> None:
        self.count = int(scarce.max()) + 1
        self.by_cluster = np.bincount(scarce, weights=excess, minlength=self.count)
        self.forms = [
            self._form(excess, share, scarce, key) for key in (scarce, numerous, cross_keys(scarce, numerous).cell)
        ]

    def _form(self, excess: FloatArray, share: FloatArray, scarce: IntArray, key: IntArray) -> FloatArray:
        """Return the matrix (C + 1, C + 1) of the delete-one variance over the clusters of a key."""
        clusters = int(key.max()) + 1
        sums = np.zeros((clusters, self.count + 1))
        np.add.at(sums, (key, scarce), excess)
        shares = np.bincount(key, weights=share, minlength=clusters)
        sums[:, -1] = -shares
        sums /= np.maximum(1 - shares, 1e-12)[:, None]
        return np.asarray((clusters - 1) / clusters * sums.T @ sums)

    def __call__(self, multipliers: FloatArray) -> FloatArray:
        """Return the statistic for weights (R, C); infinite where nothing varies."""
        mean = multipliers @ self.by_cluster
        vector = np.concatenate([multipliers, mean[:, None]], axis=1)
        by_scarce, by_numerous, by_cell = (((vector @ form) * vector).sum(1) for form in self.forms)
        variance = np.maximum(by_numerous, by_cell) + np.maximum(by_scarce - by_cell, 0)
        negligible = variance <= 1e-10 * mean**2  # rounding errors of the forms, where nothing varies
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(negligible, np.where(mean == 0, 0.0, np.inf), np.abs(mean) / np.sqrt(variance))


def benjamini_hochberg_correction(p_values: Sequence[float]) -> list[float]:
    """Correct p-values of many comparisons for the false discovery rate (Benjamini and Hochberg, 1995)."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)[::-1]
    scaled = p[order] * len(p) / np.arange(len(p), 0, -1)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(1.0, np.minimum.accumulate(scaled))
    return [float(value) for value in corrected]
