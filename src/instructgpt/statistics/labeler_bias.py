"""Working habits of each labeler, with p-values: for a conversation with the labeler, never for an automatic decision.

Every number also has an innocent explanation (hard prompts, a fast reader, uniformly bad completions). p-values are
adjusted for the number of labelers (Holm).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from instructgpt.statistics.arrays import BoolArray, FloatArray, IntArray
from instructgpt.statistics.significance import holm_correction

_MIN_EXPECTED_COUNT = 5
"""Minimum expected count of a position for the chi-square test."""
_HURRIED_RATIO = 0.25
"""A task is hurried below this fraction of the median time for the same number of completions."""


@dataclass(frozen=True, slots=True)
class PresentedRanking:
    labeler: Hashable
    ranks: Sequence[float]
    """In presented order; 1 is best, equal ranks tie."""
    ratings: Sequence[int] | None = None
    seconds: float | None = None
    """Active time."""


@dataclass(frozen=True, slots=True)
class PositionBias:
    """Effect of the presented position on being ranked best."""

    first: tuple[float, ...]
    """Times each position was ranked best; ties for best share."""
    expected: tuple[float, ...]
    """Expected counts without an effect of position."""
    chi_square: float | None
    p: float | None
    """Trailing positions that expect fewer than five are pooled; None if one remains."""


@dataclass(frozen=True, slots=True)
class BiasTest:
    """Rate of a habit of one labeler beside all others."""

    share: float | None
    baseline: float | None
    p: float | None
    """p that the labeler does not differ, Holm-adjusted."""


@dataclass(frozen=True, slots=True)
class LabelerReport:
    labeler: Hashable
    rankings: int
    position: PositionBias
    ties: BiasTest
    """Share of tied pairs, mean over rankings; Mann-Whitney test."""
    all_tied: BiasTest
    """Share of fully tied rankings; Fisher's exact test."""
    same_rating: BiasTest
    """Share of rated tasks with one rating for every completion; Fisher's exact test."""
    as_shown: BiasTest
    """Share of rankings identical to the presented order; `baseline` is chance, p is exact and one-sided."""
    hurried: BiasTest
    """Share of timed tasks below a quarter of the median time; Fisher's exact test."""
    pace: BiasTest
    """Median of task time over the median for the same K; `baseline` is the geometric mean of the others.

    p: whether one more labeler drawn from the others would be as far away; several outliers can mask each other.
    """


def labeler_reports(presented: Sequence[PresentedRanking]) -> list[LabelerReport]:
    """Return one report a labeler, in order of first appearance."""
    labelers = list(dict.fromkeys(ranking.labeler for ranking in presented))
    index_of = {labeler: index for index, labeler in enumerate(labelers)}
    labeler_index = np.array([index_of[ranking.labeler] for ranking in presented], dtype=np.int64)
    rankings_by_labeler: list[list[PresentedRanking]] = [[] for _ in labelers]
    for ranking in presented:
        rankings_by_labeler[index_of[ranking.labeler]].append(ranking)
    tie_share, order_probability, unchanged_order = _order_statistics(presented)
    all_tied = (tie_share == 1).astype(np.float64)
    same_rating = np.array(
        [np.nan if not ranking.ratings else float(len(set(ranking.ratings)) == 1) for ranking in presented]
    )
    pace = _paces(presented)
    hurried = np.where(np.isnan(pace), np.nan, pace < _HURRIED_RATIO)
    count = len(labelers)
    tests_by_labeler = zip(
        _holm_adjusted(_mann_whitney(tie_share, labeler_index, index) for index in range(count)),
        *(
            _holm_adjusted(_fisher(values, labeler_index, index) for index in range(count))
            for values in (all_tied, same_rating)
        ),
        _holm_adjusted(
            _order_test(order_probability[rows], unchanged_order[rows])
            for rows in ((labeler_index == index) & (all_tied == 0) for index in range(count))
        ),
        _holm_adjusted(_fisher(hurried, labeler_index, index) for index in range(count)),
        _holm_adjusted(_pace_tests(pace, labeler_index, count)),
        strict=True,
    )
    biases = [measure_position_bias([ranking.ranks for ranking in rankings]) for rankings in rankings_by_labeler]
    p_values = holm_correction([bias.p for bias in biases])
    return [
        LabelerReport(labeler, len(rankings), replace(bias, p=p), *tests)
        for labeler, rankings, bias, p, tests in zip(
            labelers, rankings_by_labeler, biases, p_values, tests_by_labeler, strict=True
        )
    ]


def measure_position_bias(rankings: Iterable[Sequence[float]]) -> PositionBias:
    """Test how often each position was ranked best against no effect of position.

    Args:
        rankings: ranks in presented order, any K; ties for best share the position.

    Returns:
        Chi-square d' V⁻¹ d, d observed minus expected, V the covariance under random shuffling, over all positions but
        one. Without ties and with one K this is Pearson's test with K − 1 degrees of freedom.
    """
    tables = [table for _, table in _by_size(list(rankings))]
    max_places = max((table.shape[1] for table in tables), default=0)
    first, expected, covariance = np.zeros(max_places), np.zeros(max_places), np.zeros((max_places, max_places))
    for table in tables:
        n, k = table.shape
        best = table == table.min(1, keepdims=True)
        credit = best / best.sum(1, keepdims=True)
        first[:k] += credit.sum(0)
        expected[:k] += n / k
        spread = float((credit**2).sum()) / k - n / k**2
        covariance[:k, :k] += spread * (np.eye(k) * k - 1) / max(k - 1, 1)
    chi: float | None = None
    p: float | None = None
    bins = _bins(expected)
    inner = (bins @ covariance @ bins.T)[1:, 1:]  # the bins add up to a constant: one of them says nothing new
    if len(bins) > 1 and np.linalg.cond(inner) < 1e10:
        gap = (bins @ (first - expected))[1:]
        chi = float(gap @ np.linalg.solve(inner, gap))
        p = float(special.chdtrc(len(inner), chi))
    return PositionBias(tuple(first.tolist()), tuple(expected.tolist()), chi, p)


def _bins(expected: FloatArray) -> FloatArray:
    """Return a pooling matrix (bins, positions) of 0 and 1."""
    bins = np.eye(len(expected))
    while len(bins) > 1 and (bins @ expected).min() < _MIN_EXPECTED_COUNT:
        bins = np.concatenate([bins[:-2], bins[-2:].sum(0, keepdims=True)])
    return bins


def _by_size(rankings: Sequence[Sequence[float]]) -> list[tuple[list[int], FloatArray]]:
    rows: dict[int, list[int]] = {}
    for index, ranks in enumerate(rankings):
        rows.setdefault(len(ranks), []).append(index)
    return [(found, np.array([rankings[index] for index in found], dtype=np.float64)) for found in rows.values()]


def _order_statistics(presented: Sequence[PresentedRanking]) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Return, per ranking (N,): share of tied pairs; probability that a random order is sorted (product of tie
    factorials over K!); whether it is sorted.
    """
    share, order_probability, unchanged_order = (
        np.zeros(len(presented)),
        np.zeros(len(presented)),
        np.zeros(len(presented), dtype=np.bool_),
    )
    for rows, ranks in _by_size([each.ranks for each in presented]):
        k = ranks.shape[1]
        level = (ranks[:, :, None] == ranks[:, None, :]).sum(-1)
        share[rows] = (level - 1).sum(1) / max(k * (k - 1), 1)
        order_probability[rows] = np.exp(
            (special.gammaln(level + 1) / level).sum(1) - special.gammaln(k + 1)
        )  # each tie of t counted t times 1/t
        unchanged_order[rows] = (np.diff(ranks) >= 0).all(1)
    return share, order_probability, unchanged_order


def _paces(presented: Sequence[PresentedRanking]) -> FloatArray:
    """Return task time over the median time for the same K (N,); NaN where untimed."""
    seconds = np.array(
        [np.nan if each.seconds is None or each.seconds <= 0 else each.seconds for each in presented], dtype=np.float64
    )
    k = np.array([len(each.ranks) for each in presented])
    pace = np.full(len(presented), np.nan)
    for size in np.unique(k):
        rows = (k == size) & ~np.isnan(seconds)
        if rows.any():
            pace[rows] = seconds[rows] / np.median(seconds[rows])
    return pace


def _split_by_labeler(values: FloatArray, labeler_index: IntArray, index: int) -> tuple[FloatArray, FloatArray]:
    valid = ~np.isnan(values)
    return values[valid & (labeler_index == index)], values[valid & (labeler_index != index)]


def _mean(values: FloatArray) -> float | None:
    return float(values.mean()) if len(values) else None


def _mann_whitney(values: FloatArray, labeler_index: IntArray, index: int) -> BiasTest:
    """Compare means by the Mann-Whitney test with tie correction (normal approximation, two-sided)."""
    sample, rest = _split_by_labeler(values, labeler_index, index)
    p = None
    n, m = len(sample), len(rest)
    if n and m:
        _, inverse, counts = np.unique(np.concatenate([sample, rest]), return_inverse=True, return_counts=True)
        midranks = np.cumsum(counts) - (counts - 1) / 2
        u_statistic = float(midranks[inverse[:n]].sum()) - n * (n + 1) / 2
        variance = n * m / 12 * (n + m + 1 - float((counts**3 - counts).sum()) / ((n + m) * (n + m - 1)))
        if variance > 0:
            p = min(1.0, 2 * float(special.ndtr(-abs(u_statistic - n * m / 2) / np.sqrt(variance))))
    return BiasTest(_mean(sample), _mean(rest), p)


def _fisher(values: FloatArray, labeler_index: IntArray, index: int) -> BiasTest:
    sample, rest = _split_by_labeler(values, labeler_index, index)
    p = None
    if len(sample) and len(rest):
        yes, n, total = int(sample.sum()), len(sample), len(sample) + len(rest)
        all_yes = yes + int(rest.sum())
        possible = np.arange(max(0, n - (total - all_yes)), min(n, all_yes) + 1)
        log_probability = _log_choose(all_yes, possible) + _log_choose(total - all_yes, n - possible)
        probability = np.exp(log_probability - special.logsumexp(log_probability))
        p = min(1.0, float(probability[probability <= probability[yes - possible[0]] * (1 + 1e-7)].sum()))
    return BiasTest(_mean(sample), _mean(rest), p)


def _log_choose(n: int, k: FloatArray | IntArray) -> FloatArray:
    return np.asarray(special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1))


def _order_test(order_probability: FloatArray, unchanged_order: BoolArray) -> BiasTest:
    if not len(order_probability):
        return BiasTest(None, None, None)
    observed = int(unchanged_order.sum())
    distribution = np.zeros(
        observed + 1
    )  # ways[i]: the probability that i of the rankings so far stand as shown; the last one: that many or more
    distribution[0] = 1
    for probability in order_probability.tolist():
        distribution[-1] += (distribution[-2] if observed else 0) * probability
        distribution[1:-1] = distribution[1:-1] * (1 - probability) + distribution[:-2] * probability
        distribution[0] *= 1 - probability if observed else 1
    return BiasTest(
        observed / len(order_probability), float(order_probability.mean()), min(1.0, float(distribution[-1]))
    )


def _pace_tests(pace: FloatArray, labeler_index: IntArray, count: int) -> list[BiasTest]:
    """Test each labeler's median pace by Student's t on the log scale against the others."""
    medians = np.array(
        [
            np.median(labeler_paces)
            if len(labeler_paces := _split_by_labeler(pace, labeler_index, index)[0])
            else np.nan
            for index in range(count)
        ]
    )
    tests = []
    for index, median in enumerate(medians.tolist()):
        other_logs = np.log(np.delete(medians, index))
        other_logs = other_logs[~np.isnan(other_logs)]
        center, n = float(other_logs.mean()) if len(other_logs) else None, len(other_logs)
        spread = float(other_logs.std(ddof=1)) * np.sqrt(1 + 1 / n) if n > 2 else 0.0
        is_testable = center is not None and not np.isnan(median)
        p = (
            2 * float(special.stdtr(n - 1, -abs(np.log(median) - center) / spread))
            if is_testable and spread > 0
            else None
        )
        tests.append(
            BiasTest(None if np.isnan(median) else median, None if center is None else float(np.exp(center)), p)
        )
    return tests


def _holm_adjusted(tests: Iterable[BiasTest]) -> list[BiasTest]:
    listed = list(tests)
    return [
        replace(habit, p=p) for habit, p in zip(listed, holm_correction([habit.p for habit in listed]), strict=True)
    ]
