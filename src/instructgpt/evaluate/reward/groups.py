"""A reward model beside the groups of its labelers: whose preferences does it predict (paper, section 5.2)?"""

from __future__ import annotations

from collections.abc import Sequence

from instructgpt.evaluate.aggregate import make_row
from instructgpt.evaluate.reward.metrics import (
    REWARD_MODEL_EVALUATION,
    ScoredRanking,
    pair_accuracy_measurements,
)
from instructgpt.results import ResultRow
from instructgpt.statistics import intervals
from instructgpt.statistics.group_preferences import (
    MIN_GROUP_SIZE,
    LabelerGroups,
    find_groups,
    group_agreement,
    opposing_majorities,
)
from instructgpt.statistics.intervals import SHARE

_GROUP_CONDITION = "group/"
_GROUP_SEPARATOR = " ~ "


def group_rows(rankings: Sequence[ScoredRanking], model: str) -> list[ResultRow]:
    """Return rows by declared group of at least five people; nothing without groups.

    Held-out labelers count where there are any, else all: `pair_accuracy` (`group/NAME`),
    `pair_accuracy_minus_other_groups` and `majority_opposes_model`. Of all labelers: `labeler_agreement` within and
    between groups (`group/NAME`, `group/NAME ~ NAME`), and `agreement_within_minus_between_groups`.
    """
    heldout = [ranking for ranking in rankings if ranking.cohort == "heldout"] or list(rankings)
    groups = find_groups(heldout)
    rows = _accuracy_rows(heldout, groups, model)
    for name, estimate in zip(groups.names, opposing_majorities(heldout, groups), strict=True):
        if estimate.n:
            condition = _GROUP_CONDITION + name
            rows.append(make_row(REWARD_MODEL_EVALUATION, "majority_opposes_model", model, condition, estimate))
    return rows + _agreement_rows(rankings, model)


def group_notices(rankings: Sequence[ScoredRanking]) -> list[str]:
    """Return what was left out of the numbers by group, a sentence each."""
    groups = find_groups(rankings)
    notices = []
    if groups.has_small_groups:
        notices.append(f"groups with fewer than {MIN_GROUP_SIZE} people are left out of the numbers by group")
    if groups.contradictory:
        notices.append(f"{groups.contradictory} labelers are in several groups, so they count in none")
    if groups.anonymous:
        notices.append(f"{groups.anonymous} rankings name a group but no labeler, so they count in none")
    return notices


def _accuracy_rows(rankings: Sequence[ScoredRanking], groups: LabelerGroups, model: str) -> list[ResultRow]:
    rows = []
    for index, name in enumerate(groups.names):
        of_group = [ranking for ranking in rankings if groups.members.get(ranking.labeler, -1) == index]
        of_other_groups = [
            ranking for ranking in rankings if groups.members.get(ranking.labeler, -1) not in (index, -1)
        ]
        measured = pair_accuracy_measurements(of_group, model)
        accuracy = intervals.mean(measured.values, *measured.clusters, bounds=SHARE)
        condition = _GROUP_CONDITION + name
        rows.append(make_row(REWARD_MODEL_EVALUATION, "pair_accuracy", model, condition, accuracy))
        if of_other_groups:
            gap = intervals.difference(measured, pair_accuracy_measurements(of_other_groups, model), SHARE)
            metric = "pair_accuracy_minus_other_groups"
            rows.append(make_row(REWARD_MODEL_EVALUATION, metric, model, condition, gap))
    return rows


def _agreement_rows(rankings: Sequence[ScoredRanking], model: str) -> list[ResultRow]:
    result = group_agreement(rankings, find_groups(rankings))
    rows = []
    for pair in result.pairs:
        if pair.agreement.n:
            names = pair.first if pair.first == pair.second else pair.first + _GROUP_SEPARATOR + pair.second
            condition = _GROUP_CONDITION + names
            rows.append(make_row(REWARD_MODEL_EVALUATION, "labeler_agreement", model, condition, pair.agreement))
    if result.difference.n:
        metric = "agreement_within_minus_between_groups"
        rows.append(make_row(REWARD_MODEL_EVALUATION, metric, model, "", result.difference))
    return rows
