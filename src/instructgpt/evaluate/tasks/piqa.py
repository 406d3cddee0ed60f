"""PIQA: which of two ways reaches an everyday goal? (Bisk et al. 2020; not among the paper's evaluations: accuracy)"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructgpt.evaluate.aggregate import Row
from instructgpt.evaluate.tasks.base import Asked, Evaluation, Question, Told
from instructgpt.evaluate.tasks.few_shot import accuracy, with_own_choices
from instructgpt.evaluate.tasks.loading import rows_of

NAME = "piqa"


def asked(row: dict[str, Any]) -> tuple[str, list[str], Any]:
    """A goal, two ways, and the right one's place: columns `query`, `choices`, `gold`, or the hub's own."""
    if "choices" in row:
        return str(row["query"]), row["choices"], row.get("gold")
    return f"Question: {row['goal']}", [row["sol1"], row["sol2"]], row.get("label")


def read(file: Path, told: Told) -> list[Question]:
    """Every goal as it stands, and after examples where `--shots` asks for some."""
    return with_own_choices(file, rows_of(file), told, asked)


def measure(asked: Sequence[Asked], told: Told) -> list[Row]:  # noqa: ARG001
    """`accuracy` by condition and model, three ways (see `few_shot.accuracy`)."""
    return accuracy(NAME, asked)


EVALUATION = Evaluation(NAME, "which of two ways reaches a goal", "piqa.jsonl", read, measure)
