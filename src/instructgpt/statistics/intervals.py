"""Numbers with 95 % intervals for dependent rows: Student's t on the clustered variance (`clustered`).

A number with known bounds (a share, a rating, an agreement from -1 to 1) is handled on the logit scale between them, so
its ends stay inside. Where nothing varied, the variance is 0 and says nothing: a bounded number then gets the bound for
what was never seen in G clusters: a share 1 − 0.025^(1/G) of them may lie at either bound (Clopper and Pearson, 1934).
Any other number then gets no interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from instructgpt.statistics.arrays import (
    BoolArray,
    ClusterKeys,
    FloatArray,
    IntArray,
    cross_keys,
    factorize,
    unique_with_counts,
)
from instructgpt.statistics.clustered import (
    TAIL_PROBABILITY,
    Z_95,
    Caution,
    CellDeletions,
    Deletions,
    Uncertainty,
    combine_deletions,
    ratio_deletions,
    ratio_uncertainty,
    residuals,
    t_quantile,
)

_ZERO = 1e-9
"""Deviations below this part of the range are rounding errors."""
Bounds = tuple[float, float]
SHARE: Bounds = (0.0, 1.0)
CORRELATION: Bounds = (-1.0, 1.0)
"""Bounds of tau, alpha and AC1; the logit scale between them is Fisher's z."""
RATING: Bounds = (1.0, 7.0)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval.

    All fields are None where nothing was measured; both ends are None with one cluster, or where nothing varied and no
    bounds are known; one end is None where the interval is open on that side.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    caution: Caution = ""
    """What the interval cannot speak about."""


NO_ESTIMATE = Estimate(None, None, None, 0)


def mean(
    values: ArrayLike, *clusters: ClusterKeys, weights: ArrayLike | None = None, bounds: Bounds | None = None
) -> Estimate:
    """Compute a mean, or a ratio of sums, with its clustered 95 % interval.

    Args:
        values: (N,) measurements.
        clusters: one or two keys, each (N,): rows with an equal key are dependent (prompt; labeler).
        weights: (N,) denominators of a ratio of sums, sum(values) / sum(weights); default ones. Rows of weight 0 are
            left out.
        bounds: the smallest and largest possible mean.

    Raises:
        ValueError: a value is not finite, a weight is negative, or lengths differ.
    """
    y, w, used = _validate_arrays(values, weights, clusters)
    if not used.any():
        return NO_ESTIMATE
    y, w = y[used], w[used]
    keys = (factorize(key)[used] for key in clusters)
    return t_interval(float(y.sum() / w.sum()), ratio_uncertainty(residuals(y, w), w, *keys), len(y), bounds)


class _Rows(NamedTuple):
    """Rows of one side of a difference: values, weights, and which of all rows they are."""

    y: FloatArray
    w: FloatArray
    rows: BoolArray


@dataclass(frozen=True, slots=True)
class Measurements:
    """Rows of one model: values and weights (N,), one or two cluster keys, each (N,)."""

    values: ArrayLike
    clusters: Sequence[ClusterKeys]
    weights: ArrayLike | None = None


def difference(first: Measurements, second: Measurements, bounds: Bounds | None = None) -> Estimate:
    """Compute the difference of two means or ratios of sums, paired by the clusters that both have.

    It is the difference of what `mean` says of each. The error of a cluster is that of the first number less that of
    the second (linearization: Cochran, 1977, 6; Miller, 2024, "Adding error bars to evals"). With `bounds` of the two
    numbers, the ends combine the distances of each number to its own ends (Newcombe, 1998, method 10; Zou and Donner,
    2008), so that a difference of rare events is not taken for exact.

    Args:
        first, second: with the same number of keys.

    Returns:
        `n` counts clusters (prompt, or prompt and labeler) that both have.

    Raises:
        ValueError: as `mean`.
    """
    arrays = [_validate_arrays(each.values, each.weights, each.clusters) for each in (first, second)]
    used = np.concatenate([mask for _, _, mask in arrays])
    side = np.repeat([0, 1], [len(mask) for _, _, mask in arrays])[used]
    a, *rest = (factorize([*key, *other])[used] for key, other in zip(first.clusters, second.clusters, strict=True))
    b = rest[0] if rest else None
    if len(np.unique(side)) < 2:
        return NO_ESTIMATE
    cell = a if b is None else cross_keys(a, b).cell
    sides = [_Rows(y[mask], w[mask], side == index) for index, (y, w, mask) in enumerate(arrays)]
    values = [float(each.y.sum() / each.w.sum()) for each in sides]
    uncertainty = _difference_uncertainty(sides, a, b)
    n = len(np.intersect1d(cell[side == 0], cell[side == 1]))
    if bounds is None or uncertainty.cluster_count < 2:
        return t_interval(values[0] - values[1], uncertainty, n)
    uncertainties = [
        ratio_uncertainty(residuals(y, w), w, a[rows], None if b is None else b[rows]) for y, w, rows in sides
    ]
    ends = _difference_ends(values, uncertainties, uncertainty, bounds)
    return Estimate(values[0] - values[1], *ends, n, uncertainty.caution)


def paired_difference(
    first: ArrayLike, second: ArrayLike, *clusters: ClusterKeys, bounds: Bounds | None = None
) -> Estimate:
    """Compute the mean of `first - second`, both (N,), measured on the same rows, so that shared effects cancel."""
    return difference(Measurements(first, clusters), Measurements(second, clusters), bounds)


def wilson_interval(successes: float, n: int) -> Estimate:
    """Compute Wilson's score interval (1927) for n independent trials.

    Raises:
        ValueError: more successes than trials, or fewer than none.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials")
    if n == 0:
        return NO_ESTIMATE
    share, z2 = successes / n, Z_95**2
    center = (share + z2 / (2 * n)) / (1 + z2 / n)
    half_width = Z_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n**2))
    return Estimate(share, max(0.0, center - half_width), min(1.0, center + half_width), n)


def t_interval(value: float, uncertainty: Uncertainty, n: int, bounds: Bounds | None = None) -> Estimate:
    """Return a number with Student's t interval, between `bounds` on the logit scale."""
    if uncertainty.cluster_count < 2:
        return Estimate(value, None, None, n, uncertainty.caution)
    deviation, t = math.sqrt(uncertainty.variance), t_quantile(uncertainty.degrees_of_freedom)
    if bounds is not None:
        ends = _bounded_ends(value, deviation, t, uncertainty.effective_clusters, bounds)
        return Estimate(value, *ends, n, uncertainty.caution)
    if deviation <= _ZERO * max(1.0, abs(value)):
        return Estimate(value, None, None, n, uncertainty.caution)
    return Estimate(value, value - t * deviation, value + t * deviation, n, uncertainty.caution)


@dataclass(frozen=True, slots=True)
class ClusterSums:
    """What leaving out each cluster takes from the sums: `parts` (G, F), and the cluster's `weight` (G,)."""

    parts: FloatArray
    weight: FloatArray

    @classmethod
    def from_rows(cls, parts: FloatArray, weight: FloatArray, cluster: IntArray) -> Self:
        """Sum rows (N, F) and weights (N,) over clusters, (N,) numbers from 0."""
        return cls(_sum_rows(parts, cluster), np.bincount(cluster, weights=weight).astype(np.float64))


@dataclass(frozen=True, slots=True)
class LabelerSums:
    """What leaving out labelers takes from the sums, a row a prompt of a labeler.

    parts (C, F), weight and keys (C,).
    """

    parts: FloatArray
    weight: FloatArray
    prompt: IntArray
    """Position in the sums of prompts."""
    labeler: IntArray


def jackknife(
    total: FloatArray,
    statistic: Callable[[FloatArray], FloatArray],
    n: int,
    prompts: ClusterSums,
    labelers: LabelerSums | None = None,
    bounds: Bounds | None = None,
) -> Estimate:
    """Compute a statistic of sums with its leave-one-cluster-out interval (Tukey, 1958).

    Args:
        total: (F,) sums.
        statistic: (..., F) sums -> (...), NaN where undefined.
        n: observations, for the record.
        prompts, labelers: see `clustered.combine_deletions`; a labeler counts in couples.
        bounds: of the statistic.
    """
    value = float(statistic(total))
    if not math.isfinite(value):
        return NO_ESTIMATE

    def changes(parts: FloatArray) -> FloatArray:
        change = statistic(total - parts)
        finite = np.isfinite(change)
        return np.asarray(change - (change[finite].mean() if finite.any() else 0.0))

    by_prompt = Deletions(changes(prompts.parts), prompts.weight / prompts.weight.sum(), np.ones(len(prompts.weight)))
    if labelers is None:
        return t_interval(value, combine_deletions(by_prompt, couples=True), n, bounds)
    labeler = unique_with_counts(labelers.labeler)[1]
    cells = CellDeletions(statistic(total - labelers.parts) - value, labelers.prompt, labeler)
    weight = np.bincount(labeler, weights=labelers.weight)
    change = changes(_sum_rows(labelers.parts, labeler))
    sums = np.bincount(labeler, weights=np.nan_to_num(cells.change))
    sums -= sums.mean()
    squares = float((sums**2).sum())
    scale = float((np.nan_to_num(change) * sums).sum()) / squares if squares > 0 else 1.0
    by_labeler = Deletions(change, weight / weight.sum(), np.full(len(change), scale))
    return t_interval(value, combine_deletions(by_prompt, by_labeler, cells, couples=True), n, bounds)


def _sum_rows(rows: FloatArray, cluster: IntArray) -> FloatArray:
    return np.stack([np.bincount(cluster, weights=column) for column in rows.T], axis=1)


def never_seen_mass(clusters: float) -> float:
    """Return the largest share of clusters that may differ where G independent ones were alike: 1 − 0.025^(1/G)."""
    return float(1 - TAIL_PROBABILITY ** (1 / max(clusters, 1.0)))


def _bounded_ends(value: float, deviation: float, t: float, clusters: float, bounds: Bounds) -> tuple[float, float]:
    """Return the ends of a bounded number on the logit scale.

    Where nothing varied, clusters that were never seen may lie at either bound.
    """
    low, high = bounds
    share, deviation = (value - low) / (high - low), deviation / (high - low)
    if deviation <= _ZERO or not _ZERO < share < 1 - _ZERO:
        mass = never_seen_mass(clusters)
        return value - mass * (value - low), value + mass * (high - value)
    logit, half_width = special.logit(share), t * deviation / (share * (1 - share))
    ends = (float(special.expit(logit + sign * half_width)) for sign in (-1, 1))
    return tuple(low + (high - low) * end for end in ends)  # type: ignore[return-value]


def _difference_uncertainty(sides: Sequence[_Rows], a: IntArray, b: IntArray | None) -> Uncertainty:
    sizes = [int(key.max()) + 1 for key in (a, b) if key is not None]
    (prompts, labelers, cells), (other_prompts, other_labelers, other_cells) = (
        ratio_deletions(residuals(y, w), w, a[rows], None if b is None else b[rows], sizes) for y, w, rows in sides
    )
    prompts = prompts.minus(other_prompts)
    if labelers is None or cells is None or other_labelers is None or other_cells is None:
        return combine_deletions(prompts)
    return combine_deletions(prompts, labelers.minus(other_labelers), cells.minus(other_cells))


def _difference_ends(
    values: Sequence[float], uncertainties: Sequence[Uncertainty], of_difference: Uncertainty, bounds: Bounds
) -> tuple[float, float]:
    """Return the ends of a difference of bounded numbers from each one's own distances to its ends, correlated."""
    value, span = values[0] - values[1], bounds[1] - bounds[0]
    variance, t = of_difference.variance, t_quantile(of_difference.degrees_of_freedom)
    if math.sqrt(variance) <= _ZERO * span:
        return _bounded_ends(value, 0.0, t, of_difference.effective_clusters, (-span, span))
    deviations = [math.sqrt(each.variance) for each in uncertainties]
    (low, high), (other_low, other_high) = (
        _bounded_ends(number, deviation, t, uncertainty.effective_clusters, bounds)
        for number, deviation, uncertainty in zip(values, deviations, uncertainties, strict=True)
    )
    product, widest = deviations[0] * deviations[1], sum(deviations)
    correlation = (deviations[0] ** 2 + deviations[1] ** 2 - variance) / (2 * product) if product else 0.0
    correlation = min(1.0, max(-1.0, correlation))
    stretch = max(1.0, math.sqrt(variance) / widest) if widest else 1.0
    down, up = (
        stretch * math.sqrt(max(0.0, x**2 + y**2 - 2 * correlation * x * y))
        for x, y in ((values[0] - low, other_high - values[1]), (high - values[0], values[1] - other_low))
    )
    return max(-span, value - down), min(span, value + up)


def _validate_arrays(
    values: ArrayLike, weights: ArrayLike | None, clusters: Sequence[ClusterKeys]
) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Return values and weights (N,), and which rows have a weight above 0."""
    y = np.asarray(values, dtype=np.float64)
    w = np.ones_like(y) if weights is None else np.asarray(weights, dtype=np.float64)
    if not 1 <= len(clusters) <= 2:
        raise ValueError(f"an interval needs one or two cluster keys, got {len(clusters)}")
    if any(len(key) != len(y) for key in (w, *clusters)):
        raise ValueError(f"{len(y)} values, but {[len(key) for key in (w, *clusters)]} weights and keys")
    if not (np.isfinite(y).all() and np.isfinite(w).all()):
        raise ValueError("a value is not finite")
    if (w < 0).any():
        raise ValueError("a weight is negative")
    return y, w, w > 0
