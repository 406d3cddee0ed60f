"""Every metric against hand computations or another library."""

import math
import subprocess
import sys

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from instructgpt.errors import InputError
from instructgpt.evaluate.metrics import (
    bias,
    generalization,
    labels,
    preference,
    tax,
    text_metrics,
    toxicity,
    truthfulness,
)
from instructgpt.evaluate.reward import metrics
from instructgpt.evaluate.reward.metrics import ScoredRanking
from instructgpt.records import LABELS, Ranking, parse_record
from instructgpt.results import ResultRow, read_result_rows, write_result_rows

MODELS = ("base", "sft", "ppo")


def ranking(prompt, ranks, labeler="ann", cohort="training", completions=("x", "y", "z"), **more):
    return Ranking(
        prompt=prompt, completions=completions, ranks=ranks, labeler=labeler, cohort=cohort, models=MODELS, **more
    )


def value(rows, metric, model, condition=""):
    (found,) = [row for row in rows if (row.metric, row.model, row.condition) == (metric, model, condition)]
    return found.value


def test_win_rates_match_hand_computation():
    rankings = [
        ranking("p1", (3, 2, 1)),
        ranking("p1", (2, 1, 1), labeler="bob"),  # ppo ties with sft
        ranking("p2", (3, 2, 1), completions=("x", "same", "same")),  # the same text is a tie, whatever the ranks say
        ranking("p3", (1, 2, 3), labeler="eve", cohort="heldout"),
    ]
    rows = preference.measure(rankings)
    assert value(rows, "win_rate_vs_sft", "ppo", "training") == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert value(rows, "win_rate_vs_sft", "base", "training") == 0
    assert value(rows, "win_rate_vs_sft", "sft", "training") == 0.5
    assert value(rows, "win_rate_vs_sft", "base", "heldout") == 1
    assert value(rows, "win_rate_vs_sft", "ppo", "heldout") == 0


def test_ratings_overall_and_by_use_case():
    rankings = [
        ranking("p1", (3, 2, 1), ratings=(1, 4, 7)),
        ranking("p2", (3, 2, 1), ratings=(3, 4, 5), use_case="chat"),
        ranking("p3", (3, 2, 1)),
    ]
    rows = preference.measure(rankings, use_cases={"p1": "open_qa"})
    assert value(rows, "rating", "ppo", "training") == 6
    assert value(rows, "rating", "base", "training") == 2
    assert value(rows, "rating", "ppo", "training/open_qa") == 7
    assert value(rows, "rating", "ppo", "training/chat") == 5
    assert value(rows, "win_rate_vs_sft", "ppo", "training/chat") == 1
    (gain,) = [row for row in rows if row.metric == "preference/rating/training" and row.model == "ppo"]
    assert (gain.evaluation, gain.condition, gain.value) == ("difference", "sft", pytest.approx(2.0))


def test_rankings_without_models_are_rejected():
    with pytest.raises(InputError, match="'p' does not name its models"):
        preference.measure([Ranking(prompt="p", completions=("x", "y"), ranks=(1, 2))])


def test_labels_skip_not_applicable_answers():
    yes, no, none = {"hallucination": True}, {"hallucination": False}, {"hallucination": None}
    rankings = [
        ranking("p1", (1, 2, 3), labels=(yes, no, no)),
        ranking("p2", (1, 2, 3), labels=(yes, yes, none)),
        ranking("p3", (1, 2, 3)),
    ]
    rows = labels.measure_labels(rankings)
    assert value(rows, "hallucination", "base") == 1
    assert value(rows, "hallucination", "sft") == 0.5
    assert value(rows, "hallucination", "ppo") == 0
    assert {row.metric for row in rows if row.evaluation == "labels"} == set(LABELS)
    never = next(row for row in rows if row.metric == "opinion")
    assert (never.value, never.low, never.high, never.n) == (None, None, None, 0)


def test_truthfulness_matches_hand_computation():
    verdicts = [
        ("base", "q1", False, True),
        ("base", "q2", True, False),
        ("ppo", "q1", True, True),
        ("ppo", "q2", True, False),
    ]
    answers = [
        truthfulness.JudgedAnswer(
            model=model, condition="qa", question=question, answer="…", truthful=true, informative=informative
        )
        for model, question, true, informative in verdicts
    ]
    rows = truthfulness.measure_truthfulness(answers)
    assert value(rows, "truthful", "ppo", "qa") == 1
    assert value(rows, "truthful", "base", "qa") == 0.5
    assert value(rows, "truthful_and_informative", "ppo", "qa") == 0.5
    assert value(rows, "truthful_and_informative", "base", "qa") == 0
    assert value(rows, "truthfulness/truthful/qa", "ppo", "base") == 0.5


def test_generalization_matches_hand_computation():
    verdicts = [
        ("sft", "p1", True, False),
        ("sft", "p2", False, False),
        ("ppo", "p1", True, True),
        ("ppo", "p2", True, False),
    ]
    answers = [
        generalization.GradedAnswer(
            model=model, condition="new_kind", prompt=prompt, follows_instruction=follows, fully_right=right
        )
        for model, prompt, follows, right in verdicts
    ]
    rows = generalization.measure_generalization(answers)
    assert [value(rows, "follows_instruction", model, "new_kind") for model in ("sft", "ppo")] == [0.5, 1]
    assert [value(rows, "fully_right", model, "new_kind") for model in ("sft", "ppo")] == [0, 0.5]
    assert value(rows, "generalization/follows_instruction/new_kind", "ppo", "sft") == 0.5


def continuation(prompt, score, model="ppo", condition="respectful"):
    return toxicity.Continuation(model=model, condition=condition, prompt=prompt, completion="…", toxicity=score)


def test_toxicity_matches_hand_computation():
    once = toxicity.measure_toxicity([continuation("p1", 0.2), continuation("p2", 0.6)])
    assert [(row.metric, row.value) for row in once] == [("mean_toxicity", pytest.approx(0.4))]
    twice = toxicity.measure_toxicity(
        [continuation(prompt, score) for prompt, score in (("p1", 0.2), ("p1", 0.9), ("p2", 0.1), ("p2", 0.5))]
    )
    assert value(twice, "expected_maximum_toxicity", "ppo", "respectful") == pytest.approx(0.7)
    assert value(twice, "toxicity_probability", "ppo", "respectful") == 1  # one half is toxic


@pytest.mark.parametrize("score", ["null", "NaN", "-0.1", "1.5", '"?"'])
def test_missing_toxicity_is_an_error(score):
    line = f'{{"model": "ppo", "condition": "none", "prompt": "p", "completion": "c", "toxicity": {score}}}'
    with pytest.raises(ValueError, match="toxicity"):
        parse_record(toxicity.Continuation, line)
    with pytest.raises(ValueError, match="'toxicity' is missing"):
        parse_record(toxicity.Continuation, '{"model": "ppo", "condition": "none", "prompt": "p", "completion": "c"}')


def test_entropy_matches_scipy_and_its_limits():
    first, second = np.array([-3.0, -10.0, -2.0]), np.array([-3.0, -9.0, -6.0])
    chances = np.exp(first) / (np.exp(first) + np.exp(second))
    expected = [stats.entropy([p, 1 - p], base=2) for p in chances]
    np.testing.assert_allclose(bias.entropy_bits(first, second), expected)
    assert bias.entropy_bits([0.0, 0.0, -800.0], [0.0, -800.0, 0.0]).tolist() == [1.0, 0.0, 0.0]


def test_bias_matches_hand_computation():
    pairs = [
        bias.SentencePair(model="sft", first=f"he {i}", second=f"she {i}", logp_first=a, logp_second=b)
        for i, (a, b) in enumerate([(-1, -3), (-2, -2)])
    ]
    rows = bias.measure_bias(pairs)
    p = 1 / (1 + math.exp(-2))
    assert value(rows, "entropy_bits", "sft") == pytest.approx((1 - p * math.log2(p) - (1 - p) * math.log2(1 - p)) / 2)
    assert value(rows, "mean_logp_difference", "sft") == 1
    assert value(rows, "prefers_first", "sft") == 0.75


@pytest.mark.parametrize(
    ("completion", "reference", "same", "f1"),
    [
        ("The cat!", "cat", 1, 1),
        ("a black cat sat", "the black dog", 0, 2 * (1 / 3 * 1 / 2) / (1 / 3 + 1 / 2)),
        ("cat cat", "cat", 0, 2 * (1 / 2) / (3 / 2)),
        ("", "", 1, 1),
        ("", "cat", 0, 0),
        ("ka ztere", "KA ZTERE.", 1, 1),
    ],
)
def test_exact_match_and_f1(completion, reference, same, f1):
    assert text_metrics.exact_match(completion, reference) == same
    assert text_metrics.word_f1(completion, reference) == pytest.approx(f1)


def test_tax_matches_hand_computation():
    def solution(model, prompt, completion, **more):
        return tax.Solution(
            model=model,
            task="translation",
            prompt=prompt,
            completion=completion,
            references=("red fox", "fox red"),
            **more,
        )

    solutions = [
        solution("sft", "p1", "fox red"),
        solution("sft", "p2", "red fox"),
        solution("ppo", "p1", "red hen"),
        solution("ppo", "p2", "red fox"),
    ]
    losses = [
        tax.DocumentLoss(model=model, document=document, loss=loss, tokens=n)
        for model, document, loss, n in [
            ("sft", "d1", 4, 2),
            ("sft", "d2", 2, 4),
            ("ppo", "d1", 6, 2),
            ("ppo", "d2", 6, 4),
        ]
    ]
    rows = tax.measure_tax(solutions, losses)
    assert value(rows, "translation", "sft") == 1
    assert value(rows, "translation", "ppo") == 0.5
    assert value(rows, "heldout_loss", "sft") == 1
    assert value(rows, "heldout_loss", "ppo") == 2
    assert value(rows, "tax/translation", "ppo", "sft") == -0.5
    assert value(rows, "tax/heldout_loss", "ppo", "sft") == pytest.approx((1 + 1) / 2)
    partly = tax.measure_tax([solution("ppo", "p1", "red hen", measure="word_f1")])
    assert value(partly, "translation", "ppo") == 0.5


def scored(prompt, ranks, scores, labeler="ann", cohort="training", completions=("x", "yy", "zzz"), **more):
    return ScoredRanking(
        prompt=prompt, completions=completions, ranks=ranks, scores=scores, labeler=labeler, cohort=cohort, **more
    )


def test_reward_model_metrics_match_hand_computation():
    rankings = [
        scored(
            "p1", (1, 2, 3), (2.0, 1.0, 1.0), source="hh"
        ),  # pairs: right, right, tie -> 2.5 of 3; longer wins none of 3
        scored("p1", (1, 3, 2), (2.0, 1.0, 1.0), labeler="bob"),  # right, right, tie; longer wins 1 of 3
        scored("p2", (2, 2, 1), (0.0, 5.0, 1.0)),  # right, wrong; longer wins 2 of 2
        scored("p2", (1, 1, 1), (0.0, 5.0, 1.0), labeler="eve", cohort="heldout"),  # no pair
        scored("p1", (3, 2, 1), (2.0, 1.0, 1.0), labeler="eve", cohort="heldout"),  # wrong, wrong, tie
    ]
    rows = metrics.measure(rankings)
    assert value(rows, "pair_accuracy", "reward", "training") == pytest.approx((2.5 + 2.5 + 1) / 8)
    assert value(rows, "length_baseline", "reward", "training") == pytest.approx((0 + 1 + 2) / 8)
    assert value(rows, "pair_accuracy", "reward", "heldout") == pytest.approx(0.5 / 3)
    assert value(rows, "pair_accuracy", "reward", "source/hh") == pytest.approx(2.5 / 3)
    assert value(rows, "labeler_agreement", "reward", "training") == pytest.approx(
        2 / 3
    )  # ann and bob differ on (y, z) only
    assert value(rows, "labeler_agreement", "reward", "between") == pytest.approx(
        (0 + 1) / 6
    )  # eve and ann: none of 3; eve and bob: (y, z)
    assert value(rows, "length_difference", "reward", "heldout") == pytest.approx((1 + 1 + 2) / 3)
    assert value(rows, "kendall_tau", "reward", "heldout") == pytest.approx(-2 / math.sqrt(6))
    losses = [math.log1p(math.exp(gap)) for gap in (1, 1, 0)]
    assert value(rows, "pair_loss", "reward", "heldout") == pytest.approx(sum(losses) / 3)


def test_calibration_of_calibrated_and_overconfident_models():
    rng = np.random.default_rng(0)
    gap = rng.normal(0, 2, 40_000)
    honest = np.where(rng.random(len(gap)) < 1 / (1 + np.exp(-gap)), gap, -gap)  # outcomes match the scores
    assert metrics.calibration_error(honest) < 0.01
    boasting = metrics.calibration_error(honest * 5)
    assert boasting > 0.1
    by_hand = metrics.calibration_error([math.log(3), -math.log(3)], bins=1)  # 75 % confident, right half the time
    assert by_hand == pytest.approx(0.25)


def test_scores_must_match_the_completions():
    with pytest.raises(ValidationError, match="3 completions but 2 scores"):
        scored("p", (1, 2, 3), (1.0, 2.0))
    with pytest.raises(ValidationError, match="not finite"):
        scored("p", (1, 2, 3), (1.0, 2.0, float("nan")))


def test_rows_round_trip_through_the_file(tmp_path):
    rows = [
        ResultRow("bias", "entropy_bits", "sft", "", 0.5, 0.25, 0.75, 9),
        ResultRow("labels", "opinion", "ppo", "", None, None, None, 0),
    ]
    write_result_rows(tmp_path / "results.json", rows)
    assert read_result_rows(tmp_path / "results.json") == rows


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[{", "not valid JSON"),
        ("{}", "expected a JSON list"),
        ('[{"evaluation": "bias"}]', "row 1: a row needs the columns"),
        (
            '[{"evaluation":"b","metric":"m","model":"x","condition":"","value":"?","low":null,"high":null,"n":1}]',
            "must be numbers",
        ),
        (
            '[{"evaluation":"b","metric":"m","model":"x","condition":"","value":NaN,"low":null,"high":null,"n":1}]',
            "not finite",
        ),
    ],
)
def test_invalid_results_file_is_rejected(tmp_path, text, complaint):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(InputError, match=complaint):
        read_result_rows(tmp_path / "results.json")
    with pytest.raises(InputError, match="no such file"):
        read_result_rows(tmp_path / "other.json")


def test_metrics_and_report_import_without_torch():
    modules = "instructgpt.report.page, instructgpt.report.terminal, instructgpt.evaluate.metrics.tax"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
