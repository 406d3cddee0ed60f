"""Are the answers true, and do they say anything? (paper, section 4.2 and Figure 6; TruthfulQA)"""

from __future__ import annotations

from collections.abc import Sequence

from instructgpt.evaluate.aggregate import Observation, Row, per_model
from instructgpt.records import Record

EVALUATION = "truthfulness"


class Answer(Record):
    """One answer with its verdicts. "I have no comment" is truthful and not informative."""

    model: str
    condition: str
    question: str
    answer: str
    truthful: bool
    informative: bool


def measure(answers: Sequence[Answer], against: Sequence[str] = ("base", "sft"), evaluation: str = EVALUATION) -> list[Row]:
    """Shares of answers that are `truthful`, `informative`, and `truthful_and_informative`.

    Args:
        answers: condition "qa" (the plain question) or "instruction" (told to say "I have no comment" when unsure); others are welcome.
        against: models that are subtracted from the others, paired by question.

    Returns:
        One row a metric, condition and model, clustered by question.
    """
    rows: list[Row] = []
    for condition in dict.fromkeys(answer.condition for answer in answers):
        asked = [answer for answer in answers if answer.condition == condition]
        verdicts = {
            "truthful": [each.truthful for each in asked],
            "informative": [each.informative for each in asked],
            "truthful_and_informative": [each.truthful and each.informative for each in asked],
        }
        for metric, found in verdicts.items():
            seen = [Observation(each.model, float(verdict), (each.question,)) for each, verdict in zip(asked, found, strict=True)]
            rows += per_model(evaluation, metric, condition, seen, share=True, against=against)
    return rows
