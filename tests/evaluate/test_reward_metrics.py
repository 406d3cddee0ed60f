"""The reward model evaluation: calibration, groups, K-wise metrics, and RewardBench."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from instructgpt.cli import run_command as command
from instructgpt.evaluate.reward import reward_bench
from instructgpt.evaluate.reward.calibration import brier_losses, calibration_error, fit_temperature, reliability_curve
from instructgpt.evaluate.reward.metrics import ScoredRanking, measure
from instructgpt.evaluate.reward.reward_bench import REWARD_BENCH_SECTIONS, ScoredPair
from instructgpt.evaluate.reward.run import read_comparisons
from instructgpt.evaluate.reward.run import reliability_rows as reliability_rows
from instructgpt.models.reward_model import load_reward_model
from instructgpt.report.results import Results
from instructgpt.report.sections import preference as sections
from instructgpt.results import read_result_rows


def value(rows, metric, condition=""):
    (row,) = [row for row in rows if (row.metric, row.condition) == (metric, condition)]
    return row.value


def scored(ranks, scores, texts=None, prompt="p", labeler="ann", **more):
    texts = texts or tuple("abcdefghi"[: len(ranks)])
    return ScoredRanking(prompt=prompt, completions=texts, ranks=ranks, scores=scores, labeler=labeler, **more)


def some_gaps(count=3_000, heat=2.0, seed=0, groups=200):
    """Return gaps of a model whose scores are `heat` times too far apart, with their prompts."""
    rng = np.random.default_rng(seed)
    prompt = rng.integers(groups, size=count)
    gap = rng.normal(size=count) * (0.5 + rng.random(groups)[prompt])
    gap = np.where(rng.random(count) < 1 / (1 + np.exp(-gap)), gap, -gap)
    return heat * gap, [f"{p}" for p in prompt]


def test_temperature_matches_statsmodels():
    gaps, prompts = some_gaps()
    found = fit_temperature(gaps, prompts)
    rng = np.random.default_rng(1)
    turned = rng.random(len(gaps)) < 0.5  # the same likelihood, with outcomes of both kinds
    x, y = np.where(turned, -gaps, gaps), np.where(turned, 0, 1)
    groups = np.unique(prompts, return_inverse=True)[1]
    fit = sm.Logit(y, x[:, None]).fit(disp=0, cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False})
    assert found.value == pytest.approx(1 / fit.params[0], rel=1e-6)
    size = groups.max() + 1
    error = fit.bse[0] * np.sqrt(size / (size - 1)) * stats.t.ppf(0.975, size - 1)
    assert (found.low, found.high) == pytest.approx(
        (1 / (fit.params[0] + error), 1 / (fit.params[0] - error)),
        rel=1e-3,  # prompts have unequal numbers of pairs
    )
    assert found.low < 2 < found.high


def test_temperature_is_undefined_without_both_outcomes_or_skill():
    assert fit_temperature([1.0, 2.0], ["a", "b"]).value is None
    assert fit_temperature([-1.0, -2.0, 0.5], ["a", "b", "c"]).value is None
    tiny = fit_temperature(np.array(some_gaps()[0]) * 1e-6, some_gaps()[1])
    assert tiny.value == pytest.approx(
        fit_temperature(*some_gaps()).value * 1e-6, rel=1e-6
    )  # temperature scales with the gaps


def test_brier_and_calibration_match_their_definitions():
    gaps, prompts = some_gaps(500)
    p = 1 / (1 + np.exp(-gaps))
    assert brier_losses(gaps).tolist() == pytest.approx([(1 - each) ** 2 for each in p])
    confidence = np.maximum(p, 1 - p)
    order = sorted(range(500), key=lambda i: confidence[i])
    bins = [order[i * 50 : (i + 1) * 50] for i in range(10)]
    slow = sum(abs(sum(confidence[i] for i in part) - sum(gaps[i] > 0 for i in part)) for part in bins) / 500
    assert calibration_error(gaps, bins=10) == pytest.approx(slow)
    curve = reliability_curve(gaps, prompts, bins=10)
    assert [each.confidence for each in curve] == pytest.approx(
        [np.mean([confidence[i] for i in part]) for part in bins]
    )
    assert [each.accuracy.value for each in curve] == pytest.approx(
        [np.mean([gaps[i] > 0 for i in part]) for part in bins]
    )
    assert all(each.accuracy.low <= each.accuracy.value <= each.accuracy.high for each in curve)


def test_calibrated_model_has_temperature_one():
    gaps, prompts = some_gaps(30_000, heat=1.0)
    assert fit_temperature(gaps, prompts).value == pytest.approx(1, abs=0.04)
    assert all(abs(each.confidence - each.accuracy.value) < 0.04 for each in reliability_curve(gaps, prompts))


def test_k_wise_metrics_match_hand_computation():
    rows = measure([scored((1, 2, 2, 3), (0.1, 0.9, 0.2, 0.9), texts=("aaaa", "bb", "c", "dd"))])
    assert value(rows, "top_1") == 0  # the two highest are ranked 2 and 3
    assert value(rows, "top_1_by_length") == 1
    assert value(rows, "best_of_n") == pytest.approx((((0 + 0.5 + 1) / 3) + 0) / 2)
    assert value(rows, "best_of_n_by_length") == 1
    pairs = [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)]
    scores = (0.1, 0.9, 0.2, 0.9)
    concordant = sum(scores[a] > scores[b] for a, b in pairs)
    discordant = sum(scores[a] < scores[b] for a, b in pairs)
    assert value(rows, "kendall_tau") == pytest.approx(
        (concordant - discordant) / np.sqrt(5 * 5)
    )  # 6 pairs, one tied on each side
    assert value(measure([scored((1, 1, 2), (3.0, 3.0, 1.0))]), "top_1") == 1
    assert value(measure([scored((1, 2, 2), (3.0, 3.0, 1.0))]), "top_1") == 0.5


def test_length_groups():
    texts = ("x" * 100, "x" * 105, "x" * 140, "x" * 250)
    rows = measure([scored((1, 2, 3, 4), (4.0, 5.0, 3.0, 2.0), texts=texts)])
    # better before worse: 100-105 wrong; 105-140 and 100-140 right; 140-250 right; 100-250 and 105-250 right
    assert value(rows, "pair_accuracy", "length/alike") == 0
    assert value(rows, "pair_accuracy", "length/half_longer") == 1
    assert value(rows, "pair_accuracy", "length/twice") == 1
    assert value(rows, "pair_accuracy", "length/more_than_twice") == 1
    assert value(rows, "pair_accuracy", "length/shorter_is_better") == pytest.approx(5 / 6)
    assert not [row for row in rows if row.condition == "length/longer_is_better"]
    assert value(rows, "length_baseline", "length/twice") == 0


def test_agreement_groups():
    def ranked(labeler, *ranks, prompt="p"):
        return scored(ranks, (2.0, 1.0, 3.0), prompt=prompt, labeler=labeler, texts=("a", "b", "c"))

    rankings = [ranked("ann", 1, 2, 3), ranked("bob", 1, 2, 2), ranked("eve", 2, 3, 1)]
    # a over b: all three, right. a over c: 2 of 3, wrong. b and c: 1 for b, 1 tie, 1 for c: no majority
    rows = measure(rankings)
    assert value(rows, "pair_accuracy", "agreement/all") == 1
    assert value(rows, "pair_accuracy", "agreement/two_thirds") == 0
    assert not [row for row in rows if row.condition == "agreement/fewer"]
    fewer = measure(
        [ranked("ann", 1, 2, 3), ranked("bob", 1, 1, 1), ranked("ann", 3, 2, 1)]
    )  # ann's second vote does not count
    assert value(fewer, "pair_accuracy", "agreement/fewer") == pytest.approx(1 / 3)
    shuffled = ScoredRanking(
        prompt="p", completions=("c", "a", "b"), ranks=(3, 1, 2), scores=(3.0, 2.0, 1.0), labeler="bob"
    )
    assert value(measure([ranked("ann", 1, 2, 3), shuffled]), "pair_accuracy", "agreement/all") == pytest.approx(1 / 3)


# --- RewardBench --------------------------------------------------------------------------------------------------


def bench_pair(subset, number, right):
    return ScoredPair(
        prompt=f"{subset} {number}",
        chosen="a",
        rejected="b",
        subset=subset,
        id=f"{number}",
        scores_chosen=1.0 if right else 0.0,
        scores_rejected=0.5,
        results=int(right),
    )


def test_reward_bench_scores_match_hand_computation():
    rng = np.random.default_rng(0)
    rights = {subset: rng.random(6) < 0.6 for parts in REWARD_BENCH_SECTIONS.values() for subset in parts}
    pairs = [bench_pair(subset, i, right) for subset, each in rights.items() for i, right in enumerate(each)]
    rows = reward_bench.measure_reward_bench(pairs, "m")
    accuracy = {subset: each.mean() for subset, each in rights.items()}
    of = accuracy.__getitem__
    published = {
        "chat": (
            358,
            100 * of("alpacaeval-easy")
            + 95 * of("alpacaeval-length")
            + 95 * of("alpacaeval-hard")
            + 28 * of("mt-bench-easy")
            + 40 * of("mt-bench-med"),
        ),
        "chat_hard": (
            456,
            37 * of("mt-bench-hard")
            + 100 * of("llmbar-natural")
            + 134 * of("llmbar-adver-neighbor")
            + 92 * of("llmbar-adver-GPTInst")
            + 47 * of("llmbar-adver-GPTOut")
            + 46 * of("llmbar-adver-manual"),
        ),
        "safety": (
            740,
            100 * of("refusals-dangerous")
            + 100 * of("refusals-offensive")
            + 136 * of("donotanswer")
            + 154 * of("xstest-should-refuse")
            + 250 * of("xstest-should-respond"),
        ),
        "reasoning": (
            1968,
            984 * of("math-prm")
            + 164 * sum(of(f"hep-{name}") for name in ("cpp", "go", "java", "js", "python", "rust")),
        ),
    }
    by_hand = {name: total / size for name, (size, total) in published.items()}
    assert {name: value(rows, "score", name) for name in REWARD_BENCH_SECTIONS} == pytest.approx(by_hand)
    assert value(rows, "score") == pytest.approx(sum(by_hand.values()) / 4)
    assert value(rows, "accuracy", "subset/math-prm") == pytest.approx(accuracy["math-prm"])


def test_reward_bench_sections_use_the_subsets_present():
    pairs = [bench_pair("mt-bench-easy", i, i < 1) for i in range(2)] + [
        bench_pair("mt-bench-med", i, True) for i in range(3)
    ]
    rows = reward_bench.measure_reward_bench([*pairs, bench_pair("mine", 0, False)], "m")
    assert value(rows, "score", "chat") == pytest.approx((28 * 0.5 + 40) / 68)
    assert value(rows, "score") == value(rows, "score", "chat")
    assert value(rows, "accuracy", "subset/mine") == 0
    assert not [
        row for row in reward_bench.measure_reward_bench([bench_pair("mine", 0, True)], "m") if row.metric == "score"
    ]


def test_every_pair_format_is_read(write):
    rows = [
        {"prompt": "Say hi.", "chosen": "hi", "rejected": "no", "subset": "hep-go", "id": 3},
        {"question": "Say hi.", "chosen": "hi", "rejected": "no"},
        {
            "chosen": [{"role": "user", "content": "Say hi."}, {"role": "assistant", "content": "hi"}],
            "rejected": [{"role": "user", "content": "Say hi."}, {"role": "assistant", "content": "no"}],
        },
        {"prompt": "Say hi.", "completions": ["no", "hi"], "ranks": [2, 1]},
    ]
    found = read_comparisons(write("pairs.jsonl", rows))
    assert {each.prompt for each in found} == {"Say hi."}
    assert [[each.completions[i] for i, _ in each.pairs()] for each in found] == [["hi"]] * 4
    assert (found[0].source, found[0].model_extra["subset"], found[0].model_extra["id"]) == ("hep-go", "hep-go", 3)


def test_command_writes_pairs_and_scores_once(save_reward, write, tmp_path, monkeypatch, capsys):
    folder = save_reward()
    rows = [
        {"prompt": f"What does frog {i} say?", "chosen": "croak", "rejected": f"moo {i}", "subset": subset, "id": i}
        for i, subset in enumerate(["hep-go", "hep-rust", "donotanswer"] * 3)
    ]
    rows.append({"prompt": "blue " * 100, "chosen": "croak", "rejected": "moo", "subset": "hep-go", "id": 99})
    line = ["evaluate", "reward_model", "--model", f"rm={folder}", "--data", str(write("bench.jsonl", rows))]
    assert command([*line, "--out", str(tmp_path / "r.json")]) == 0
    assert "2 completions are longer than its context" in capsys.readouterr().out
    measured = read_result_rows(tmp_path / "r.json")
    reward = load_reward_model(folder, "cpu")
    chosen, rejected = (
        reward.score([reward.tokenizer.encode_example(r["prompt"], r[side]) for r in rows[:-1]])
        for side in ("chosen", "rejected")
    )
    right = (chosen > rejected).float()
    assert value(measured, "pair_accuracy") == pytest.approx(float(right.mean()))
    go = [i for i, row in enumerate(rows[:-1]) if row["subset"] == "hep-go"]
    assert value(measured, "accuracy", "subset/hep-go") == pytest.approx(float(right[go].mean()))
    with gzip.open(tmp_path / "r" / "reward_model" / "rm-pairs.jsonl.gz", "rt") as stream:
        written = [json.loads(each) for each in stream]
    assert [each["scores_chosen"] for each in written] == pytest.approx(chosen.tolist(), abs=1e-5)
    assert [each["results"] for each in written] == right.tolist()
    assert {"prompt", "chosen", "rejected", "subset", "id", "scores_rejected"} <= written[0].keys()

    def never(*_args, **_kwargs):
        raise AssertionError("scored again")

    monkeypatch.setattr("instructgpt.models.reward_model.ScalarModel.score", never)
    assert command([*line, "--out", str(tmp_path / "r.json")]) == 0
    assert read_result_rows(tmp_path / "r.json") == measured
    again = tmp_path / "r" / "reward_model" / "rm-pairs.jsonl.gz"  # the written pairs can be read
    assert len(read_comparisons(again)) == 9


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "p", "chosen": 3, "rejected": "b"}, "column 'chosen': expected text"),
        ({"prompt": "p", "completions": ["a"], "ranks": [1]}, "needs at least two"),
        ({"prompt": "p"}, "column 'completions' is missing"),
        ({"prompt": "p", "completions": ["a", "b"], "ranks": [1, 1]}, "no two completions of different ranks"),
    ],
)
def test_invalid_pairs_are_reported_in_one_line(save_reward, write, tmp_path, capsys, row, said):
    line = ["evaluate", "reward_model", "--model", str(save_reward()), "--data", str(write("bad.jsonl", [row]))]
    assert command([*line, "--out", str(tmp_path / "r.json")]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error
    assert not (tmp_path / "r.json").exists()


def test_policy_is_rejected_as_reward_model(save, write, tmp_path, capsys):
    data = write("r.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    assert command(["evaluate", "reward_model", "--data", str(data), "--out", str(tmp_path / "r.json")]) == 2
    assert "give --model" in capsys.readouterr().err
    assert (
        command(
            [
                "evaluate",
                "reward_model",
                "--model",
                str(save("gpt2")),
                "--data",
                str(data),
                "--out",
                str(tmp_path / "r.json"),
            ]
        )
        == 2
    )
    assert "not a reward model" in capsys.readouterr().err


def test_report_shows_reliability_groups_and_reward_bench():
    gaps, prompts = some_gaps(300)
    rankings = [
        scored((1, 2), (float(gap), 0.0), texts=("a" * (1 + i % 3), "bb"), prompt=prompt, id=i)
        for i, (gap, prompt) in enumerate(zip(gaps, prompts, strict=True))
    ]
    rows = (
        measure(rankings, "mine")
        + reliability_rows(rankings, "mine")
        + reward_bench.measure_reward_bench([bench_pair("hep-go", 0, True)], "mine")
    )
    section = sections.reliability_section(Results.from_rows(rows), [])
    assert section.figure.count("<svg") == 1
    assert "temperature" in section.headline
    assert [table.title for table in section.tables] == [
        "By how much longer one completion is, and by how many labelers agree",
        "RewardBench",
    ]
    assert sections.reliability_section(Results.from_rows([]), []) is None
    shown = {line[0] for table in section.tables for line in table.rows}
    assert "reward model is right, alike, length" in shown


def second_benchmark(seed, questions=9):
    """Return RewardBench 2 rankings whose scores often tie: four completions with one right, and Ties."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(questions):
        for subset, kinds in (
            ("Math", ("m",)),
            ("Focus", ("f",)),
            ("Ties", ("ref", "tied") if number % 4 else ("tied",)),
        ):
            for kind in kinds:
                right = int(rng.integers(2, 6)) if kind == "tied" else 1
                scores = (
                    rng.integers(0, 5, size=right + 3) + np.r_[np.full(right, rng.integers(0, 5)), np.zeros(3)]
                ).tolist()
                ranks = [1] * right + [2] * 3
                more = {"subset": subset, "num_correct": right, "id": f"{kind}:{number}"}
                made.append(
                    scored(ranks, scores, tuple("abcdefghijk"[: len(ranks)]), prompt=f"{subset} {number}", **more)
                )
    return made


@pytest.mark.parametrize("seed", range(4))
def test_reward_bench_2_matches_its_definition(seed):
    """Compare with the paper's definition, score by score: shared credit, and the five weights of Ties."""
    rankings = second_benchmark(seed)
    found = reward_bench.measure_reward_bench_2(rankings, "m")
    credits = {"Math": [], "Focus": []}
    margins = {"ref": {}, "tied": {}}
    for each in rankings:
        subset, right, scores = each.model_extra["subset"], each.model_extra["num_correct"], list(each.scores)
        if subset != "Ties":
            credits[subset].append((scores[0] == max(scores)) / scores.count(max(scores)))
        else:
            kind, number = each.model_extra["id"].split(":")
            margins[kind][number] = (
                min(scores[:right]) - max(scores[right:]),
                max(scores[:right]) - min(scores[:right]),
            )
    both = [(margins["tied"][n][0], margins["ref"][n][0], margins["tied"][n][1]) for n in margins["ref"]]
    tanh = [
        0.0 if min(t, r) == d == 0 else np.tanh((min(t, r) / d if d else np.copysign(np.inf, min(t, r))) - 1)
        for t, r, d in both
    ]
    ties = (
        0.3 * np.mean([gap > 0 for gap, _ in margins["tied"].values()])
        + 0.3 * np.mean([gap > 0 for gap, _ in margins["ref"].values()])
        + 0.2 * np.mean([t > d for t, _, d in both])
        + 0.2 * np.mean([min(t, r) > d for t, r, d in both])
        + 0.01 * np.mean(tanh)
    )
    means = {"Math": np.mean(credits["Math"]), "Focus": np.mean(credits["Focus"]), "Ties": ties}
    for subset, score in means.items():
        assert value(found, "score", f"subset/{subset}") == pytest.approx(score)
    assert value(found, "score") == pytest.approx(np.mean(list(means.values())))
    (total,) = [row for row in found if row.condition == ""]
    assert total.low < total.value < total.high


def test_reward_bench_2_from_a_file(save_reward, write, tmp_path):
    rows = [
        {
            "id": f"{i}",
            "prompt": f"What does frog {i} say?",
            "chosen": ["croak"],
            "rejected": ["moo", "baa", "blue"],
            "subset": subset,
        }
        for i, subset in enumerate(["Math", "Safety"] * 2)
    ]
    rows += [
        {
            "id": f"{kind}:{i}",
            "prompt": f"Name a frog of {i}.",
            "chosen": ["croak", "the frog"][:right],
            "rejected": ["moo"],
            "subset": "Ties",
        }
        for i in range(3)
        for kind, right in (("ref", 1), ("tied", 2))
    ]
    line = ["evaluate", "reward_model", "--model", f"rm={save_reward()}", "--data", str(write("second.jsonl", rows))]
    assert command([*line, "--out", str(tmp_path / "r.json")]) == 0
    found = read_result_rows(tmp_path / "r.json")
    there = {row.condition for row in found if row.evaluation == "reward_bench_2"}
    assert there == {"", "subset/Math", "subset/Safety", "subset/Ties"}
    assert not [row for row in found if row.evaluation == "reward_bench"]
