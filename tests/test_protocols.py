"""The statistics of the toxicity and bias protocols against enumeration and simulation: unbiased, and intervals that hold the truth."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import integrate, stats

from instructgpt.evaluate import bias, toxicity
from instructgpt.evaluate.tasks import real_toxicity_sampled
from instructgpt.evaluate.tasks.shape import Question, Reply, Told

CHANCES = {0.1: 0.5, 0.4: 0.3, 0.9: 0.2}
"""How often a continuation has which toxicity."""
SIMULATIONS = 250


def continued(scores, prompt="p"):
    return [toxicity.Continuation(model="m", condition="c", prompt=prompt, completion="…", toxicity=score) for score in scores]


def measured(continuations):
    return {row.metric: row for row in toxicity.measure(continuations, against=())}


def expected_maximum(of):
    """E max of `of` independent draws: the sum of v (F(v)^k - F(v-)^k)."""
    below, total = 0.0, 0.0
    for value, chance in CHANCES.items():
        total += value * ((below + chance) ** of - below**of)
        below += chance
    return total


def test_the_worst_of_several_is_unbiased_over_every_outcome():
    mean = {"expected_maximum_toxicity": 0.0, "toxicity_probability": 0.0, "mean_toxicity": 0.0}
    for outcome in product(CHANCES, repeat=3):
        chance = np.prod([CHANCES[score] for score in outcome])
        found = measured(continued(outcome))
        mean = {metric: total + chance * found[metric].value for metric, total in mean.items()}
    assert mean["expected_maximum_toxicity"] == pytest.approx(expected_maximum(3))
    assert mean["toxicity_probability"] == pytest.approx(1 - 0.8**3)
    assert mean["mean_toxicity"] == pytest.approx(sum(value * chance for value, chance in CHANCES.items()))


def test_intervals_of_the_worst_hold_the_truth():
    """Prompts differ: each scales its continuations by a number drawn evenly from 0 to 1."""
    rng = np.random.default_rng(0)
    truth = {"expected_maximum_toxicity": expected_maximum(5) / 2, "toxicity_probability": (1 - 0.8**5) * (1 - 0.5 / 0.9)}
    held = dict.fromkeys(truth, 0)
    for _ in range(SIMULATIONS):
        scales = rng.random(40)
        drawn = rng.choice(list(CHANCES), p=list(CHANCES.values()), size=(40, 5)) * scales[:, None]
        rows = measured([each for prompt, scores in enumerate(drawn) for each in continued(scores, str(prompt))])
        for metric, value in truth.items():
            held[metric] += rows[metric].low <= value <= rows[metric].high
    for metric, count in held.items():
        assert 0.92 <= count / SIMULATIONS <= 0.98, metric


def test_intervals_of_the_entropy_hold_the_truth():
    """Differences of log-probability from a normal distribution; the mean entropy by numerical integration."""

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
        row = next(row for row in bias.measure(pairs, against=()) if row.metric == "entropy_bits")
        held += row.low <= truth <= row.high
    assert 0.92 <= held / SIMULATIONS <= 0.98


def test_prompts_with_and_without_toxicity_stand_apart_and_what_has_no_score_is_counted(monkeypatch):
    class Scorer:
        identity = "a scorer"

        def __call__(self, texts):
            return [float(text) if text else float("nan") for text in texts]

    monkeypatch.setattr("instructgpt.evaluate.tasks.real_toxicity.load_scorer", lambda *_: Scorer())
    asked = []
    for prompt, (of_itself, said) in enumerate([(0.9, ("0.2", "0.7")), (0.5, ("0.1", "")), (0.1, ("0.5", "0.3"))]):
        for place, text in enumerate(said):
            question = Question(f"{prompt}#{place}", "sampled", "x", max_tokens=3, truth={"toxicity": of_itself, "prompt": prompt})
            asked.append((question, Reply(model="m", id=question.id, condition="sampled", said=text)))
    rows = {(row.metric, row.condition): row for row in real_toxicity_sampled.measure(asked, Told(scorer="any"))}
    assert rows["mean_toxicity", "toxic_prompts"].value == pytest.approx((0.2 + 0.7 + 0.1) / 3)
    assert rows["unscored", "toxic_prompts"].value == 0.25
    assert rows["expected_maximum_toxicity", "toxic_prompts"].value == pytest.approx((0.7 + 0.1) / 2)
    assert rows["expected_maximum_toxicity", "harmless_prompts"].value == 0.5
    assert rows["toxicity_probability", "harmless_prompts"].value == 1.0
    assert {row.judge for row in rows.values()} == {"a scorer"}
