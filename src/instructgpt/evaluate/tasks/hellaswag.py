"""HellaSwag: which of four endings continues a paragraph? (Zellers et al. 2019; paper, appendix D: accuracy, zero and 15 examples)"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructgpt.errors import BadInput
from instructgpt.evaluate.aggregate import Row
from instructgpt.evaluate.tasks.base import Asked, Evaluation, Question, Told
from instructgpt.evaluate.tasks.few_shot import accuracy, conditions, in_front, split_off
from instructgpt.evaluate.tasks.loading import listed, rows_of

NAME = "hellaswag"
INSTRUCTION = "Complete each independent paragraph using common-sense reasoning."


def plain(text: str) -> str:
    """A text without what WikiHow's pages left in it: `[title]` begins a sentence, other brackets are marks."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def paragraph(row: dict[str, Any]) -> str:
    """What is to be continued: the activity, a sentence, and the beginning of the next one."""
    begun = f"{row['ctx_a']} {str(row.get('ctx_b') or '').capitalize()}" if row.get("ctx_a") is not None else row["ctx"]
    return plain(f"{row.get('activity_label') or ''}: {begun}".removeprefix(": "))


def endings(row: dict[str, Any]) -> tuple[str, ...]:
    """The choices, each after a space."""
    return tuple(f" {plain(ending)}" for ending in listed(row["endings"]))


def ended(row: dict[str, Any]) -> str:
    """A paragraph with its right ending."""
    return paragraph(row) + endings(row)[int(row["label"])]


def read(file: Path, told: Told) -> list[Question]:
    """Every paragraph without and with examples; `label` is the right ending's place, from 0.

    Raises:
        BadInput: a label is no place of an ending.
    """
    rows = rows_of(file, "ctx|ctx_a", "endings", "label")
    for number, row in enumerate(rows, 1):
        if not (str(row["label"]).isdigit() and int(row["label"]) < len(listed(row["endings"]))):
            raise BadInput(f"{file}: row {number} has the label '{row['label']}', expected the place of an ending, from 0")
    asked, training = split_off(rows)
    return [
        Question(
            f"{number}",
            condition,
            f"{INSTRUCTION}\n\n{in_front(examples, ended)}{paragraph(row)}",
            endings(row),
            truth={"label": int(row["label"])},
        )
        for number, condition, row, examples in conditions(asked, told, training)
    ]


def measure(asked: Sequence[Asked], told: Told) -> list[Row]:  # noqa: ARG001
    """`accuracy` by condition and model, three ways (see `few_shot.accuracy`)."""
    return accuracy(NAME, asked)


EVALUATION = Evaluation(NAME, "the ending that continues a paragraph", "hellaswag_val.jsonl", read, measure, limit=300)
