"""Means with honest 95 % intervals, where rows are not independent.

Two labelers rank the same prompt, one labeler ranks hundreds: rows that share a prompt or a labeler move together. So whole prompts and
whole labelers are resampled, never single rows. With two crossed keys every row weighs the product of how often its two clusters were
drawn (the pigeonhole bootstrap: Owen, 2007, "The pigeonhole bootstrap", Annals of Applied Statistics 1).

Two known faults of the plain percentile interval are mended by reading the percentiles at another level, which keeps every interval
within the range of the data (Hesterberg, 2015, "What teachers should know about the bootstrap"):
- the product of two draws counts noise inside a cell three times over: the width is brought back to the two-way clustered variance
  (Cameron, Gelbach and Miller, 2011, "Robust inference with multiway clustering");
- few clusters make intervals too narrow: Student's t takes the place of the normal, with the degrees of freedom of the scarcer clusters.

Many clusters cost time and change nothing: the width comes from all of them, and beyond 512 the resamples, which then only give the shape,
draw clusters in blocks. Where a number is no plain ratio of sums, its interval is Student's t on the same clustered variance, for a share
on the scale of its logit (`interval`), or the jackknife over clusters (`jackknife`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

_RESAMPLES = 2_000
MAX_BOOTSTRAP_CLUSTERS = 512
"""More clusters than this are resampled in blocks."""
TAIL_PROBABILITY = 0.025
_Z_95 = float(special.ndtri(1 - TAIL_PROBABILITY))

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
ClusterKeys = Sequence[Hashable] | IntArray


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval. All are None where nothing was measured, the ends alone where there is but one cluster."""

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """How far a number would move with other prompts and other labelers."""

    variance: float
    degrees_of_freedom: float
    """Degrees of freedom of Student's t."""
    cluster_count: int
    """How many clusters there are of the kind of which there are more."""


NO_ESTIMATE = Estimate(None, None, None, 0)


def mean(
    values: ArrayLike, *clusters: ClusterKeys, weights: ArrayLike | None = None, share: bool = False, seed: int = 0
) -> Estimate:
    """A mean, or a ratio of sums, with its clustered 95 % interval.

    Args:
        values: (N,) what was measured.
        clusters: one or two keys, each (N,): rows with an equal key are not independent (prompt; labeler).
        over: (N,) weights of a ratio of sums, sum(values) / sum(over); ones where not given.
        share: the values lie in 0..1 (or in 0..over). A share of exactly 0 or 1 then gets the interval of Clopper and Pearson over
            clusters: that nothing was seen in ten prompts does not mean that it never happens.
        seed: of the resampling; the same data give the same interval.

    Raises:
        ValueError: a value is not finite, or lengths differ.
    """
    y, w, (a, b) = _validate_arrays(values, weights, clusters)
    if not len(y):
        return NO_ESTIMATE
    value = float(y.sum() / w.sum())
    uncertainty = clustered_uncertainty(residuals(y, w), a, b)
    if uncertainty.cluster_count < 2:
        return Estimate(value, None, None, len(y))
    if share and value in (0.0, 1.0):
        return _clopper_pearson(value, uncertainty, len(y))
    replicates = _bootstrap_ratios(y, w, a % MAX_BOOTSTRAP_CLUSTERS, b % MAX_BOOTSTRAP_CLUSTERS, seed)
    return Estimate(value, *percentile_interval(replicates, uncertainty), len(y))


def paired_difference(first: ArrayLike, second: ArrayLike, *clusters: ClusterKeys, seed: int = 0) -> Estimate:
    """The mean of `first - second`, both (N,), measured on the same rows: what two models share (a hard prompt, a mild labeler) cancels."""
    return mean(np.asarray(first, float) - np.asarray(second, float), *clusters, seed=seed)


def wilson_interval(successes: float, n: int) -> Estimate:
    """A share of n independent trials with Wilson's score interval (1927): right for few trials, as in a screening test.

    Raises:
        ValueError: more successes than trials, or fewer than none.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes in {n} trials")
    if n == 0:
        return NO_ESTIMATE
    share, z2 = successes / n, _Z_95**2
    center = (share + z2 / (2 * n)) / (1 + z2 / n)
    half_width = _Z_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n**2))
    return Estimate(share, max(0.0, center - half_width), min(1.0, center + half_width), n)


def t_interval(value: float, uncertainty: Uncertainty, n: int, share: bool = False) -> Estimate:
    """A number with Student's t times its standard error; a share on the scale of its logit, which keeps the ends between 0 and 1."""
    if uncertainty.cluster_count < 2:
        return Estimate(value, None, None, n)
    if share and value in (0.0, 1.0):
        return _clopper_pearson(value, uncertainty, n)
    half_width = math.sqrt(uncertainty.variance) * _t_quantile(uncertainty.degrees_of_freedom)
    if not share:
        return Estimate(value, value - half_width, value + half_width, n)
    logit, half_width = special.logit(value), half_width / (value * (1 - value))
    return Estimate(value, float(special.expit(logit - half_width)), float(special.expit(logit + half_width)), n)


def t_test_p_value(value: float, null: float, uncertainty: Uncertainty) -> float | None:
    """Two-sided p of the clustered t-test that the truth is `null`. None where there is but one cluster or no spread."""
    if uncertainty.cluster_count < 2 or uncertainty.variance == 0:
        return None
    return min(
        1.0,
        2
        * float(
            special.stdtr(
                min(uncertainty.degrees_of_freedom, 1e9), -abs(value - null) / math.sqrt(uncertainty.variance)
            )
        ),
    )


def holm_correction(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for having asked as many questions (Holm, 1979): the smallest times their number, and so on, never falling."""
    ordered = sorted((value, index) for index, value in enumerate(p_values) if value is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (value, index) in enumerate(ordered):
        highest = max(highest, min(1.0, value * (len(ordered) - rank)))
        adjusted[index] = highest
    return adjusted


def jackknife(parts: FloatArray, statistic: Callable[[FloatArray], FloatArray], n: int) -> Estimate:
    """A statistic of sums over clusters, with the interval from leaving out one cluster at a time (Tukey, 1958).

    Args:
        parts: (G, F) what each cluster adds to F sums.
        statistic: (..., F) sums -> (...), NaN where it is not defined.
        n: observations, for the record.
    """
    total = parts.sum(0)
    value = float(statistic(total))
    if not math.isfinite(value):
        return NO_ESTIMATE
    leave_one_out = statistic(total - parts)
    leave_one_out = leave_one_out[np.isfinite(leave_one_out)]
    if len(leave_one_out) < 2:
        return Estimate(value, None, None, n)
    cluster_count = len(leave_one_out)
    variance = (cluster_count - 1) / cluster_count * float(((leave_one_out - leave_one_out.mean()) ** 2).sum())
    return t_interval(value, Uncertainty(variance, cluster_count - 1, cluster_count), n)


def residuals(y: FloatArray, w: FloatArray) -> FloatArray:
    """What each row (N,) adds to the error of sum(y) / sum(w), to first order; they add up to 0."""
    return np.asarray((y - w * (y.sum() / w.sum())) / w.sum())


def clustered_uncertainty(error: FloatArray, a: IntArray, b: IntArray) -> Uncertainty:
    """The spread of a number whose rows have these errors (N,), with two crossed keys (N,) (Cameron, Gelbach and Miller, 2011)."""
    if not len(error):
        return Uncertainty(0.0, math.inf, 0)
    cell_codes = factorize(a * (int(b.max()) + 1) + b)
    by_first, by_second, by_cell = (cluster_variance(error, key) for key in (a, b, cell_codes))
    return combine_variances(max(by_first, by_cell), int(a.max()) + 1, by_second - by_cell, int(b.max()) + 1)


def combine_variances(first: float, first_clusters: int, second: float, second_clusters: int) -> Uncertainty:
    """The variance of two sources, each from its number of clusters; a negative second one is 0.

    Degrees of freedom are those of the scarcer clusters that matter. Satterthwaite's, which weigh the two, are too many just when the
    second source was underestimated: in simulation intervals then held the truth in 93.6 % of cases, with these in 95.
    """
    sources = [(part, groups) for part, groups in ((first, first_clusters), (second, second_clusters)) if part > 0]
    scarcer = min((groups for _, groups in sources if groups > 1), default=max(first_clusters, second_clusters))
    return Uncertainty(sum(part for part, _ in sources), max(scarcer - 1, 1), max(first_clusters, second_clusters))


def cluster_variance(error: FloatArray, cluster: IntArray) -> float:
    """The variance of a number whose rows have these errors (N,), when whole clusters are independent. 0 for a single cluster."""
    sums = np.bincount(cluster, weights=error)
    cluster_count = len(sums)
    return float((sums**2).sum() * cluster_count / (cluster_count - 1)) if cluster_count > 1 else 0.0


def factorize(keys: ClusterKeys) -> IntArray:
    """Each key's number from 0: (N,); in order of first appearance, whole numbers in an array in their own order."""
    if isinstance(keys, np.ndarray) and keys.dtype.kind == "i":
        return np.unique(keys, return_inverse=True)[1].astype(np.int64)
    indices: dict[Hashable, int] = {}
    return np.array([indices.setdefault(key, len(indices)) for key in keys], dtype=np.int64)


def bootstrap_counts(rng: np.random.Generator, clusters: int, resamples: int) -> FloatArray:
    """How often each cluster is drawn when as many are drawn as there are, with replacement: (resamples, clusters)."""
    samples = rng.integers(clusters, size=(resamples, clusters)) + clusters * np.arange(resamples)[:, None]
    return np.asarray(
        np.bincount(samples.ravel(), minlength=resamples * clusters).reshape(resamples, clusters), dtype=np.float64
    )


def percentile_interval(replicates: FloatArray, uncertainty: Uncertainty) -> tuple[float, float]:
    """The ends of the interval: percentiles of the replicates, read at the level that brings their width to the honest spread."""
    width = float(np.nanstd(replicates))
    stretch = (
        math.sqrt(uncertainty.variance) / width * _t_quantile(uncertainty.degrees_of_freedom) / _Z_95
        if width > 0
        else 1.0
    )
    level = special.ndtr(-_Z_95 * stretch)
    low, high = np.nanquantile(replicates, [level, 1 - level])
    return float(low), float(high)


def _t_quantile(degrees_of_freedom: float) -> float:
    return float(special.stdtrit(degrees_of_freedom, 1 - TAIL_PROBABILITY)) if degrees_of_freedom < 1e6 else _Z_95


def _clopper_pearson(value: float, uncertainty: Uncertainty, n: int) -> Estimate:
    """A share of exactly 0 or 1 of independent clusters (Clopper and Pearson, 1934)."""
    margin = 1 - TAIL_PROBABILITY ** (1 / uncertainty.cluster_count)
    return Estimate(value, value * (1 - margin), value + (1 - value) * margin, n)


def _validate_arrays(
    values: ArrayLike, weights: ArrayLike | None, clusters: Sequence[ClusterKeys]
) -> tuple[FloatArray, FloatArray, list[IntArray]]:
    """Values and weights (N,) as arrays, and the two keys (N,) as numbers from 0; a key not given is one cluster of everything."""
    y = np.asarray(values, dtype=np.float64)
    w = np.ones_like(y) if weights is None else np.asarray(weights, dtype=np.float64)
    if not 1 <= len(clusters) <= 2:
        raise ValueError(f"an interval needs one or two cluster keys, got {len(clusters)}")
    if any(len(key) != len(y) for key in (w, *clusters)):
        raise ValueError(f"{len(y)} values, but {[len(key) for key in (w, *clusters)]} weights and keys")
    if not (np.isfinite(y).all() and np.isfinite(w).all()):
        raise ValueError("a value is not finite")
    key_codes = [factorize(key) for key in clusters]
    return y, w, key_codes if len(key_codes) == 2 else [*key_codes, np.zeros(len(y), dtype=np.int64)]


def _bootstrap_ratios(
    y: FloatArray, w: FloatArray, a: IntArray, b: IntArray, seed: int, resamples: int = _RESAMPLES
) -> FloatArray:
    """The ratio of sums on each resample, (resamples,); NaN where no row was drawn."""
    shape = (int(a.max()) + 1, int(b.max()) + 1)
    cell = a * shape[1] + b
    numerator, denominator = (
        np.bincount(cell, weights=x, minlength=shape[0] * shape[1]).reshape(shape) for x in (y, w)
    )
    rng = np.random.default_rng(seed)
    first, second = bootstrap_counts(rng, shape[0], resamples), bootstrap_counts(rng, shape[1], resamples)
    sums, weights = (((first @ table) * second).sum(1) for table in (numerator, denominator))
    return np.asarray(np.divide(sums, weights, out=np.full(resamples, np.nan), where=weights > 0))
