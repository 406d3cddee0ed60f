"""Examples in front of a question, and answers chosen by likelihood: what the tasks of appendix D share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from instructgpt.errors import InputError
from instructgpt.evaluate.aggregate import Observation, ResultRow, aggregate_per_model
from instructgpt.evaluate.tasks.base import EvalQuestion, EvalSettings, QuestionReply, subsample

DEFAULT_SHOTS = 15
"""Examples of the few-shot condition where appendix D does not say another number."""


def iter_shot_conditions(
    rows: Sequence[dict[str, Any]],
    settings: EvalSettings,
    example_rows: Sequence[dict[str, Any]] | None = None,
    shots: int = DEFAULT_SHOTS,
) -> Iterator[tuple[int, str, dict[str, Any], list[dict[str, Any]]]]:
    """(number, condition, row, examples): every row without examples, then with as many as the paper had, drawn by the seed.

    Args:
        rows: what is asked. pool: where examples come from; without one, from the other rows.
        shots: the paper's number; `told.shots` counts where it is given.

    Raises:
        BadInput: there are fewer rows to draw from than examples are wanted.
    """
    num_shots = shots if settings.shots is None else settings.shots
    if num_shots > (num_available := len(rows) - 1 if example_rows is None else len(example_rows)):
        raise InputError(
            f"{num_shots} examples in front of a question are wanted, and there are {num_available} rows for them; give --shots {num_available}"
        )
    for row_index, row in subsample(list(enumerate(rows)), settings):
        yield row_index, "zero_shot", row, []
        if num_shots:
            indices = Random(f"examples {settings.seed} {row_index}").sample(range(num_available), num_shots)
            if example_rows is None:
                yield row_index, "few_shot", row, [rows[index + (index >= row_index)] for index in indices]
            else:
                yield row_index, "few_shot", row, [example_rows[index] for index in indices]


def build_classification_questions(
    rows: Sequence[dict[str, Any]],
    settings: EvalSettings,
    instruction: str,
    format_row: Callable[[dict[str, Any]], str],
    choices: Sequence[str],
    example_rows: Sequence[dict[str, Any]] | None = None,
) -> list[EvalQuestion]:
    """Zero-shot and few-shot questions whose answers are the same few words.

    Args:
        show: a row as it is asked, up to the answer. choices: answers by label; `label` in a row is the right one's place.
    """

    def format_example(row: dict[str, Any]) -> str:
        return format_row(row) + choices[int(row["label"])]

    return [
        EvalQuestion(
            f"{row_index}",
            condition,
            f"{instruction}\n\n{format_few_shot_prefix(examples, format_example)}{format_row(row)}",
            tuple(choices),
            target={"label": int(row["label"])},
        )
        for row_index, condition, row, examples in iter_shot_conditions(rows, settings, example_rows)
    ]


def build_multiple_choice_questions(
    file: Path,
    rows: Sequence[dict[str, Any]],
    settings: EvalSettings,
    parse_row: Callable[[dict[str, Any]], tuple[str, Sequence[str], Any]],
) -> list[EvalQuestion]:
    """Questions that each have answers of their own, as lm-evaluation-harness puts them; after examples only where `--shots` asks for some.

    Args:
        asked: a row -> the question, its answers, the right one's place.

    Raises:
        BadInput: a row does not tell which answer is right.
    """
    for row_number, row in enumerate(rows, 1):
        try:
            _, answers, right_index = parse_row(row)
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{file}: row {row_number} has no {error} (columns found: {', '.join(map(str, row))})"
            ) from error
        if not str(right_index).isdigit() or int(right_index) >= len(answers):
            raise InputError(
                f"{file}: row {row_number} says that answer {right_index!r} is right; expected the place of one of {len(answers)}, from 0"
            )

    def format_choices(row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(f" {str(answer).strip()}" for answer in parse_row(row)[1])

    def format_example(row: dict[str, Any]) -> str:
        return f"{parse_row(row)[0]}\nAnswer:{format_choices(row)[int(parse_row(row)[2])]}"

    eval_rows, train_rows = split_train_rows(rows)
    return [
        EvalQuestion(
            f"{row_number}",
            condition,
            f"{format_few_shot_prefix(examples, format_example)}{parse_row(row)[0]}\nAnswer:",
            format_choices(row),
            target={"label": int(parse_row(row)[2])},
        )
        for row_number, condition, row, examples in iter_shot_conditions(eval_rows, settings, train_rows, shots=0)
    ]


def format_few_shot_prefix(examples: Sequence[dict[str, Any]], format_example: Callable[[dict[str, Any]], str]) -> str:
    """Examples with their answers, an empty line after each."""
    return "".join(f"{format_example(example)}\n\n" for example in examples)


def split_train_rows(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """What is asked, and what examples are drawn from: rows whose `split` is train, where there are any beside others."""
    train_rows = [row for row in rows if row.get("split") == "train"]
    eval_rows = [row for row in rows if row.get("split") != "train"]
    return (eval_rows, train_rows or None) if eval_rows else (train_rows, None)


def choice_accuracy_rows(evaluation: str, replies: Sequence[QuestionReply]) -> list[ResultRow]:
    """How often the right choice is the likeliest, by condition and model; ties are wrong.

    `accuracy` goes by the mean log-probability a token (appendix D), `accuracy_total` by the sum, `accuracy_characters` by the sum over
    the choice's length in characters: what lm-evaluation-harness calls acc and acc_norm.
    """
    rows: list[ResultRow] = []
    for condition in dict.fromkeys(question.condition for question, _ in replies):
        for metric, choice_lengths in _CHOICE_LENGTHS.items():
            observations = [
                Observation(
                    reply.model,
                    float(best_choice_index(reply.logp, choice_lengths(question, reply)) == question.target["label"]),
                    (question.id,),
                )
                for question, reply in replies
                if question.condition == condition
            ]
            rows += aggregate_per_model(evaluation, metric, condition, observations, share=True)
    return rows


_CHOICE_LENGTHS: dict[str, Callable[..., Sequence[int]]] = {
    "accuracy": lambda _, reply: reply.tokens,
    "accuracy_total": lambda question, _: [1] * len(question.choices),
    "accuracy_characters": lambda question, _: [len(choice.lstrip()) for choice in question.choices],
}
"""What a choice's log-probability is divided by, by metric."""


def best_choice_index(logp: Sequence[float], lengths: Sequence[int]) -> int:
    """The place of the choice with the highest log-probability over its length; -1 where two share it."""
    normalized_logps = [total / length for total, length in zip(logp, lengths, strict=True)]
    best = max(normalized_logps)
    return normalized_logps.index(best) if normalized_logps.count(best) == 1 else -1
