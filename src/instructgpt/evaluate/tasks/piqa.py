"""PIQA: which of two ways reaches an everyday goal? (Bisk et al. 2020; not in the paper; accuracy)"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructgpt.evaluate.tasks.base import EvalQuestion, EvalSettings, EvalTask, QuestionReply
from instructgpt.evaluate.tasks.few_shot import build_multiple_choice_questions, choice_accuracy_rows
from instructgpt.results import ResultRow

_NAME = "piqa"


def _build_piqa_question(row: dict[str, Any]) -> tuple[str, list[str], Any]:
    """Parse the harness's columns `query`, `choices`, `gold`, or the hub's own."""
    if "choices" in row:
        return str(row["query"]), row["choices"], row.get("gold")
    return f"Question: {row['goal']}", [row["sol1"], row["sol2"]], row.get("label")


def load(file: Path, settings: EvalSettings) -> list[EvalQuestion]:
    return build_multiple_choice_questions(file, settings, _build_piqa_question)


def measure(replies: Sequence[QuestionReply], settings: EvalSettings) -> list[ResultRow]:  # noqa: ARG001
    return choice_accuracy_rows(_NAME, replies)


TASK = EvalTask(_NAME, "which of two ways reaches a goal", "piqa.jsonl", load, measure)
