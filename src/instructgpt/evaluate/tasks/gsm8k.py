"""GSM8K: grade-school mathematics, solved in words (Cobbe et al. 2021; not in the paper; accuracy).

A solution ends with `#### ` and the number. Number extraction and the five examples follow lm-evaluation-harness.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructgpt.errors import InputError
from instructgpt.evaluate.aggregate import Observation, aggregate_per_model
from instructgpt.evaluate.tasks.base import EvalQuestion, EvalSettings, EvalTask, QuestionReply
from instructgpt.evaluate.tasks.few_shot import format_few_shot_prefix, iter_shot_conditions, split_train_rows
from instructgpt.evaluate.tasks.loading import load_task_rows
from instructgpt.results import ResultRow

_NAME = "gsm8k"
_MAX_TOKENS = 256
_MARKED_ANSWER_PATTERN = re.compile(r"#### (-?[0-9.,]+)")
_NUMBER_PATTERN = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")


def _format_problem(row: dict[str, Any]) -> str:
    return f"Question: {row['question']}\nAnswer:"


def _format_solved_problem(row: dict[str, Any]) -> str:
    return f"{_format_problem(row)} {row['answer']}"


def load(file: Path, settings: EvalSettings) -> list[EvalQuestion]:
    rows = load_task_rows(file, "question", "answer")
    for row_number, row in enumerate(rows, 1):
        if extract_marked_answer(str(row["answer"])) is None:
            raise InputError(f"{file}: the solution of row {row_number} has no '#### ' with a number")
    eval_rows, train_rows = split_train_rows(rows)
    return [
        EvalQuestion(
            f"{row_number}",
            condition,
            format_few_shot_prefix(examples, _format_solved_problem) + _format_problem(row),
            max_tokens=_MAX_TOKENS,
            stop="Question:",
            target={"right": extract_marked_answer(str(row["answer"]))},
        )
        for row_number, condition, row, examples in iter_shot_conditions(eval_rows, settings, train_rows, shots=5)
    ]


def extract_marked_answer(completion: str) -> str | None:
    match = _MARKED_ANSWER_PATTERN.search(completion)
    return _normalize_number(match[1]) if match else None


def extract_last_number(completion: str) -> str | None:
    numbers = _NUMBER_PATTERN.findall(completion)
    return _normalize_number(numbers[-1]) if numbers else None


def _normalize_number(number: str) -> str:
    return re.sub(r"[,$]|\.$", "", number)


def measure(replies: Sequence[QuestionReply], settings: EvalSettings) -> list[ResultRow]:  # noqa: ARG001
    """Return `accuracy` of the number after `#### ` and `accuracy_last_number` of the last number, by condition and model."""
    rows: list[ResultRow] = []
    for condition in dict.fromkeys(question.condition for question, _ in replies):
        for metric, extract_answer in (
            ("accuracy", extract_marked_answer),
            ("accuracy_last_number", extract_last_number),
        ):
            observations = [
                Observation(
                    reply.model, float(extract_answer(reply.said or "") == question.target["right"]), (question.id,)
                )
                for question, reply in replies
                if question.condition == condition
            ]
            rows += aggregate_per_model(_NAME, metric, condition, observations, share=True)
    return rows


TASK = EvalTask(_NAME, "grade-school mathematics in words", "gsm8k_test.jsonl", load, measure, limit=100)
