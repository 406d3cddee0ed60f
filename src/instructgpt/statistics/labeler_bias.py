"""How each labeler works, in numbers with p-values: for a person to look at and to talk about, never for an automatic decision.

Every number has an innocent reading as well (a labeler's hard prompts, a fast reader, completions that are all bad), and among many
labelers some p-values are small by chance: `holm` in `estimate` adjusts for their number, which these reports do.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from instructgpt.statistics.intervals import Bools, Floats, Ints, holm

EXPECTED = 5
"""How often a place must expect to be ranked best, for a p-value by chi-square."""
HURRIED = 0.25
"""A task done in less than this part of the time that labelers take for as many completions."""


@dataclass(frozen=True, slots=True)
class Shown:
    """One ranking as its labeler saw it."""

    labeler: Hashable
    ranks: Sequence[float]
    """In the order in which the completions were shown; 1 is best, equal ranks tie."""
    ratings: Sequence[int] | None = None
    seconds: float | None = None
    """Time at work on it."""


@dataclass(frozen=True, slots=True)
class PositionBias:
    """Whether being shown first, second … helps."""

    first: tuple[float, ...]
    """How often the completion at each place of the list was ranked best; ties for best share."""
    expected: tuple[float, ...]
    """How often it would be if the place played no part."""
    chi_square: float | None
    p: float | None
    """Last places that expect fewer than five count together; None where that leaves one."""


@dataclass(frozen=True, slots=True)
class Habit:
    """How often a labeler does something, beside all others."""

    share: float | None
    others: float | None
    p: float | None
    """That the labeler is no different; adjusted for the number of labelers (Holm)."""


@dataclass(frozen=True, slots=True)
class Report:
    """How one labeler works."""

    labeler: Hashable
    rankings: int
    position: PositionBias
    ties: Habit
    """Share of pairs called a tie, the mean over rankings; Mann and Whitney's test against the others' rankings."""
    all_tied: Habit
    """Share of rankings in which everything tied; Fisher's exact test."""
    same_rating: Habit
    """Share of rated tasks in which every completion got the same rating; Fisher's exact test."""
    as_shown: Habit
    """Share of rankings in the very order shown; `others` is what chance gives, p from exactly that, one-sided."""
    hurried: Habit
    """Share of timed tasks done in less than a quarter of labelers' median time for as many completions; Fisher's exact test."""
    pace: Habit
    """Time for a task as a multiple of labelers' median for as many completions, the median over tasks; `others` the mean of the others'
    (on the log scale). p: whether one more labeler like the others would be as far from them; several odd ones can hide each other."""


def reports(shown: Sequence[Shown]) -> list[Report]:
    """One report a labeler, in order of first appearance."""
    labelers = list(dict.fromkeys(each.labeler for each in shown))
    number = {labeler: index for index, labeler in enumerate(labelers)}
    who = np.array([number[each.labeler] for each in shown], dtype=np.int64)
    mine: list[list[Shown]] = [[] for _ in labelers]
    for each in shown:
        mine[number[each.labeler]].append(each)
    tie_share, chance, as_shown = _orders(shown)
    flat = (tie_share == 1).astype(np.float64)
    rated = np.array([np.nan if not each.ratings else float(len(set(each.ratings)) == 1) for each in shown])
    pace = _paces(shown)
    hurried = np.where(np.isnan(pace), np.nan, pace < HURRIED)
    count = len(labelers)
    habits = zip(
        _adjusted(_mann_whitney(tie_share, who, index) for index in range(count)),
        *(_adjusted(_fisher(values, who, index) for index in range(count)) for values in (flat, rated)),
        _adjusted(_as_shown(chance[rows], as_shown[rows]) for rows in ((who == index) & (flat == 0) for index in range(count))),
        _adjusted(_fisher(hurried, who, index) for index in range(count)),
        _adjusted(_unusual(pace, who, count)),
        strict=True,
    )
    biases = [position_bias([each.ranks for each in rankings]) for rankings in mine]
    ps = holm([bias.p for bias in biases])
    return [
        Report(labeler, len(rankings), replace(bias, p=p), *habit)
        for labeler, rankings, bias, p, habit in zip(labelers, mine, biases, ps, habits, strict=True)
    ]


def position_bias(rankings: Iterable[Sequence[float]]) -> PositionBias:
    """How often each place of the list was ranked best, against a labeler to whom the place means nothing.

    Args:
        rankings: ranks in the order shown, of any length; ties for best share the place.

    Returns:
        Chi-square of what was observed: d' V⁻¹ d, d observed minus expected, V the covariance if each ranking were shuffled at random, over
        all places but one.
        With no ties and one K that is Pearson's, with K − 1 degrees of freedom.
    """
    tables = [table for _, table in _by_size(list(rankings))]
    most = max((table.shape[1] for table in tables), default=0)
    first, expected, covariance = np.zeros(most), np.zeros(most), np.zeros((most, most))
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


def _bins(expected: Floats) -> Floats:
    """Places, the last ones together where they expect too little: (bins, places) of 0 and 1."""
    bins = np.eye(len(expected))
    while len(bins) > 1 and (bins @ expected).min() < EXPECTED:
        bins = np.concatenate([bins[:-2], bins[-2:].sum(0, keepdims=True)])
    return bins


def _by_size(rankings: Sequence[Sequence[float]]) -> list[tuple[list[int], Floats]]:
    """Rankings of equally many completions together: their positions, their ranks (n, K)."""
    rows: dict[int, list[int]] = {}
    for index, ranks in enumerate(rankings):
        rows.setdefault(len(ranks), []).append(index)
    return [(found, np.array([rankings[index] for index in found], dtype=np.float64)) for found in rows.values()]


def _orders(shown: Sequence[Shown]) -> tuple[Floats, Floats, Bools]:
    """Of each ranking (N,): the share of its pairs that tie; the probability that a random order of its ranks is from best to worst (the
    ties' factorials over all orders'); whether it stands so.
    """
    share, chance, as_shown = np.zeros(len(shown)), np.zeros(len(shown)), np.zeros(len(shown), dtype=np.bool_)
    for rows, ranks in _by_size([each.ranks for each in shown]):
        k = ranks.shape[1]
        level = (ranks[:, :, None] == ranks[:, None, :]).sum(-1)
        share[rows] = (level - 1).sum(1) / max(k * (k - 1), 1)
        chance[rows] = np.exp((special.gammaln(level + 1) / level).sum(1) - special.gammaln(k + 1))  # each tie of t counted t times 1/t
        as_shown[rows] = (np.diff(ranks) >= 0).all(1)
    return share, chance, as_shown


def _paces(shown: Sequence[Shown]) -> Floats:
    """Time of each task (N,) as a multiple of the median time for as many completions; NaN where it was not taken."""
    seconds = np.array([np.nan if each.seconds is None or each.seconds <= 0 else each.seconds for each in shown], dtype=np.float64)
    k = np.array([len(each.ranks) for each in shown])
    pace = np.full(len(shown), np.nan)
    for size in np.unique(k):
        rows = (k == size) & ~np.isnan(seconds)
        if rows.any():
            pace[rows] = seconds[rows] / np.median(seconds[rows])
    return pace


def _parted(values: Floats, who: Ints, index: int) -> tuple[Floats, Floats]:
    """The known values of one labeler, and of all others."""
    known = ~np.isnan(values)
    return values[known & (who == index)], values[known & (who != index)]


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None


def _mann_whitney(values: Floats, who: Ints, index: int) -> Habit:
    """Means of one labeler and of the others, by the test of Mann and Whitney with the correction for ties (normal, two-sided)."""
    one, rest = _parted(values, who, index)
    p = None
    n, m = len(one), len(rest)
    if n and m:
        _, place, counts = np.unique(np.concatenate([one, rest]), return_inverse=True, return_counts=True)
        middle = np.cumsum(counts) - (counts - 1) / 2
        ahead = float(middle[place[:n]].sum()) - n * (n + 1) / 2
        variance = n * m / 12 * (n + m + 1 - float((counts**3 - counts).sum()) / ((n + m) * (n + m - 1)))
        if variance > 0:
            p = min(1.0, 2 * float(special.ndtr(-abs(ahead - n * m / 2) / np.sqrt(variance))))
    return Habit(_mean(one), _mean(rest), p)


def _fisher(values: Floats, who: Ints, index: int) -> Habit:
    """Shares of yes of one labeler and of the others, by Fisher's exact test: tables no likelier than this one."""
    one, rest = _parted(values, who, index)
    p = None
    if len(one) and len(rest):
        yes, n, total = int(one.sum()), len(one), len(one) + len(rest)
        all_yes = yes + int(rest.sum())
        possible = np.arange(max(0, n - (total - all_yes)), min(n, all_yes) + 1)
        log = _log_choose(all_yes, possible) + _log_choose(total - all_yes, n - possible)
        chance = np.exp(log - special.logsumexp(log))
        p = min(1.0, float(chance[chance <= chance[yes - possible[0]] * (1 + 1e-7)].sum()))
    return Habit(_mean(one), _mean(rest), p)


def _log_choose(n: int, k: Floats | Ints) -> Floats:
    return np.asarray(special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1))


def _as_shown(chance: Floats, as_shown: Bools) -> Habit:
    """How many rankings (n,) stand in the order shown, against random order with the same ties."""
    if not len(chance):
        return Habit(None, None, None)
    seen = int(as_shown.sum())
    ways = np.zeros(seen + 1)  # ways[i]: the probability that i of the rankings so far stand as shown; the last one: that many or more
    ways[0] = 1
    for each in chance.tolist():
        ways[-1] += (ways[-2] if seen else 0) * each
        ways[1:-1] = ways[1:-1] * (1 - each) + ways[:-2] * each
        ways[0] *= 1 - each if seen else 1
    return Habit(seen / len(chance), float(chance.mean()), min(1.0, float(ways[-1])))


def _unusual(pace: Floats, who: Ints, count: int) -> list[Habit]:
    """Each labeler's median pace, and by Student's t on the log scale whether one more of the others would be as far from them."""
    medians = np.array([np.median(mine) if len(mine := _parted(pace, who, index)[0]) else np.nan for index in range(count)])
    found = []
    for index, median in enumerate(medians.tolist()):
        others = np.log(np.delete(medians, index))
        others = others[~np.isnan(others)]
        middle, n = float(others.mean()) if len(others) else None, len(others)
        spread = float(others.std(ddof=1)) * np.sqrt(1 + 1 / n) if n > 2 else 0.0
        known = middle is not None and not np.isnan(median)
        p = 2 * float(special.stdtr(n - 1, -abs(np.log(median) - middle) / spread)) if known and spread > 0 else None
        found.append(Habit(None if np.isnan(median) else median, None if middle is None else float(np.exp(middle)), p))
    return found


def _adjusted(habits: Iterable[Habit]) -> list[Habit]:
    """The same with p-values adjusted for the number of labelers."""
    listed = list(habits)
    return [replace(habit, p=p) for habit, p in zip(listed, holm([habit.p for habit in listed]), strict=True)]
