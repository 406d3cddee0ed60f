"""How labelers work: p-values beside scipy, false alarms at their rate, planted habits found."""

from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from instructgpt.statistics.labeler_bias import PresentedRanking, labeler_reports, measure_position_bias
from instructgpt.statistics.shrinkage import predictive_p_value


def test_without_ties_it_is_pearson_s_chi_square():
    rng = np.random.default_rng(0)
    rankings = [rng.permutation(4) for _ in range(60)]
    first = np.bincount([int(np.argmin(ranks)) for ranks in rankings], minlength=4)
    found = measure_position_bias(rankings)
    expected = stats.chisquare(first)
    assert found.first == tuple(first)
    assert (found.chi_square, found.p) == pytest.approx((expected.statistic, expected.pvalue))


def test_with_ties_and_several_k_by_enumeration():
    """The covariance is that of all orders of each ranking, one after the other."""
    kinds = [(1, 1, 2), (1, 2, 3, 4), (1, 1, 1, 2), (1, 2, 2)]
    rng = np.random.default_rng(1)
    rankings = [tuple(rng.permutation(kinds[i % 4]).tolist()) for i in range(80)]
    covariance, expected, seen = np.zeros((4, 4)), np.zeros(4), np.zeros(4)

    def credit(ranks):
        best = np.array([rank == min(ranks) for rank in ranks] + [False] * (4 - len(ranks)))
        return best / best.sum()

    for ranks in rankings:
        table = np.array([credit(order) for order in permutations(ranks)])
        covariance += np.cov(table.T, bias=True)
        expected += table.mean(0)
        seen += credit(ranks)
    gap = (seen - expected)[:3]
    found = measure_position_bias(rankings)
    assert found.expected == pytest.approx(expected)
    assert found.chi_square == pytest.approx(gap @ np.linalg.inv(covariance[:3, :3]) @ gap)
    assert found.p == pytest.approx(stats.chi2.sf(found.chi_square, 3))


def test_too_few_rankings_have_no_p():
    assert measure_position_bias([(1, 2, 3)] * 4).p is None
    assert measure_position_bias([(1, 2, 3)] * 15).p == pytest.approx(stats.chisquare([15, 0, 0]).pvalue)
    assert measure_position_bias([(1, 2, 3)] * 5).p is None  # each place expects 1.7
    assert measure_position_bias([(1, 2, 3)] * 9).p == pytest.approx(stats.chisquare([9, 0, 0]).pvalue)
    mixed = measure_position_bias(
        [(1, 2)] * 8 + [(1, 2, 3)] * 5
    )  # the third place expects 1.7: it counts with the second
    assert mixed.p == pytest.approx(stats.norm.sf((13 - 4 - 5 / 3) / np.sqrt(8 * 1 / 4 + 5 * 2 / 9)) * 2)
    assert measure_position_bias([(1, 1)] * 50).p is None
    assert measure_position_bias([]).p is None


def test_false_alarms_come_at_their_rate():
    rng = np.random.default_rng(2)
    p = [measure_position_bias([rng.permutation(k) for k in rng.integers(3, 6, 80)]).p for _ in range(400)]
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.03)
    assert stats.kstest(p, "uniform").pvalue > 0.001


def work(rng, labeler, count=60, tie=0.1, slow=1.0, lazy=0.0, same=0.05, first=0.0):
    made = []
    for _ in range(count):
        k = int(rng.integers(4, 7))
        worth = rng.normal(size=k) + first * (np.arange(k) == 0)
        ranks = stats.rankdata(-np.round(worth / tie) if tie else -worth, method="dense")
        if rng.random() < lazy:
            ranks = np.arange(1, k + 1)
        ratings = [4] * k if rng.random() < same else rng.permutation(7)[:k].tolist()
        made.append(PresentedRanking(labeler, ranks.tolist(), ratings, float(k * slow * rng.lognormal(3, 0.4))))
    return made


def test_planted_habits_are_found_and_nobody_else():
    rng = np.random.default_rng(3)
    usual = {f"l{i}": {"slow": float(rng.lognormal(0, 0.15))} for i in range(14)}
    odd = {
        "ties": {"tie": 1.0},
        "lazy": {"lazy": 0.3},
        "same": {"same": 0.6},
        "quick": {"slow": 0.1},
        "top": {"first": 2.0},
    }
    everything = [shown for name, how in (usual | odd).items() for shown in work(rng, name, **how)]
    found = {report.labeler: report for report in labeler_reports(everything)}
    columns = ("position", "ties", "all_tied", "same_rating", "as_shown", "hurried", "pace")
    habits = {name: {column for column in columns if (getattr(r, column).p or 1) < 0.01} for name, r in found.items()}
    assert not {name: seen for name, seen in habits.items() if name in usual and seen}
    assert "ties" in habits["ties"]
    assert "as_shown" in habits["lazy"]
    assert habits["same"] == {"same_rating"}
    assert habits["quick"] >= {"hurried", "pace"}
    assert habits["top"] == {"position"}
    assert found["quick"].pace.share == pytest.approx(0.1, rel=0.3)
    assert found["l0"].rankings == 60


def test_one_more_of_the_others_by_a_fine_grid():
    """The chance of a count in a beta-binomial whose parameters are integrated over, by scipy's own."""
    rng = np.random.default_rng(4)
    n = rng.integers(20, 80, 12)
    yes = rng.binomial(n, rng.beta(2, 18, 12))
    shrinkage = (np.arange(60) + 0.5) / 60
    priors = [(m * s, (1 - m) * s) for s in n.mean() * shrinkage / (1 - shrinkage) for m in np.linspace(0.01, 0.4, 80)]
    a, b = np.array(priors).T[:, :, None]
    likelihood = stats.betabinom.logpmf(yes, n, a, b).sum(1)
    chance = np.exp(likelihood - likelihood.max()) / np.exp(likelihood - likelihood.max()).sum()
    for count in (0, 4, 12, 30):
        tails = [
            (chance * tail).sum()
            for tail in (
                stats.betabinom.cdf(count, 40, a[:, 0], b[:, 0]),
                stats.betabinom.sf(count - 1, 40, a[:, 0], b[:, 0]),
            )
        ]
        expected = min(1, 2 * min(tails))
        assert predictive_p_value(count, 40, yes.astype(float), n.astype(float)) == pytest.approx(
            expected, rel=0.1, abs=2e-3
        )


def test_ties_are_read_against_the_spread_of_the_others():
    rng = np.random.default_rng(5)
    shown = [one for name in "abcdef" for one in work(rng, name, 50, tie=0.2 + 0.2 * (name == "f"))]
    reports = labeler_reports(shown)

    def tie_share(ranks):
        pairs = [(x, y) for i, x in enumerate(ranks) for y in ranks[:i]]
        return np.mean([x == y for x, y in pairs])

    means = [np.mean([tie_share(each.ranks) for each in shown if each.labeler == name]) for name in "abcdef"]
    assert [each.ties.share for each in reports] == pytest.approx(means)
    scale = np.arcsin(np.sqrt(means))
    distance = abs(scale[5] - scale[:5].mean()) / (scale[:5].std(ddof=1) * np.sqrt(1 + 1 / 5))
    assert 2 * stats.t.sf(distance, 4) <= (reports[5].ties.p or 0) <= 1
    few = labeler_reports([one for one in shown if one.labeler in "abc"])
    assert all(each.ties.p is None for each in few)  # two others do not say how much labelers differ


def test_labelers_who_differ_as_people_do_are_not_flagged():
    """Widths of ties by 30 %, paces by 30 %: tests of "exactly like the others" flag 77 of 100 such batches."""
    rng = np.random.default_rng(6)
    flagged, batches = 0, 40
    for _ in range(batches):
        habits = [(0.3 * rng.lognormal(0, 0.3), rng.lognormal(0, 0.3)) for _ in range(8)]
        shown = [one for name, (tie, slow) in enumerate(habits) for one in work(rng, name, 50, tie=tie, slow=slow)]
        tests = [getattr(r, name) for r in labeler_reports(shown) for name in ("ties", "hurried", "pace", "all_tied")]
        flagged += any(test.p is not None and test.p < 0.05 for test in tests)
    assert flagged <= 0.1 * batches


def test_few_rankings_of_many_completions_have_a_p():
    rng = np.random.default_rng(7)
    p = [measure_position_bias([rng.permutation(9).tolist() for _ in range(40)]).p for _ in range(400)]
    assert None not in p
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.03)
    assert measure_position_bias([[1, *range(2, 10)] for _ in range(8)]).p < 0.001


def test_order_shown_by_enumeration():
    """Three rankings, of which two stand as shown: the chance of two or more, from the orders of each."""
    rankings = [(1, 2, 3), (1, 1, 2), (2, 1)]
    chances = [np.mean([list(order) == sorted(order) for order in permutations(ranks)]) for ranks in rankings]
    assert chances == pytest.approx([1 / 6, 1 / 3, 1 / 2])
    exact = sum(
        np.prod([c if hit else 1 - c for c, hit in zip(chances, hits, strict=True)])
        for hits in np.ndindex(2, 2, 2)
        if sum(hits) >= 2
    )
    (report,) = labeler_reports([PresentedRanking("x", ranks) for ranks in [*rankings, (1, 1, 1)]])
    assert report.as_shown.share == pytest.approx(2 / 3)
    assert report.as_shown.baseline == pytest.approx(np.mean(chances))
    assert report.as_shown.p == pytest.approx(exact)
    assert report.pace.share is None
    assert report.same_rating.share is None
    assert labeler_reports([]) == []
