"""Reward models beside groups of labelers: numbers by hand, the limit of five people, and the report's section."""

from __future__ import annotations

import numpy as np
import pytest

from instructgpt.evaluate.reward.groups import group_notices, group_rows
from instructgpt.evaluate.reward.metrics import ScoredRanking
from instructgpt.report.results import Results
from instructgpt.report.sections.whose_preferences import whose_preferences_section


def scored(prompt, labeler, group, ranks, scores=(2.0, 1.0), cohort="heldout"):
    texts = tuple("abcdef"[: len(ranks)])
    return ScoredRanking(
        prompt=prompt, completions=texts, ranks=ranks, scores=scores, labeler=labeler, cohort=cohort, group=group
    )


def opposed_groups(north=6, south=5, prompts=8, cohort="heldout"):
    """The north agrees with the scores, the south puts the other completion first on every fourth prompt."""
    rows = [scored(f"p{p}", f"n{i}", "north", (1, 2), cohort=cohort) for p in range(prompts) for i in range(north)]
    return rows + [
        scored(f"p{p}", f"s{i}", "south", (2, 1) if p % 4 == 0 else (1, 2), cohort=cohort)
        for p in range(prompts)
        for i in range(south)
    ]


def values(rows):
    return {(row.metric, row.condition): row.value for row in rows}


def test_rows_by_hand():
    rows = values(group_rows(opposed_groups(), "reward"))
    assert rows == {
        ("pair_accuracy", "group/north"): 1.0,
        ("pair_accuracy", "group/south"): 0.75,
        ("pair_accuracy_minus_other_groups", "group/north"): 0.25,
        ("pair_accuracy_minus_other_groups", "group/south"): -0.25,
        ("majority_opposes_model", "group/north"): 0.0,
        ("majority_opposes_model", "group/south"): 0.25,
        ("labeler_agreement", "group/north"): 1.0,
        ("labeler_agreement", "group/south"): 1.0,
        ("labeler_agreement", "group/north ~ south"): 0.75,
        ("agreement_within_minus_between_groups", ""): 0.25,
    }


def test_heldout_labelers_count_where_there_are_any():
    training = [
        ranking.model_copy(update={"labeler": f"t{ranking.labeler}", "ranks": (2, 1)})
        for ranking in opposed_groups(cohort="training")
    ]
    rows = values(group_rows([*training, *opposed_groups()], "reward"))
    assert rows["pair_accuracy", "group/south"] == 0.75
    alone = values(group_rows(training, "reward"))
    assert alone["pair_accuracy", "group/south"] == 0.0


def test_no_number_of_four_people_is_written_or_drawn():
    rankings = opposed_groups(south=4)
    rows = group_rows(rankings, "reward")
    assert rows
    assert not any("south" in row.condition for row in rows)
    assert group_notices(rankings) == ["groups with fewer than 5 people are left out of the numbers by group"]
    section = whose_preferences_section(Results.from_rows(rows), rankings)
    assert section is not None
    assert "south" not in repr(section)
    assert group_rows(opposed_groups(4, 4), "reward") == []
    assert whose_preferences_section(Results.from_rows([]), opposed_groups(4, 4)) is None


def test_four_heldout_people_of_a_group_of_nine_have_no_accuracy():
    training = [
        ranking.model_copy(update={"labeler": f"t{ranking.labeler}"}) for ranking in opposed_groups(cohort="training")
    ]
    rows = values(group_rows([*training, *opposed_groups(south=4)], "reward"))
    assert ("pair_accuracy", "group/south") not in rows
    assert rows["labeler_agreement", "group/south"] == 1.0


def test_the_section_tells_opposed_groups_apart_and_says_when_it_cannot():
    rng = np.random.default_rng(0)
    rankings = opposed_groups(prompts=60)
    section = whose_preferences_section(Results.from_rows(group_rows(rankings, "reward")), rankings)
    assert section.headline.startswith("Groups differ")
    prompts = section.tables[-1].rows
    assert {row[0] for row in prompts[:15]} == {f"p{p}" for p in range(0, 60, 4)}
    assert [row[-1] for row in prompts] == ["differ"] * 15 + ["cannot tell"] * 5
    few = [
        scored(f"p{p}", f"{group[0]}{i}", group, tuple(rng.permutation([1, 2]).tolist()))
        for p in range(3)
        for group in ("north", "south")
        for i in range(5)
    ]
    section = whose_preferences_section(Results.from_rows(group_rows(few, "reward")), few)
    assert section.headline.startswith("Cannot tell")
    assert "cannot tell" in repr(section.tables[0])


@pytest.mark.parametrize("rankings", [[], [scored("p", None, "north", (1, 2))], [scored("p", "l", None, (1, 2))]])
def test_rankings_without_groups_have_no_rows_and_no_section(rankings):
    assert group_rows(rankings, "reward") == []
    assert whose_preferences_section(Results.from_rows([]), rankings) is None
