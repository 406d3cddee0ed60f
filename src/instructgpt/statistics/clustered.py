"""Variance of a number whose rows share prompts and labelers: leave one cluster out at a time.

Rows of one prompt are dependent, and so are rows of one labeler. The variance over prompts is a delete-one jackknife.
What labelers add is the jackknife over labelers less what prompts alone make of it: the spread of a labeler's prompts
around the effects that all labelers of a prompt share (Cameron, Gelbach and Miller, 2011, subtract the raw spread; with
few labelers who judge the same prompts that takes off more than the jackknife over labelers holds). The delete-one
variance ("CV3") of a ratio of sums weighs a cluster's error by 1 / (1 − its share); unlike the usual sandwich it holds
where labelers work unequally (MacKinnon, Nielsen and Webb, 2023). Degrees of freedom count effective clusters,
(Σ share)² / Σ share², less one (Carter, Schnepel and Steigerwald, 2017).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from scipy import special

from instructgpt.statistics.arrays import FloatArray, IntArray, cross_keys, unique_with_counts

Caution = Literal["", "single prompt", "single labeler", "two labelers", "dominant prompt", "dominant labeler"]
"""What an interval cannot speak about: other prompts, other labelers, or more than the one cluster that dominates."""

TAIL_PROBABILITY = 0.025
Z_95 = float(special.ndtri(1 - TAIL_PROBABILITY))
_FEW_LABELERS = 7
"""Up to so many effective labelers a couple's interval is never shorter than the one over labelers alone."""
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
    """Change of the number; NaN where nothing is left."""
    share: FloatArray
    """Share of the cluster in the weight; sums to 2 where rows belong to two clusters."""
    scale: FloatArray
    """Change over the sum of the changes of single prompts of the cluster: 1 / (1 − share) of a ratio of sums."""

    @property
    def variance(self) -> float:
        """Jackknife variance around the number itself; 0 for one cluster."""
        change = self.change[np.isfinite(self.change)]
        return (len(change) - 1) / len(change) * float((change**2).sum()) if len(change) > 1 else 0.0

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
        change = np.nan_to_num(self.change) - np.nan_to_num(subtrahend.change)
        return Deletions(change, (self.share + subtrahend.share) / 2, (self.scale + subtrahend.scale) / 2)


@dataclass(frozen=True, slots=True)
class CellDeletions:
    """What leaving out single prompts of labelers does: arrays (C,)."""

    change: FloatArray
    prompt: IntArray
    """Position in the deletions of prompts."""
    labeler: IntArray
    """Position in the deletions of labelers."""

    @classmethod
    def from_errors(cls, error: FloatArray, prompt: IntArray, labeler: IntArray) -> Self:
        """Return the deletions in a ratio of sums: errors and keys (N,)."""
        crossed = cross_keys(prompt, labeler)
        change = -np.bincount(crossed.cell, weights=error).astype(np.float64)
        return cls(change, crossed.first, crossed.second)

    def minus(self, subtrahend: CellDeletions) -> CellDeletions:
        """Return the deletions of the difference of two numbers with the same prompts and labelers."""
        return CellDeletions.from_errors(
            np.concatenate([-self.change, subtrahend.change]),
            np.concatenate([self.prompt, subtrahend.prompt]),
            np.concatenate([self.labeler, subtrahend.labeler]),
        )

    def spread_by_labeler(self, prompts: Deletions, labelers: int) -> FloatArray:
        """Return, per labeler (L,), the sum of squares of the cells around the labeler's part in each prompt's effect.

        The part is the slope of the labeler's cells on the effects of all prompts.
        """
        effect = np.nan_to_num(prompts.change) / prompts.scale
        change = np.nan_to_num(self.change)
        squares = np.bincount(self.labeler, weights=change**2, minlength=labelers)
        products = np.bincount(self.labeler, weights=change * effect[self.prompt], minlength=labelers)
        total = float((effect**2).sum())
        return np.asarray(squares - products**2 / total if total > 0 else squares)


def t_quantile(degrees_of_freedom: float) -> float:
    """Return Student's t of a 95 % interval."""
    return float(special.stdtrit(degrees_of_freedom, 1 - TAIL_PROBABILITY)) if degrees_of_freedom < 1e6 else Z_95


def residuals(y: FloatArray, w: FloatArray) -> FloatArray:
    """Return the first-order error of each row (N,) in sum(y) / sum(w); the errors sum to 0."""
    return np.asarray((y - w * (y.sum() / w.sum())) / w.sum())


def leave_one_out(error: FloatArray, weight: FloatArray, cluster: IntArray, clusters: int, total: float) -> Deletions:
    """Return the deletions of a ratio of sums.

    Args:
        error: (N,) first-order errors, see `residuals`.
        weight: (N,) denominators, not negative.
        cluster: (N,) numbers below `clusters`.
        clusters: G; those without rows change nothing.
        total: the sum of the denominators; less than the sum of `weight` where a row is listed for each of its two
            clusters.
    """
    share = np.bincount(cluster, weights=weight, minlength=clusters) / total
    scale = np.divide(1, 1 - share, out=np.ones_like(share), where=share < 1 - 1e-9)
    change = np.where(share < 1 - 1e-9, -np.bincount(cluster, weights=error, minlength=clusters) * scale, np.nan)
    return Deletions(change, share, scale)


def combine_deletions(
    prompts: Deletions, labelers: Deletions | None = None, cells: CellDeletions | None = None, *, couples: bool = False
) -> Uncertainty:
    """Combine the deletions of prompts, of labelers, and of labelers within prompts.

    Degrees of freedom are those of the scarcer key with influence: Satterthwaite's overstate them where the labelers'
    part is underestimated. In half of all samples of three alike-looking labelers that part comes out as 0; so where
    couples of few labelers are compared, an interval is never shorter than the one over the few labelers alone.

    Args:
        couples: a row compares two labelers and counts for both (Aronow, Samii and Assenova, 2015); the labelers' part
            then needs three of them.
    """
    by_prompt, by_labeler = prompts.variance, 0.0
    labelers = labelers or Deletions(np.zeros(0), np.zeros(0), np.zeros(0))
    prompt_count, labeler_count = len(prompts.share), len(labelers.share)
    if labeler_count >= (3 if couples else 2):
        by_labeler = labelers.variance
        if cells is not None and prompt_count > 1:
            spread = cells.spread_by_labeler(prompts, labeler_count)
            by_labeler -= (labeler_count - 1) / labeler_count * float((labelers.scale**2 * spread).sum())
            by_labeler = max(by_labeler, 0.0)
    keys = ((prompts, by_prompt), (labelers, by_labeler))
    freedom = [key.degrees_of_freedom for key, variance in keys if variance > 0 and len(key.share) > 1]
    effective = max(prompts.effective_clusters, labelers.effective_clusters)
    variance, degrees_of_freedom = by_prompt + by_labeler, min(freedom, default=max(effective - 1, 1.0))
    if couples and labeler_count >= 3 and labelers.effective_clusters <= _FEW_LABELERS + 1e-9:
        by_labelers_only = labelers.variance, labelers.degrees_of_freedom
        variance, degrees_of_freedom = max(
            (variance, degrees_of_freedom), by_labelers_only, key=lambda each: each[0] * t_quantile(each[1]) ** 2
        )
    return Uncertainty(
        variance,
        degrees_of_freedom,
        prompt_count if couples and labeler_count < 3 else max(prompt_count, labeler_count),
        effective,
        _caution(prompts, labelers),
    )


def ratio_uncertainty(error: FloatArray, weight: FloatArray, a: IntArray, b: IntArray | None = None) -> Uncertainty:
    """Return the two-way clustered uncertainty of a ratio of sums: errors and weights (N,), keys (N,)."""
    if not len(error):
        return Uncertainty(0.0, math.inf, 0, 0.0)
    prompt = unique_with_counts(a)[1]
    labeler = None if b is None else unique_with_counts(b)[1]
    return combine_deletions(*ratio_deletions(error, weight, prompt, labeler))


def ratio_deletions(
    error: FloatArray, weight: FloatArray, a: IntArray, b: IntArray | None = None, sizes: Sequence[int] = ()
) -> tuple[Deletions, Deletions | None, CellDeletions | None]:
    """Return the deletions of prompts, labelers and cells: keys (N,) below `sizes`; default: as many as occur."""
    total = float(weight.sum())
    prompt_count, *labeler_counts = sizes or [int(key.max()) + 1 for key in (a, b) if key is not None]
    prompts = leave_one_out(error, weight, a, prompt_count, total)
    if b is None:
        return prompts, None, None
    labelers = leave_one_out(error, weight, b, labeler_counts[0], total)
    return prompts, labelers, CellDeletions.from_errors(error, a, b)


def _caution(prompts: Deletions, labelers: Deletions) -> Caution:
    if len(prompts.share) == 1:
        return "single prompt"
    if len(labelers.share) == 1:
        return "single labeler"
    if prompts.is_dominated:
        return "dominant prompt"
    if len(labelers.share) == 2:  # of whom one nearly always has more than half of the work
        return "two labelers"
    return "dominant labeler" if labelers.is_dominated else ""
