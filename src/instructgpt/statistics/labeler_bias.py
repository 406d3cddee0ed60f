"""Working habits of each labeler, with p-values: for a conversation with the labeler, never for an automatic decision.

Every number also has an innocent explanation (hard prompts, a fast reader, uniformly bad completions). Labelers always
differ a little, so the question is not whether one is like the others, but whether one more of the others would be so
far out. p-values are adjusted for all labelers and habits together (Holm).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from instructgpt.statistics.arrays import BoolArray, FloatArray, IntArray
from instructgpt.statistics.shrinkage import predictive_p_value
from instructgpt.statistics.significance import holm_correction

_MIN_OTHER_LABELERS = 3
"""Fewer others do not say how much labelers differ."""
_MIN_EXPECTED_COUNT = 2
"""Minimum expected count of a position for the chi-square test."""
_HURRIED_RATIO = 0.25
"""A task is hurried below this fraction of the median time for the same number of completions."""


@dataclass(frozen=True, slots=True)
class PresentedRanking:
    labeler: Hashable
    ranks: Sequence[float]
    """In presented order; 1 is best, equal ranks tie."""
    ratings: Sequence[float] | None = None
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
    """Neighboring positions are pooled until they expect two; None if one bin remains."""


@dataclass(frozen=True, slots=True)
class BiasTest:
    """Rate of a habit of one labeler beside all others."""

    share: float | None
    baseline: float | None
    p: float | None
    """p that one more of the others would be as far out, Holm-adjusted; None with fewer than three others."""


@dataclass(frozen=True, slots=True)
class LabelerReport:
    labeler: Hashable
    rankings: int
    position: PositionBias
    ties: BiasTest
    """Share of tied pairs, mean over rankings; Student's t on the arcsine scale."""
    all_tied: BiasTest
    """Share of fully tied rankings; beta-binomial test."""
    same_rating: BiasTest
    """Share of rated tasks with one rating for every completion; beta-binomial test."""
    as_shown: BiasTest
    """Share of rankings identical to the presented order; `baseline` is chance, p is exact and one-sided."""
    hurried: BiasTest
    """Share of timed tasks below a quarter of the median time; beta-binomial test."""
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
    rates = [[_rate_test(values, labeler_index, index) for index in range(count)] for values in (all_tied, same_rating)]
    order = [
        _order_test(order_probability[rows], unchanged_order[rows])
        for rows in ((labeler_index == index) & (all_tied == 0) for index in range(count))
    ]
    columns = [
        _tie_tests(tie_share, labeler_index, count),
        *rates,
        order,
        [_rate_test(hurried, labeler_index, index) for index in range(count)],
        _pace_tests(pace, labeler_index, count),
    ]
    biases = [measure_position_bias([ranking.ranks for ranking in rankings]) for rankings in rankings_by_labeler]
    p_values = [bias.p for bias in biases] + [test.p for column in columns for test in column]
    adjusted = iter(holm_correction(p_values))
    biases = [replace(bias, p=next(adjusted)) for bias in biases]
    columns = [[replace(test, p=next(adjusted)) for test in column] for column in columns]
    return [
        LabelerReport(labeler, len(rankings), bias, *tests)
        for labeler, rankings, bias, *tests in zip(labelers, rankings_by_labeler, biases, *columns, strict=True)
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
    """Return a pooling matrix (bins, positions) of 0 and 1: neighbors together until each bin expects enough."""
    bins: list[FloatArray] = []
    for row in np.eye(len(expected)):
        if bins and float(bins[-1] @ expected) < _MIN_EXPECTED_COUNT:
            bins[-1] = bins[-1] + row
        else:
            bins.append(row)
    if len(bins) > 1 and float(bins[-1] @ expected) < _MIN_EXPECTED_COUNT:
        bins[-2:] = [bins[-2] + bins[-1]]
    return np.array(bins).reshape(len(bins), len(expected))


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


def _tie_tests(tie_share: FloatArray, labeler_index: IntArray, count: int) -> list[BiasTest]:
    """Test each labeler's mean share of ties against the others' means."""
    samples = [tie_share[labeler_index == index] for index in range(count)]
    means = np.array([sample.mean() if len(sample) else np.nan for sample in samples])
    slope = np.maximum(2 * np.sqrt(means * (1 - means)), 1e-3)  # of share by its arcsine scale
    errors = [
        float(sample.var()) / len(sample) / steepness**2 if len(sample) else 0.0
        for sample, steepness in zip(samples, slope.tolist(), strict=True)
    ]
    p_values = _predictive_p_values(np.arcsin(np.sqrt(means)), np.array(errors))
    splits = [_split_by_labeler(tie_share, labeler_index, index) for index in range(count)]
    return [BiasTest(_mean(sample), _mean(rest), p) for (sample, rest), p in zip(splits, p_values, strict=True)]


def _rate_test(values: FloatArray, labeler_index: IntArray, index: int) -> BiasTest:
    """Test how often a labeler shows a habit against the others, who differ among themselves."""
    sample, rest = _split_by_labeler(values, labeler_index, index)
    colleague = labeler_index[~np.isnan(values) & (labeler_index != index)]
    counts = np.bincount(colleague).astype(np.float64)
    successes = np.bincount(colleague, weights=rest).astype(np.float64)
    members = counts > 0
    p = None
    if len(sample) and members.sum() >= _MIN_OTHER_LABELERS:
        p = predictive_p_value(float(sample.sum()), len(sample), successes[members], counts[members])
    return BiasTest(_mean(sample), _mean(rest), p)


def _predictive_p_values(values: FloatArray, errors: FloatArray) -> list[float | None]:
    """Return, per labeler, Student's p that one more of the others would have so extreme a value.

    Args:
        values: (L,) on a scale where labelers are about normal; NaN where unknown.
        errors: (L,) sampling variances; what the labeler's exceeds the others' is added to the spread.
    """
    p_values: list[float | None] = []
    for index, value in enumerate(values.tolist()):
        in_reference = ~np.isnan(values)
        in_reference[index] = False
        reference, n = values[in_reference], int(in_reference.sum())
        p = None
        if n >= _MIN_OTHER_LABELERS and not np.isnan(value):
            extra = max(0.0, float(errors[index] - errors[in_reference].mean()))
            spread = float(np.sqrt(reference.var(ddof=1) * (1 + 1 / n) + extra))
            if spread > 0:
                p = 2 * float(special.stdtr(n - 1, -abs(value - reference.mean()) / spread))
        p_values.append(p)
    return p_values


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
    """Test each labeler's median pace on the log scale against the others'."""
    samples = [_split_by_labeler(pace, labeler_index, index)[0] for index in range(count)]
    medians = np.array([np.median(sample) if len(sample) else np.nan for sample in samples])
    logs = np.log(medians)
    errors = np.array([np.pi / 2 * np.log(sample).var() / len(sample) if len(sample) else 0.0 for sample in samples])
    tests = []
    for index, (median, p) in enumerate(zip(medians.tolist(), _predictive_p_values(logs, errors), strict=True)):
        reference = np.delete(logs, index)
        reference = reference[~np.isnan(reference)]
        baseline = float(np.exp(reference.mean())) if len(reference) else None
        tests.append(BiasTest(None if np.isnan(median) else median, baseline, p))
    return tests
