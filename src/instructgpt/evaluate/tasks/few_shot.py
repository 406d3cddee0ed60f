"""Examples in front of a question, and answers chosen by likelihood: what the tasks of appendix D share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from instructgpt.errors import BadInput
from instructgpt.evaluate.aggregate import Observation, Row, per_model
from instructgpt.evaluate.tasks.base import Asked, Question, Told, some

SHOTS = 15
"""Examples of the few-shot condition where appendix D does not say another number."""


def conditions(
    rows: Sequence[dict[str, Any]], told: Told, pool: Sequence[dict[str, Any]] | None = None, shots: int = SHOTS
) -> Iterator[tuple[int, str, dict[str, Any], list[dict[str, Any]]]]:
    """(number, condition, row, examples): every row without examples, then with as many as the paper had, drawn by the seed.

    Args:
        rows: what is asked. pool: where examples come from; without one, from the other rows.
        shots: the paper's number; `told.shots` counts where it is given.

    Raises:
        BadInput: there are fewer rows to draw from than examples are wanted.
    """
    wanted = shots if told.shots is None else told.shots
    if wanted > (there := len(rows) - 1 if pool is None else len(pool)):
        raise BadInput(f"{wanted} examples in front of a question are wanted, and there are {there} rows for them; give --shots {there}")
    for number, row in some(list(enumerate(rows)), told):
        yield number, "zero_shot", row, []
        if wanted:
            places = Random(f"examples {told.seed} {number}").sample(range(there), wanted)
            if pool is None:
                yield number, "few_shot", row, [rows[place + (place >= number)] for place in places]
            else:
                yield number, "few_shot", row, [pool[place] for place in places]


def with_examples(
    rows: Sequence[dict[str, Any]],
    told: Told,
    instruction: str,
    show: Callable[[dict[str, Any]], str],
    choices: Sequence[str],
    pool: Sequence[dict[str, Any]] | None = None,
) -> list[Question]:
    """Zero-shot and few-shot questions whose answers are the same few words.

    Args:
        show: a row as it is asked, up to the answer. choices: answers by label; `label` in a row is the right one's place.
    """

    def answered(row: dict[str, Any]) -> str:
        return show(row) + choices[int(row["label"])]

    return [
        Question(
            f"{number}",
            condition,
            f"{instruction}\n\n{in_front(examples, answered)}{show(row)}",
            tuple(choices),
            truth={"label": int(row["label"])},
        )
        for number, condition, row, examples in conditions(rows, told, pool)
    ]


def with_own_choices(
    file: Path, rows: Sequence[dict[str, Any]], told: Told, asked: Callable[[dict[str, Any]], tuple[str, Sequence[str], Any]]
) -> list[Question]:
    """Questions that each have answers of their own, as lm-evaluation-harness puts them; after examples only where `--shots` asks for some.

    Args:
        asked: a row -> the question, its answers, the right one's place.

    Raises:
        BadInput: a row does not tell which answer is right.
    """
    for number, row in enumerate(rows, 1):
        try:
            _, answers, right = asked(row)
        except (KeyError, TypeError) as error:
            raise BadInput(f"{file}: row {number} has no {error} (columns found: {', '.join(map(str, row))})") from error
        if not str(right).isdigit() or int(right) >= len(answers):
            raise BadInput(f"{file}: row {number} says that answer {right!r} is right; expected the place of one of {len(answers)}, from 0")

    def choices(row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(f" {str(answer).strip()}" for answer in asked(row)[1])

    def answered(row: dict[str, Any]) -> str:
        return f"{asked(row)[0]}\nAnswer:{choices(row)[int(asked(row)[2])]}"

    questions, training = split_off(rows)
    return [
        Question(
            f"{number}",
            condition,
            f"{in_front(examples, answered)}{asked(row)[0]}\nAnswer:",
            choices(row),
            truth={"label": int(asked(row)[2])},
        )
        for number, condition, row, examples in conditions(questions, told, training, shots=0)
    ]


def in_front(examples: Sequence[dict[str, Any]], answered: Callable[[dict[str, Any]], str]) -> str:
    """Examples with their answers, an empty line after each."""
    return "".join(f"{answered(example)}\n\n" for example in examples)


def split_off(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None]:
    """What is asked, and what examples are drawn from: rows whose `split` is train, where there are any beside others."""
    training = [row for row in rows if row.get("split") == "train"]
    asked = [row for row in rows if row.get("split") != "train"]
    return (asked, training or None) if asked else (training, None)


def accuracy(evaluation: str, asked: Sequence[Asked]) -> list[Row]:
    """How often the right choice is the likeliest, by condition and model; ties are wrong.

    `accuracy` goes by the mean log-probability a token (appendix D), `accuracy_total` by the sum, `accuracy_characters` by the sum over
    the choice's length in characters: what lm-evaluation-harness calls acc and acc_norm.
    """
    rows: list[Row] = []
    for condition in dict.fromkeys(question.condition for question, _ in asked):
        for metric, length in LENGTHS.items():
            observations = [
                Observation(reply.model, float(picked(reply.logp, length(question, reply)) == question.truth["label"]), (question.id,))
                for question, reply in asked
                if question.condition == condition
            ]
            rows += per_model(evaluation, metric, condition, observations, share=True)
    return rows


LENGTHS: dict[str, Callable[..., Sequence[int]]] = {
    "accuracy": lambda _, reply: reply.tokens,
    "accuracy_total": lambda question, _: [1] * len(question.choices),
    "accuracy_characters": lambda question, _: [len(choice.lstrip()) for choice in question.choices],
}
"""What a choice's log-probability is divided by, by metric."""


def picked(logp: Sequence[float], lengths: Sequence[int]) -> int:
    """The place of the choice with the highest log-probability over its length; -1 where two share it."""
    means = [total / length for total, length in zip(logp, lengths, strict=True)]
    best = max(means)
    return means.index(best) if means.count(best) == 1 else -1
