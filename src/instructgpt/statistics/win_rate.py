"""Win rates from rankings or ratings (paper, section 4.1): wins plus half the ties over all comparisons.

A ranking gives many comparisons and a labeler many rankings, so intervals and p-values are clustered by prompt and
labeler (`intervals.mean`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TypeVar

import numpy as np
from scipy import special

from instructgpt.errors import InputError
from instructgpt.statistics.arrays import BoolArray, FloatArray, IntArray, unique_with_counts
from instructgpt.statistics.clustered import ratio_uncertainty
from instructgpt.statistics.intervals import NO_ESTIMATE, SHARE, Estimate, mean, t_interval
from instructgpt.statistics.pair_judgments import HasRanks
from instructgpt.statistics.significance import holm_correction, sign_flip_p_value, wild_cluster_p_value

_RankingT = TypeVar("_RankingT", bound=HasRanks)
_MAX_NEWTON_STEPS = 50
"""Maximum Newton steps; a finite solution needs a handful."""


@dataclass(frozen=True, slots=True)
class Comparisons:
    """Pairs of completions by different models in one ranking: arrays (N,)."""

    prompt: IntArray
    labeler: IntArray
    first: IntArray
    second: IntArray
    won: FloatArray
    """1 where the first model wins, 0.5 for a tie or equal completions, else 0."""
    longer: FloatArray
    """Length difference, first minus second; 0 without lengths."""
    models: tuple[str, ...]

    def where(self, mask: BoolArray) -> Comparisons:
        return Comparisons(
            self.prompt[mask],
            self.labeler[mask],
            self.first[mask],
            self.second[mask],
            self.won[mask],
            self.longer[mask],
            self.models,
        )

    def between(self, model: int, opponent: int) -> Comparisons:
        """Select the comparisons of two models, oriented so that `model` comes first."""
        straight, swapped = (
            (self.first == model) & (self.second == opponent),
            (self.first == opponent) & (self.second == model),
        )
        rows, flip = self.where(straight | swapped), swapped[straight | swapped]
        return replace(
            rows,
            first=np.full(len(flip), model),
            second=np.full(len(flip), opponent),
            won=np.where(flip, 1 - rows.won, rows.won),
            longer=np.where(flip, -rows.longer, rows.longer),
        )


@dataclass(frozen=True, slots=True)
class WinRate:
    model: str
    opponent: str
    group: str
    """Use case or cohort; empty for all."""
    wins: int
    ties: int
    losses: int
    rate: Estimate
    """Wins plus half the ties over all comparisons; two-way clustered interval."""
    p: float | None
    """p of equal quality (rate one half): exact over prompts with one labeler or judge, else the wild cluster
    bootstrap; None with one prompt.
    """
    holm: float | None
    """p adjusted for all comparisons of the table (Holm)."""
    sign: float
    """p of equal quality by the sign test over prompts; ignores labeler effects."""


def comparisons(
    rankings: Sequence[_RankingT], lengths: Callable[[_RankingT], Sequence[float]] | None = None
) -> Comparisons:
    """Collect all comparisons of rankings.

    Args:
        rankings: must name their `models`. Rankings without a labeler count as one labeler's.
        lengths: length of each completion of a ranking, any unit.

    Raises:
        InputError: a ranking does not name its models.
    """
    models: dict[str, int] = {}
    prompts: dict[Hashable, int] = {}
    labelers: dict[Hashable, int] = {}
    heads: dict[int, list[tuple[int, int]]] = {}
    bodies: dict[int, list[list[float]]] = {}
    for ranking in rankings:
        if ranking.models is None:
            raise InputError(
                f"the ranking of {str(ranking.prompt)[:60]!r} does not name its models; win rates need the column "
                "'models'"
            )
        texts: dict[Hashable, int] = {}
        k = len(ranking.ranks)
        labeler_index = labelers.setdefault(ranking.labeler, len(labelers))
        heads.setdefault(k, []).append((prompts.setdefault(ranking.prompt, len(prompts)), labeler_index))
        model_indices = [models.setdefault(model, len(models)) for model in ranking.models]
        text_indices = [texts.setdefault(completion, len(texts)) for completion in ranking.completions]
        bodies.setdefault(k, []).append(
            [*model_indices, *text_indices, *ranking.ranks, *(lengths(ranking) if lengths else [0] * k)]
        )
    parts = [np.zeros((6, 0))]
    for k, rows in heads.items():
        head, body = np.array(rows, dtype=np.float64).T, np.array(bodies[k], dtype=np.float64).T
        i, j = np.triu_indices(k, 1)
        won = np.where(body[k + i] == body[k + j], 0.5, (np.sign(body[2 * k + j] - body[2 * k + i]) + 1) / 2)
        columns = (
            *(np.tile(column, (len(i), 1)) for column in head),
            body[i],
            body[j],
            won,
            body[3 * k + i] - body[3 * k + j],
        )
        parts.append(np.stack([column.ravel() for column in columns]))
    table = np.concatenate(parts, axis=1)
    won, longer = table[4:, table[2] != table[3]]
    prompt, labeler, first, second = table[:4, table[2] != table[3]].astype(np.int64)
    return Comparisons(prompt, labeler, first, second, won, longer, tuple(models))


def compute_win_rates(
    rankings: Sequence[HasRanks], baseline: str | None = None, groups: Sequence[str | None] | None = None
) -> list[WinRate]:
    """Compute win rates of all models against the baseline, or of every two models.

    Args:
        rankings: must name their `models`.
        baseline: the opponent; default: every two models.
        groups: group of each ranking (use case, cohort); each group gets its own rows, None is left out.

    Returns:
        A row for every two compared models, best first within a group; `holm` counts all rows.

    Raises:
        InputError: a ranking does not name its models, or none is the baseline's.
        ValueError: not as many groups as rankings.
    """
    if groups is not None and len(groups) != len(rankings):
        raise ValueError(f"{len(rankings)} rankings, but {len(groups)} groups")
    parts: dict[str, list[HasRanks]] = {}
    for ranking, group in zip(rankings, groups or [""] * len(rankings), strict=True):
        if group is not None:
            parts.setdefault(group, []).append(ranking)
    rows: list[WinRate] = []
    models: set[str] = set()
    for group, group_rankings in parts.items():
        table = comparisons(group_rankings)
        models |= set(table.models)
        rows += sorted(_win_rate_rows(table, baseline, group), key=lambda row: -(row.rate.value or 0))
    if baseline is not None and baseline not in models:
        raise InputError(
            f"no ranking has a completion of the baseline '{baseline}'; there are: "
            f"{', '.join(sorted(models)) or 'none'}"
        )
    return [
        replace(row, holm=adjusted)
        for row, adjusted in zip(rows, holm_correction([row.p for row in rows]), strict=True)
    ]


def length_controlled_win_rates(
    rankings: Sequence[_RankingT], baseline: str, lengths: Callable[[_RankingT], Sequence[float]]
) -> dict[str, Estimate]:
    """Compute win rates against the baseline at equal completion length.

    Per model a logistic regression: P(win) = sigmoid(a + b · tanh(d / s)), d the length difference, s its standard
    deviation, ties half a win. The length-controlled win rate is sigmoid(a) (after Dubois and others, 2024,
    "Length-controlled AlpacaEval", without prompt difficulty), with Student's t on the two-way clustered variance of a.

    Returns:
        An estimate a model; all None where a has no finite value, or where one model's completions are always longer.

    Raises:
        InputError: as `comparisons`.
    """
    table = comparisons(rankings, lengths)
    if baseline not in table.models:
        return {}
    baseline_index = table.models.index(baseline)
    pairs = {
        model: table.between(number, baseline_index)
        for number, model in enumerate(table.models)
        if number != baseline_index
    }
    return {model: _length_controlled_rate(found) for model, found in pairs.items() if len(found.won)}


def _sign_test(values: FloatArray, cluster: IntArray) -> float:
    """Return the exact two-sided sign test: each cluster (N,) votes by the sign of its sum; ties abstain."""
    votes = np.sign(np.round(np.bincount(cluster, weights=values), 9))
    trials = int(np.count_nonzero(votes))
    fewer = int(min((votes > 0).sum(), (votes < 0).sum()))
    return min(1.0, 2 * float(special.bdtr(fewer, trials, 0.5))) if trials else 1.0


def _win_rate_rows(table: Comparisons, baseline: str | None, group: str) -> list[WinRate]:
    if baseline is None:
        matchups = list(combinations(range(len(table.models)), 2))
    else:
        matchups = [
            (table.models.index(model), table.models.index(baseline))
            for model in table.models
            if baseline in table.models
        ]
    compared = ((model, other, table.between(model, other)) for model, other in matchups if model != other)
    return [
        _win_rate_row(pairs, table.models[model], table.models[opponent], group)
        for model, opponent, pairs in compared
        if len(pairs.won)
    ]


def _win_rate_row(pairs: Comparisons, model: str, opponent: str, group: str) -> WinRate:
    wins, losses = int((pairs.won == 1).sum()), int((pairs.won == 0).sum())
    n = len(pairs.won)
    prompt, labeler = unique_with_counts(pairs.prompt)[1], unique_with_counts(pairs.labeler)[1]
    rate = mean(pairs.won, prompt, labeler, bounds=SHARE)
    excess = pairs.won - 0.5
    p = _equality_p_value(excess, prompt, labeler)
    return WinRate(model, opponent, group, wins, n - wins - losses, losses, rate, p, None, _sign_test(excess, prompt))


def _equality_p_value(excess: FloatArray, prompt: IntArray, labeler: IntArray) -> float | None:
    """Return p that wins less losses (N,) are symmetric; None with one prompt, which says nothing of others."""
    if prompt.max() == 0:
        return None
    if labeler.max() == 0:
        return sign_flip_p_value(np.bincount(prompt, weights=excess).astype(np.float64))
    return wild_cluster_p_value(excess, np.ones_like(excess), prompt, labeler)


def _length_controlled_rate(pairs: Comparisons) -> Estimate:
    if not pairs.longer.min() <= 0 <= pairs.longer.max():
        return NO_ESTIMATE
    scale = float(pairs.longer.std())
    columns = [np.ones(len(pairs.won))] + ([np.tanh(pairs.longer / scale)] if scale > 0 else [])
    x = np.stack(columns, axis=1)
    weights = np.zeros(x.shape[1])
    for _ in range(_MAX_NEWTON_STEPS):
        predicted = special.expit(x @ weights)
        hessian = (x * (predicted * (1 - predicted))[:, None]).T @ x
        if np.linalg.cond(hessian) > 1e12:
            return NO_ESTIMATE
        step = np.linalg.solve(hessian, x.T @ (pairs.won - predicted))
        weights += step
        if np.abs(step).max() < 1e-10:
            break
    else:
        return NO_ESTIMATE
    error = np.linalg.solve(hessian, (x * (pairs.won - special.expit(x @ weights))[:, None]).T)[0]
    keys = (unique_with_counts(key)[1] for key in (pairs.prompt, pairs.labeler))
    uncertainty = ratio_uncertainty(error, np.ones_like(error), *keys)
    logit = t_interval(float(weights[0]), uncertainty, len(pairs.won))
    value, low, high = (
        None if end is None else float(special.expit(end)) for end in (logit.value, logit.low, logit.high)
    )
    return replace(logit, value=value, low=low, high=high)
