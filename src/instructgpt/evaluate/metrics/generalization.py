"""Shares of answers that follow the instruction and are fully right, on prompts like and unlike those of training.

The paper's section 4.3 shows single completions to instructions in other languages and about code; where the truth is
known, they can be counted.
"""

from __future__ import annotations

from collections.abc import Sequence

from instructgpt.evaluate.aggregate import Observation, aggregate_per_model
from instructgpt.records import Record
from instructgpt.results import ResultRow

_GENERALIZATION_EVALUATION = "generalization"


class GradedAnswer(Record):
    """An answer with its verdicts; `condition` names the kind of prompt."""

    model: str
    condition: str
    prompt: str
    follows_instruction: bool
    fully_right: bool


def measure_generalization(
    answers: Sequence[GradedAnswer], baselines: Sequence[str] = ("base", "sft")
) -> list[ResultRow]:
    """Return the shares of answers that `follows_instruction` and are `fully_right`, clustered by prompt."""
    rows: list[ResultRow] = []
    for condition in dict.fromkeys(answer.condition for answer in answers):
        selected = [answer for answer in answers if answer.condition == condition]
        for metric in ("follows_instruction", "fully_right"):
            observations = [Observation(a.model, float(getattr(a, metric)), (a.prompt,)) for a in selected]
            rows += aggregate_per_model(
                _GENERALIZATION_EVALUATION, metric, condition, observations, share=True, baselines=baselines
            )
    return rows
