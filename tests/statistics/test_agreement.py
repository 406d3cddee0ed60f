"""Agreement of labelers: by hand, by slow definitions, beside scipy and evalica, with disagreement that was planted."""

from itertools import combinations

import evalica
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from instructgpt.records import Ranking
from instructgpt.statistics import agreement
from instructgpt.statistics.pair_judgments import LabelerRanking, inter_labeler_cells, pair_judgments
from instructgpt.statistics.shrinkage import beta_binomial_shrinkage


def random_rankings(seed=0, prompts=12, people=5, gaps=True):
    """Prompts of unlike length, labelers who rank some of them, some completions not shown to all,
    some tasks done twice.
    """
    rng = np.random.default_rng(seed)
    made = []
    for prompt in range(prompts):
        k = int(rng.integers(3, 7))
        for person in rng.permutation(people)[: rng.integers(1, people + 1)]:
            for _ in range(1 + (rng.random() < 0.2)):
                shown = rng.permutation(k)[: k - int(gaps and rng.random() < 0.3)]
                made.append(
                    LabelerRanking(
                        f"p{prompt}", f"l{person}", [f"c{c}" for c in shown], rng.integers(1, 5, len(shown)).tolist()
                    )
                )
    return made


def sign(number):
    return (number > 0) - (number < 0)


def slow_cells(rankings):
    """(prompt, two labelers) -> alike, opposite, first tied, second tied, both tied: every pair of answers,
    one after the other.
    """
    answers = {}
    for ranking in rankings:
        ranks = dict(zip(ranking.completions, ranking.ranks, strict=True))
        for a, b in combinations(sorted(ranks), 2):
            answers.setdefault((ranking.prompt, a, b), {}).setdefault(ranking.labeler, []).append(
                sign(ranks[b] - ranks[a])
            )
    counts = {}
    for (prompt, _, _), by_person in answers.items():
        for one, other in combinations(sorted(by_person), 2):
            for x, y in zip(by_person[one], by_person[other], strict=False):
                row = counts.setdefault((prompt, one, other), [0] * 5)
                row[4 if not x and not y else 2 if not x else 3 if not y else 0 if x == y else 1] += 1
    return counts


@pytest.mark.parametrize("seed", range(6))
def test_cells_are_those_of_the_slow_definition(seed):
    rankings = random_rankings(seed)
    given = pair_judgments(rankings)
    cells = inter_labeler_cells(given)
    prompts = list(dict.fromkeys(ranking.prompt for ranking in rankings))
    found = {}
    for prompt, first, second, *counts in zip(
        cells.prompt,
        cells.first,
        cells.second,
        cells.concordant,
        cells.discordant,
        cells.first_tied,
        cells.second_tied,
        cells.both_tied,
        strict=True,
    ):
        one, other = given.labelers[first], given.labelers[second]
        if one > other:
            one, other, counts[2], counts[3] = other, one, counts[3], counts[2]
        row = found.setdefault((prompts[prompt], one, other), np.zeros(5))
        row += counts
    slow = slow_cells(rankings)
    assert found.keys() == slow.keys()
    for key, row in slow.items():
        assert found[key].tolist() == row, key


def test_three_tie_rules_by_hand():
    one = LabelerRanking("p", "x", "abc", (1, 2, 3))
    other = LabelerRanking("p", "y", "abc", (1, 1, 2))  # ab tied; ac, bc as the first has them
    third = LabelerRanking("p", "z", "abc", (2, 2, 1))  # ab tied; ac, bc the other way round
    # x-y: tied by one, alike, alike.  x-z: tied by one, opposite, opposite.  y-z: tied by both, opposite, opposite
    found = agreement.inter_labeler_agreement([one, other, third])
    assert (found.concordant, found.discordant, found.one_tied, found.both_tied) == (2, 4, 2, 1)
    assert found.decided.value == pytest.approx(2 / 6)
    assert found.three_way.value == pytest.approx(3 / 9)
    assert found.half_credit.value == pytest.approx((3 + 2 / 2) / 9)
    assert found.tie_rate.value == pytest.approx((2 * 1 + 1 * 2) / 18)
    assert (found.decided.n, found.three_way.n) == (6, 9)


def test_records_and_ids_give_the_same():
    rankings = random_rankings(3)
    texts = {c: f"completion {c}" for c in ("c0", "c1", "c2", "c3", "c4", "c5")}
    records = [
        Ranking(prompt=r.prompt, labeler=r.labeler, completions=tuple(texts[c] for c in r.completions), ranks=r.ranks)
        for r in rankings
    ]
    assert agreement.inter_labeler_agreement(records) == agreement.inter_labeler_agreement(rankings)
    without = [*rankings, LabelerRanking("p0", None, ("c0", "c1"), (1, 2))]
    assert agreement.inter_labeler_agreement(without) == agreement.inter_labeler_agreement(rankings)


def test_nothing_shared_is_nothing_measured():
    for rankings in (
        [],
        [LabelerRanking("p", "x", "ab", (1, 2))],
        [LabelerRanking("p", "x", "ab", (1, 2)), LabelerRanking("q", "y", "ab", (1, 2))],
    ):
        found = agreement.inter_labeler_agreement(rankings)
        assert found.decided.value is None
        assert found.concordant == found.discordant == 0
        cells = agreement.compare_labelers(rankings)
        assert agreement.agreement_by_labeler(cells) == []
        assert agreement.kendall_tau(cells).value is None
        assert agreement.concordance(rankings).w.value is None
        assert agreement.intra_labeler_agreement(rankings) == {}
        assert agreement.gold_agreement(rankings, []) == {}
        assert agreement.pairwise_alpha(rankings).value is None
    tied = [LabelerRanking("p", person, "ab", (1, 1)) for person in "xy"]
    assert agreement.inter_labeler_agreement(tied).decided.value is None
    assert agreement.inter_labeler_agreement(tied).three_way.value == 1


def test_labelers_matrix_by_slow_definition():
    rankings = random_rankings(1)
    cells = agreement.compare_labelers(rankings)
    table = agreement.agreement_matrix(cells)
    alike, decided = {}, {}
    for (_, one, other), (a, o, *_) in slow_cells(rankings).items():
        for key in ((one, other), (other, one)):
            alike[key], decided[key] = alike.get(key, 0) + a, decided.get(key, 0) + a + o
    for i, one in enumerate(table.labelers):
        for j, other in enumerate(table.labelers):
            assert table.shared[i, j] == decided.get((one, other), 0)
            if table.shared[i, j]:
                assert table.share[i, j] == pytest.approx(alike[one, other] / decided[one, other])
            else:
                assert np.isnan(table.share[i, j])
    rows = {row.labeler: row for row in agreement.agreement_by_labeler(cells)}
    for i, one in enumerate(table.labelers):
        assert rows[one].shared == table.shared[i].sum()
        assert rows[one].share == pytest.approx(np.nansum(table.share[i] * table.shared[i]) / table.shared[i].sum())


def crowd(noise, prompts=150, per_prompt=3, k=5, seed=0):
    """Labelers with a slip of their own size each, on completions of known worth; ids of prompts and people."""
    rng = np.random.default_rng(seed)
    made = []
    for prompt in range(prompts):
        worth = rng.normal(size=k)
        for person in rng.choice(len(noise), per_prompt, replace=False):
            ranks = stats.rankdata(-(worth + noise[person] * rng.normal(size=k)))
            made.append(LabelerRanking(prompt, int(person), range(k), ranks.tolist()))
    return made


def test_who_answers_at_random_or_upside_down_stands_out():
    noise = np.full(12, 0.5)
    noise[4] = 50
    rankings = [
        LabelerRanking(r.prompt, r.labeler, r.completions, [-rank for rank in r.ranks]) if r.labeler == 7 else r
        for r in crowd(noise, prompts=300)
    ]
    rows = agreement.agreement_by_labeler(agreement.compare_labelers(rankings))
    assert [row.labeler for row in rows[:2]] == [7, 4]
    assert rows[0].shrunk.high < 0.4
    assert rows[1].shrunk.high < 0.6
    assert rows[2].shrunk.low > 0.6
    gold = {
        r.prompt: r for r in crowd(np.zeros(1), prompts=300, per_prompt=1)
    }  # other worths: a gold that nobody agrees with
    assert agreement.gold_agreement(rankings, list(gold.values()))[None].decided.value == pytest.approx(0.5, abs=0.06)


def test_shrunk_shares_are_those_of_a_fine_grid():
    """The same model by brute force: every prior of a fine grid, scipy's beta-binomial likelihood,
    a mixture of beta distributions.
    """
    rng = np.random.default_rng(2)
    n = rng.integers(5, 120, 20)
    alike = rng.binomial(n, rng.beta(14, 6, 20))
    shrinkage = (np.arange(60) + 0.5) / 60
    priors = [(m * s, (1 - m) * s) for s in n.mean() * shrinkage / (1 - shrinkage) for m in np.linspace(0.5, 0.9, 60)]
    a, b = np.array(priors).T[:, :, None]
    likelihood = stats.betabinom.logpmf(alike, n, a, b).sum(1)
    chance = np.exp(likelihood - likelihood.max())[:, None] / np.exp(likelihood - likelihood.max()).sum()
    for person, estimate in enumerate(beta_binomial_shrinkage(alike.astype(float), n.astype(float))):
        x, y = alike[person], n[person] - alike[person]
        assert estimate.value == pytest.approx((chance * (a + x) / (a + b + n[person])).sum(), abs=0.004)
        for end, level in ((estimate.low, 0.025), (estimate.high, 0.975)):
            assert (chance * stats.beta.cdf(end, a + x, b + y)).sum() == pytest.approx(level, abs=0.01)


@pytest.mark.parametrize("prior", [(14, 6), (60, 25)])
def test_shrunk_intervals_hold_the_long_run_share(prior):
    """Of 25 labelers a time, 40 times, who differ much or little: 93 to 97 %, give or take 1.5 %."""
    rng = np.random.default_rng(3)
    held, error, plain = [], [], []
    for _ in range(40):
        truth = rng.beta(*prior, 25)
        n = rng.integers(10, 80, 25)
        x = rng.binomial(n, truth)
        found = beta_binomial_shrinkage(x.astype(float), n.astype(float))
        held += [each.low <= share <= each.high for each, share in zip(found, truth, strict=True)]
        error += [(each.value - share) ** 2 for each, share in zip(found, truth, strict=True)]
        plain += ((x / n - truth) ** 2).tolist()
    assert np.mean(held) == pytest.approx(0.95, abs=0.02 + 0.015)
    assert np.mean(error) < 0.75 * np.mean(plain)


def test_shrinking_where_all_are_alike():
    found = beta_binomial_shrinkage(np.array([5.0, 40.0]), np.array([5.0, 40.0]))
    assert all(0.5 < each.low < each.value < 1 for each in found)
    assert found[1].low > found[0].low


def test_gold_by_hand():
    gold = [
        LabelerRanking("p", None, "abc", (1, 2, 3)),
        LabelerRanking("q", "boss", "ab", (1, 1)),
        LabelerRanking("p", "late", "abc", (3, 2, 1)),
    ]
    rankings = [
        LabelerRanking("p", "x", "cba", (3, 2, 1)),  # as gold
        LabelerRanking("p", "y", "abc", (1, 1, 2)),  # ab tied
        LabelerRanking("p", "y", "abc", (3, 2, 1)),  # a repeat: not compared
        LabelerRanking("q", "y", "ab", (2, 1)),  # where gold ties
    ]
    found = agreement.gold_agreement(rankings, gold)
    assert found["x"].decided.value == 1
    assert (found["y"].concordant, found["y"].discordant, found["y"].one_tied) == (2, 0, 2)
    assert found["y"].three_way.value == pytest.approx(2 / 4)
    assert found[None].decided.n == 5


def test_oneself_by_hand():
    rankings = [
        LabelerRanking("p", "x", "abc", (1, 2, 3)),
        LabelerRanking("p", "y", "abc", (3, 2, 1)),
        LabelerRanking("p", "x", "abc", (2, 1, 3)),  # ab turned round
        LabelerRanking("q", "x", "ab", (1, 2)),
        LabelerRanking("q", "x", "ab", (1, 2)),
        LabelerRanking("q", "y", "ab", (1, 2)),
    ]
    found = agreement.intra_labeler_agreement(rankings)
    assert set(found) == {None, "x"}
    assert (found["x"].concordant, found["x"].discordant) == (3, 1)
    assert agreement.inter_labeler_agreement(rankings).concordant == 1  # the repeats are nobody else's turn


def test_tau_is_that_of_scipy():
    rankings = random_rankings(5, prompts=30, gaps=False)
    firsts = {}
    for ranking in rankings:
        firsts.setdefault((ranking.prompt, ranking.labeler), ranking)
    taus = []
    for (prompt, one), (other_prompt, other) in combinations(sorted(firsts), 2):
        if prompt == other_prompt:
            tables = [
                dict(zip(firsts[prompt, each].completions, firsts[prompt, each].ranks, strict=True))
                for each in (one, other)
            ]
            tau = stats.kendalltau(*([table[c] for c in sorted(table)] for table in tables)).statistic
            taus += [] if np.isnan(tau) else [tau]
    found = agreement.kendall_tau(agreement.compare_labelers(list(firsts.values())))
    assert found.value == pytest.approx(np.mean(taus))
    assert found.n == len(taus)
    assert found.low < found.value < found.high


def test_w_is_friedman_s_chi_square():
    rng = np.random.default_rng(6)
    rankings, expected = [], []
    for prompt, (people, k) in enumerate([(3, 4), (3, 4), (5, 6), (4, 3)]):
        table = rng.integers(1, 4, size=(people, k))
        rankings += [LabelerRanking(prompt, person, range(k), row.tolist()) for person, row in enumerate(table)]
        expected.append(stats.friedmanchisquare(*table.T).statistic / (people * (k - 1)))
    found = agreement.concordance([*rankings, LabelerRanking("alone", 0, range(3), (1, 2, 3))])
    assert found.w.value == pytest.approx(np.mean(expected))
    assert found.by_chance == pytest.approx(np.mean([1 / 3, 1 / 3, 1 / 5, 1 / 4]))


def test_alpha_of_pairs_is_evalica_s():
    rankings = [
        LabelerRanking(r.prompt, r.labeler, r.completions, np.ceil(np.array(r.ranks) / 2).tolist())
        for r in crowd(np.full(6, 1.0), prompts=40)
    ]
    given = pair_judgments(rankings)
    wide = np.full((6, int(given.pair.max()) + 1), np.nan)
    wide[given.labeler, given.pair] = given.sign
    found = agreement.pairwise_alpha(rankings)
    assert found.value == pytest.approx(evalica.alpha(pd.DataFrame(wide), "nominal").alpha)
    assert found.low < found.value < found.high


def test_alpha_without_ties_is_twice_the_agreement_less_one():
    rankings = crowd(np.full(6, 1.0), prompts=300)
    share = agreement.inter_labeler_agreement(rankings).decided.value
    assert agreement.pairwise_alpha(rankings).value == pytest.approx(2 * share - 1, abs=0.01)
