"""Statistics of the toxicity and bias protocols: unbiased estimates and interval coverage."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from instructgpt.evaluate.inference import EvaluatedModel
from instructgpt.evaluate.metrics import bias, toxicity
from instructgpt.evaluate.tasks import real_toxicity_sampled
from instructgpt.evaluate.tasks.base import EvalQuestion, EvalSettings, ModelReply, generate_replies
from instructgpt.models.policy import load_policy

CHANCES = {0.1: 0.5, 0.4: 0.3, 0.9: 0.2}
"""How often a continuation has which toxicity."""
SIMULATIONS = 250


def continued(scores, prompt="p"):
    return [
        toxicity.Continuation(model="m", condition="c", prompt=prompt, completion="…", toxicity=score)
        for score in scores
    ]


def measured(continuations):
    return {row.metric: row for row in toxicity.measure_toxicity(continuations, baselines=())}


def expected_maximum(of):
    """E max of `of` independent draws: the sum of v (F(v)^k - F(v-)^k)."""
    below, total = 0.0, 0.0
    for value, chance in CHANCES.items():
        total += value * ((below + chance) ** of - below**of)
        below += chance
    return total


def test_expected_maximum_is_unbiased():
    mean = {"expected_maximum_toxicity": 0.0, "toxicity_probability": 0.0, "mean_toxicity": 0.0}
    for outcome in product(CHANCES, repeat=3):
        chance = np.prod([CHANCES[score] for score in outcome])
        found = measured(continued(outcome))
        mean = {metric: total + chance * found[metric].value for metric, total in mean.items()}
    assert mean["expected_maximum_toxicity"] == pytest.approx(expected_maximum(3))
    assert mean["toxicity_probability"] == pytest.approx(1 - 0.8**3)
    assert mean["mean_toxicity"] == pytest.approx(sum(value * chance for value, chance in CHANCES.items()))


def test_intervals_of_the_maximum_cover_the_truth():
    """Each prompt scales its continuations by a uniform random number."""
    rng = np.random.default_rng(0)
    truth = {
        "expected_maximum_toxicity": expected_maximum(5) / 2,
        "toxicity_probability": (1 - 0.8**5) * (1 - 0.5 / 0.9),
    }
    held = dict.fromkeys(truth, 0)
    for _ in range(SIMULATIONS):
        scales = rng.random(40)
        drawn = rng.choice(list(CHANCES), p=list(CHANCES.values()), size=(40, 5)) * scales[:, None]
        rows = measured([each for prompt, scores in enumerate(drawn) for each in continued(scores, str(prompt))])
        for metric, value in truth.items():
            held[metric] += rows[metric].low <= value <= rows[metric].high
    for metric, count in held.items():
        assert 0.92 <= count / SIMULATIONS <= 0.98, metric


def test_intervals_of_the_entropy_cover_the_truth():
    """Log-probability differences are normal; the mean entropy is integrated numerically."""

    def entropy(gap):
        return stats.entropy([1 / (1 + np.exp(-gap)), 1 / (1 + np.exp(gap))], base=2) * stats.norm.pdf(gap, 1, 3)

    truth = integrate.quad(entropy, -30, 30)[0]
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(SIMULATIONS):
        pairs = [
            bias.SentencePair(model="m", first=f"he {place}", second=f"she {place}", logp_first=gap, logp_second=0.0)
            for place, gap in enumerate(rng.normal(1, 3, 120))
        ]
        row = next(row for row in bias.measure_bias(pairs, baselines=()) if row.metric == "entropy_bits")
        held += row.low <= truth <= row.high
    assert 0.92 <= held / SIMULATIONS <= 0.98


def test_toxic_and_harmless_prompts_are_separate(monkeypatch):
    class Scorer:
        identity = "a scorer"

        def __call__(self, texts):
            return [float(text) if text else float("nan") for text in texts]

    monkeypatch.setattr("instructgpt.evaluate.tasks.real_toxicity.load_toxicity_model", lambda *_: Scorer())
    asked = []
    for prompt, (of_itself, said) in enumerate([(0.9, ("0.2", "0.7")), (0.5, ("0.1", "")), (0.1, ("0.5", "0.3"))]):
        for place, text in enumerate(said):
            question = EvalQuestion(
                f"{prompt}#{place}", "sampled", "x", max_tokens=3, target={"toxicity": of_itself, "prompt": prompt}
            )
            asked.append((question, ModelReply(model="m", id=question.id, condition="sampled", said=text)))
    rows = {
        (row.metric, row.condition): row for row in real_toxicity_sampled.measure(asked, EvalSettings(scorer="any"))
    }
    assert rows["mean_toxicity", "toxic_prompts"].value == pytest.approx((0.2 + 0.7 + 0.1) / 3)
    assert rows["unscored", "toxic_prompts"].value == 0.25
    assert rows["expected_maximum_toxicity", "toxic_prompts"].value == pytest.approx((0.7 + 0.1) / 2)
    assert rows["expected_maximum_toxicity", "harmless_prompts"].value == 0.5
    assert rows["toxicity_probability", "harmless_prompts"].value == 1.0
    assert {row.judge for row in rows.values()} == {"a scorer"}


def test_samples_follow_the_nucleus_distribution(save):
    """Compare first tokens of many samples with the nucleus by sorting: the fewest tokens with 0.9, rescaled."""
    model, render = load_policy(save("gpt2"), torch.device("cpu"))
    subject = EvaluatedModel("m", model, render)
    count, text = 1_500, "The sea is"
    questions = [
        EvalQuestion(f"0#{place}", "sampled", text, max_tokens=1, stop=None, temperature=1.0, top_p=0.9, target={})
        for place in range(count)
    ]
    said = [reply.said for reply in generate_replies(subject, questions, seed=0)]
    with torch.no_grad():
        chances = model(torch.tensor([render.encode_text(text)])).logits[0, -1].softmax(-1).double()
    order = chances.argsort(descending=True)
    kept = order[: int((chances[order].cumsum(0) < 0.9).sum()) + 1]
    expected: dict[str, float] = {}
    for token in kept.tolist():
        word = render.decode([token]).strip()
        expected[word] = expected.get(word, 0.0) + float(chances[token] / chances[kept].sum())
    assert set(said) <= set(expected)
    words = [word for word, chance in expected.items() if chance * count >= 5]
    seen = np.array([said.count(word) for word in words] + [sum(word not in words for word in said)])
    wanted = np.array([expected[word] * count for word in words])
    wanted = np.append(wanted, count - wanted.sum())
    if wanted[-1] < 1e-6:
        seen, wanted = seen[:-1], wanted[:-1]
    assert stats.chisquare(seen, wanted * seen.sum() / wanted.sum()).pvalue > 1e-3
    assert said == [reply.said for reply in generate_replies(subject, questions, seed=0)]
    assert said != [reply.said for reply in generate_replies(subject, questions, seed=1)]


def test_blocks_of_questions_use_different_seeds(save):
    model, render = load_policy(save("gpt2"), torch.device("cpu"))
    questions = [
        EvalQuestion(f"{place}", "c", "The sea", max_tokens=8, stop=None, temperature=1.0, top_p=0.9)
        for place in range(8)
    ]
    first, second = (
        generate_replies(EvaluatedModel("m", model, render), part, seed=0) for part in (questions[:4], questions[4:])
    )
    assert [reply.said for reply in first] != [reply.said for reply in second]


def test_each_prompt_has_25_samples_without_stop(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        "".join(f'{{"prompt": {{"text": "The sea {place}", "toxicity": 0.{place}}}}}\n' for place in range(9))
    )
    questions = real_toxicity_sampled.load(file, EvalSettings(limit=4))
    assert len(questions) == 100
    assert len({question.id for question in questions}) == 100
    assert {(question.max_tokens, question.stop, question.temperature, question.top_p) for question in questions} == {
        (20, None, 1.0, 0.9)
    }
    assert all(question.text.startswith("The sea") for question in questions)
