"""Means with honest 95 % intervals, where rows are not independent.

Two labelers rank the same prompt, one labeler ranks hundreds: rows that share a prompt or a labeler move together. So whole prompts and
whole labelers are resampled, never single rows. With two crossed keys every row weighs the product of how often its two clusters were
drawn (the pigeonhole bootstrap: Owen, 2007, "The pigeonhole bootstrap", Annals of Applied Statistics 1).

Two known faults of the plain percentile interval are mended by reading the percentiles at another level, which keeps every interval
within the range of the data (Hesterberg, 2015, "What teachers should know about the bootstrap"):
- the product of two draws counts noise inside a cell three times over: the width is brought back to the two-way clustered variance
  (Cameron, Gelbach and Miller, 2011, "Robust inference with multiway clustering");
- few clusters make intervals too narrow: Student's t takes the place of the normal.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse, stats

RESAMPLES = 2_000
TAIL = 0.025

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval. All are None where nothing was measured, the ends alone where there is but one cluster."""

    value: float | None
    low: float | None
    high: float | None
    n: int


NOTHING = Estimate(None, None, None, 0)


def mean(values: ArrayLike, *clusters: Sequence[Hashable], over: ArrayLike | None = None, share: bool = False, seed: int = 0) -> Estimate:
    """A mean, or a ratio of sums, with its clustered 95 % interval.

    Args:
        values: (N,) what was measured.
        clusters: one or two keys, each (N,): rows with an equal key are not independent (prompt; labeler).
        over: (N,) weights of a ratio of sums, sum(values) / sum(over); ones where not given.
        share: the values lie in 0..1. A share of exactly 0 or 1 then gets the interval of Clopper and Pearson over clusters: that nothing
            was seen in ten prompts does not mean that it never happens.
        seed: of the resampling; the same data give the same interval.

    Raises:
        ValueError: a value is not finite, or lengths differ.
    """
    y, w, (a, b) = _checked(values, over, clusters)
    if not len(y):
        return NOTHING
    value = float(y.sum() / w.sum())
    independent = max(int(a.max()), int(b.max())) + 1
    if independent < 2:
        return Estimate(value, None, None, len(y))
    if share and np.ptp(y) == 0 and value in (0.0, 1.0):
        unseen = 1 - TAIL ** (1 / independent)
        return Estimate(value, value * (1 - unseen), value + (1 - value) * unseen, len(y))
    drawn = _replicates(y, w, a, b, seed)
    level = stats.norm.cdf(stats.norm.ppf(TAIL) * _stretch(y, w, a, b, float(np.nanstd(drawn))))
    low, high = np.nanquantile(drawn, [level, 1 - level])
    return Estimate(value, float(low), float(high), len(y))


def difference(first: ArrayLike, second: ArrayLike, *clusters: Sequence[Hashable], seed: int = 0) -> Estimate:
    """The mean of `first - second`, both (N,), measured on the same rows: what two models share (a hard prompt, a mild labeler) cancels."""
    return mean(np.asarray(first, float) - np.asarray(second, float), *clusters, seed=seed)


def _checked(values: ArrayLike, over: ArrayLike | None, clusters: Sequence[Sequence[Hashable]]) -> tuple[Floats, Floats, list[Ints]]:
    """Values and weights (N,) as arrays, and the two keys (N,) as numbers from 0; a key not given is one cluster of everything."""
    y = np.asarray(values, dtype=np.float64)
    w = np.ones_like(y) if over is None else np.asarray(over, dtype=np.float64)
    if not 1 <= len(clusters) <= 2:
        raise ValueError(f"an interval needs one or two cluster keys, got {len(clusters)}")
    if any(len(key) != len(y) for key in (w, *clusters)):
        raise ValueError(f"{len(y)} values, but {[len(key) for key in (w, *clusters)]} weights and keys")
    if not (np.isfinite(y).all() and np.isfinite(w).all()):
        raise ValueError("a value is not finite")
    codes = [_codes(key) for key in clusters]
    return y, w, codes if len(codes) == 2 else [*codes, np.zeros(len(y), dtype=np.int64)]


def _codes(keys: Sequence[Hashable]) -> Ints:
    """Each key's number in order of first appearance: (N,) from 0."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(key, len(seen)) for key in keys], dtype=np.int64)


def _draws(rng: np.random.Generator, clusters: int, resamples: int) -> Floats:
    """How often each cluster is drawn when as many are drawn as there are, with replacement: (resamples, clusters)."""
    drawn = rng.integers(clusters, size=(resamples, clusters)) + clusters * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * clusters).reshape(resamples, clusters).astype(np.float64)


def _replicates(y: Floats, w: Floats, a: Ints, b: Ints, seed: int, resamples: int = RESAMPLES) -> Floats:
    """The ratio of sums on each resample, (resamples,); NaN where no row was drawn."""
    shape = (int(a.max()) + 1, int(b.max()) + 1)
    top, bottom = (sparse.coo_array((x, (a, b)), shape=shape).tocsr() for x in (y, w))
    rng = np.random.default_rng(seed)
    block = max(1, 2_000_000 // sum(shape))  # a few tens of megabytes at a time
    parts = []
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        first, second = _draws(rng, shape[0], size), _draws(rng, shape[1], size)
        sums, weights = (((first @ table) * second).sum(1) for table in (top, bottom))
        parts.append(np.divide(sums, weights, out=np.full(size, np.nan), where=weights > 0))
    return np.concatenate(parts)


def _stretch(y: Floats, w: Floats, a: Ints, b: Ints, drawn: float) -> float:
    """By how much the percentile interval of replicates with standard deviation `drawn` must grow (or shrink) to be honest."""
    if drawn == 0:
        return 1.0
    error = (y - w * (y.sum() / w.sum())) / w.sum()
    by_first, by_second, by_cell = (_variance(error, key) for key in (a, b, _codes(list(zip(a.tolist(), b.tolist(), strict=True)))))
    second_effect = max(by_second - by_cell, 0)
    honest = max(by_first, by_cell) + second_effect
    doubt = sum(part**2 / key.max() for part, key in ((max(by_first, by_cell), a), (second_effect, b)) if key.max() > 0)
    freedom = honest**2 / doubt if doubt > 0 else math.inf
    return float(math.sqrt(honest) / drawn * stats.t.ppf(TAIL, freedom) / stats.norm.ppf(TAIL))


def _variance(error: Floats, cluster: Ints) -> float:
    """Of a mean whose rows have these errors (N,), when whole clusters are independent."""
    groups = int(cluster.max()) + 1
    return float((np.bincount(cluster, weights=error) ** 2).sum() * groups / (groups - 1)) if groups > 1 else 0.0
