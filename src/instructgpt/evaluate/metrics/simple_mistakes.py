"""Shares of simple mistakes (paper, section 4.3): false premises, over-hedging, several constraints."""

from __future__ import annotations

from collections.abc import Sequence

from instructgpt.evaluate.aggregate import Observation, aggregate_per_model
from instructgpt.records import Record
from instructgpt.results import ResultRow

MISTAKES_EVALUATION = "simple_mistakes"


class CheckedAnswer(Record):
    """An answer and whether it makes the mistake that its prompt tests."""

    model: str
    kind: str
    prompt: str
    is_mistake: bool


def measure_mistakes(answers: Sequence[CheckedAnswer], baselines: Sequence[str] = ("base", "sft")) -> list[ResultRow]:
    """Return the share of mistakes (`fails`) of each kind, clustered by prompt, and differences to the baselines."""
    rows: list[ResultRow] = []
    for kind in dict.fromkeys(answer.kind for answer in answers):
        observations = [Observation(a.model, float(a.is_mistake), (a.prompt,)) for a in answers if a.kind == kind]
        rows += aggregate_per_model(MISTAKES_EVALUATION, "fails", kind, observations, share=True, baselines=baselines)
    return rows
