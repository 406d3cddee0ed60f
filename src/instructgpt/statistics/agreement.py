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
from instructgpt.statistics.intervals import (
    NO_ESTIMATE,
    BoolArray,
    Estimate,
    FloatArray,
    IntArray,
    Uncertainty,
    cluster_variance,
    clustered_uncertainty,
    combine_variances,
    residuals,
    t_interval,
)
from instructgpt.statistics.pair_judgments import (
    AgreementCells,
    HasRanks,
    LabelerRanking,
    inter_labeler_cells,
    intra_labeler_cells,
    pair_judgments,
    unique_with_counts,
)
from instructgpt.statistics.shrinkage import beta_binomial_shrinkage

_MIN_SHARED_PAIRS = 30
"""Under so many shared pairs a labeler's number says little."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What two labelers did with the same pairs of completions, over all couples, and the shares that follow."""

    concordant: int
    """Both decided, the same way."""
    discordant: int
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
    concordant: int
    shared: int
    """Pairs that this labeler and some other one both decided, each counted once an other."""
    share: float
    shrunk: Estimate
    """The share drawn towards that of all labelers, the more so the fewer pairs there are, with its 95 % posterior interval."""

    @property
    def is_small_sample(self) -> bool:
        """Whether there are too few pairs to look at."""
        return self.shared < _MIN_SHARED_PAIRS


@dataclass(frozen=True, slots=True)
class AgreementMatrix:
    """Agreement of every two labelers about pairs that both decided, (L, L); NaN where there are none and on the diagonal."""

    labelers: tuple[Hashable, ...]
    share: FloatArray
    shared: IntArray


@dataclass(frozen=True, slots=True)
class Concordance:
    """Kendall's W, the mean over prompts that several labelers ranked whole."""

    w: Estimate
    by_chance: float | None
    """What W would be if they ranked at random: the mean of 1 / (number of labelers)."""


def compare_labelers(rankings: Sequence[HasRanks]) -> AgreementCells:
    """What every two labelers of a prompt did. A second ranking of the same completions is compared with others' second ones."""
    return inter_labeler_cells(pair_judgments(rankings))


def inter_labeler_agreement(rankings: Sequence[HasRanks]) -> Agreement:
    """How labelers agree with each other, with intervals for other prompts and other labelers like these."""
    return summarize_agreement(compare_labelers(rankings))


def intra_labeler_agreement(rankings: Sequence[HasRanks]) -> dict[Hashable, Agreement]:
    """How labelers agree with themselves where they ranked the same completions again: the ceiling of agreement. `None`: all of them."""
    return _summarize_by_labeler(intra_labeler_cells(pair_judgments(rankings)))


def gold_agreement(rankings: Sequence[HasRanks], gold: Sequence[HasRanks]) -> dict[Hashable, Agreement]:
    """How each labeler agrees with gold rankings of the same completions; of several golds of a prompt the first counts. `None`: all."""
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
    """The counts and shares of any rows."""
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
    """Each labeler beside all others, the lowest first.

    Shares are shrunk by a beta-binomial model. Pairs of a prompt are not independent, so counts are divided by how much larger that makes
    the variance.
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
    design_effect = _design_effect(concordant - shared * share[labeler], labeler, prompt, n, share)
    rows = [
        LabelerAgreement(cells.labelers[index], round(x[index]), pairs, float(share[index]), replace(estimate, n=pairs))
        for index, pairs, estimate in zip(
            active.tolist(),
            n[active].astype(int).tolist(),
            beta_binomial_shrinkage(x[active] / design_effect, n[active] / design_effect),
            strict=True,
        )
    ]
    return sorted(rows, key=lambda each: each.shrunk.value or 0.0)


def agreement_matrix(cells: AgreementCells) -> AgreementMatrix:
    """Every two labelers."""
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
    """Tau-b of two labelers' rankings of one prompt, the mean over prompts and couples. Who tied everything has none and is left out."""
    decided = cells.concordant + cells.discordant
    norm = np.sqrt(
        (decided + cells.second_tied) * (decided + cells.first_tied)
    )  # pairs that the first, and that the second decided
    cells, numerator, norm = cells.where(norm > 0), (cells.concordant - cells.discordant)[norm > 0], norm[norm > 0]
    if not len(norm):
        return NO_ESTIMATE
    tau = numerator / norm
    return t_interval(
        float(tau.mean()), _dyadic_uncertainty(cells, residuals(tau, np.ones_like(tau)), np.ones_like(tau)), len(tau)
    )


def concordance(rankings: Sequence[HasRanks]) -> Concordance:
    """Kendall's W with the correction for ties (Kendall and Gibbons, 1990), where two or more labelers ranked the same completions.

    The interval is over prompts. A labeler's second ranking of the same completions is left out.
    """
    groups: dict[tuple[Hashable, frozenset[Hashable]], dict[Hashable, HasRanks]] = {}
    for ranking in rankings:
        if ranking.labeler is not None:
            groups.setdefault((ranking.prompt, frozenset(ranking.completions)), {}).setdefault(ranking.labeler, ranking)
    tables: dict[tuple[int, int], list[list[list[float]]]] = {}
    prompts: dict[tuple[int, int], list[Hashable]] = {}
    for (prompt, completions), by_labeler in groups.items():
        if len(by_labeler) > 1:
            order = list(completions)
            rows = [dict(zip(each.completions, each.ranks, strict=True)) for each in by_labeler.values()]
            shape = len(rows), len(order)
            tables.setdefault(shape, []).append([[row[completion] for completion in order] for row in rows])
            prompts.setdefault(shape, []).append(prompt)
    if not tables:
        return Concordance(NO_ESTIMATE, None)
    w = np.concatenate([_kendall_w(np.array(table)) for table in tables.values()])
    chance = np.concatenate([np.full(len(table), 1 / people) for (people, _), table in tables.items()])
    prompt_codes: dict[Hashable, int] = {}
    key = np.array(
        [prompt_codes.setdefault(prompt, len(prompt_codes)) for listed in prompts.values() for prompt in listed],
        dtype=np.int64,
    )
    finite = np.isfinite(w)
    w, chance, key = w[finite], chance[finite], key[finite]
    if not len(w):
        return Concordance(NO_ESTIMATE, None)
    uncertainty = clustered_uncertainty(
        residuals(w, np.ones_like(w)), unique_with_counts(key)[1], np.zeros(len(w), dtype=np.int64)
    )
    return Concordance(t_interval(float(w.mean()), uncertainty, len(w)), float(chance.mean()))


def pairwise_alpha(rankings: Sequence[HasRanks]) -> Estimate:
    """Krippendorff's alpha of better, worse and tie (nominal), one unit a pair of completions; clustered by prompt.

    Without ties it is close to 2 p − 1, p the share of pairs alike: 72.6 % is about 0.45, and the usual bounds (0.667, 0.8) are none here.
    """
    judgments = pair_judgments(rankings)
    turns = int(judgments.repeat_index.max(initial=0)) + 1
    return krippendorff_alpha(
        judgments.pair * turns + judgments.repeat_index, judgments.sign.tolist(), clusters=judgments.prompt
    )


def _kendall_w(ranks: FloatArray) -> FloatArray:
    """W of each prompt: ranks (G, m labelers, K) -> (G,); NaN where all tied everything.

    W = 12 S / (m² (K³ − K) − m Σ(t³ − t)), S the squared deviations of the completions' rank sums, t the sizes of ties.
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
    """All rows under None, then the rows of each labeler."""
    if not len(cells.prompt):
        return {}
    return {None: summarize_agreement(cells)} | {
        cells.labelers[index]: summarize_agreement(cells.where(cells.first == index))
        for index in np.unique(cells.first)
    }


def _ratio_estimate(cells: AgreementCells, numerator: FloatArray, denominator: FloatArray) -> Estimate:
    """A ratio of sums over rows (C,) with its interval."""
    nonzero: BoolArray = denominator > 0
    if not nonzero.any():
        return NO_ESTIMATE
    numerator, denominator = numerator[nonzero], denominator[nonzero]
    value = min(1.0, float(numerator.sum() / denominator.sum()))
    return t_interval(
        value,
        _dyadic_uncertainty(cells.where(nonzero), residuals(numerator, denominator), denominator),
        round(denominator.sum()),
        share=True,
    )


def _dyadic_uncertainty(cells: AgreementCells, error: FloatArray, weight: FloatArray) -> Uncertainty:
    """Of a ratio of sums over rows (C,) with these errors and denominators: rows that share a prompt, or a labeler on either side, are
    dependent.

    Prompts count by their squared sums. Labelers count by what leaving each one out would change, which with few labelers is not too
    little; what a labeler does within a single prompt is in both and is taken out once. Two labelers can say nothing about others.
    """
    labelers, labeler_codes, _ = unique_with_counts(np.concatenate([cells.first, cells.second]))
    first, second = labeler_codes[: len(error)], labeler_codes[len(error) :]
    mixed = first != second
    labeler = np.concatenate([first, second[mixed]])
    labeler_error, labeler_prompt, labeler_weight = (
        np.concatenate([each, each[mixed]]) for each in (error, cells.prompt, weight)
    )
    prompt = unique_with_counts(cells.prompt)[1]
    prompt_count, labeler_count = int(prompt.max()) + 1, len(labelers)
    by_prompt = cluster_variance(error, prompt)
    share = np.bincount(labeler, weights=labeler_weight) / weight.sum()
    if labeler_count < (3 if mixed.any() else 2) or share.max() >= 1:
        return combine_variances(by_prompt, prompt_count, 0.0, 1)
    leave_one_out = np.bincount(labeler, weights=labeler_error) / (1 - share)
    by_labeler = (labeler_count - 1) / labeler_count * float((leave_one_out**2).sum()) - _squared_cluster_sums(
        labeler_error, labeler_prompt * labeler_count + labeler
    )
    return combine_variances(by_prompt, prompt_count, by_labeler, labeler_count)


def _squared_cluster_sums(error: FloatArray, cluster: IntArray) -> float:
    """The sum of the squared sums of each cluster."""
    return float((np.bincount(unique_with_counts(cluster)[1], weights=error) ** 2).sum())


def _design_effect(error: FloatArray, labeler: IntArray, prompt: IntArray, n: FloatArray, share: FloatArray) -> float:
    """How many times larger the variance within labelers is, because pairs of a prompt move together, than that of independent pairs."""
    naive = float((n * share * (1 - share)).sum())
    if naive == 0:
        return 1.0
    return max(1.0, _squared_cluster_sums(error, labeler * (int(prompt.max()) + 1) + prompt) / naive)
