"""Variance of a number whose rows share prompts and labelers: leave one cluster out at a time.

Rows of one prompt are dependent, and so are rows of one labeler. Three jackknife variances are combined (Cameron,
Gelbach and Miller, 2011): over prompts, plus over labelers, minus over prompts within labelers ("cells"), which both
count. The delete-one variance ("CV3") of a ratio of sums weighs a cluster's error by 1 / (1 − its share); unlike the
usual sandwich it holds where labelers work unequally (MacKinnon, Nielsen and Webb, 2023). Degrees of freedom count
effective clusters, (Σ share)² / Σ share², less one (Carter, Schnepel and Steigerwald, 2017).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from instructgpt.statistics.arrays import FloatArray, IntArray, cross_codes

Caution = Literal["", "single prompt", "single labeler", "two labelers", "dominant prompt", "dominant labeler"]
"""What an interval cannot speak about: other prompts, other labelers, or more than the one cluster that dominates."""

_DOMINANT_SHARE = 0.5
"""A cluster with more than this share of the weight dominates."""


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """Clustered variance of a number."""

    variance: float
    degrees_of_freedom: float
    """Degrees of freedom of Student's t."""
    cluster_count: int
    """Clusters of the more numerous key; below two nothing is known."""
    effective_clusters: float
    """Effective clusters of the more numerous key."""
    caution: Caution = ""


@dataclass(frozen=True, slots=True)
class Deletions:
    """What leaving out each cluster of one key does: arrays (G,)."""

    change: FloatArray
    """Change of the number."""
    share: FloatArray
    """Share of the cluster in the weight; sums to more than 1 where rows belong to two clusters."""

    @property
    def variance(self) -> float:
        """Jackknife variance around the number itself; 0 for one cluster."""
        count = len(self.change)
        return (count - 1) / count * float((self.change**2).sum()) if count > 1 else 0.0

    @property
    def effective_clusters(self) -> float:
        return float(self.share.sum() ** 2 / (self.share**2).sum()) if len(self.share) else 0.0

    @property
    def degrees_of_freedom(self) -> float:
        return max(self.effective_clusters - 1, 1.0)

    @property
    def is_dominated(self) -> bool:
        return len(self.share) > 1 and float(self.share.max() / self.share.sum()) > _DOMINANT_SHARE

    def minus(self, subtrahend: Deletions) -> Deletions:
        """Return the deletions of the difference of two numbers with the same clusters."""
        return Deletions(self.change - subtrahend.change, (self.share + subtrahend.share) / 2)


def residuals(y: FloatArray, w: FloatArray) -> FloatArray:
    """Return the first-order error of each row (N,) in sum(y) / sum(w); the errors sum to 0."""
    return np.asarray((y - w * (y.sum() / w.sum())) / w.sum())


def leave_one_out(
    error: FloatArray, weight: FloatArray, cluster: IntArray, clusters: int = 0, total: float | None = None
) -> Deletions:
    """Return the deletions of a ratio of sums.

    Args:
        error: (N,) first-order errors, see `residuals`.
        weight: (N,) denominators, not negative.
        cluster: (N,) numbers from 0.
        clusters: number of clusters to report, also of those without rows; default: those that occur.
        total: the sum of the denominators, where a row is listed once for each of its two clusters.
    """
    sums = np.bincount(cluster, weights=error, minlength=clusters)
    weights = np.bincount(cluster, weights=weight, minlength=clusters)
    if not clusters:
        used = weights > 0
        sums, weights = sums[used], weights[used]
    share = weights / (weight.sum() if total is None else total)
    remainder = 1 - share
    whole = remainder < 1e-9  # without this cluster nothing is left
    change = np.divide(-sums, remainder, out=np.zeros_like(sums), where=~whole)
    return Deletions(np.asarray(change[~whole] if not clusters else change), np.asarray(share))


def combine_deletions(
    prompts: Deletions, labelers: Deletions | None = None, cells: Deletions | None = None, *, couples: bool = False
) -> Uncertainty:
    """Combine the deletions of prompts, of labelers, and of labelers within prompts.

    Degrees of freedom are those of the scarcer key with influence: Satterthwaite's overstate them where the labelers'
    part is underestimated.

    Args:
        couples: a row compares two labelers and counts for both (Aronow, Samii and Assenova, 2015). The labelers' part
            then needs three of them, and the cells' may exceed the prompts'.
    """
    if labelers is None or cells is None:
        labelers = cells = Deletions(np.zeros(0), np.zeros(0))
    prompt_count, labeler_count = len(prompts.share), len(labelers.share)
    by_cell = cells.variance
    by_prompt = prompts.variance if couples or prompt_count < 2 else max(prompts.variance, by_cell)
    if prompt_count < 2:
        by_cell = 0.0
    by_labeler = max(labelers.variance - by_cell, 0.0) if labeler_count >= (3 if couples else 2) else 0.0
    keys = ((prompts, by_prompt), (labelers, by_labeler))
    freedom = [key.degrees_of_freedom for key, variance in keys if variance > 0 and len(key.share) > 1]
    effective = max(prompts.effective_clusters, labelers.effective_clusters)
    return Uncertainty(
        by_prompt + by_labeler,
        min(freedom, default=max(effective - 1, 1.0)),
        prompt_count if couples and labeler_count < 3 else max(prompt_count, labeler_count),
        effective,
        _caution(prompts, labelers),
    )


def ratio_uncertainty(error: FloatArray, weight: FloatArray, a: IntArray, b: IntArray | None = None) -> Uncertainty:
    """Return the two-way clustered uncertainty of a ratio of sums: errors and weights (N,), keys from 0 (N,)."""
    if not len(error):
        return Uncertainty(0.0, math.inf, 0, 0.0)
    prompts = leave_one_out(error, weight, a)
    if b is None:
        return combine_deletions(prompts)
    return combine_deletions(prompts, leave_one_out(error, weight, b), leave_one_out(error, weight, cross_codes(a, b)))


def _caution(prompts: Deletions, labelers: Deletions) -> Caution:
    if len(prompts.share) == 1:
        return "single prompt"
    if len(labelers.share) == 1:
        return "single labeler"
    if prompts.is_dominated:
        return "dominant prompt"
    if labelers.is_dominated:
        return "dominant labeler"
    return "two labelers" if len(labelers.share) == 2 else ""
