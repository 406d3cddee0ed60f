"""Best of n by score against enumeration of all subsets, and gains by hand."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch

from instructgpt.evaluate.overoptimization import PROMPT_GROUPS, StartScores, best_of_n_points, to_gains
from instructgpt.functional import best_of_n_kl, best_of_n_kl_bound

SCORES = torch.tensor([[0.3, -1.0, 0.3, 2.0], [1.0, 4.0, 3.0, 2.0]], dtype=torch.float64)
UTILITIES = torch.tensor([[5.0, 1.0, 3.0, 0.0], [1.0, 2.0, 6.0, 4.0]], dtype=torch.float64)


def enumerate_best(scores, values, n):
    """Return the mean over all subsets of the best-scored value, ties shared."""
    means = []
    for subset in combinations(range(len(scores)), n):
        top = max(scores[index] for index in subset)
        best = [values[index] for index in subset if scores[index] == top]
        means.append(sum(best) / len(best))
    return sum(means) / len(means)


def test_best_of_n_is_the_mean_over_all_subsets():
    # two real prompts repeated, so that every group of prompts has some
    start = StartScores(UTILITIES.repeat(PROMPT_GROUPS, 1), SCORES.repeat(PROMPT_GROUPS, 1))
    points = list(best_of_n_points(start))
    assert [point["n"] for point in points] == [2, 4]
    for point in points:
        assert point["kl"] == best_of_n_kl_bound(point["n"])
        for group, row in ((0, 0), (1, 1), (2, 0)):
            for name, table in (("truth", UTILITIES), ("proxy", SCORES)):
                best = enumerate_best(SCORES[row].tolist(), table[row].tolist(), point["n"])
                deviation = float(table.repeat(PROMPT_GROUPS, 1).std())
                expected = (best - float(table[row].mean())) / deviation
                assert point[name][group] == pytest.approx(expected, abs=1e-5)


def test_kl_of_best_of_n_by_enumeration():
    # of 4 samples, best of 2: the score 2 wins 3 of 6 pairs, 0.3 (twice there) the other 3, -1 none
    chosen, share = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.5])
    by_hand = float((chosen * (chosen / share).log()).sum())
    assert float(best_of_n_kl(SCORES[0], 2)) == pytest.approx(by_hand)
    assert float(best_of_n_kl(torch.zeros(8), 4)) == pytest.approx(0, abs=1e-12)
    many = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    assert float(best_of_n_kl(many, 8)) == pytest.approx(best_of_n_kl_bound(8), abs=2e-3)
    assert float(best_of_n_kl(SCORES[1], 4)) == pytest.approx(math.log(4))


def test_pair_accuracy_counts_decided_pairs_and_halves_equal_scores():
    utility = torch.tensor([[1.0, 2.0, 3.0, 0.0, 2.0, 9.0]])
    score = torch.tensor([[0.0, 5.0, 1.0, 1.0, 7.0, 1.0]])
    # pairs (first, fourth) 1 > 0 but 0 < 1: wrong; (second, fifth) no difference; (third, sixth) 3 < 9, equal scores
    assert StartScores(utility, score).truth_accuracy() == pytest.approx((0 + 0.5) / 2)


def test_gains_are_over_the_start_of_the_same_prompts_in_its_deviations():
    utility = torch.arange(40, dtype=torch.float64).view(20, 2)
    start = StartScores(utility, 10 * utility)
    gains = to_gains(utility.mean(1) + 3, 10 * utility.mean(1) - 1, start)
    assert gains["truth"] == pytest.approx([3 / float(utility.std())] * PROMPT_GROUPS, abs=1e-5)
    assert gains["proxy"] == pytest.approx([-0.1 / float(utility.std())] * PROMPT_GROUPS, abs=1e-5)
