"""Win rates and Bradley-Terry strengths: by hand, beside scipy, statsmodels and evalica."""

import evalica
import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from instructgpt.errors import InputError
from instructgpt.records import Ranking
from instructgpt.statistics import bradley_terry, win_rate
from instructgpt.statistics.clustered import ratio_uncertainty
from instructgpt.statistics.pair_judgments import LabelerRanking


def ranking(prompt, labeler, *ranks, models=("sft", "ppo", "base"), completions=None):
    return LabelerRanking(prompt, labeler, completions or tuple(range(len(ranks))), ranks, models)


def test_win_rates_by_hand():
    rankings = [
        ranking("p", "x", 2, 1, 3),
        ranking("p", "y", 1, 1, 3),
        ranking("q", "x", 1, 2, 3),
        ranking("r", "y", 2, 1, 3, completions=("same", "same", "other")),  # equal texts tie whatever their ranks
        Ranking(
            prompt="s",
            labeler="x",
            completions=("a", "b", "c", "d"),
            ranks=(1, 2, 2, 3),
            models=("ppo", "ppo", "sft", "base"),
        ),
    ]
    ppo, base = win_rate.compute_win_rates(rankings, "sft")
    assert (ppo.model, ppo.wins, ppo.ties, ppo.losses) == ("ppo", 2, 3, 1)
    assert ppo.rate.value == pytest.approx(3.5 / 6)
    assert ppo.rate.n == 6
    assert (base.model, base.wins, base.losses, base.rate.value) == ("base", 0, 5, 0)
    assert 0 < base.rate.high < 1
    assert base.p == pytest.approx(1 / 6)  # all one way, but two labelers can say no more
    assert base.holm == pytest.approx(2 * base.p)
    assert ppo.sign == stats.binomtest(2, 3).pvalue  # prompts p and s for it, q against, r undecided
    every = win_rate.compute_win_rates(rankings)
    assert {frozenset((row.model, row.opponent)) for row in every} == {
        frozenset(pair) for pair in (("sft", "ppo"), ("sft", "base"), ("ppo", "base"))
    }


def test_ratings_are_read_as_ranks():
    rated = LabelerRanking.from_ratings("p", "x", ("a", "b", "c"), (7, 3, 7), ("sft", "base", "ppo"))
    (row,) = (row for row in win_rate.compute_win_rates([rated], "sft") if row.model == "base")
    assert (row.losses, row.rate.value, row.rate.low) == (1, 0, None)  # one prompt has no interval
    assert next(row for row in win_rate.compute_win_rates([rated], "sft") if row.model == "ppo").ties == 1


def test_groups_have_rows_of_their_own_and_one_holm():
    rng = np.random.default_rng(0)
    rankings = [ranking(f"p{i}", f"l{i % 7}", *rng.permutation(3).tolist()) for i in range(60)]
    groups = ["chat" if i % 2 else "extract" if i % 3 else None for i in range(60)]
    rows = win_rate.compute_win_rates(rankings, "sft", groups)
    assert {(row.group, row.model) for row in rows} == {(g, m) for g in ("chat", "extract") for m in ("ppo", "base")}
    for group in ("chat", "extract"):
        alone = win_rate.compute_win_rates([r for r, g in zip(rankings, groups, strict=True) if g == group], "sft")
        assert [row.rate for row in rows if row.group == group] == [row.rate for row in alone]
    smallest = min(rows, key=lambda row: row.p)
    assert smallest.holm == pytest.approx(min(1, 4 * smallest.p))
    with pytest.raises(ValueError, match="60 rankings, but 1 groups"):
        win_rate.compute_win_rates(rankings, "sft", ["chat"])


def test_what_cannot_be_compared_is_said():
    with pytest.raises(InputError, match="'p' does not name its models"):
        win_rate.compute_win_rates([LabelerRanking("p", "x", "ab", (1, 2))], "sft")
    with pytest.raises(InputError, match="baseline 'gpt'; there are: base, ppo, sft"):
        win_rate.compute_win_rates([ranking("p", "x", 1, 2, 3)], "gpt")
    assert win_rate.compute_win_rates([]) == []
    assert win_rate.compute_win_rates([ranking("p", "x", 1, 2, models=("a", "a"))]) == []


def test_length_controlled_rate_is_that_of_statsmodels():
    rng = np.random.default_rng(1)
    rankings, y, gap = [], [], []
    for i in range(400):
        lengths = rng.integers(10, 200, 2)
        chance = 1 / (1 + np.exp(-0.4 - 0.02 * (lengths[0] - lengths[1])))
        ranks = (1, 1) if rng.random() < 0.1 else (1, 2) if rng.random() < chance else (2, 1)
        rankings.append(
            LabelerRanking(f"p{i // 2}", f"l{rng.integers(15)}", tuple(lengths.tolist()), ranks, ("ppo", "sft"))
        )
        y.append(0.5 if ranks == (1, 1) or lengths[0] == lengths[1] else float(ranks == (1, 2)))
        gap.append(lengths[0] - lengths[1])
    found = win_rate.length_controlled_win_rates(rankings, "sft", lambda each: each.completions)["ppo"]
    x = sm.add_constant(np.tanh(np.array(gap) / np.std(gap)))
    fitted = sm.GLM(np.array(y), x, family=sm.families.Binomial()).fit()
    assert found.value == pytest.approx(1 / (1 + np.exp(-fitted.params[0])))
    keys = np.array([[int(r.prompt[1:]), int(r.labeler[1:])] for r in rankings])
    clustered = sm.GLM(np.array(y), x, family=sm.families.Binomial()).fit(
        cov_type="cluster", cov_kwds={"groups": keys, "use_correction": False}
    )
    half = (np.log(found.high / (1 - found.high)) - np.log(found.low / (1 - found.low))) / 2
    assert half / stats.t.ppf(0.975, 60) == pytest.approx(clustered.bse[0], rel=0.08)  # other small-sample corrections


def test_length_control_takes_length_away():
    """Labelers who only like length: the plain rate is high, the controlled one a half.

    Equal lengths: both are the same.
    """
    rng = np.random.default_rng(2)
    rankings = []
    for i in range(800):
        lengths = (int(rng.integers(50, 250)), int(rng.integers(10, 200)))
        first = rng.random() < 1 / (1 + np.exp(-3 * np.tanh((lengths[0] - lengths[1]) / 90)))
        rankings.append(LabelerRanking(i, i % 20, (f"a{i}", f"b{i}"), (1, 2) if first else (2, 1), ("ppo", "sft")))
        rankings[-1] = (rankings[-1], lengths)
    lengths_of = {id(r): lengths for r, lengths in rankings}
    plain = win_rate.compute_win_rates([r for r, _ in rankings], "sft")[0].rate
    controlled = win_rate.length_controlled_win_rates([r for r, _ in rankings], "sft", lambda r: lengths_of[id(r)])[
        "ppo"
    ]
    assert plain.low > 0.6
    assert controlled.low < 0.5 < controlled.high
    same = win_rate.length_controlled_win_rates([r for r, _ in rankings], "sft", lambda _: (1, 1))["ppo"]
    assert same.value == pytest.approx(plain.value)
    always = [LabelerRanking(i, 0, (f"a{i}", f"b{i}"), (1, 2), ("ppo", "sft")) for i in range(20)]
    assert win_rate.length_controlled_win_rates(always, "sft", lambda _: (1, 1))["ppo"].value is None, (
        "every comparison goes one way"
    )
    longer = [lengths_of[id(r)] for r, _ in rankings if lengths_of[id(r)][0] > lengths_of[id(r)][1]]
    ahead = [r for r, lengths in rankings if lengths in longer]
    assert win_rate.length_controlled_win_rates(ahead, "sft", lambda r: lengths_of[id(r)])["ppo"].value is None, (
        "equal length was never seen"
    )


def tournament(seed=0, models=5, prompts=120, ties=0.2):
    rng = np.random.default_rng(seed)
    strength = np.linspace(1, -1, models)
    made = []
    for prompt in range(prompts):
        shown = rng.permutation(models)[: rng.integers(2, models + 1)]
        ranks = stats.rankdata(-(strength[shown] + rng.gumbel(size=len(shown))), method="dense")
        ranks = np.where(rng.random(len(shown)) < ties, np.maximum(ranks - 1, 1), ranks)
        made.append(
            LabelerRanking(
                prompt, int(rng.integers(12)), tuple(shown.tolist()), ranks.tolist(), tuple(f"m{m}" for m in shown)
            )
        )
    return made


def test_strengths_are_evalica_s():
    rankings = tournament()
    table = win_rate.comparisons(rankings)
    winners = [{1.0: evalica.Winner.X, 0.0: evalica.Winner.Y, 0.5: evalica.Winner.Draw}[won] for won in table.won]
    theirs = evalica.bradley_terry(
        [table.models[i] for i in table.first],
        [table.models[i] for i in table.second],
        winners,
        tolerance=1e-12,
        limit=10_000,
    ).scores
    logs = 400 / np.log(10) * (np.log(theirs) - np.log(theirs).mean())
    ours = bradley_terry.estimate_strengths(rankings)
    assert {row.model: row.strength.value for row in ours} == pytest.approx(logs.to_dict(), abs=0.01)
    assert sum(row.wins for row in ours) == len(table.won)
    assert sum(row.comparisons for row in ours) == 2 * len(table.won)


def test_two_models_by_hand():
    """Three wins of four: odds of 3 to 1, log10(3) · 400 points apart."""
    rankings = [LabelerRanking(i, i % 3, "ab", (1, 2) if i % 4 else (2, 1), ("a", "b")) for i in range(40)]
    a, b = bradley_terry.estimate_strengths(rankings, anchor="b")
    assert (a.model, b.strength.value, b.strength.low, b.strength.high) == ("a", 0, 0, 0)
    assert a.strength.value == pytest.approx(400 * np.log10(3), abs=0.01)
    assert a.strength.low < a.strength.value < a.strength.high
    centred = bradley_terry.estimate_strengths(rankings)
    assert [row.strength.value for row in centred] == pytest.approx([200 * np.log10(3), -200 * np.log10(3)], abs=0.01)


def test_what_never_met_and_what_only_won_is_not_put_on_a_scale():
    def pair(i, winner, loser):
        return LabelerRanking(i, i % 4, "ab", (1, 2), (winner, loser))

    met = [pair(i, *("ab" if i % 3 else "ba")) for i in range(30)]
    apart = [pair(i, *("xy" if i % 2 else "yx")) for i in range(30)]
    champion = [pair(i, "z", "a") for i in range(5)]
    rows = {row.model: row for row in bradley_terry.estimate_strengths(met + apart + champion)}
    assert rows["a"].part == rows["b"].part != rows["x"].part == rows["y"].part
    assert rows["z"].part not in (rows["a"].part, rows["x"].part)
    assert rows["z"].strength.value is None
    assert (rows["z"].wins, rows["z"].comparisons) == (5, 5)
    alone = {row.model: row for row in bradley_terry.estimate_strengths(met)}
    assert rows["a"].strength.value == pytest.approx(alone["a"].strength.value)
    frail = [pair(0, "a", "b"), pair(1, "b", "a"), pair(2, "a", "b")]
    found = bradley_terry.estimate_strengths(frail)
    assert found[0].strength.value == pytest.approx(200 * np.log10(2), abs=0.01)
    assert found[0].strength.low < 0 < found[0].strength.high
    assert bradley_terry.estimate_strengths([]) == []


def test_error_of_a_strength_is_that_of_logistic_regression():
    rankings = tournament(1, models=4, prompts=150, ties=0)
    table = win_rate.comparisons(rankings)
    x = np.zeros((len(table.won), 4))
    x[np.arange(len(x)), table.first], x[np.arange(len(x)), table.second] = 1, -1
    zero = table.models.index("m0")
    fitted = sm.GLM(table.won, np.delete(x, zero, 1), family=sm.families.Binomial()).fit(
        cov_type="cluster", cov_kwds={"groups": table.prompt, "use_correction": True}
    )
    wins = bradley_terry._win_matrix(table.first, table.second, table.won, 4)
    log = bradley_terry.fit_bradley_terry(wins[None])[0]
    alone = np.zeros_like(table.labeler)
    errors, counts, keys = bradley_terry._strength_errors(
        log, wins, table.first, table.second, table.won, table.prompt, alone, zero
    )
    ours = [np.sqrt(ratio_uncertainty(error, counts, keys[0]).variance) for error in errors.T]
    assert np.delete(ours, zero) == pytest.approx(fitted.bse, rel=0.02)
    assert np.delete(log - log[zero], zero) == pytest.approx(fitted.params, abs=1e-5)


def test_a_clear_winner_has_an_interval():
    """57 wins of 60: odds of 19, 511 points; logistic regression on the prompts says how sure."""
    rankings = [LabelerRanking(i, i % 6, "ab", (1, 2) if i % 20 else (2, 1), ("a", "b")) for i in range(60)]
    (strength,) = [row.strength for row in bradley_terry.estimate_strengths(rankings, "b") if row.model == "a"]
    assert strength.value == pytest.approx(400 * np.log10(19), abs=0.01)
    assert 0 < strength.low < strength.value < strength.high < 1200


def test_what_only_won_has_a_bound():
    def pair(i, winner, loser):
        return LabelerRanking(i, i % 4, "ab", (1, 2), (winner, loser))

    always = {
        row.model: row.strength for row in bradley_terry.estimate_strengths([pair(i, *"ab") for i in range(20)], "b")
    }
    least = 0.025 ** (1 / 20)  # Clopper and Pearson's lowest share of wins
    assert always["a"].value is None
    assert always["a"].high is None
    assert always["a"].low == pytest.approx(400 * np.log10(least / (1 - least)))
    met = [pair(i, *("ab" if i % 3 else "ba")) for i in range(30)]
    lost = [pair(30 + i, "a", "z") for i in range(5)] + [pair(40 + i, "b", "z") for i in range(5)]
    rows = {row.model: row.strength for row in bradley_terry.estimate_strengths(met + lost, "b")}
    a, least = 10 ** (rows["a"].value / 400), 0.025 ** (1 / 10)
    z = 10 ** (rows["z"].high / 400)
    assert (a / (a + z) + 1 / (1 + z)) / 2 == pytest.approx(least)
    assert rows["z"].low is None
    assert rows["z"].value is None
    tied = [LabelerRanking(i, i % 4, "ab", (1, 1), ("a", "b")) for i in range(20)]
    (strength,) = [row.strength for row in bradley_terry.estimate_strengths(tied, "b") if row.model == "a"]
    assert strength.value == pytest.approx(0)
    assert strength.low < -30
    assert strength.high > 30
