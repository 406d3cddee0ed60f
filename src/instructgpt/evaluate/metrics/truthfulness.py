"""Truthfulness and informativeness of answers (paper, section 4.2 and Figure 6; TruthfulQA)."""

from __future__ import annotations

from collections.abc import Sequence

from instructgpt.evaluate.aggregate import Observation, aggregate_per_model
from instructgpt.records import Record
from instructgpt.results import ResultRow

_TRUTHFULNESS_EVALUATION = "truthfulness"


class JudgedAnswer(Record):
    """An answer with its verdicts. "I have no comment" is truthful and not informative."""

    model: str
    condition: str
    question: str
    answer: str
    truthful: bool
    informative: bool


def measure_truthfulness(
    answers: Sequence[JudgedAnswer],
    baselines: Sequence[str] = ("base", "sft"),
    evaluation: str = _TRUTHFULNESS_EVALUATION,
) -> list[ResultRow]:
    """Return the shares of answers that are `truthful`, `informative`, and both, clustered by question."""
    rows: list[ResultRow] = []
    for condition in dict.fromkeys(answer.condition for answer in answers):
        selected = [answer for answer in answers if answer.condition == condition]
        values_by_metric = {
            "truthful": [answer.truthful for answer in selected],
            "informative": [answer.informative for answer in selected],
            "truthful_and_informative": [answer.truthful and answer.informative for answer in selected],
        }
        for metric, values in values_by_metric.items():
            pairs = zip(selected, values, strict=True)
            observations = [Observation(a.model, float(value), (a.question,)) for a, value in pairs]
            rows += aggregate_per_model(evaluation, metric, condition, observations, share=True, baselines=baselines)
    return rows
