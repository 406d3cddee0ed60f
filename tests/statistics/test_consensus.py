"""Kemeny's consensus against every possible ranking."""

from itertools import product

import numpy as np
import pytest

from instructgpt.statistics.consensus import kemeny_consensus
from instructgpt.statistics.pair_judgments import LabelerRanking


def weak_orders(k):
    """All rankings of k completions with ties: ranks without gaps."""
    return [ranks for ranks in product(range(1, k + 1), repeat=k) if set(ranks) == set(range(1, max(ranks) + 1))]


def against(ranks, rankings):
    """Pairs of labelers that stand the other way round; then the margins given up by ties; by brute force."""
    k = len(ranks)
    margin = [[sum((r[i] < r[j]) - (r[i] > r[j]) for r in rankings) for j in range(k)] for i in range(k)]
    kept = sum(margin[i][j] for i in range(k) for j in range(k) if ranks[i] < ranks[j])
    return -kept, max(ranks)


@pytest.mark.parametrize("seed", range(25))
def test_best_of_all_rankings(seed):
    rng = np.random.default_rng(seed)
    k, people = int(rng.integers(2, 6)), int(rng.integers(1, 7))
    rankings = [tuple(rng.integers(1, k + 1, k).tolist()) for _ in range(people)]
    flat = all(len(set(r)) == 1 for r in rankings)
    costs = {ranks: against(ranks, rankings) for ranks in weak_orders(k)}
    # a tie is only allowed where no majority parts the two
    margins = np.array([[sum(np.sign(r[j] - r[i]) for r in rankings) for j in range(k)] for i in range(k)])
    allowed = {
        ranks: cost
        for ranks, cost in costs.items()
        if all(margins[i][j] == 0 for i in range(k) for j in range(i) if ranks[i] == ranks[j])
    }
    best = min(allowed.values())
    found = kemeny_consensus([LabelerRanking("p", n, tuple(range(k)), r) for n, r in enumerate(rankings)])
    assert allowed[found.ranks] == best
    assert best[0] == min(cost[0] for cost in costs.values())  # ties never do better than an order
    assert found.unique == (sum(cost == best for cost in allowed.values()) == 1)
    turned = sum(
        (r[i] < r[j]) and found.ranks[i] > found.ranks[j] for r in rankings for i in range(k) for j in range(k)
    )
    assert found.against == turned
    assert not flat or set(found.ranks) == {1}


def test_majorities_in_a_circle_are_told():
    circle = [LabelerRanking("p", n, ranks, (1, 2, 3)) for n, ranks in enumerate(("abc", "bca", "cab"))]
    found = kemeny_consensus(circle)
    assert not found.unique
    assert found.against == 4  # each order turns one majority of two and two minorities of one
    assert kemeny_consensus([*circle, LabelerRanking("p", 3, "abc", (1, 2, 3))]).ranks == (1, 2, 3)


def test_ties_stay_where_no_majority_is():
    found = kemeny_consensus([LabelerRanking("p", "x", "abc", (1, 2, 3)), LabelerRanking("p", "y", "bac", (1, 2, 3))])
    assert dict(zip(found.completions, found.ranks, strict=True)) == {"a": 1, "b": 1, "c": 2}
    assert found.unique


def test_not_everyone_ranked_everything():
    found = kemeny_consensus(
        [
            LabelerRanking("p", "x", "ab", (1, 2)),
            LabelerRanking("p", "y", "bc", (1, 2)),
            LabelerRanking("p", "z", "cd", (1, 2)),
        ]
    )
    assert found.completions == ("a", "b", "c", "d")
    assert found.ranks == (1, 2, 3, 4)


def test_nine_completions():
    rng = np.random.default_rng(0)
    truth = rng.permutation(9)
    found = kemeny_consensus(
        [
            LabelerRanking("p", n, tuple(range(9)), np.argsort(np.argsort(truth + rng.normal(0, 0.4, 9))).tolist())
            for n in range(15)
        ]
    )
    assert np.argsort(found.ranks).tolist() == np.argsort(truth).tolist()
    with pytest.raises(ValueError, match="10 completions"):
        kemeny_consensus([LabelerRanking("p", 0, tuple(range(10)), tuple(range(10)))])
    with pytest.raises(ValueError, match="0 completions"):
        kemeny_consensus([])
