"""ARC: school questions with a few answers, the easy part (Clark et al. 2018; not among the paper's evaluations: accuracy)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructgpt.evaluate.aggregate import Row
from instructgpt.evaluate.tasks.base import Asked, Evaluation, Question, Told
from instructgpt.evaluate.tasks.few_shot import accuracy, with_own_choices
from instructgpt.evaluate.tasks.loading import rows_of

NAME = "arc_easy"


def asked(row: dict[str, Any]) -> tuple[str, list[str], Any]:
    """A question, its answers, and the right one's place: columns `query`, `choices`, `gold`, or the hub's own."""
    if "query" in row:
        return str(row["query"]), row["choices"], row.get("gold")
    labels = list(row["choices"]["label"])
    right = labels.index(row["answerKey"]) if row.get("answerKey") in labels else None
    return f"Question: {row['question']}", row["choices"]["text"], right


def read(file: Path, told: Told) -> list[Question]:
    """Every question as it stands, and after examples where `--shots` asks for some."""
    return with_own_choices(file, rows_of(file), told, asked)


def measure(asked: Sequence[Asked], told: Told) -> list[Row]:  # noqa: ARG001
    """`accuracy` by condition and model, three ways (see `few_shot.accuracy`)."""
    return accuracy(NAME, asked)


EVALUATION = Evaluation(NAME, "school questions with a few answers", "arc_easy.jsonl", read, measure)
