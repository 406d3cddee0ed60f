"""Agreement within and between the groups that labelers declared, from the stored rankings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy.orm import Session

from instructgpt.label.analysis.rankings import StoredRanking, load_stored_rankings
from instructgpt.label.people.groups import find_visible_groups

if TYPE_CHECKING:
    from instructgpt.statistics.group_preferences import GroupAgreement, LabelerGroups, PromptDifference


@dataclass(frozen=True, slots=True)
class GroupReport:
    groups: LabelerGroups
    agreement: GroupAgreement
    differences: Sequence[PromptDifference]
    """`prompt` is the task's id."""
    compared: int


@dataclass(frozen=True, slots=True)
class _DeclaredRanking:
    """A stored ranking as the statistics read it, with the labeler's group."""

    prompt: str
    labeler: str
    completions: Sequence[str]
    ranks: Sequence[int]
    group: str | None
    models: None = None


def compare_groups(db: Session) -> GroupReport:
    """Compare groups on all current rankings; hidden repeats are left out."""
    from instructgpt.statistics import group_preferences

    rankings = [ranking for ranking in load_stored_rankings(db) if ranking.round == 0]
    visible = find_visible_groups(db, [ranking.labeler for ranking in rankings])
    declared = [_with_group(ranking, visible.get(ranking.labeler)) for ranking in rankings]
    groups = group_preferences.find_groups(declared)
    differences, compared = group_preferences.differing_prompts(declared, groups)
    return GroupReport(groups, group_preferences.group_agreement(declared, groups), differences, compared)


def _with_group(ranking: StoredRanking, group: str | None) -> _DeclaredRanking:
    return _DeclaredRanking(ranking.task, ranking.labeler, ranking.completions, ranking.ranks, group)
