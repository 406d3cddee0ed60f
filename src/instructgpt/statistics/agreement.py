"""How far labelers agree about rankings (paper, section 3.4): with each other, with gold, with themselves.

The paper's 72.6 % is the share of pairs on which two labelers of the same prompt prefer the same completion; how it counts ties it does not
say, and the rule moves the number by many points. So there are always three, beside the rate of ties:
- `decided`, the headline: pairs that either called a tie are left out. It flatters labelers who tie often.
- `three_way`: better, worse and tie are three answers, alike or not.
- `half_credit`: as three-way, but a tie beside a decision counts one half. It moves least with the habit of tying.

Numerators and denominators are counted for each prompt and couple of labelers and then added up. Rows that share a prompt or a labeler are
not independent, and a couple has two labelers (Aronow, Samii and Assenova, 2015, "Cluster-robust variance estimation for dyadic data"). So
the variance is that of prompts, plus that of labelers (the jackknife, leaving out one with all couples it is in), less what both contain.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from instructgpt.statistics.categorical_agreement import krippendorff_alpha
from instructgpt.statistics.intervals import (  # fmt: skip
    NOTHING,
    Bools,
    Estimate,
    Floats,
    Ints,
    Spread,
    clustered,
    combined,
    interval,
    residuals,
    sum_of_squares,
)
from instructgpt.statistics.pair_judgments import Cells, Ranked, Ranks, between_labelers, distinct, judgements, with_oneself
from instructgpt.statistics.shrinkage import shrunk

FEW = 30
"""Under so many shared pairs a labeler's number says little."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What two labelers did with the same pairs of completions, over all couples, and the shares that follow."""

    alike: int
    """Both decided, the same way."""
    opposite: int
    """Both decided, the other way round."""
    one_tied: int
    both_tied: int
    decided: Estimate
    """Of the pairs that both decided, the share alike: the headline."""
    three_way: Estimate
    """Of all pairs, the share with the same of three answers."""
    half_credit: Estimate
    """Of all pairs, the share alike or both tied, and half of those that one tied."""
    tie_rate: Estimate
    """Of all answers, the share of ties."""


@dataclass(frozen=True, slots=True)
class LabelerAgreement:
    """How one labeler agrees with all others about pairs that both decided."""

    labeler: Hashable
    alike: int
    shared: int
    """Pairs that this labeler and some other one both decided, each counted once an other."""
    share: float
    shrunk: Estimate
    """The share drawn towards that of all labelers, the more so the fewer pairs there are, with its 95 % posterior interval."""

    @property
    def few(self) -> bool:
        """Whether there are too few pairs to look at."""
        return self.shared < FEW


@dataclass(frozen=True, slots=True)
class Matrix:
    """Agreement of every two labelers about pairs that both decided, (L, L); NaN where there are none and on the diagonal."""

    labelers: tuple[Hashable, ...]
    share: Floats
    shared: Ints


@dataclass(frozen=True, slots=True)
class Concordance:
    """Kendall's W, the mean over prompts that several labelers ranked whole."""

    w: Estimate
    by_chance: float | None
    """What W would be if they ranked at random: the mean of 1 / (number of labelers)."""


def compare(rankings: Sequence[Ranks]) -> Cells:
    """What every two labelers of a prompt did. A second ranking of the same completions is compared with others' second ones."""
    return between_labelers(judgements(rankings))


def agreement(rankings: Sequence[Ranks]) -> Agreement:
    """How labelers agree with each other, with intervals for other prompts and other labelers like these."""
    return summary(compare(rankings))


def self_agreement(rankings: Sequence[Ranks]) -> dict[Hashable, Agreement]:
    """How labelers agree with themselves where they ranked the same completions again: the ceiling of agreement. `None`: all of them."""
    return _for_each(with_oneself(judgements(rankings)))


def with_gold(rankings: Sequence[Ranks], gold: Sequence[Ranks]) -> dict[Hashable, Agreement]:
    """How each labeler agrees with gold rankings of the same completions; of several golds of a prompt the first counts. `None`: all."""
    key = object()
    rows: list[Ranks] = [Ranked(each.prompt, key, each.completions, each.ranks) for each in gold]
    given = judgements([*rows, *rankings])
    cells = between_labelers(given.where(given.turn == 0))
    if key not in given.labelers:
        return {}
    number = given.labelers.index(key)
    cells = cells.where((cells.first == number) | (cells.second == number))
    turned = cells.second == number
    other = np.where(turned, cells.first, cells.second)
    return _for_each(
        Cells(
            cells.prompt,
            other,
            other,
            cells.alike,
            cells.opposite,
            np.where(turned, cells.first_tied, cells.second_tied),
            np.where(turned, cells.second_tied, cells.first_tied),
            cells.both_tied,
            cells.labelers,
        )
    )


def summary(cells: Cells) -> Agreement:
    """The counts and shares of any rows."""
    alike, opposite, both = cells.alike, cells.opposite, cells.both_tied
    one = cells.first_tied + cells.second_tied
    total = alike + opposite + one + both
    return Agreement(
        alike=round(alike.sum()),
        opposite=round(opposite.sum()),
        one_tied=round(one.sum()),
        both_tied=round(both.sum()),
        decided=_share(cells, alike, alike + opposite),
        three_way=_share(cells, alike + both, total),
        half_credit=_share(cells, alike + both + one / 2, total),
        tie_rate=_share(cells, (one + 2 * both) / 2, total),
    )


def by_labeler(cells: Cells) -> list[LabelerAgreement]:
    """Each labeler beside all others, the lowest first.

    Shares are shrunk by a beta-binomial model. Pairs of a prompt are not independent, so counts are divided by how much larger that makes
    the variance.
    """
    labeler = np.concatenate([cells.first, cells.second])
    prompt = np.concatenate([cells.prompt, cells.prompt])
    alike, shared = (np.concatenate([count, count]) for count in (cells.alike, cells.alike + cells.opposite))
    people = len(cells.labelers)
    x, n = (np.bincount(labeler, weights=count, minlength=people).astype(np.float64) for count in (alike, shared))
    known = np.flatnonzero(n > 0)
    if not len(known):
        return []
    share = np.divide(x, n, out=np.zeros(people), where=n > 0)
    weight = _design_effect(alike - shared * share[labeler], labeler, prompt, n, share)
    found = [
        LabelerAgreement(cells.labelers[number], round(x[number]), pairs, float(share[number]), replace(estimate, n=pairs))
        for number, pairs, estimate in zip(
            known.tolist(), n[known].astype(int).tolist(), shrunk(x[known] / weight, n[known] / weight), strict=True
        )
    ]
    return sorted(found, key=lambda each: each.shrunk.value or 0.0)


def matrix(cells: Cells) -> Matrix:
    """Every two labelers."""
    people = len(cells.labelers)
    place = cells.first * people + cells.second
    alike, shared = (
        np.bincount(place, weights=count, minlength=people**2).reshape(people, people)
        for count in (cells.alike, cells.alike + cells.opposite)
    )
    alike, shared = alike + alike.T, shared + shared.T
    share = np.divide(alike, shared, out=np.full((people, people), np.nan), where=shared > 0)
    return Matrix(cells.labelers, share, shared.astype(np.int64))


def kendall_tau(cells: Cells) -> Estimate:
    """Tau-b of two labelers' rankings of one prompt, the mean over prompts and couples. Who tied everything has none and is left out."""
    decided = cells.alike + cells.opposite
    norm = np.sqrt((decided + cells.second_tied) * (decided + cells.first_tied))  # pairs that the first, and that the second decided
    cells, top, norm = cells.where(norm > 0), (cells.alike - cells.opposite)[norm > 0], norm[norm > 0]
    if not len(norm):
        return NOTHING
    tau = top / norm
    return interval(float(tau.mean()), _spread(cells, residuals(tau, np.ones_like(tau)), np.ones_like(tau)), len(tau))


def concordance(rankings: Sequence[Ranks]) -> Concordance:
    """Kendall's W with the correction for ties (Kendall and Gibbons, 1990), where two or more labelers ranked the same completions.

    The interval is over prompts. A labeler's second ranking of the same completions is left out.
    """
    groups: dict[tuple[Hashable, frozenset[Hashable]], dict[Hashable, Ranks]] = {}
    for ranking in rankings:
        if ranking.labeler is not None:
            groups.setdefault((ranking.prompt, frozenset(ranking.completions)), {}).setdefault(ranking.labeler, ranking)
    tables: dict[tuple[int, int], list[list[list[float]]]] = {}
    prompts: dict[tuple[int, int], list[Hashable]] = {}
    for (prompt, completions), by_person in groups.items():
        if len(by_person) > 1:
            order = list(completions)
            rows = [dict(zip(each.completions, each.ranks, strict=True)) for each in by_person.values()]
            shape = len(rows), len(order)
            tables.setdefault(shape, []).append([[row[completion] for completion in order] for row in rows])
            prompts.setdefault(shape, []).append(prompt)
    if not tables:
        return Concordance(NOTHING, None)
    w = np.concatenate([_kendall_w(np.array(table)) for table in tables.values()])
    chance = np.concatenate([np.full(len(table), 1 / people) for (people, _), table in tables.items()])
    names: dict[Hashable, int] = {}
    key = np.array([names.setdefault(prompt, len(names)) for listed in prompts.values() for prompt in listed], dtype=np.int64)
    known = np.isfinite(w)
    w, chance, key = w[known], chance[known], key[known]
    if not len(w):
        return Concordance(NOTHING, None)
    spread = clustered(residuals(w, np.ones_like(w)), distinct(key)[1], np.zeros(len(w), dtype=np.int64))
    return Concordance(interval(float(w.mean()), spread, len(w)), float(chance.mean()))


def alpha_of_pairs(rankings: Sequence[Ranks]) -> Estimate:
    """Krippendorff's alpha of better, worse and tie (nominal), one unit a pair of completions; clustered by prompt.

    Without ties it is close to 2 p − 1, p the share of pairs alike: 72.6 % is about 0.45, and the usual bounds (0.667, 0.8) are none here.
    """
    given = judgements(rankings)
    turns = int(given.turn.max(initial=0)) + 1
    return krippendorff_alpha(given.pair * turns + given.turn, given.sign.tolist(), clusters=given.prompt)


def _kendall_w(ranks: Floats) -> Floats:
    """W of each prompt: ranks (G, m labelers, K) -> (G,); NaN where all tied everything.

    W = 12 S / (m² (K³ − K) − m Σ(t³ − t)), S the squared deviations of the completions' rank sums, t the sizes of ties.
    """
    _, m, k = ranks.shape
    below = (ranks[..., :, None] > ranks[..., None, :]).sum(-1)
    level = (ranks[..., :, None] == ranks[..., None, :]).sum(-1)
    sums = (below + (level + 1) / 2).sum(1)
    ties = (level**2 - 1).sum((1, 2))  # a tie of t has t members, each adding t² − 1
    bottom = m**2 * (k**3 - k) - m * ties
    top = 12 * ((sums - sums.mean(1, keepdims=True)) ** 2).sum(1)
    return np.asarray(np.divide(top, bottom, out=np.full(len(ranks), np.nan), where=bottom > 0))


def _for_each(cells: Cells) -> dict[Hashable, Agreement]:
    """All rows under None, then the rows of each labeler."""
    if not len(cells.prompt):
        return {}
    return {None: summary(cells)} | {
        cells.labelers[number]: summary(cells.where(cells.first == number)) for number in np.unique(cells.first)
    }


def _share(cells: Cells, top: Floats, bottom: Floats) -> Estimate:
    """A ratio of sums over rows (C,) with its interval."""
    kept: Bools = bottom > 0
    if not kept.any():
        return NOTHING
    top, bottom = top[kept], bottom[kept]
    value = min(1.0, float(top.sum() / bottom.sum()))
    return interval(value, _spread(cells.where(kept), residuals(top, bottom), bottom), round(bottom.sum()), share=True)


def _spread(cells: Cells, error: Floats, weight: Floats) -> Spread:
    """Of a ratio of sums over rows (C,) with these errors and denominators: rows that share a prompt, or a labeler on either side, are
    dependent.

    Prompts count by their squared sums. Labelers count by what leaving each one out would change, which with few labelers is not too
    little; what a labeler does within a single prompt is in both and is taken out once. Two labelers can say nothing about others.
    """
    names, both, _ = distinct(np.concatenate([cells.first, cells.second]))
    first, second = both[: len(error)], both[len(error) :]
    mixed = first != second
    person = np.concatenate([first, second[mixed]])
    of_person, of_prompt, of_weight = (np.concatenate([each, each[mixed]]) for each in (error, cells.prompt, weight))
    prompt = distinct(cells.prompt)[1]
    prompts, people = int(prompt.max()) + 1, len(names)
    by_prompt = sum_of_squares(error, prompt)
    share = np.bincount(person, weights=of_weight) / weight.sum()
    if people < (3 if mixed.any() else 2) or share.max() >= 1:
        return combined(by_prompt, prompts, 0.0, 1)
    left_out = np.bincount(person, weights=of_person) / (1 - share)
    by_labeler = (people - 1) / people * float((left_out**2).sum()) - _squares(of_person, of_prompt * people + person)
    return combined(by_prompt, prompts, by_labeler, people)


def _squares(error: Floats, cluster: Ints) -> float:
    """The sum of the squared sums of each cluster."""
    return float((np.bincount(distinct(cluster)[1], weights=error) ** 2).sum())


def _design_effect(error: Floats, labeler: Ints, prompt: Ints, n: Floats, share: Floats) -> float:
    """How many times larger the variance within labelers is, because pairs of a prompt move together, than that of independent pairs."""
    naive = float((n * share * (1 - share)).sum())
    if naive == 0:
        return 1.0
    return max(1.0, _squares(error, labeler * (int(prompt.max()) + 1) + prompt) / naive)
