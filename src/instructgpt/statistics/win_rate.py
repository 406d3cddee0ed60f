"""Which model wins, by how much, and how sure that is (paper, section 4.1): from rankings, or from ratings read as ranks.

A win rate is wins plus half the ties, over all comparisons: completions of two models that one labeler ranked together. One ranking gives
many comparisons and one labeler many rankings, so intervals and p-values are clustered by prompt and labeler (`estimate.mean`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TypeVar

import numpy as np
from scipy import special

from instructgpt.errors import BadInput
from instructgpt.statistics.intervals import NOTHING, Bools, Estimate, Floats, Ints, clustered, holm, interval, mean, p_value, residuals
from instructgpt.statistics.pair_judgments import Ranks, distinct

R = TypeVar("R", bound=Ranks)
STEPS = 50
"""Newton's steps at most; a handful is enough where there is a finite answer."""


@dataclass(frozen=True, slots=True)
class Comparisons:
    """Completions of two models side by side: one row for every two completions of a ranking that different models wrote, arrays (N,)."""

    prompt: Ints
    labeler: Ints
    first: Ints
    second: Ints
    won: Floats
    """1 where the first model's completion is better, one half for a tie or equal completions, else 0."""
    longer: Floats
    """By how much the first model's completion is longer; 0 where lengths were not asked for."""
    models: tuple[str, ...]

    def where(self, kept: Bools) -> Comparisons:
        """Some of the rows; models keep their numbers."""
        return Comparisons(
            self.prompt[kept], self.labeler[kept], self.first[kept], self.second[kept], self.won[kept], self.longer[kept], self.models
        )

    def between(self, model: int, other: int) -> Comparisons:
        """Those of two models, the one named first standing first."""
        straight, turned = (self.first == model) & (self.second == other), (self.first == other) & (self.second == model)
        found, flip = self.where(straight | turned), turned[straight | turned]
        return replace(
            found,
            first=np.full(len(flip), model),
            second=np.full(len(flip), other),
            won=np.where(flip, 1 - found.won, found.won),
            longer=np.where(flip, -found.longer, found.longer),
        )


@dataclass(frozen=True, slots=True)
class WinRate:
    """How one model does against another."""

    model: str
    other: str
    group: str
    """Of what: a use case, a cohort; empty for everything."""
    wins: int
    ties: int
    losses: int
    rate: Estimate
    """Wins and half the ties, of all; two-way clustered interval."""
    p: float | None
    """That both are equally good (rate one half), by the clustered t-test."""
    holm: float | None
    """The same, adjusted for all comparisons of models in this table."""
    sign: float
    """That both are equally good, by the sign test over prompts; blind to what one labeler's votes have in common."""


def comparisons(rankings: Sequence[R], lengths: Callable[[R], Sequence[float]] | None = None) -> Comparisons:
    """All comparisons that rankings hold.

    Args:
        rankings: with `models`. Rankings without a labeler count as those of one.
        lengths: the length of each completion of a ranking, in any unit.

    Raises:
        BadInput: a ranking does not name its models.
    """
    models: dict[str, int] = {}
    prompts: dict[Hashable, int] = {}
    labelers: dict[Hashable, int] = {}
    heads: dict[int, list[tuple[int, int]]] = {}
    bodies: dict[int, list[list[float]]] = {}
    for ranking in rankings:
        if ranking.models is None:
            raise BadInput(f"the ranking of {str(ranking.prompt)[:60]!r} does not name its models; win rates need the column 'models'")
        texts: dict[Hashable, int] = {}
        k = len(ranking.ranks)
        person = labelers.setdefault(ranking.labeler, len(labelers))
        heads.setdefault(k, []).append((prompts.setdefault(ranking.prompt, len(prompts)), person))
        wrote = [models.setdefault(model, len(models)) for model in ranking.models]
        same = [texts.setdefault(completion, len(texts)) for completion in ranking.completions]
        bodies.setdefault(k, []).append([*wrote, *same, *ranking.ranks, *(lengths(ranking) if lengths else [0] * k)])
    parts = [np.zeros((6, 0))]
    for k, rows in heads.items():
        head, body = np.array(rows, dtype=np.float64).T, np.array(bodies[k], dtype=np.float64).T
        one, other = np.triu_indices(k, 1)
        won = np.where(body[k + one] == body[k + other], 0.5, (np.sign(body[2 * k + other] - body[2 * k + one]) + 1) / 2)
        columns = (
            *(np.tile(column, (len(one), 1)) for column in head),
            body[one],
            body[other],
            won,
            body[3 * k + one] - body[3 * k + other],
        )
        parts.append(np.stack([column.ravel() for column in columns]))
    table = np.concatenate(parts, axis=1)
    won, longer = table[4:, table[2] != table[3]]
    prompt, labeler, first, second = table[:4, table[2] != table[3]].astype(np.int64)
    return Comparisons(prompt, labeler, first, second, won, longer, tuple(models))


def win_rates(rankings: Sequence[Ranks], baseline: str | None = None, groups: Sequence[str | None] | None = None) -> list[WinRate]:
    """Win rates of all models against the baseline, or of every two models.

    Args:
        rankings: with `models`.
        baseline: the model to compare with; every two models where not given.
        groups: the group of each ranking (its use case, its cohort); each group gets its own rows, and rankings without one are left out.

    Returns:
        A row for every two models that were compared, best models first within a group; `holm` counts all rows.

    Raises:
        BadInput: a ranking does not name its models, or none is the baseline's.
        ValueError: not as many groups as rankings.
    """
    if groups is not None and len(groups) != len(rankings):
        raise ValueError(f"{len(rankings)} rankings, but {len(groups)} groups")
    parts: dict[str, list[Ranks]] = {}
    for ranking, group in zip(rankings, groups or [""] * len(rankings), strict=True):
        if group is not None:
            parts.setdefault(group, []).append(ranking)
    rows: list[WinRate] = []
    known: set[str] = set()
    for group, chosen in parts.items():
        table = comparisons(chosen)
        known |= set(table.models)
        rows += sorted(_rows(table, baseline, group), key=lambda row: -(row.rate.value or 0))
    if baseline is not None and baseline not in known:
        raise BadInput(f"no ranking has a completion of the baseline '{baseline}'; there are: {', '.join(sorted(known)) or 'none'}")
    return [replace(row, holm=adjusted) for row, adjusted in zip(rows, holm([row.p for row in rows]), strict=True)]


def length_controlled(rankings: Sequence[R], baseline: str, lengths: Callable[[R], Sequence[float]]) -> dict[str, Estimate]:
    """Win rates against the baseline if both models' completions were equally long.

    For each model, a logistic regression over its comparisons: P(win) = sigmoid(a + b · tanh(d / s)), d the difference of the two lengths
    and s its standard deviation; ties count as half a win. The length-controlled win rate is sigmoid(a) (after Dubois and others, 2024,
    "Length-controlled AlpacaEval", without the difficulty of their prompts). Its interval is Student's t on the two-way clustered variance
    of a.

    Returns:
        For each model the estimate; all None where wins and losses are so divided that a has no finite value, and where one model's
        completions are always the longer: equal length then lies outside of what was seen.

    Raises:
        BadInput: as `comparisons`.
    """
    table = comparisons(rankings, lengths)
    if baseline not in table.models:
        return {}
    other = table.models.index(baseline)
    pairs = {model: table.between(number, other) for number, model in enumerate(table.models) if number != other}
    return {model: _at_equal_length(found) for model, found in pairs.items() if len(found.won)}


def sign_test(values: Floats, cluster: Ints) -> float:
    """Two-sided exact p that wins and losses are equally likely: each cluster (N,) has one vote, the sign of its sum; ties have none."""
    votes = np.sign(np.round(np.bincount(cluster, weights=values), 9))
    trials = int(np.count_nonzero(votes))
    fewer = int(min((votes > 0).sum(), (votes < 0).sum()))
    return min(1.0, 2 * float(special.bdtr(fewer, trials, 0.5))) if trials else 1.0


def _rows(table: Comparisons, baseline: str | None, group: str) -> list[WinRate]:
    """The two models that were compared, in every way that is asked for."""
    if baseline is None:
        wanted = list(combinations(range(len(table.models)), 2))
    else:
        wanted = [(table.models.index(model), table.models.index(baseline)) for model in table.models if baseline in table.models]
    found = ((model, other, table.between(model, other)) for model, other in wanted if model != other)
    return [_row(pairs, table.models[model], table.models[other], group) for model, other, pairs in found if len(pairs.won)]


def _row(pairs: Comparisons, model: str, other: str, group: str) -> WinRate:
    wins, losses = int((pairs.won == 1).sum()), int((pairs.won == 0).sum())
    n = len(pairs.won)
    people = int(pairs.labeler.max()) + 1
    cells, place, counts = distinct(pairs.prompt * people + pairs.labeler)  # rows of one prompt and labeler are one to the interval
    won, over = np.bincount(place, weights=pairs.won).astype(np.float64), counts.astype(np.float64)
    prompt, labeler = distinct(cells // people)[1], distinct(cells % people)[1]
    rate = replace(mean(won, prompt, labeler, over=over, share=True), n=n)
    spread = clustered(residuals(won, over), prompt, labeler)
    p = p_value(float(won.sum() / over.sum()), 0.5, spread)
    if p is None and spread.independent > 1:  # every comparison went the same way
        p = 1.0 if wins == losses else min(1.0, 2 * 0.5**spread.independent)
    return WinRate(model, other, group, wins, n - wins - losses, losses, rate, p, None, sign_test(won - over / 2, prompt))


def _at_equal_length(pairs: Comparisons) -> Estimate:
    """The length-controlled win rate of the first model over the second."""
    if not pairs.longer.min() <= 0 <= pairs.longer.max():
        return NOTHING
    scale = float(pairs.longer.std())
    columns = [np.ones(len(pairs.won))] + ([np.tanh(pairs.longer / scale)] if scale > 0 else [])
    x = np.stack(columns, axis=1)
    weights = np.zeros(x.shape[1])
    for _ in range(STEPS):
        guess = special.expit(x @ weights)
        bend = (x * (guess * (1 - guess))[:, None]).T @ x
        if np.linalg.cond(bend) > 1e12:
            return NOTHING
        step = np.linalg.solve(bend, x.T @ (pairs.won - guess))
        weights += step
        if np.abs(step).max() < 1e-10:
            break
    else:
        return NOTHING
    error = np.linalg.solve(bend, (x * (pairs.won - special.expit(x @ weights))[:, None]).T)[0]
    spread = clustered(error, distinct(pairs.prompt)[1], distinct(pairs.labeler)[1])
    logit = interval(float(weights[0]), spread, len(pairs.won))
    value, low, high = (None if end is None else float(special.expit(end)) for end in (logit.value, logit.low, logit.high))
    return Estimate(value, low, high, len(pairs.won))
