"""Means with 95 % intervals for dependent rows.

Rows that share a prompt or a labeler are correlated, so whole prompts and labelers are resampled. With two crossed keys
each row is weighted by the product of its clusters' counts (pigeonhole bootstrap: Owen, 2007).

Two known faults of the percentile interval are corrected by reading percentiles at another level, which keeps intervals
inside the data's range (Hesterberg, 2015):
- the product of two draws triples the noise within a cell: the width is rescaled to the two-way clustered variance
  (Cameron, Gelbach and Miller, 2011);
- few clusters give narrow intervals: Student's t replaces the normal, with the degrees of freedom of the scarcer
  clusters.

Above `MAX_BOOTSTRAP_CLUSTERS` clusters are resampled in blocks: the width still uses all clusters. Statistics that are
not ratios of sums use Student's t on the clustered variance (`t_interval`, on the logit scale for shares) or the
jackknife.
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
"""Above this number clusters are resampled in blocks."""
TAIL_PROBABILITY = 0.025
_Z_95 = float(special.ndtri(1 - TAIL_PROBABILITY))

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
ClusterKeys = Sequence[Hashable] | IntArray


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval.

    All fields are None where nothing was measured; the ends are None with one cluster.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """Clustered variance of a number."""

    variance: float
    degrees_of_freedom: float
    """Degrees of freedom of Student's t."""
    cluster_count: int
    """Clusters of the more numerous key."""


NO_ESTIMATE = Estimate(None, None, None, 0)


def mean(
    values: ArrayLike, *clusters: ClusterKeys, weights: ArrayLike | None = None, share: bool = False, seed: int = 0
) -> Estimate:
    """Compute a mean, or a ratio of sums, with its clustered 95 % interval.

    Args:
        values: (N,) measurements.
        clusters: one or two keys, each (N,): rows with an equal key are dependent (prompt; labeler).
        weights: (N,) denominators of a ratio of sums, sum(values) / sum(weights); default ones.
        share: values lie in 0..1 (or 0..weights). A share of exactly 0 or 1 gets a Clopper-Pearson interval over
            clusters.
        seed: seed of the resampling.

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
    """Compute the mean of `first - second`, both (N,), measured on the same rows, so that shared effects cancel."""
    return mean(np.asarray(first, float) - np.asarray(second, float), *clusters, seed=seed)


def wilson_interval(successes: float, n: int) -> Estimate:
    """Compute Wilson's score interval (1927) for n independent trials.

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
    """Return a number with Student's t interval; a share is handled on the logit scale,
    so its ends stay between 0 and 1.
    """
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
    """Return the two-sided p of the clustered t-test against `null`; None with one cluster or no spread."""
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
    """Return Holm-adjusted p-values (Holm, 1979)."""
    ordered = sorted((value, index) for index, value in enumerate(p_values) if value is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (value, index) in enumerate(ordered):
        highest = max(highest, min(1.0, value * (len(ordered) - rank)))
        adjusted[index] = highest
    return adjusted


def jackknife(parts: FloatArray, statistic: Callable[[FloatArray], FloatArray], n: int) -> Estimate:
    """Compute a statistic of sums over clusters with its leave-one-cluster-out interval (Tukey, 1958).

    Args:
        parts: (G, F) contribution of each cluster to F sums.
        statistic: (..., F) sums -> (...), NaN where undefined.
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
    """Return the first-order error of each row (N,) in sum(y) / sum(w); the errors sum to 0."""
    return np.asarray((y - w * (y.sum() / w.sum())) / w.sum())


def clustered_uncertainty(error: FloatArray, a: IntArray, b: IntArray) -> Uncertainty:
    """Return the two-way clustered variance of rows with these errors (N,) (Cameron, Gelbach and Miller, 2011)."""
    if not len(error):
        return Uncertainty(0.0, math.inf, 0)
    cell_codes = factorize(a * (int(b.max()) + 1) + b)
    by_first, by_second, by_cell = (cluster_variance(error, key) for key in (a, b, cell_codes))
    return combine_variances(max(by_first, by_cell), int(a.max()) + 1, by_second - by_cell, int(b.max()) + 1)


def combine_variances(first: float, first_clusters: int, second: float, second_clusters: int) -> Uncertainty:
    """Add two variance components; a negative second one counts as 0.

    Degrees of freedom are those of the scarcer clusters with influence. Satterthwaite's formula overstates them when
    the second component is underestimated: in simulation it covers 93.6 %, this rule 95 %.
    """
    sources = [(part, groups) for part, groups in ((first, first_clusters), (second, second_clusters)) if part > 0]
    scarcer = min((groups for _, groups in sources if groups > 1), default=max(first_clusters, second_clusters))
    return Uncertainty(sum(part for part, _ in sources), max(scarcer - 1, 1), max(first_clusters, second_clusters))


def cluster_variance(error: FloatArray, cluster: IntArray) -> float:
    """Return the variance of a number whose rows have these errors (N,), for independent clusters;
    0 for one cluster.
    """
    sums = np.bincount(cluster, weights=error)
    cluster_count = len(sums)
    return float((sums**2).sum() * cluster_count / (cluster_count - 1)) if cluster_count > 1 else 0.0


def factorize(keys: ClusterKeys) -> IntArray:
    """Return keys as numbers from 0 (N,): first appearance first; integer arrays keep their own order."""
    if isinstance(keys, np.ndarray) and keys.dtype.kind == "i":
        return np.unique(keys, return_inverse=True)[1].astype(np.int64)
    indices: dict[Hashable, int] = {}
    return np.array([indices.setdefault(key, len(indices)) for key in keys], dtype=np.int64)


def bootstrap_counts(rng: np.random.Generator, clusters: int, resamples: int) -> FloatArray:
    """Return multinomial counts of resampled clusters, (resamples, clusters)."""
    samples = rng.integers(clusters, size=(resamples, clusters)) + clusters * np.arange(resamples)[:, None]
    return np.asarray(
        np.bincount(samples.ravel(), minlength=resamples * clusters).reshape(resamples, clusters), dtype=np.float64
    )


def percentile_interval(replicates: FloatArray, uncertainty: Uncertainty) -> tuple[float, float]:
    """Return the percentiles of the replicates at the level that matches the clustered width."""
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
    """Return the interval of a share of exactly 0 or 1 over independent clusters (Clopper and Pearson, 1934)."""
    margin = 1 - TAIL_PROBABILITY ** (1 / uncertainty.cluster_count)
    return Estimate(value, value * (1 - margin), value + (1 - value) * margin, n)


def _validate_arrays(
    values: ArrayLike, weights: ArrayLike | None, clusters: Sequence[ClusterKeys]
) -> tuple[FloatArray, FloatArray, list[IntArray]]:
    """Return values and weights (N,) and two integer keys (N,); a missing key is one cluster."""
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
    """Return the ratio on each resample, (resamples,); NaN where no row was drawn."""
    shape = (int(a.max()) + 1, int(b.max()) + 1)
    cell = a * shape[1] + b
    numerator, denominator = (
        np.bincount(cell, weights=x, minlength=shape[0] * shape[1]).reshape(shape) for x in (y, w)
    )
    rng = np.random.default_rng(seed)
    first, second = bootstrap_counts(rng, shape[0], resamples), bootstrap_counts(rng, shape[1], resamples)
    sums, weights = (((first @ table) * second).sum(1) for table in (numerator, denominator))
    return np.asarray(np.divide(sums, weights, out=np.full(resamples, np.nan), where=weights > 0))
