"""Agreement on categories and ratings: Krippendorff's alpha, Gwet's AC1, positive agreement.

Input is one row an answer: `units` names what was judged, `values` the answer. Labelers need not judge every unit;
units with a single answer are dropped. Intervals leave out units (or `clusters` of them) and, where `labelers` are
named, labelers (Gwet, 2014, 5).

Alpha is low when nearly all answers agree, as with most labels of Table 3: read it beside AC1 and positive agreement.
Where few prompts have a rare answer, alpha's jackknife cannot know how often a second labeler repeats it; the interval
then also holds what the interval of positive agreement says, alpha = (positive agreement − share) / (1 − share).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from instructgpt.statistics.arrays import ClusterKeys, FloatArray, IntArray, cross_keys, factorize, unique_with_counts
from instructgpt.statistics.intervals import (
    CORRELATION,
    NO_ESTIMATE,
    SHARE,
    Bounds,
    ClusterSums,
    Estimate,
    LabelerSums,
    jackknife,
)

_RARE_SHARE = 0.25
_FEW_RARE_PROMPTS = 20
_Level = Literal["nominal", "ordinal", "interval"]


def krippendorff_alpha(
    units: ClusterKeys,
    values: Sequence[float | bool | str],
    level: _Level = "nominal",
    clusters: ClusterKeys | None = None,
    labelers: ClusterKeys | None = None,
) -> Estimate:
    """Compute 1 − observed / expected disagreement over units with two or more answers (Krippendorff, 2011).

    Args:
        units: (N,) what was judged.
        values: (N,) answers; numbers for `ordinal` and `interval`.
        level: distance of two answers: `nominal` 0 or 1, `interval` squared difference, `ordinal` squared number of
            answers between them, ends counted half.
        clusters: (N,) what units share (their prompt); default: each unit.
        labelers: (N,) who answered; without them the interval is about these labelers.

    Returns:
        1 is agreement, 0 chance, negative worse than chance; None with fewer than two different answers.

    Raises:
        ValueError: lengths differ, or the level is unknown.
    """
    if level not in ("nominal", "ordinal", "interval"):
        raise ValueError(f"no level '{level}'; there are: nominal, ordinal, interval")
    table = _count_answers(units, values, clusters, labelers)
    if len(table.counts) == 0:
        return NO_ESTIMATE
    answers, size = table.answers, len(table.answers)

    def coincidence_parts(counts: FloatArray) -> FloatArray:
        pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(size)
        return np.asarray((pairs / np.maximum(counts.sum(1) - 1, 1)[:, None, None]).reshape(len(counts), -1))

    distances = (1 - np.eye(size)) if level == "nominal" else None
    if level == "interval":
        numbers = np.array(answers, dtype=np.float64)
        distances = (numbers[:, None] - numbers) ** 2

    def alpha(sums: FloatArray) -> FloatArray:
        coincidences = sums.reshape(*sums.shape[:-1], size, size)
        totals = coincidences.sum(-1)
        distance = _ordinal_distances(totals) if distances is None else distances
        total = totals.sum(-1)
        observed = (coincidences * distance).sum((-1, -2)) * (total - 1)
        expected = (totals[..., :, None] * totals[..., None, :] * distance).sum((-1, -2))
        return np.where(expected > 0, 1 - observed / np.where(expected > 0, expected, 1), np.nan)

    estimate = table.estimate(coincidence_parts, alpha, CORRELATION)
    return _widen_for_rare_answers(estimate, table) if level == "nominal" or size == 2 else estimate


def _widen_for_rare_answers(estimate: Estimate, table: _AnswerTable) -> Estimate:
    """Widen alpha's interval to what positive agreement on the rare answers allows: all but the commonest one."""
    if estimate.low is None or estimate.high is None:
        return estimate
    total = table.counts.sum(0)
    rare = np.arange(len(total)) != int(total.argmax())
    share = float(total[rare].sum() / total.sum())
    by_prompt = np.bincount(table.clusters, weights=table.counts[:, rare].sum(1))
    if share >= _RARE_SHARE or by_prompt.sum() ** 2 / (by_prompt**2).sum() >= _FEW_RARE_PROMPTS:
        return estimate
    positive = _agreement_on(table, np.flatnonzero(rare))
    if positive.low is None or positive.high is None:
        return estimate
    low, high = ((end - share) / (1 - share) for end in (positive.low, positive.high))
    return replace(estimate, low=min(estimate.low, low), high=max(estimate.high, high))


def gwet_ac1(
    units: ClusterKeys,
    values: Sequence[float | bool | str],
    clusters: ClusterKeys | None = None,
    categories: int | None = None,
    labelers: ClusterKeys | None = None,
) -> Estimate:
    """Compute Gwet's AC1 (2008): (observed − chance) / (1 − chance), robust where one answer is rare.

    Chance is Σ π (1 − π) / (q − 1), π the share of each of q answers; q is `categories`, or the number of observed
    answers.
    """
    table = _count_answers(units, values, clusters, labelers)
    q = categories or len(table.answers)
    if len(table.counts) == 0 or q < 2:
        return NO_ESTIMATE

    def parts(counts: FloatArray) -> FloatArray:
        n = counts.sum(1, keepdims=True)
        agreement = (counts * (counts - 1)).sum(1, keepdims=True) / np.maximum(n * (n - 1), 1)
        used = (n > 1).astype(np.float64)
        return np.concatenate([agreement, used, used * counts / np.maximum(n, 1)], axis=1)

    def ac1(sums: FloatArray) -> FloatArray:
        with np.errstate(invalid="ignore", divide="ignore"):
            observed, share = sums[..., 0] / sums[..., 1], sums[..., 2:] / sums[..., 1:2]
            chance = (share * (1 - share)).sum(-1) / (q - 1)
            return np.asarray((observed - chance) / (1 - chance))

    return table.estimate(parts, ac1, CORRELATION)


def positive_agreement(
    units: ClusterKeys,
    values: Sequence[bool],
    clusters: ClusterKeys | None = None,
    labelers: ClusterKeys | None = None,
) -> Estimate:
    """Compute the probability that a second labeler says yes given a yes:
    2a / (2a + b + c) (Cicchetti and Feinstein, 1990).
    """
    table = _count_answers(units, [bool(value) for value in values], clusters, labelers)
    if True not in table.answers:
        return NO_ESTIMATE
    return _agreement_on(table, np.array([table.answers.index(True)]))


def _agreement_on(table: _AnswerTable, answers: IntArray) -> Estimate:
    """Compute the probability that a second labeler repeats one of these answers; positions (A,) in the table."""

    def parts(counts: FloatArray) -> FloatArray:
        chosen, other_count = counts[:, answers], counts.sum(1) - 1
        pairs = (chosen * (chosen - 1)).sum(1) / np.maximum(other_count, 1)
        return np.stack([pairs, chosen.sum(1) * (other_count > 0)], axis=1)

    def positive(sums: FloatArray) -> FloatArray:
        yes = sums[..., 1]
        return np.asarray(np.divide(sums[..., 0], yes, out=np.full(yes.shape, np.nan), where=yes > 1e-9))

    return table.estimate(parts, positive, SHARE, weight=lambda counts: counts[:, answers].sum(1))


@dataclass(frozen=True, slots=True)
class _AnswerTable:
    """Answers to units that were judged twice or more."""

    counts: FloatArray
    """(U, V) answers of each value."""
    answers: list[float | bool | str]
    """The V values, in order."""
    clusters: IntArray
    """(U,)"""
    labeler_unit: IntArray
    """(M,) the unit of each labeler's answers; empty where labelers are unknown."""
    labeler: IntArray
    """(M,)"""
    labeler_counts: FloatArray
    """(M, V) the labeler's own answers to the unit."""

    def estimate(
        self,
        parts: Callable[[FloatArray], FloatArray],
        statistic: Callable[[FloatArray], FloatArray],
        bounds: Bounds,
        weight: Callable[[FloatArray], FloatArray] = lambda counts: np.asarray(counts.sum(1)),
    ) -> Estimate:
        """Estimate a statistic of sums over units, from what each unit's counts (U, V) add to the sums (U, F)."""
        by_unit = parts(self.counts)
        prompt = unique_with_counts(self.clusters)[1]
        prompts = ClusterSums.from_rows(by_unit, weight(self.counts), prompt)
        labelers = None
        if len(self.labeler):
            removed = by_unit[self.labeler_unit] - parts(self.counts[self.labeler_unit] - self.labeler_counts)
            crossed = cross_keys(prompt[self.labeler_unit], self.labeler)
            sums = ClusterSums.from_rows(removed, weight(self.labeler_counts), crossed.cell)
            labelers = LabelerSums(sums.parts, sums.weight, crossed.first, crossed.second)
        return jackknife(by_unit.sum(0), statistic, int(self.counts.sum()), prompts, labelers, bounds)


def _count_answers(
    units: ClusterKeys,
    values: Sequence[float | bool | str],
    clusters: ClusterKeys | None,
    labelers: ClusterKeys | None,
) -> _AnswerTable:
    lengths = [len(each) for each in (units, values, clusters, labelers) if each is not None]
    if len(set(lengths)) > 1:
        raise ValueError(f"units, values, clusters and labelers do not fit: {lengths} rows")
    unit = factorize(units)
    answers = sorted(set(values), key=lambda value: (isinstance(value, str), value))
    answer_codes = {value: number for number, value in enumerate(answers)}
    value = np.array([answer_codes[each] for each in values], dtype=np.int64)
    unit_count, size = int(unit.max(initial=-1)) + 1, len(answers)
    unit_clusters = np.zeros(unit_count, dtype=np.int64)
    unit_clusters[unit] = unit if clusters is None else factorize(clusters)
    counts = np.bincount(unit * size + value, minlength=unit_count * size).reshape(unit_count, size)
    repeated = counts.sum(1) > 1
    used = counts[repeated].sum(0) > 0
    number, is_repeated = np.cumsum(repeated) - 1, repeated[unit]
    labeler_unit, labeler, labeler_counts = _count_by_labeler(
        number[unit[is_repeated]],
        value[is_repeated],
        None if labelers is None else factorize(labelers)[is_repeated],
        size,
    )
    return _AnswerTable(
        counts[repeated][:, used].astype(np.float64),
        [answer for answer, some in zip(answers, used, strict=True) if some],
        unit_clusters[repeated],
        labeler_unit,
        labeler,
        labeler_counts[:, used],
    )


def _count_by_labeler(
    unit: IntArray, value: IntArray, labeler: IntArray | None, size: int
) -> tuple[IntArray, IntArray, FloatArray]:
    """Return the unit and labeler (M,) of the rows (N,), and how often each labeler gave each value (M, V)."""
    if labeler is None or not len(unit):
        empty = np.zeros(0, dtype=np.int64)
        return empty, empty, np.zeros((0, size))
    labeler_count = int(labeler.max()) + 1
    keys, row, _ = unique_with_counts(unit * labeler_count + labeler)
    counts = np.bincount(row * size + value, minlength=len(keys) * size).reshape(len(keys), size)
    return keys // labeler_count, keys % labeler_count, counts.astype(np.float64)


def _ordinal_distances(totals: FloatArray) -> FloatArray:
    """Return squared ordinal distances (..., V, V) from answer counts (..., V), ends counted half."""
    midpoint = np.cumsum(totals, axis=-1) - totals / 2
    return np.asarray((midpoint[..., :, None] - midpoint[..., None, :]) ** 2)
