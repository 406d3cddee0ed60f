"""PIQA: which of two ways reaches an everyday goal? (Bisk et al. 2020; not among the paper's evaluations: accuracy)"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructgpt.evaluate.aggregate import ResultRow
from instructgpt.evaluate.tasks.base import EvalQuestion, EvalSettings, EvalTask, QuestionReply
from instructgpt.evaluate.tasks.few_shot import build_multiple_choice_questions, choice_accuracy_rows
from instructgpt.evaluate.tasks.loading import load_task_rows

_NAME = "piqa"


def _build_piqa_question(row: dict[str, Any]) -> tuple[str, list[str], Any]:
    """A goal, two ways, and the right one's place: columns `query`, `choices`, `gold`, or the hub's own."""
    if "choices" in row:
        return str(row["query"]), row["choices"], row.get("gold")
    return f"Question: {row['goal']}", [row["sol1"], row["sol2"]], row.get("label")


def load(file: Path, settings: EvalSettings) -> list[EvalQuestion]:
    """Every goal as it stands, and after examples where `--shots` asks for some."""
    return build_multiple_choice_questions(file, load_task_rows(file), settings, _build_piqa_question)


def measure(replies: Sequence[QuestionReply], settings: EvalSettings) -> list[ResultRow]:  # noqa: ARG001
    """`accuracy` by condition and model, three ways (see `few_shot.accuracy`)."""
    return choice_accuracy_rows(_NAME, replies)


TASK = EvalTask(_NAME, "which of two ways reaches a goal", "piqa.jsonl", load, measure)
