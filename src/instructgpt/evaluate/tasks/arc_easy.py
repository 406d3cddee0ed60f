"""ARC Easy: multiple-choice school questions (Clark et al. 2018; not in the paper; accuracy)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructgpt.evaluate.tasks.base import EvalQuestion, EvalSettings, EvalTask, QuestionReply
from instructgpt.evaluate.tasks.few_shot import build_multiple_choice_questions, choice_accuracy_rows
from instructgpt.results import ResultRow

_NAME = "arc_easy"


def _build_arc_question(row: dict[str, Any]) -> tuple[str, list[str], Any]:
    """Parse the harness's columns `query`, `choices`, `gold`, or the hub's own."""
    if "query" in row:
        return str(row["query"]), row["choices"], row.get("gold")
    labels = list(row["choices"]["label"])
    right_index = labels.index(row["answerKey"]) if row.get("answerKey") in labels else None
    return f"Question: {row['question']}", row["choices"]["text"], right_index


def load(file: Path, settings: EvalSettings) -> list[EvalQuestion]:
    return build_multiple_choice_questions(file, settings, _build_arc_question)


def measure(replies: Sequence[QuestionReply], settings: EvalSettings) -> list[ResultRow]:  # noqa: ARG001
    return choice_accuracy_rows(_NAME, replies)


TASK = EvalTask(_NAME, "school questions with a few answers", "arc_easy.jsonl", load, measure)
