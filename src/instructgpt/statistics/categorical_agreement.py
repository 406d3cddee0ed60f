"""How far labelers agree about categories and ratings: Krippendorff's alpha, Gwet's AC1, positive agreement.

One form of input for all: one row an answer, `units` saying what was judged (a completion, a prompt) and `values` what was said; who said
it plays no part, and not everyone need judge everything. Answers that nobody else gave to the same unit tell nothing and are left out.
Intervals leave out one cluster at a time (`estimate.jackknife`): one unit, or all units of one prompt where `clusters` is given.

Alpha is low when nearly all answers are alike, as with most labels of Table 3: read it beside AC1 and positive agreement.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from instructgpt.statistics.intervals import NOTHING, Estimate, Floats, Ints, Keys, codes, jackknife

Level = Literal["nominal", "ordinal", "interval"]


def krippendorff_alpha(
    units: Keys, values: Sequence[float | bool | str], level: Level = "nominal", clusters: Keys | None = None
) -> Estimate:
    """1 − observed / expected disagreement, over the answers to units that were judged at least twice (Krippendorff, 2011).

    Args:
        units: (N,) what was judged.
        values: (N,) the answers. Numbers, for `ordinal` and `interval`.
        level: how far two answers are from each other: `nominal` 0 or 1; `interval` the squared difference; `ordinal` the squared number
            of answers between them, each end counted half.
        clusters: (N,) what units share (their prompt); each unit by itself where not given.

    Returns:
        1 is agreement, 0 chance, below 0 worse than chance; None where fewer than two different answers were given.

    Raises:
        ValueError: lengths differ, or the level is unknown.
    """
    if level not in ("nominal", "ordinal", "interval"):
        raise ValueError(f"no level '{level}'; there are: nominal, ordinal, interval")
    counts, answers, of_cluster = _table(units, values, clusters)
    if len(counts) == 0:
        return NOTHING
    size = len(answers)
    judged = counts.sum(1)
    together = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(size)
    parts = _by_cluster((together / (judged - 1)[:, None, None]).reshape(len(counts), -1), of_cluster)
    distances = (1 - np.eye(size)) if level == "nominal" else None
    if level == "interval":
        numbers = np.array(answers, dtype=np.float64)
        distances = (numbers[:, None] - numbers) ** 2

    def alpha(sums: Floats) -> Floats:
        coincidences = sums.reshape(*sums.shape[:-1], size, size)
        said = coincidences.sum(-1)
        far = _ordinal_distances(said) if distances is None else distances
        total = said.sum(-1)
        observed = (coincidences * far).sum((-1, -2)) * (total - 1)
        expected = (said[..., :, None] * said[..., None, :] * far).sum((-1, -2))
        return np.where(expected > 0, 1 - observed / np.where(expected > 0, expected, 1), np.nan)

    return jackknife(parts, alpha, int(judged.sum()))


def gwet_ac1(
    units: Keys,
    values: Sequence[float | bool | str],
    clusters: Keys | None = None,
    categories: int | None = None,
) -> Estimate:
    """Gwet's AC1 (2008): (observed − chance) / (1 − chance) agreement, with a chance that stays small where one answer is rare.

    Chance is Σ π (1 − π) / (q − 1), π the share of each of q answers. Units and clusters as in `krippendorff_alpha`; q is how many answers
    there are to choose from, those that were given unless `categories` says.
    """
    counts, answers, of_cluster = _table(units, values, clusters)
    q = categories or len(answers)
    if len(counts) == 0 or q < 2:
        return NOTHING
    judged = counts.sum(1, keepdims=True)
    same = (counts * (counts - 1)).sum(1, keepdims=True) / (judged * (judged - 1))
    parts = _by_cluster(np.concatenate([same, np.ones_like(same), counts / judged], axis=1), of_cluster)

    def ac1(sums: Floats) -> Floats:
        with np.errstate(invalid="ignore"):
            observed, share = sums[..., 0] / sums[..., 1], sums[..., 2:] / sums[..., 1:2]
        chance = (share * (1 - share)).sum(-1) / (q - 1)
        return np.asarray((observed - chance) / (1 - chance))

    return jackknife(parts, ac1, int(judged.sum()))


def positive_agreement(units: Keys, values: Sequence[bool], clusters: Keys | None = None) -> Estimate:
    """When one labeler says yes, how often another one does: for two labelers 2a / (2a + b + c) (Cicchetti and Feinstein, 1990)."""
    counts, answers, of_cluster = _table(units, [bool(value) for value in values], clusters)
    if True not in answers:
        return NOTHING
    yes, judged = counts[:, answers.index(True)], counts.sum(1)
    parts = _by_cluster(np.stack([yes * (yes - 1), yes * (judged - 1)], axis=1) / (judged - 1)[:, None], of_cluster)

    def positive(sums: Floats) -> Floats:
        return np.where(sums[..., 1] > 0, sums[..., 0] / np.where(sums[..., 1] > 0, sums[..., 1], 1), np.nan)

    return jackknife(parts, positive, int(judged.sum()))


def _table(units: Keys, values: Sequence[float | bool | str], clusters: Keys | None) -> tuple[Floats, list[float | bool | str], Ints]:
    """How often each answer was given to each unit that was judged twice or more (U, V), the answers in order, the units' clusters (U,)."""
    if len(units) != len(values) or (clusters is not None and len(clusters) != len(units)):
        raise ValueError(f"{len(units)} units, {len(values)} values and {len(units if clusters is None else clusters)} clusters do not fit")
    unit = codes(units)
    answers = sorted(set(values), key=lambda value: (isinstance(value, str), value))
    place = {value: number for number, value in enumerate(answers)}
    value = np.array([place[each] for each in values], dtype=np.int64)
    of_unit = np.zeros(int(unit.max(initial=-1)) + 1, dtype=np.int64)
    of_unit[unit] = unit if clusters is None else codes(clusters)
    counts = np.bincount(unit * len(answers) + value, minlength=len(of_unit) * len(answers)).reshape(len(of_unit), len(answers))
    kept = counts.sum(1) > 1
    counts = counts[kept].astype(np.float64)
    given = counts.sum(0) > 0
    return counts[:, given], [answer for answer, some in zip(answers, given, strict=True) if some], of_unit[kept]


def _by_cluster(parts: Floats, cluster: Ints) -> Floats:
    """Rows (U, F) added up by cluster: (G, F)."""
    order = np.argsort(cluster, kind="stable")
    start = np.flatnonzero(np.r_[True, np.diff(cluster[order]) > 0])
    return np.add.reduceat(parts[order], start, axis=0)


def _ordinal_distances(said: Floats) -> Floats:
    """(..., V) how often each answer was given -> (..., V, V): the squared number of answers from one to the other, ends counted half."""
    middle = np.cumsum(said, axis=-1) - said / 2
    return np.asarray((middle[..., :, None] - middle[..., None, :]) ** 2)
