"""Agreement of labelers on rankings (paper, section 3.4): with each other, with gold, with themselves.

The paper's 72.6 % is the share of pairs on which two labelers of a prompt prefer the same completion. It does not say
how ties count, and the rule moves the number by many points, so three shares are reported beside the tie rate:
- `decided` (headline): pairs with a tie are left out; flatters labelers who tie often.
- `three_way`: better, worse and tie are three categories.
- `half_credit`: as three-way, but a tie against a decision counts one half; depends least on the tie rate.

Counts are summed over prompts and couples of labelers. Couples share labelers and rows share prompts, so the variance
is dyadic (Aronow, Samii and Assenova, 2015): variance over prompts, plus a leave-one-labeler-out jackknife, minus their
overlap.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from instructgpt.statistics.arrays import BoolArray, FloatArray, IntArray, unique_with_counts
from instructgpt.statistics.categorical_agreement import krippendorff_alpha
from instructgpt.statistics.clustered import CellDeletions, Uncertainty, combine_deletions, leave_one_out, residuals
from instructgpt.statistics.intervals import (
    CORRELATION,
    NO_ESTIMATE,
    SHARE,
    Estimate,
    t_interval,
)
from instructgpt.statistics.pair_judgments import (
    AgreementCells,
    HasRanks,
    LabelerRanking,
    inter_labeler_cells,
    intra_labeler_cells,
    pair_judgments,
)
from instructgpt.statistics.shrinkage import beta_binomial_shrinkage

_MIN_SHARED_PAIRS = 30
"""Below this number of shared pairs a labeler's agreement is a small sample."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Pair counts of two labelers over all couples, and the shares derived from them."""

    concordant: int
    """Pairs both decided the same way."""
    discordant: int
    """Pairs both decided in opposite ways."""
    one_tied: int
    both_tied: int
    decided: Estimate
    """Agreeing share of the pairs that both decided."""
    three_way: Estimate
    """Share of all pairs with the same of three categories."""
    half_credit: Estimate
    """Share of all pairs that agree, with half credit for one tie."""
    tie_rate: Estimate
    """Share of ties among all answers."""


@dataclass(frozen=True, slots=True)
class LabelerAgreement:
    """Agreement of one labeler with all others on pairs that both decided."""

    labeler: Hashable
    concordant: int
    shared: int
    """Decided pairs shared with other labelers, counted once per other labeler."""
    share: float
    shrunk: Estimate
    """Share shrunk towards the mean of all labelers, with its 95 % posterior interval."""

    @property
    def is_small_sample(self) -> bool:
        return self.shared < _MIN_SHARED_PAIRS


@dataclass(frozen=True, slots=True)
class AgreementMatrix:
    """Agreement of every two labelers on decided pairs, (L, L); NaN on the diagonal and without shared pairs."""

    labelers: tuple[Hashable, ...]
    share: FloatArray
    shared: IntArray


@dataclass(frozen=True, slots=True)
class Concordance:
    """Kendall's W: mean over prompts that several labelers ranked completely."""

    w: Estimate
    by_chance: float | None
    """Expected W under random ranking: mean of 1 / (number of labelers)."""


def compare_labelers(rankings: Sequence[HasRanks]) -> AgreementCells:
    """Count the outcomes of every two labelers per prompt; repeated rankings are compared with each other's repeats."""
    return inter_labeler_cells(pair_judgments(rankings))


def inter_labeler_agreement(rankings: Sequence[HasRanks]) -> Agreement:
    """Compute agreement between labelers, with intervals over prompts and labelers."""
    return summarize_agreement(compare_labelers(rankings))


def intra_labeler_agreement(rankings: Sequence[HasRanks]) -> dict[Hashable, Agreement]:
    """Compute each labeler's agreement with their own repeated rankings; the key None holds all labelers."""
    return _summarize_by_labeler(intra_labeler_cells(pair_judgments(rankings)))


def gold_agreement(rankings: Sequence[HasRanks], gold: Sequence[HasRanks]) -> dict[Hashable, Agreement]:
    """Compute each labeler's agreement with gold rankings; the first gold of a prompt counts,
    the key None holds all labelers.
    """
    gold_key = object()
    rows: list[HasRanks] = [LabelerRanking(each.prompt, gold_key, each.completions, each.ranks) for each in gold]
    judgments = pair_judgments([*rows, *rankings])
    cells = inter_labeler_cells(judgments.where(judgments.repeat_index == 0))
    if gold_key not in judgments.labelers:
        return {}
    gold_index = judgments.labelers.index(gold_key)
    cells = cells.where((cells.first == gold_index) | (cells.second == gold_index))
    swapped = cells.second == gold_index
    labeler = np.where(swapped, cells.first, cells.second)
    return _summarize_by_labeler(
        AgreementCells(
            cells.prompt,
            labeler,
            labeler,
            cells.concordant,
            cells.discordant,
            np.where(swapped, cells.first_tied, cells.second_tied),
            np.where(swapped, cells.second_tied, cells.first_tied),
            cells.both_tied,
            cells.labelers,
        )
    )


def summarize_agreement(cells: AgreementCells) -> Agreement:
    concordant, discordant, both_tied = cells.concordant, cells.discordant, cells.both_tied
    one_tied = cells.first_tied + cells.second_tied
    total = concordant + discordant + one_tied + both_tied
    return Agreement(
        concordant=round(concordant.sum()),
        discordant=round(discordant.sum()),
        one_tied=round(one_tied.sum()),
        both_tied=round(both_tied.sum()),
        decided=_ratio_estimate(cells, concordant, concordant + discordant),
        three_way=_ratio_estimate(cells, concordant + both_tied, total),
        half_credit=_ratio_estimate(cells, concordant + both_tied + one_tied / 2, total),
        tie_rate=_ratio_estimate(cells, (one_tied + 2 * both_tied) / 2, total),
    )


def agreement_by_labeler(cells: AgreementCells) -> list[LabelerAgreement]:
    """Compute each labeler's agreement with all others, lowest first.

    Shares are shrunk by a beta-binomial model; counts are divided by twice the design effect, because pairs of one
    prompt are dependent, and every pair counts for both of its labelers.
    """
    labeler = np.concatenate([cells.first, cells.second])
    prompt = np.concatenate([cells.prompt, cells.prompt])
    concordant, shared = (
        np.concatenate([count, count]) for count in (cells.concordant, cells.concordant + cells.discordant)
    )
    labeler_count = len(cells.labelers)
    x, n = (
        np.bincount(labeler, weights=count, minlength=labeler_count).astype(np.float64)
        for count in (concordant, shared)
    )
    active = np.flatnonzero(n > 0)
    if not len(active):
        return []
    share = np.divide(x, n, out=np.zeros(labeler_count), where=n > 0)
    dependence = 2 * _design_effect(concordant - shared * share[labeler], labeler, prompt, n, share)
    rows = [
        LabelerAgreement(cells.labelers[index], round(x[index]), pairs, float(share[index]), replace(estimate, n=pairs))
        for index, pairs, estimate in zip(
            active.tolist(),
            n[active].astype(int).tolist(),
            beta_binomial_shrinkage(x[active] / dependence, n[active] / dependence),
            strict=True,
        )
    ]
    return sorted(rows, key=lambda each: each.shrunk.value or 0.0)


def agreement_matrix(cells: AgreementCells) -> AgreementMatrix:
    labeler_count = len(cells.labelers)
    flat_index = cells.first * labeler_count + cells.second
    concordant, shared = (
        np.bincount(flat_index, weights=count, minlength=labeler_count**2).reshape(labeler_count, labeler_count)
        for count in (cells.concordant, cells.concordant + cells.discordant)
    )
    concordant, shared = concordant + concordant.T, shared + shared.T
    share = np.divide(concordant, shared, out=np.full((labeler_count, labeler_count), np.nan), where=shared > 0)
    return AgreementMatrix(cells.labelers, share, shared.astype(np.int64))


def kendall_tau(cells: AgreementCells) -> Estimate:
    """Compute Kendall's tau-b, averaged over prompts and couples; couples with an all-tied ranking are left out."""
    decided = cells.concordant + cells.discordant
    norm = np.sqrt(
        (decided + cells.second_tied) * (decided + cells.first_tied)
    )  # pairs that the first, and that the second decided
    cells, numerator, norm = cells.where(norm > 0), (cells.concordant - cells.discordant)[norm > 0], norm[norm > 0]
    if not len(norm):
        return NO_ESTIMATE
    tau = numerator / norm
    ones = np.ones_like(tau)
    return t_interval(
        float(tau.mean()),
        dyadic_uncertainty(cells.prompt, cells.first, cells.second, residuals(tau, ones), ones),
        len(tau),
        CORRELATION,
    )


def concordance(rankings: Sequence[HasRanks]) -> Concordance:
    """Compute Kendall's W with tie correction (Kendall and Gibbons, 1990) for completions that two or more labelers
    ranked.

    Repeated rankings of one labeler are left out.
    """
    prompt_codes: dict[Hashable, int] = {}
    labeler_codes: dict[Hashable, int] = {}
    groups: dict[tuple[Hashable, frozenset[Hashable]], dict[Hashable, HasRanks]] = {}
    for ranking in rankings:
        if ranking.labeler is not None:
            groups.setdefault((ranking.prompt, frozenset(ranking.completions)), {}).setdefault(ranking.labeler, ranking)
    tables: dict[tuple[int, int], list[list[list[float]]]] = {}
    keys: dict[tuple[int, int], list[list[int]]] = {}
    for (prompt, completions), by_labeler in groups.items():
        if len(by_labeler) > 1:
            order = list(completions)
            rows = [dict(zip(each.completions, each.ranks, strict=True)) for each in by_labeler.values()]
            shape = len(rows), len(order)
            tables.setdefault(shape, []).append([[row[completion] for completion in order] for row in rows])
            labelers = [labeler_codes.setdefault(labeler, len(labeler_codes)) for labeler in by_labeler]
            keys.setdefault(shape, []).append([prompt_codes.setdefault(prompt, len(prompt_codes)), *labelers])
    parts = [_rank_correlations(np.array(table), np.array(keys[shape])) for shape, table in tables.items()]
    if not any(len(part[0]) for part in parts):
        return Concordance(NO_ESTIMATE, None)
    prompt_index, first, second, correlation, ranked_by = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    weight = 2 / (ranked_by * (ranked_by - 1))  # a couple's share of its prompt
    chance, slope = weight / ranked_by, weight * (1 - 1 / ranked_by)
    total = float(weight.sum())
    error = slope * (correlation - (slope * correlation).sum() / slope.sum()) / total
    return Concordance(
        t_interval(
            float((chance + slope * correlation).sum()) / total,
            dyadic_uncertainty(prompt_index, first, second, error, weight),
            round(total),
            SHARE,
        ),
        float(chance.sum()) / total,
    )


def pairwise_alpha(rankings: Sequence[HasRanks]) -> Estimate:
    """Compute Krippendorff's nominal alpha of better, worse and tie, one unit a pair of completions.

    Without ties alpha is about 2p - 1 for agreement p: 72.6 % is about 0.45, so the usual 0.667 and 0.8 bounds do not
    apply.
    """
    judgments = pair_judgments(rankings)
    turns = int(judgments.repeat_index.max(initial=0)) + 1
    return krippendorff_alpha(
        judgments.pair * turns + judgments.repeat_index,
        judgments.sign.tolist(),
        clusters=judgments.prompt,
        labelers=judgments.labeler,
    )


def _rank_correlations(ranks: FloatArray, keys: IntArray) -> tuple[IntArray, IntArray, IntArray, FloatArray, IntArray]:
    """Return how far every two labelers of a prompt rank alike: W = 1 / m + (1 − 1 / m) · mean of these.

    The covariance of two labelers' ranks over the mean variance of all m: without ties Spearman's correlation. W is
    that with tie correction, 12 S / (m² (K³ − K) − m Σ(t³ − t)), S the squared deviations of rank sums, t tie sizes.

    Args:
        ranks: (G, m, K) of prompts with as many labelers and completions.
        keys: (G, 1 + m) prompt, and labelers in the order of the ranks.

    Returns:
        A row a prompt and couple, without prompts that are all tied: prompt, first and second labeler, correlation, m.
    """
    m = ranks.shape[1]
    below = (ranks[..., :, None] > ranks[..., None, :]).sum(-1)
    level = (ranks[..., :, None] == ranks[..., None, :]).sum(-1)
    mid_ranks = below + (level + 1) / 2
    centered = mid_ranks - mid_ranks.mean(-1, keepdims=True)
    covariance = centered @ centered.transpose(0, 2, 1)
    variance = np.trace(covariance, axis1=1, axis2=2) / m
    varied = variance > 0
    i, j = np.triu_indices(m, 1)
    correlation = covariance[varied][:, i, j] / variance[varied][:, None]
    prompt, *labelers = keys[varied].T
    members = np.array(labelers)
    return (
        np.repeat(prompt, len(i)),
        members[i].T.ravel(),
        members[j].T.ravel(),
        correlation.ravel(),
        np.full(correlation.size, m),
    )


def _summarize_by_labeler(cells: AgreementCells) -> dict[Hashable, Agreement]:
    if not len(cells.prompt):
        return {}
    return {None: summarize_agreement(cells)} | {
        cells.labelers[index]: summarize_agreement(cells.where(cells.first == index))
        for index in np.unique(cells.first)
    }


def _ratio_estimate(cells: AgreementCells, numerator: FloatArray, denominator: FloatArray) -> Estimate:
    nonzero: BoolArray = denominator > 0
    if not nonzero.any():
        return NO_ESTIMATE
    numerator, denominator = numerator[nonzero], denominator[nonzero]
    value = min(1.0, float(numerator.sum() / denominator.sum()))
    return t_interval(
        value,
        dyadic_uncertainty(
            cells.prompt[nonzero],
            cells.first[nonzero],
            cells.second[nonzero],
            residuals(numerator, denominator),
            denominator,
        ),
        round(denominator.sum()),
        SHARE,
    )


def dyadic_uncertainty(
    prompt: IntArray, first: IntArray, second: IntArray, error: FloatArray, weight: FloatArray
) -> Uncertainty:
    """Return the uncertainty of a ratio of sums over rows (C,) that share prompts, or a labeler on either side.

    Where `first` equals `second` everywhere (gold, oneself), a row belongs to that labeler alone.
    """
    prompt = unique_with_counts(prompt)[1]
    mixed = first != second
    labeler, labeler_prompt, labeler_error, labeler_weight = (
        np.concatenate([values, second_values[mixed]])
        for values, second_values in ((first, second), (prompt, prompt), (error, error), (weight, weight))
    )
    labeler = unique_with_counts(labeler)[1]
    total = float(weight.sum())
    return combine_deletions(
        leave_one_out(error, weight, prompt, int(prompt.max()) + 1, total),
        leave_one_out(labeler_error, labeler_weight, labeler, int(labeler.max()) + 1, total),
        CellDeletions.from_errors(labeler_error, labeler_prompt, labeler),
        couples=bool(mixed.any()),
    )


def _squared_cluster_sums(error: FloatArray, cluster: IntArray) -> float:
    return float((np.bincount(unique_with_counts(cluster)[1], weights=error) ** 2).sum())


def _design_effect(error: FloatArray, labeler: IntArray, prompt: IntArray, n: FloatArray, share: FloatArray) -> float:
    """Return the variance inflation within labelers caused by pairs of one prompt moving together."""
    naive = float((n * share * (1 - share)).sum())
    if naive == 0:
        return 1.0
    return max(1.0, _squared_cluster_sums(error, labeler * (int(prompt.max()) + 1) + prompt) / naive)
