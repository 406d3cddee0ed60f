"""ARC: school questions with a few answers, the easy part (Clark et al. 2018; not among the paper's evaluations: accuracy)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructgpt.evaluate.aggregate import ResultRow
from instructgpt.evaluate.tasks.base import EvalQuestion, EvalSettings, EvalTask, QuestionReply
from instructgpt.evaluate.tasks.few_shot import build_multiple_choice_questions, choice_accuracy_rows
from instructgpt.evaluate.tasks.loading import load_task_rows

_NAME = "arc_easy"


def _build_arc_question(row: dict[str, Any]) -> tuple[str, list[str], Any]:
    """A question, its answers, and the right one's place: columns `query`, `choices`, `gold`, or the hub's own."""
    if "query" in row:
        return str(row["query"]), row["choices"], row.get("gold")
    labels = list(row["choices"]["label"])
    right_index = labels.index(row["answerKey"]) if row.get("answerKey") in labels else None
    return f"Question: {row['question']}", row["choices"]["text"], right_index


def load(file: Path, settings: EvalSettings) -> list[EvalQuestion]:
    """Every question as it stands, and after examples where `--shots` asks for some."""
    return build_multiple_choice_questions(file, load_task_rows(file), settings, _build_arc_question)


def measure(replies: Sequence[QuestionReply], settings: EvalSettings) -> list[ResultRow]:  # noqa: ARG001
    """`accuracy` by condition and model, three ways (see `few_shot.accuracy`)."""
    return choice_accuracy_rows(_NAME, replies)


TASK = EvalTask(_NAME, "school questions with a few answers", "arc_easy.jsonl", load, measure)
