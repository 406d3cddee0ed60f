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
    ClusterSums,
    Estimate,
    LabelerSums,
    jackknife,
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
    return t_interval(float(tau.mean()), _dyadic_uncertainty(cells, residuals(tau, ones), ones), len(tau), CORRELATION)


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
    parts = [_concordance_sums(np.array(table), np.array(keys[shape])) for shape, table in tables.items()]
    if not any(len(part[0]) for part in parts):
        return Concordance(NO_ESTIMATE, None)
    w, chance, prompt_code, owner, labeler_code, removed = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    prompt_index = unique_with_counts(prompt_code)[1]
    position = np.zeros(int(prompt_code.max()) + 1, dtype=np.int64)
    position[prompt_code] = prompt_index
    sums = np.stack([w, np.ones_like(w)], axis=1)
    estimate = jackknife(
        sums.sum(0),
        _mean_of_sums,
        len(w),
        ClusterSums.from_rows(sums, np.ones_like(w), prompt_index),
        LabelerSums(removed, np.ones(len(removed)), position[owner], labeler_code),
        SHARE,
    )
    return Concordance(estimate, float(chance.mean()))


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


def _concordance_sums(
    ranks: FloatArray, keys: IntArray
) -> tuple[FloatArray, FloatArray, IntArray, IntArray, IntArray, FloatArray]:
    """Return what prompts with as many labelers and completions add to the mean W.

    Args:
        ranks: (G, m, K).
        keys: (G, 1 + m) prompt, and labelers in the order of the ranks.

    Returns:
        W, its chance level and the prompt (G',), without prompts that are all tied; then for each of their labelers
        (G' · m,) the prompt, the labeler, and what leaving the labeler out takes from the sums of W and of prompts
        (G' · m, 2).
    """
    w, m = _kendall_w(ranks), ranks.shape[1]
    finite = np.isfinite(w)
    ranks, keys, w = ranks[finite], keys[finite], w[finite]
    leave_one_out_w = np.stack([_kendall_w(np.delete(ranks, index, axis=1)) for index in range(m)], axis=1)
    lost = np.isnan(leave_one_out_w) if m > 2 else np.ones_like(leave_one_out_w, dtype=np.bool_)
    removed = np.stack([np.where(lost, w[:, None], w[:, None] - leave_one_out_w), lost], axis=-1).reshape(-1, 2)
    return w, np.full(len(w), 1 / m), keys[:, 0], np.repeat(keys[:, 0], m), keys[:, 1:].ravel(), removed


def _mean_of_sums(sums: FloatArray) -> FloatArray:
    count = sums[..., 1]
    return np.asarray(np.divide(sums[..., 0], count, out=np.full(count.shape, np.nan), where=count > 0))


def _kendall_w(ranks: FloatArray) -> FloatArray:
    """Return W per prompt: ranks (G, m labelers, K) -> (G,); NaN where all tied.

    W = 12 S / (m² (K³ − K) − m Σ(t³ − t)), S the squared deviations of rank sums, t the tie sizes.
    """
    _, m, k = ranks.shape
    below = (ranks[..., :, None] > ranks[..., None, :]).sum(-1)
    level = (ranks[..., :, None] == ranks[..., None, :]).sum(-1)
    sums = (below + (level + 1) / 2).sum(1)
    ties = (level**2 - 1).sum((1, 2))  # a tie of t has t members, each adding t² − 1
    denominator = m**2 * (k**3 - k) - m * ties
    numerator = 12 * ((sums - sums.mean(1, keepdims=True)) ** 2).sum(1)
    return np.asarray(np.divide(numerator, denominator, out=np.full(len(ranks), np.nan), where=denominator > 0))


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
        _dyadic_uncertainty(cells.where(nonzero), residuals(numerator, denominator), denominator),
        round(denominator.sum()),
        SHARE,
    )


def _dyadic_uncertainty(cells: AgreementCells, error: FloatArray, weight: FloatArray) -> Uncertainty:
    """Return the uncertainty of a ratio of sums over rows (C,) that share prompts, or a labeler on either side.

    Where `first` equals `second` everywhere (gold, oneself), a row belongs to that labeler alone.
    """
    prompt = unique_with_counts(cells.prompt)[1]
    mixed = cells.first != cells.second
    labeler, labeler_prompt, labeler_error, labeler_weight = (
        np.concatenate([values, second_values[mixed]])
        for values, second_values in ((cells.first, cells.second), (prompt, prompt), (error, error), (weight, weight))
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
