"""WinoGrande: which of two nouns fits the blank? (Sakaguchi et al. 2020; not in the paper; accuracy)

Each noun fills the blank; the model's choice is the one that makes the rest of the sentence more likely.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructgpt.errors import InputError
from instructgpt.evaluate.aggregate import Observation, aggregate_per_model
from instructgpt.evaluate.tasks.base import EvalQuestion, EvalSettings, EvalTask, QuestionReply
from instructgpt.evaluate.tasks.few_shot import (
    best_choice_index,
    format_few_shot_prefix,
    iter_shot_conditions,
    split_train_rows,
)
from instructgpt.evaluate.tasks.loading import load_task_rows
from instructgpt.results import ResultRow

_NAME = "winogrande"


def _split_at_blank(row: dict[str, Any]) -> tuple[list[str], str, Any]:
    """Return (beginnings with either noun, the rest, index of the right noun), from the harness's or the hub's columns."""
    if "sentence" in row:
        prefix, _, suffix = str(row["sentence"]).partition("_")
        right_index = {"1": 0, "2": 1}.get(str(row.get("answer")))
        return [f"{prefix}{row['option1']}", f"{prefix}{row['option2']}"], suffix.strip(), right_index
    return list(row["contexts"]), str(row["continuation"]).strip(), row.get("gold")


def _format_full_sentence(row: dict[str, Any]) -> str:
    contexts, suffix, right_index = _split_at_blank(row)
    return f"{contexts[int(right_index)]} {suffix}"


def load(file: Path, settings: EvalSettings) -> list[EvalQuestion]:
    """Return every sentence twice, once with each noun; few-shot only if `--shots` is given."""
    rows = load_task_rows(file)
    for row_number, row in enumerate(rows, 1):
        try:
            contexts, suffix, right_index = _split_at_blank(row)
        except KeyError as error:
            raise InputError(
                f"{file}: row {row_number} has no {error} (columns found: {', '.join(map(str, row))})"
            ) from error
        if str(right_index) not in ("0", "1") or len(contexts) != 2 or not suffix:
            raise InputError(
                f"{file}: row {row_number} has {len(contexts)} beginnings and {right_index!r} as the right one; expected two, and 0 or 1"
            )
    eval_rows, train_rows = split_train_rows(rows)
    return [
        EvalQuestion(
            f"{row_number}/{noun_index}",
            condition,
            format_few_shot_prefix(examples, _format_full_sentence) + context,
            (f" {_split_at_blank(row)[1]}",),
            target={"right": int(_split_at_blank(row)[2]), "place": noun_index, "sentence": row_number},
        )
        for row_number, condition, row, examples in iter_shot_conditions(eval_rows, settings, train_rows, shots=0)
        for noun_index, context in enumerate(_split_at_blank(row)[0])
    ]


def measure(replies: Sequence[QuestionReply], settings: EvalSettings) -> list[ResultRow]:  # noqa: ARG001
    noun_logps: dict[tuple[str, str, int], list[float]] = {}
    right_indices: dict[int, int] = {}
    for question, reply in replies:
        sentence = question.target["sentence"]
        noun_logps.setdefault((question.condition, reply.model, sentence), [0.0, 0.0])[question.target["place"]] = (
            reply.logp[0]
        )
        right_indices[sentence] = question.target["right"]
    return [
        row
        for condition in dict.fromkeys(condition for condition, _, _ in noun_logps)
        for row in aggregate_per_model(
            _NAME,
            "accuracy",
            condition,
            [
                Observation(model, float(best_choice_index(logps, [1, 1]) == right_indices[sentence]), (f"{sentence}",))
                for (row_condition, model, sentence), logps in noun_logps.items()
                if row_condition == condition
            ],
            share=True,
        )
    ]


TASK = EvalTask(_NAME, "which of two nouns a sentence means", "winogrande.jsonl", load, measure)
