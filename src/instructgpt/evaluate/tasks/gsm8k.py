"""GSM8K: grade-school mathematics, worked out in words (Cobbe et al. 2021; not among the paper's evaluations: accuracy).

A solution ends with `#### ` and the number. What counts as a number is lm-evaluation-harness's rule, and so are the five examples.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructgpt.errors import BadInput
from instructgpt.evaluate.aggregate import Observation, Row, per_model
from instructgpt.evaluate.tasks.base import Asked, Evaluation, Question, Told
from instructgpt.evaluate.tasks.few_shot import conditions, in_front, split_off
from instructgpt.evaluate.tasks.loading import rows_of

NAME = "gsm8k"
MAX_TOKENS = 256
MARKED = re.compile(r"#### (-?[0-9.,]+)")
NUMBER = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")


def show(row: dict[str, Any]) -> str:
    """A problem, up to its solution."""
    return f"Question: {row['question']}\nAnswer:"


def answered(row: dict[str, Any]) -> str:
    """A problem with its solution."""
    return f"{show(row)} {row['answer']}"


def read(file: Path, told: Told) -> list[Question]:
    """Every problem without and with examples.

    Raises:
        BadInput: a solution does not end with its number.
    """
    rows = rows_of(file, "question", "answer")
    for number, row in enumerate(rows, 1):
        if marked(str(row["answer"])) is None:
            raise BadInput(f"{file}: the solution of row {number} has no '#### ' with a number")
    asked, training = split_off(rows)
    return [
        Question(
            f"{number}",
            condition,
            in_front(examples, answered) + show(row),
            max_tokens=MAX_TOKENS,
            stop="Question:",
            truth={"right": marked(str(row["answer"]))},
        )
        for number, condition, row, examples in conditions(asked, told, training, shots=5)
    ]


def marked(said: str) -> str | None:
    """The first number behind `#### `, without separators."""
    found = MARKED.search(said)
    return bare(found[1]) if found else None


def last(said: str) -> str | None:
    """The last number, without separators and currency."""
    found = NUMBER.findall(said)
    return bare(found[-1]) if found else None


def bare(number: str) -> str:
    """A number as it is compared."""
    return re.sub(r"[,$]|\.$", "", number)


def measure(asked: Sequence[Asked], told: Told) -> list[Row]:  # noqa: ARG001
    """`accuracy` of the number behind `#### `, and `accuracy_last_number` of the last one said, by condition and model."""
    rows: list[Row] = []
    for condition in dict.fromkeys(question.condition for question, _ in asked):
        for metric, number in (("accuracy", marked), ("accuracy_last_number", last)):
            seen = [
                Observation(reply.model, float(number(reply.said or "") == question.truth["right"]), (question.id,))
                for question, reply in asked
                if question.condition == condition
            ]
            rows += per_model(NAME, metric, condition, seen, share=True)
    return rows


EVALUATION = Evaluation(NAME, "grade-school mathematics in words", "gsm8k_test.jsonl", read, measure, limit=100)
