"""Groups of labelers: numbers by hand and by slow definitions, the limit of five people, coverage of the intervals."""

import sys
from dataclasses import replace
from importlib import import_module
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from instructgpt.records import Ranking, validate_record
from instructgpt.statistics import group_preferences
from instructgpt.statistics.agreement import inter_labeler_agreement
from instructgpt.statistics.group_preferences import find_groups, judge_difference
from instructgpt.statistics.intervals import Estimate


@pytest.fixture(scope="module")
def bench():
    folder = str(Path(__file__).parents[2] / "bench")
    sys.path.insert(0, folder)
    yield import_module("coverage_groups")
    sys.path.remove(folder)


def ranking(prompt, labeler, ranks, group):
    return Ranking(
        prompt=prompt, completions=[f"c{i}" for i in range(len(ranks))], ranks=ranks, labeler=labeler, group=group
    )


def two_groups(seed=0, prompts=20, people=(6, 5), k=3, per_prompt=7):
    """Random rankings with ties of people who declared north or south."""
    rng = np.random.default_rng(seed)
    labelers = [(f"n{i}", "north") for i in range(people[0])] + [(f"s{i}", "south") for i in range(people[1])]
    return [
        ranking(f"p{prompt}", *labelers[i][:1], rng.integers(1, 4, k).tolist(), labelers[i][1])
        for prompt in range(prompts)
        for i in rng.permutation(len(labelers))[:per_prompt]
    ]


def slow_shares(rankings):
    """Agreeing share of pairs that two people decided, by their two groups: every couple of answers in turn."""
    counts = {}
    for a, b in combinations(rankings, 2):
        if a.prompt != b.prompt:
            continue
        for i, j in combinations(range(len(a.ranks)), 2):
            x, y = np.sign(a.ranks[j] - a.ranks[i]), np.sign(b.ranks[j] - b.ranks[i])
            if x and y:
                count = counts.setdefault(frozenset((a.group, b.group)), [0, 0])
                count[0] += x == y
                count[1] += 1
    return counts


@pytest.mark.parametrize("seed", range(3))
def test_agreement_of_groups_is_that_of_the_slow_definition(seed):
    rankings = two_groups(seed)
    result = group_preferences.group_agreement(rankings, find_groups(rankings))
    counts = slow_shares(rankings)
    assert len(result.pairs) == len(counts) == 3
    for pair in result.pairs:
        same, total = counts[frozenset((pair.first, pair.second))]
        assert (pair.agreement.value, pair.agreement.n) == (pytest.approx(same / total), total)
        assert pair.agreement.low < pair.agreement.value < pair.agreement.high
    within = [sum(counts[frozenset((name,))][i] for name in ("north", "south")) for i in (0, 1)]
    between = counts[frozenset(("north", "south"))]
    assert result.difference.value == pytest.approx(within[0] / within[1] - between[0] / between[1])
    together = inter_labeler_agreement(rankings).decided
    assert result.within_groups.n + result.between_groups.n == together.n


def test_groups_of_four_people_are_in_no_number():
    rankings = two_groups(people=(7, 4))
    groups = find_groups(rankings)
    assert (groups.names, groups.sizes, groups.has_small_groups) == (("north",), (7,), True)
    assert not any(labeler.startswith("s") for labeler in groups.members)
    assert "south" not in repr(group_preferences.group_agreement(rankings, groups))
    assert "south" not in repr(group_preferences.differing_prompts(rankings, groups))


def test_a_number_needs_five_people_of_each_group_behind_it():
    """Six people of the south decided pairs, but only four of them share prompts with the north."""
    north = [ranking(f"p{p}", f"n{i}", (1, 2), "north") for p in range(6) for i in range(6)]
    south = [ranking(f"p{p}", f"s{i}", (2, 1), "south") for p in range(6) for i in range(4)]
    south += [ranking("own", f"s{i}", (2, 1), "south") for i in range(6)]
    groups = find_groups([*north, *south])
    assert groups.sizes == (6, 6)
    result = group_preferences.group_agreement([*north, *south], groups)
    values = {(pair.first, pair.second): pair.agreement.value for pair in result.pairs}
    assert values == {("north", "north"): 1.0, ("north", "south"): None, ("south", "south"): 1.0}


def test_people_who_never_decided_contradict_themselves_or_have_no_name_count_in_no_group():
    rankings = two_groups(people=(6, 5), per_prompt=11)
    rankings += [ranking("p0", "tied", (1, 1, 1), "east"), ranking("p0", None, (1, 2, 3), "north")]
    rankings += [ranking("p1", "n0", (1, 2, 3), "south")]
    groups = find_groups(rankings)
    assert groups.sizes == (5, 5)
    assert (groups.contradictory, groups.anonymous, groups.has_small_groups) == (1, 1, False)
    assert "n0" not in groups.members


def test_opposing_majorities_by_hand(bench):
    """Five north voters: majorities 4:1, 5:0, 2:2 and a tie (no majority), 3:1; scores say the reverse in one of 3."""

    def votes(prompt, signs, scores):
        for labeler, sign in enumerate(signs):
            ranks = [1, 1] if sign == 0 else [1, 2] if sign > 0 else [2, 1]
            yield bench.GroupRanking(prompt, labeler, range(2), ranks, "north", scores)

    rankings = [
        *votes(0, [1, 1, 1, 1, -1], [2.0, 1.0]),
        *votes(1, [1, 1, 1, 1, 1], [0.0, 1.0]),
        *votes(2, [1, 1, -1, -1, 0], [0.0, 1.0]),
        *votes(3, [-1, -1, -1, 1, 0], [5.0, 5.0]),
    ]
    (estimate,) = group_preferences.opposing_majorities(rankings, find_groups(rankings))
    assert (estimate.value, estimate.n) == (pytest.approx((0 + 1 + 0.5) / 3), 3)
    few = [replace(each, labeler=min(each.labeler, 3)) for each in rankings]
    assert group_preferences.opposing_majorities(few, find_groups(few)) == []


def test_prompts_on_which_groups_differ_come_first_and_chance_is_no_difference():
    rng = np.random.default_rng(3)
    rankings = []
    for p in range(40):
        for i in range(16):
            north = i < 8
            opposed = p in (5, 17)
            order = [1, 2, 3] if north or not opposed else [3, 2, 1]
            ranks = order if opposed else rng.permutation(order).tolist()
            rankings.append(ranking(f"p{p}", f"l{i}", ranks, "north" if north else "south"))
    differences, compared = group_preferences.differing_prompts(rankings, find_groups(rankings), limit=10)
    assert (compared, len(differences)) == (40, 10)
    assert {difference.prompt for difference in differences[:2]} == {"p5", "p17"}
    assert [difference.verdict for difference in differences] == ["differ"] * 2 + ["cannot tell"] * 8
    assert differences[0].difference == 1.0
    assert differences[0].people == (8, 8)


def test_permutation_p_values_are_those_of_scipy():
    signs = [1, 1, 1, 1, 1, -1, 1, -1, -1, -1, -1, 1, -1]
    rankings = [ranking("p", f"l{i}", (1, 2) if s > 0 else (2, 1), "a" if i < 7 else "b") for i, s in enumerate(signs)]
    (difference,), compared = group_preferences.differing_prompts(rankings, find_groups(rankings))

    def statistic(x, y):
        def disagreement(u, v):
            return np.mean([a != b for a in u for b in v])

        def within(u):
            return np.mean([a != b for a, b in combinations(u, 2)])

        return disagreement(x, y) - (within(x) + within(y)) / 2

    expected = stats.permutation_test(
        (signs[:7], signs[7:]), statistic, n_resamples=np.inf, alternative="greater", vectorized=False
    )
    assert compared == 1
    assert difference.difference == pytest.approx(expected.statistic)
    assert difference.p_value == pytest.approx(expected.pvalue, abs=0.02)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.01, 0.2, "differ"),
        (-0.2, -0.01, "differ"),
        (-0.01, 0.02, "alike"),
        (-0.01, 0.2, "cannot tell"),
        (None, None, "cannot tell"),
    ],
)
def test_a_wide_interval_cannot_tell(low, high, verdict):
    assert judge_difference(Estimate(0.0, low, high, 10)) == verdict


def test_no_rankings_and_no_groups_give_no_numbers():
    for rankings in ([], [ranking("p", "l", (1, 2), None)]):
        groups = find_groups(rankings)
        assert groups.names == ()
        result = group_preferences.group_agreement(rankings, groups)
        assert (result.pairs, result.difference.value, result.verdict) == ((), None, "cannot tell")
        assert group_preferences.differing_prompts(rankings, groups) == ([], 0)


def test_a_ranking_carries_its_group_and_an_empty_cell_is_none():
    row = {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2], "labeler": "l"}
    assert "group" not in validate_record(Ranking, row | {"group": ""}).to_dict()
    assert validate_record(Ranking, row | {"group": 3}).to_dict()["group"] == "3"


@pytest.mark.parametrize("gap", [0.0, 2.0])
def test_intervals_of_groups_hold_the_truth(bench, monkeypatch, gap):
    """60 repetitions: a share below 0.85 has probability 0.3 % at 95 %. No difference (gap 0) is conservative."""
    monkeypatch.setattr(bench, "_TRUTH_REPETITIONS", 3)
    bench.group_truth.cache_clear()
    lines = bench.agreement_lines(np.random.default_rng(1), 60, bench.Design(40, 15, 4), gap)
    shares = {line.name: line.share for line in lines}
    bench.group_truth.cache_clear()
    assert all(share >= 0.85 for share in shares.values()), shares


def test_planted_tastes_are_told_apart(bench):
    verdicts = {}
    for gap in (0.0, 2.0):
        rankings = bench.draw_rankings(np.random.default_rng(2), bench.Design(200, 30, 4), gap)
        verdicts[gap] = group_preferences.group_agreement(rankings, find_groups(rankings)).verdict
    assert verdicts[2.0] == "differ"
    assert verdicts[0.0] != "differ"
