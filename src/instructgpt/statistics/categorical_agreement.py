"""Agreement on categories and ratings: Krippendorff's alpha, Gwet's AC1, positive agreement.

Input is one row an answer: `units` names what was judged, `values` the answer. Labelers need not judge every unit;
units with a single answer are dropped. Intervals are jackknifed over units, or over `clusters` where given.

Alpha is low when nearly all answers agree, as with most labels of Table 3: read it beside AC1 and positive agreement.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from instructgpt.statistics.intervals import (
    NO_ESTIMATE,
    ClusterKeys,
    Estimate,
    FloatArray,
    IntArray,
    factorize,
    jackknife,
)

_Level = Literal["nominal", "ordinal", "interval"]


def krippendorff_alpha(
    units: ClusterKeys,
    values: Sequence[float | bool | str],
    level: _Level = "nominal",
    clusters: ClusterKeys | None = None,
) -> Estimate:
    """Compute 1 − observed / expected disagreement over units with two or more answers (Krippendorff, 2011).

    Args:
        units: (N,) what was judged.
        values: (N,) answers; numbers for `ordinal` and `interval`.
        level: distance of two answers: `nominal` 0 or 1, `interval` squared difference, `ordinal` squared number of
            answers between them, ends counted half.
        clusters: (N,) what units share (their prompt); default: each unit.

    Returns:
        1 is agreement, 0 chance, negative worse than chance; None with fewer than two different answers.

    Raises:
        ValueError: lengths differ, or the level is unknown.
    """
    if level not in ("nominal", "ordinal", "interval"):
        raise ValueError(f"no level '{level}'; there are: nominal, ordinal, interval")
    counts, answers, unit_clusters = _count_answers(units, values, clusters)
    if len(counts) == 0:
        return NO_ESTIMATE
    size = len(answers)
    unit_counts = counts.sum(1)
    unit_coincidences = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(size)
    parts = _by_cluster((unit_coincidences / (unit_counts - 1)[:, None, None]).reshape(len(counts), -1), unit_clusters)
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

    return jackknife(parts, alpha, int(unit_counts.sum()))


def gwet_ac1(
    units: ClusterKeys,
    values: Sequence[float | bool | str],
    clusters: ClusterKeys | None = None,
    categories: int | None = None,
) -> Estimate:
    """Compute Gwet's AC1 (2008): (observed − chance) / (1 − chance), robust where one answer is rare.

    Chance is Σ π (1 − π) / (q − 1), π the share of each of q answers; q is `categories`, or the number of observed
    answers.
    """
    counts, answers, unit_clusters = _count_answers(units, values, clusters)
    q = categories or len(answers)
    if len(counts) == 0 or q < 2:
        return NO_ESTIMATE
    unit_counts = counts.sum(1, keepdims=True)
    agreement = (counts * (counts - 1)).sum(1, keepdims=True) / (unit_counts * (unit_counts - 1))
    parts = _by_cluster(
        np.concatenate([agreement, np.ones_like(agreement), counts / unit_counts], axis=1), unit_clusters
    )

    def ac1(sums: FloatArray) -> FloatArray:
        with np.errstate(invalid="ignore"):
            observed, share = sums[..., 0] / sums[..., 1], sums[..., 2:] / sums[..., 1:2]
        chance = (share * (1 - share)).sum(-1) / (q - 1)
        return np.asarray((observed - chance) / (1 - chance))

    return jackknife(parts, ac1, int(unit_counts.sum()))


def positive_agreement(units: ClusterKeys, values: Sequence[bool], clusters: ClusterKeys | None = None) -> Estimate:
    """Compute the probability that a second labeler says yes given a yes:
    2a / (2a + b + c) (Cicchetti and Feinstein, 1990).
    """
    counts, answers, unit_clusters = _count_answers(units, [bool(value) for value in values], clusters)
    if True not in answers:
        return NO_ESTIMATE
    yes, unit_counts = counts[:, answers.index(True)], counts.sum(1)
    parts = _by_cluster(
        np.stack([yes * (yes - 1), yes * (unit_counts - 1)], axis=1) / (unit_counts - 1)[:, None], unit_clusters
    )

    def positive(sums: FloatArray) -> FloatArray:
        return np.where(sums[..., 1] > 0, sums[..., 0] / np.where(sums[..., 1] > 0, sums[..., 1], 1), np.nan)

    return jackknife(parts, positive, int(unit_counts.sum()))


def _count_answers(
    units: ClusterKeys, values: Sequence[float | bool | str], clusters: ClusterKeys | None
) -> tuple[FloatArray, list[float | bool | str], IntArray]:
    """Return answer counts per unit judged twice or more (U, V), the answers in order, and the units' clusters (U,)."""
    if len(units) != len(values) or (clusters is not None and len(clusters) != len(units)):
        raise ValueError(
            f"{len(units)} units, {len(values)} values and {len(units if clusters is None else clusters)} clusters do "
            "not fit"
        )
    unit = factorize(units)
    answers = sorted(set(values), key=lambda value: (isinstance(value, str), value))
    answer_codes = {value: number for number, value in enumerate(answers)}
    value = np.array([answer_codes[each] for each in values], dtype=np.int64)
    unit_clusters = np.zeros(int(unit.max(initial=-1)) + 1, dtype=np.int64)
    unit_clusters[unit] = unit if clusters is None else factorize(clusters)
    counts = np.bincount(unit * len(answers) + value, minlength=len(unit_clusters) * len(answers)).reshape(
        len(unit_clusters), len(answers)
    )
    repeated = counts.sum(1) > 1
    counts = counts[repeated].astype(np.float64)
    used = counts.sum(0) > 0
    return (
        counts[:, used],
        [answer for answer, some in zip(answers, used, strict=True) if some],
        unit_clusters[repeated],
    )


def _by_cluster(parts: FloatArray, cluster: IntArray) -> FloatArray:
    order = np.argsort(cluster, kind="stable")
    start = np.flatnonzero(np.r_[True, np.diff(cluster[order]) > 0])
    return np.add.reduceat(parts[order], start, axis=0)


def _ordinal_distances(totals: FloatArray) -> FloatArray:
    """Return squared ordinal distances (..., V, V) from answer counts (..., V), ends counted half."""
    midpoint = np.cumsum(totals, axis=-1) - totals / 2
    return np.asarray((midpoint[..., :, None] - midpoint[..., None, :]) ** 2)
