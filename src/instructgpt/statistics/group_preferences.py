"""Whose preferences: how far groups of labelers agree, and on what they differ (paper, section 5.2).

A group is what a labeler declared, never a guess. Every number about a group rests on at least five of its people
(`MIN_GROUP_SIZE`); otherwise there is none. Comparisons say "cannot tell" where the interval is too wide.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, Protocol

import numpy as np

from instructgpt.statistics import intervals
from instructgpt.statistics.agreement import compare_labelers, dyadic_uncertainty, summarize_agreement
from instructgpt.statistics.arrays import BoolArray, FloatArray, IntArray
from instructgpt.statistics.clustered import residuals
from instructgpt.statistics.intervals import CORRELATION, NO_ESTIMATE, SHARE, Estimate, t_interval
from instructgpt.statistics.pair_judgments import AgreementCells, HasRanks, LabelerRanking, pair_judgments
from instructgpt.statistics.significance import benjamini_hochberg_correction

MIN_GROUP_SIZE = 5
"""People behind every number about a group; less could be read as what a person said."""
_MIN_VOTES = 3
"""People of a group who must have decided a pair before they count as its majority."""
_NEGLIGIBLE = 0.05
"""Differences of agreement inside ± this are called alike."""
_PERMUTATIONS = 4_999
_PERMUTATION_SEED = 0
_FALSE_DISCOVERY_RATE = 0.05

Verdict = Literal["differ", "alike", "cannot tell"]


class HasGroup(HasRanks, Protocol):
    """Protocol of rankings with the labeler's declared group; `records.Ranking` implements it."""

    @property
    def group(self) -> str | None: ...


class HasScores(HasGroup, Protocol):
    """Rankings with a reward model's scores, one a completion."""

    @property
    def scores(self) -> Sequence[float]: ...


@dataclass(frozen=True, slots=True)
class LabelerGroups:
    """Groups of at least five people, the largest first."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    members: Mapping[Hashable, int]
    """Labeler -> position in `names`."""
    has_small_groups: bool = False
    """Somebody declared a group of fewer than five people; which one and how many is not told."""
    contradictory: int = 0
    """Labelers whose rankings name several groups; they count in none."""
    anonymous: int = 0
    """Rankings that name a group but no labeler; they count in none."""

    def positions(self, labelers: Sequence[Hashable]) -> IntArray:
        """Return the group of each labeler (L,), -1 without one."""
        return np.array([self.members.get(labeler, -1) for labeler in labelers], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class GroupPair:
    """Agreement on decided pairs of two people, one of each group; within a group both names are equal."""

    first: str
    second: str
    agreement: Estimate
    """Without a value where fewer than five people of either group share decided pairs with the other."""


@dataclass(frozen=True, slots=True)
class GroupAgreement:
    pairs: tuple[GroupPair, ...]
    within_groups: Estimate
    """Two people of the same group, all groups together."""
    between_groups: Estimate
    """Two people of different groups."""
    difference: Estimate
    """Within less between: 0 where the group says nothing about preferences."""

    @property
    def verdict(self) -> Verdict:
        return judge_difference(self.difference)


@dataclass(frozen=True, slots=True)
class PromptDifference:
    """How differently two groups judged one prompt."""

    prompt: Hashable
    first: str
    second: str
    people: tuple[int, int]
    """Of each group, at least five."""
    difference: float
    """Disagreement of two people of different groups less that of two people of the same one, from -1 to 1."""
    p_value: float
    """Of group names dealt at random among the prompt's people, corrected for all prompts compared."""

    @property
    def verdict(self) -> Verdict:
        return "differ" if self.p_value <= _FALSE_DISCOVERY_RATE else "cannot tell"


def judge_difference(estimate: Estimate, negligible: float = _NEGLIGIBLE) -> Verdict:
    """Return what an interval of a difference says: not 0, practically 0, or nothing."""
    if estimate.low is None or estimate.high is None:
        return "cannot tell"
    if estimate.low > 0 or estimate.high < 0:
        return "differ"
    return "alike" if -negligible < estimate.low and estimate.high < negligible else "cannot tell"


def find_groups(rankings: Sequence[HasGroup]) -> LabelerGroups:
    """Return the groups of at least five people who decided a pair in these rankings.

    Count them anew for every part of the data that a number is about.
    """
    declared: dict[Hashable, set[str]] = {}
    anonymous = 0
    for ranking in rankings:
        if ranking.group is None or len(set(ranking.ranks)) < 2:
            continue
        if ranking.labeler is None:
            anonymous += 1
        else:
            declared.setdefault(ranking.labeler, set()).add(ranking.group)
    people: dict[str, list[Hashable]] = {}
    for labeler, groups in declared.items():
        if len(groups) == 1:
            people.setdefault(next(iter(groups)), []).append(labeler)
    large = {name: people[name] for name in people if len(people[name]) >= MIN_GROUP_SIZE}
    names = sorted(large, key=lambda name: (-len(large[name]), name))
    return LabelerGroups(
        names=tuple(names),
        sizes=tuple(len(large[name]) for name in names),
        members={labeler: index for index, name in enumerate(names) for labeler in large[name]},
        has_small_groups=len(large) < len(people),
        contradictory=sum(len(groups) > 1 for groups in declared.values()),
        anonymous=anonymous,
    )


def group_agreement(rankings: Sequence[HasGroup], groups: LabelerGroups) -> GroupAgreement:
    """Compute agreement within and between groups, with intervals over prompts and labelers."""
    return summarize_group_agreement(compare_labelers(rankings), groups)


def summarize_group_agreement(cells: AgreementCells, groups: LabelerGroups) -> GroupAgreement:
    """Compute agreement within and between groups from outcome counts of couples of labelers."""
    position = groups.positions(cells.labelers)
    first, second = position[cells.first], position[cells.second]
    grouped = (first >= 0) & (second >= 0) & (cells.concordant + cells.discordant > 0)
    pairs = []
    for a in range(len(groups.names)):
        for b in range(a, len(groups.names)):
            mask = grouped & (((first == a) & (second == b)) | ((first == b) & (second == a)))
            enough = all(_count_people(cells, mask, position == index) >= MIN_GROUP_SIZE for index in (a, b))
            estimate = summarize_agreement(cells.where(mask)).decided if enough else NO_ESTIMATE
            pairs.append(GroupPair(groups.names[a], groups.names[b], estimate))
    same_group, two_groups = grouped & (first == second), grouped & (first != second)
    if min(_count_people(cells, mask, position >= 0) for mask in (same_group, two_groups)) < MIN_GROUP_SIZE:
        return GroupAgreement(tuple(pairs), NO_ESTIMATE, NO_ESTIMATE, NO_ESTIMATE)
    return GroupAgreement(
        tuple(pairs),
        summarize_agreement(cells.where(same_group)).decided,
        summarize_agreement(cells.where(two_groups)).decided,
        _agreement_difference(cells, same_group, two_groups),
    )


def opposing_majorities(
    rankings: Sequence[HasScores], groups: LabelerGroups, min_votes: int = _MIN_VOTES
) -> list[Estimate]:
    """Compute, for each group, the share of pairs whose majority in the group opposes the reward model.

    A pair counts where at least `min_votes` people of the group decided it and their votes are not equal; equal scores
    count one half. The interval is over prompts: it speaks about these people, on prompts like these.
    """
    scorer = object()
    rows: list[HasRanks] = [
        LabelerRanking(ranking.prompt, scorer, ranking.completions, [-score for score in ranking.scores])
        for ranking in rankings
    ]
    judgments = pair_judgments([*rows, *rankings])
    judgments = judgments.where(judgments.repeat_index == 0)
    if not len(judgments.pair):
        return [NO_ESTIMATE] * len(groups.names)
    num_pairs = int(judgments.pair.max()) + 1
    is_score = judgments.labeler == judgments.labelers.index(scorer)
    score_sign, prompt = np.zeros(num_pairs), np.zeros(num_pairs, dtype=np.int64)
    score_sign[judgments.pair[is_score]] = judgments.sign[is_score]
    prompt[judgments.pair] = judgments.prompt
    position = groups.positions(judgments.labelers)[judgments.labeler]
    estimates = []
    for index in range(len(groups.names)):
        vote = (position == index) & (judgments.sign != 0)
        votes = np.bincount(judgments.pair[vote], minlength=num_pairs)
        majority = np.sign(np.bincount(judgments.pair[vote], weights=judgments.sign[vote], minlength=num_pairs))
        counted = (votes >= min_votes) & (majority != 0)
        voters = np.unique(judgments.labeler[vote & counted[judgments.pair]])
        if len(voters) < MIN_GROUP_SIZE:
            estimates.append(NO_ESTIMATE)
            continue
        opposes = (1 - majority[counted] * score_sign[counted]) / 2
        estimates.append(intervals.mean(opposes, prompt[counted], bounds=SHARE))
    return estimates


def differing_prompts(
    rankings: Sequence[HasGroup], groups: LabelerGroups, limit: int = 20
) -> tuple[list[PromptDifference], int]:
    """Return the prompts on which two groups differ most, and how many prompts and couples of groups were compared.

    Compared are prompts that at least five people of either group judged. The difference is the energy distance of
    their judgments (Székely and Rizzo, 2013): it is 0 on average where groups do not differ, however few people judged.
    p-values permute the group names among the people of a prompt, and are corrected for the false discovery rate
    (Benjamini and Hochberg, 1995).
    """
    judgments = pair_judgments(rankings)
    judgments = judgments.where(judgments.repeat_index == 0)
    prompts = list(dict.fromkeys(ranking.prompt for ranking in rankings if ranking.labeler is not None))
    position = groups.positions(judgments.labelers)
    keep = position[judgments.labeler] >= 0
    judgments = judgments.where(keep)
    rng = np.random.default_rng(_PERMUTATION_SEED)
    differences = []
    order = np.argsort(judgments.prompt, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(judgments.prompt[order])) + 1) if len(order) else ():
        people, row = np.unique(judgments.labeler[rows], return_inverse=True)
        _, column = np.unique(judgments.pair[rows], return_inverse=True)
        table = np.full((len(people), int(column.max()) + 1), np.nan)
        table[row, column] = judgments.sign[rows]
        for a, b, table_rows, is_first in _iter_comparable_groups(position[people]):
            value, p_value = _energy_distance(table[table_rows], is_first, rng)
            sizes = int(is_first.sum()), int((~is_first).sum())
            prompt = prompts[int(judgments.prompt[rows[0]])]
            differences.append(PromptDifference(prompt, groups.names[a], groups.names[b], sizes, value, p_value))
    if not differences:
        return [], 0
    corrected = benjamini_hochberg_correction([difference.p_value for difference in differences])
    ranked = sorted(zip(differences, corrected, strict=True), key=lambda item: (item[1], -item[0].difference))
    results = [
        PromptDifference(item.prompt, item.first, item.second, item.people, item.difference, float(p_value))
        for item, p_value in ranked[:limit]
    ]
    return results, len(differences)


def _iter_comparable_groups(position: IntArray) -> Iterator[tuple[int, int, IntArray, BoolArray]]:
    """Yield two groups with enough people among these (n,), their rows (m,), and which rows are of the first (m,)."""
    present = [index for index in range(int(position.max()) + 1) if (position == index).sum() >= MIN_GROUP_SIZE]
    for a, b in combinations(present, 2):
        rows = np.flatnonzero((position == a) | (position == b))
        yield a, b, rows, position[rows] == a


def _energy_distance(table: FloatArray, is_first: BoolArray, rng: np.random.Generator) -> tuple[float, float]:
    """Return the difference of two groups and its permutation p-value.

    Args:
        table: (n, pairs) judgments of people: 1, -1, 0 for a tie, NaN where not judged.
        is_first: (n,) people of the first group.
    """
    judged = (~np.isnan(table)).astype(np.float64)
    sign = np.nan_to_num(table)
    shared = judged @ judged.T
    distance = (np.abs(sign[:, None] - sign[None]) / 2 * judged[:, None] * judged[None]).sum(-1)
    np.fill_diagonal(shared, 0.0)
    np.fill_diagonal(distance, 0.0)
    dealt = rng.permuted(np.tile(is_first, (_PERMUTATIONS, 1)), axis=1)
    first = np.concatenate([is_first[None], dealt]).astype(np.float64)
    second = 1 - first

    def mean_distance(one_side: FloatArray, other_side: FloatArray) -> FloatArray:
        total, count = (((one_side @ matrix) * other_side).sum(1) for matrix in (distance, shared))
        return np.asarray(np.divide(total, count, out=np.zeros_like(total), where=count > 0))

    distance_within = (mean_distance(first, first) + mean_distance(second, second)) / 2
    value = mean_distance(first, second) - distance_within
    at_least = int((value[1:] >= value[0] - 1e-12).sum())
    return float(value[0]), (1 + at_least) / (1 + _PERMUTATIONS)


def _count_people(cells: AgreementCells, mask: BoolArray, counted: BoolArray) -> int:
    """Count labelers in the masked rows that are `counted` (L,)."""
    labelers = np.unique(np.concatenate([cells.first[mask], cells.second[mask]]))
    return int(counted[labelers].sum()) if len(labelers) else 0


def _agreement_difference(cells: AgreementCells, first: BoolArray, second: BoolArray) -> Estimate:
    """Return the agreement in the rows `first` (C,) less that in the rows `second`, which share prompts and people."""
    decided = cells.concordant + cells.discordant
    shares = [float(cells.concordant[mask].sum() / decided[mask].sum()) for mask in (first, second)]
    errors = [residuals(cells.concordant[mask], decided[mask]) for mask in (first, second)]
    weights = [decided[mask] / decided[mask].sum() / 2 for mask in (first, second)]
    prompt, first_labeler, second_labeler = (
        np.concatenate([column[first], column[second]]) for column in (cells.prompt, cells.first, cells.second)
    )
    uncertainty = dyadic_uncertainty(
        prompt, first_labeler, second_labeler, np.concatenate([errors[0], -errors[1]]), np.concatenate(weights)
    )
    n = round(float(decided[first].sum() + decided[second].sum()))
    return t_interval(shares[0] - shares[1], uncertainty, n, CORRELATION)
