"""HellaSwag: which of four endings continues a paragraph? (Zellers et al. 2019; paper, appendix D: accuracy)"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructgpt.evaluate.tasks.base import EvalQuestion, EvalSettings, EvalTask, QuestionReply
from instructgpt.evaluate.tasks.few_shot import (
    choice_accuracy_rows,
    format_few_shot_prefix,
    iter_shot_conditions,
    split_train_rows,
)
from instructgpt.evaluate.tasks.loading import as_list, load_task_rows, parse_label
from instructgpt.results import ResultRow

_NAME = "hellaswag"
_INSTRUCTION = "Complete each independent paragraph using common-sense reasoning."


def _clean_wikihow_text(text: str) -> str:
    """Remove WikiHow's marks: `[title]` starts a sentence, other brackets are dropped."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def format_paragraph(row: dict[str, Any]) -> str:
    """Return the activity, a sentence, and the beginning of the next sentence."""
    has_parts = row.get("ctx_a") is not None
    context = f"{row['ctx_a']} {str(row.get('ctx_b') or '').capitalize()}" if has_parts else row["ctx"]
    return _clean_wikihow_text(f"{row.get('activity_label') or ''}: {context}".removeprefix(": "))


def _format_endings(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f" {_clean_wikihow_text(ending)}" for ending in as_list(row["endings"]))


def _format_completed_paragraph(row: dict[str, Any]) -> str:
    return format_paragraph(row) + _format_endings(row)[int(row["label"])]


def load(file: Path, settings: EvalSettings) -> list[EvalQuestion]:
    options: dict[str, Any] = {"skip_bad": settings.skip_bad, "check_row": _check_label}
    rows = load_task_rows(file, "ctx|ctx_a", "endings", "label", **options)
    questions = []
    eval_rows, train_rows = split_train_rows(rows)
    for index, condition, row, examples in iter_shot_conditions(eval_rows, settings, train_rows):
        prefix = format_few_shot_prefix(examples, _format_completed_paragraph)
        text, target = f"{_INSTRUCTION}\n\n{prefix}{format_paragraph(row)}", {"label": int(row["label"])}
        questions.append(EvalQuestion(f"{index}", condition, text, _format_endings(row), target=target))
    return questions


def _check_label(row: dict[str, Any]) -> None:
    row["label"] = parse_label(row["label"], len(_format_endings(row)))


def measure(replies: Sequence[QuestionReply], settings: EvalSettings) -> list[ResultRow]:  # noqa: ARG001
    return choice_accuracy_rows(_NAME, replies)


TASK = EvalTask(_NAME, "the ending that continues a paragraph", "hellaswag_val.jsonl", load, measure, limit=300)
