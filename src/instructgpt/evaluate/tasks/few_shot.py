"""Few-shot examples and multiple choice by likelihood, shared by the tasks of appendix D."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from instructgpt.errors import InputError
from instructgpt.evaluate.tasks.base import (
    EvalQuestion,
    EvalSettings,
    ModelReply,
    QuestionReply,
    measure_by_condition,
    subsample,
)
from instructgpt.evaluate.tasks.loading import load_task_rows, parse_label
from instructgpt.results import ResultRow

_DEFAULT_SHOTS = 15
"""The number of examples, unless appendix D gives another one for a task."""


def iter_shot_conditions(
    rows: Sequence[dict[str, Any]],
    settings: EvalSettings,
    example_rows: Sequence[dict[str, Any]] | None = None,
    shots: int = _DEFAULT_SHOTS,
) -> Iterator[tuple[int, str, dict[str, Any], list[dict[str, Any]]]]:
    """Yield (index, condition, row, examples): every row without examples, then with examples drawn by the seed.

    Examples come from `example_rows`, otherwise from the other rows. `settings.shots` overrides `shots`, the paper's
    number.
    """
    num_shots = shots if settings.shots is None else settings.shots
    num_available = len(rows) - 1 if example_rows is None else len(example_rows)
    check_num_examples(num_shots, num_available, "rows")
    for row_index, row in subsample(list(enumerate(rows)), settings):
        yield row_index, "zero_shot", row, []
        if num_shots:
            indices = Random(f"examples {settings.seed} {row_index}").sample(range(num_available), num_shots)
            if example_rows is None:  # skip the row itself
                yield row_index, "few_shot", row, [rows[index + (index >= row_index)] for index in indices]
            else:
                yield row_index, "few_shot", row, [example_rows[index] for index in indices]


def check_num_examples(num_shots: int, num_available: int, noun: str) -> None:
    if num_shots > num_available:
        hint = f"give --shots {num_available}"
        raise InputError(f"few-shot prompts need {num_shots} example {noun}, found {num_available}; {hint}")


def build_classification_questions(
    rows: Sequence[dict[str, Any]],
    settings: EvalSettings,
    instruction: str,
    format_row: Callable[[dict[str, Any]], str],
    choices: Sequence[str],
    example_rows: Sequence[dict[str, Any]] | None = None,
) -> list[EvalQuestion]:
    """Build zero-shot and few-shot questions with fixed answers; a row's `label` is the index of the right one."""

    def format_example(row: dict[str, Any]) -> str:
        return format_row(row) + choices[int(row["label"])]

    questions = []
    for index, condition, row, examples in iter_shot_conditions(rows, settings, example_rows):
        text = f"{instruction}\n\n{format_few_shot_prefix(examples, format_example)}{format_row(row)}"
        target = {"label": int(row["label"])}
        questions.append(EvalQuestion(f"{index}", condition, text, tuple(choices), target=target))
    return questions


def load_labeled_rows(
    file: Path, settings: EvalSettings, choices: Sequence[str], *columns: str
) -> list[dict[str, Any]]:
    """Load rows whose `label` is the index of a choice."""

    def check_label(row: dict[str, Any]) -> None:
        row["label"] = parse_label(row["label"], len(choices))

    return load_task_rows(file, *columns, skip_bad=settings.skip_bad, check_row=check_label)


def build_multiple_choice_questions(
    file: Path,
    settings: EvalSettings,
    parse_row: Callable[[dict[str, Any]], tuple[str, Sequence[str], Any]],
) -> list[EvalQuestion]:
    """Build questions with their own answers in lm-evaluation-harness's format; few-shot only if `--shots` is given.

    `parse_row` returns (question, answers, index of the right answer).
    """

    def check_answers(row: dict[str, Any]) -> None:
        try:
            text, answers, right_index = parse_row(row)
        except KeyError as error:
            columns = ", ".join(map(str, row))
            raise ValueError(f"column {error} is missing (columns found: {columns})") from error
        parse_label(right_index, len(answers))
        if not text.strip():
            raise ValueError("the question is empty")

    def parse(row: dict[str, Any]) -> tuple[str, tuple[str, ...], int]:
        text, answers, right_index = parse_row(row)
        choices = tuple(f" {str(answer).strip()}" for answer in answers)
        return f"{text}\nAnswer:", choices, parse_label(right_index, len(choices))

    def format_example(row: dict[str, Any]) -> str:
        text, choices, label = parse(row)
        return text + choices[label]

    questions = []
    rows = load_task_rows(file, skip_bad=settings.skip_bad, check_row=check_answers)
    eval_rows, train_rows = split_train_rows(rows)
    for index, condition, row, examples in iter_shot_conditions(eval_rows, settings, train_rows, shots=0):
        text, choices, label = parse(row)
        prompt = format_few_shot_prefix(examples, format_example) + text
        questions.append(EvalQuestion(f"{index}", condition, prompt, choices, target={"label": label}))
    return questions


def format_few_shot_prefix(examples: Sequence[dict[str, Any]], format_example: Callable[[dict[str, Any]], str]) -> str:
    return "".join(f"{format_example(example)}\n\n" for example in examples)


def split_train_rows(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """Return (rows to evaluate, rows for examples): rows with split `train` are examples if there are others."""
    train_rows = [row for row in rows if row.get("split") == "train"]
    eval_rows = [row for row in rows if row.get("split") != "train"]
    return (eval_rows, train_rows or None) if eval_rows else (train_rows, None)


def choice_accuracy_rows(evaluation: str, replies: Sequence[QuestionReply]) -> list[ResultRow]:
    """Return the accuracy of the most likely choice, by condition and model; ties are wrong.

    The log-probability is divided by tokens in `accuracy` (appendix D), not divided in `accuracy_total`, and divided by
    characters in `accuracy_characters` (the harness's acc and acc_norm).
    """

    def is_correct(question: EvalQuestion, reply: ModelReply, lengths: Sequence[int]) -> float:
        return float(best_choice_index(reply.logp, lengths) == question.target["label"])

    metric_fns = {
        "accuracy": lambda q, reply: is_correct(q, reply, reply.tokens),
        "accuracy_total": lambda q, reply: is_correct(q, reply, [1] * len(q.choices)),
        "accuracy_characters": lambda q, reply: is_correct(q, reply, [len(choice.lstrip()) for choice in q.choices]),
    }
    return measure_by_condition(evaluation, replies, metric_fns)


def best_choice_index(logp: Sequence[float], lengths: Sequence[int]) -> int:
    """Return the index of the highest length-normalized log-probability; -1 for a tie."""
    normalized_logps = [total / length for total, length in zip(logp, lengths, strict=True)]
    best = max(normalized_logps)
    return normalized_logps.index(best) if normalized_logps.count(best) == 1 else -1
