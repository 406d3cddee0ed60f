"""p-values against enumeration and against equal models, in the tail that Holm's correction reads."""

from itertools import product

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from instructgpt.statistics import clustered, significance
from instructgpt.statistics.pair_judgments import LabelerRanking
from instructgpt.statistics.win_rate import compute_win_rates


@pytest.mark.parametrize("sums", [(1, 1, 1, 1, -1), (0.5, -2, 3, 3, 0, 1.5), (1, 2, 4, 8), (0.3, -1.7, 2.2, 0.9)])
def test_sign_flips_by_enumeration(sums):
    observed = abs(sum(sums))
    totals = [abs(np.dot(signs, sums)) for signs in product((-1, 1), repeat=len(sums))]
    expected = np.mean([total >= observed - 1e-9 for total in totals])
    assert significance.sign_flip_p_value(np.array(sums, dtype=float)) == pytest.approx(expected)


def test_sign_flips_of_single_votes_are_the_binomial_test():
    for wins, losses in ((9, 1), (10, 0), (0, 0), (130, 70)):
        expected = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
        assert significance.sign_flip_p_value(np.array([1.0] * wins + [-1.0] * losses)) == pytest.approx(expected)


def test_wild_bootstrap_by_its_definition():
    """Every combination of Webb's weights; the statistic from the rows anew each time, by its three jackknives."""
    rng = np.random.default_rng(0)
    prompt, labeler = (index.ravel() for index in np.indices((12, 3)))
    rows = rng.random(36) < 0.8  # not everybody judged everything
    prompt, labeler = np.unique(prompt[rows], return_inverse=True)[1], labeler[rows]
    won = rng.choice([0, 0.5, 1], len(prompt), p=[0.2, 0.2, 0.6]) + 0.1 * (labeler == 0)
    ones = np.ones(len(prompt))

    def statistic(excess):
        by_prompt, by_labeler, by_cell = (
            clustered.leave_one_out(clustered.residuals(excess, ones), ones, key, len(set(key)), len(key)).variance
            for key in (prompt, labeler, np.arange(len(prompt)))
        )
        return abs(excess.mean()) / np.sqrt(max(by_prompt, by_cell) + max(by_labeler - by_cell, 0))

    webb = [sign * np.sqrt(size) for size in (0.5, 1, 1.5) for sign in (-1, 1)]
    drawn = [statistic((won - 0.5) * np.array(weights)[labeler]) for weights in product(webb, repeat=3)]
    expected = np.mean(np.array(drawn) >= statistic(won - 0.5) - 1e-9)
    for keys in ((prompt, labeler), (labeler, prompt)):
        assert significance.wild_cluster_p_value(won - 0.5, ones, *keys) == pytest.approx(expected)


def test_holm_is_that_of_statsmodels():
    p = [0.04, 0.001, 0.3, 0.012, 0.9]
    assert significance.holm_correction(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert significance.holm_correction([None, 0.03, None]) == [None, 0.03, None]


def judged(rng, prompts, labelers, models, labeler_sd):
    """Rankings of equal models; labelers lean to some of them."""
    leaning = labeler_sd * rng.normal(size=(labelers, models))
    worth = leaning + rng.normal(size=(prompts, 1, models)) + rng.gumbel(size=(prompts, labelers, models))
    ranks = (np.argsort(np.argsort(-worth)) + 1).tolist()
    names = tuple(f"m{index}" for index in range(models))
    return [LabelerRanking(p, q, names, ranks[p][q], names) for p in range(prompts) for q in range(labelers)]


@pytest.mark.parametrize(("prompts", "labelers", "labeler_sd"), [(10, 1, 0), (40, 1, 0), (40, 3, 0.7)])
def test_six_equal_models_are_told_apart_as_often_as_holm_allows(prompts, labelers, labeler_sd):
    """At most 5 % of tables have a false difference (a t-test: 22.8, 10.5 % with one judge); Monte Carlo error 1.5."""
    rng = np.random.default_rng(1)
    tables = 200
    false = sum(
        min(row.holm for row in compute_win_rates(judged(rng, prompts, labelers, 6, labeler_sd))) < 0.05
        for _ in range(tables)
    )
    assert false / tables <= 0.06 + 0.015


def test_unanimity_counts_as_much_as_its_scarcer_clusters():
    def rankings(prompts, labelers):
        return [LabelerRanking(p, q, "ab", (1, 2), ("a", "b")) for p in range(prompts) for q in range(labelers)]

    p = {design: compute_win_rates(rankings(*design), "b")[0].p for design in ((1, 8), (10, 1), (10, 2), (10, 5))}
    assert p[1, 8] is None  # one prompt
    assert p[10, 1] == pytest.approx(2 / 2**10)
    assert p[10, 2] == pytest.approx(1 / 6)
    assert p[10, 5] == pytest.approx(6 / 6**5)


def test_benjamini_hochberg_is_scipy_s():
    rng = np.random.default_rng(0)
    for count in (1, 2, 7, 40):
        p_values = (rng.random(count) ** 3).tolist()
        p_values[-1] = p_values[0]  # ties
        expected = stats.false_discovery_control(p_values)
        assert significance.benjamini_hochberg_correction(p_values) == pytest.approx(expected.tolist())
    assert significance.benjamini_hochberg_correction([]) == []
