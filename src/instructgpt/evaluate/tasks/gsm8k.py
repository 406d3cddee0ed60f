"""GSM8K: grade-school mathematics, solved in words (Cobbe et al. 2021; not in the paper; accuracy).

A solution ends with `#### ` and the number. Number extraction and the five examples follow lm-evaluation-harness.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructgpt.evaluate.tasks.base import EvalQuestion, EvalSettings, EvalTask, QuestionReply, measure_by_condition
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
    rows = load_task_rows(file, "question", "answer", skip_bad=settings.skip_bad, check_row=_check_solution)
    eval_rows, train_rows = split_train_rows(rows)
    questions = []
    for index, condition, row, examples in iter_shot_conditions(eval_rows, settings, train_rows, shots=5):
        text = format_few_shot_prefix(examples, _format_solved_problem) + _format_problem(row)
        target = {"right": extract_marked_answer(str(row["answer"]))}
        question = EvalQuestion(f"{index}", condition, text, max_tokens=_MAX_TOKENS, stop="Question:", target=target)
        questions.append(question)
    return questions


def _check_solution(row: dict[str, Any]) -> None:
    if extract_marked_answer(str(row["answer"])) is None:
        raise ValueError("the solution has no '#### ' with a number")


def extract_marked_answer(completion: str) -> str | None:
    match = _MARKED_ANSWER_PATTERN.search(completion)
    return _normalize_number(match[1]) if match else None


def extract_last_number(completion: str) -> str | None:
    numbers = _NUMBER_PATTERN.findall(completion)
    return _normalize_number(numbers[-1]) if numbers else None


def _normalize_number(number: str) -> str:
    return re.sub(r"[,$]|\.$", "", number)


def measure(replies: Sequence[QuestionReply], settings: EvalSettings) -> list[ResultRow]:  # noqa: ARG001
    """Return `accuracy` of the number after `#### ` and `accuracy_last_number` of the last number."""
    metric_fns = {
        "accuracy": lambda q, reply: float(extract_marked_answer(reply.said or "") == q.target["right"]),
        "accuracy_last_number": lambda q, reply: float(extract_last_number(reply.said or "") == q.target["right"]),
    }
    return measure_by_condition(_NAME, replies, metric_fns)


TASK = EvalTask(_NAME, "grade-school mathematics in words", "gsm8k_test.jsonl", load, measure, limit=100)
