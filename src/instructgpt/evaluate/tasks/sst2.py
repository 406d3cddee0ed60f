"""SST-2: is a snippet of a film review positive or negative? (paper, appendix D: accuracy, zero and 15 examples)"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructgpt.evaluate.tasks.base import EvalQuestion, EvalSettings, EvalTask, QuestionReply
from instructgpt.evaluate.tasks.few_shot import (
    build_classification_questions,
    choice_accuracy_rows,
    load_labeled_rows,
    split_train_rows,
)
from instructgpt.results import ResultRow

_NAME = "sst2"
_INSTRUCTION = "For each snippet of text, label the sentiment of the text as positive or negative."
_CHOICES = (" negative", " positive")


def format_sst2_question(row: dict[str, Any]) -> str:
    return f"Text: {row['sentence'].strip()}\nLabel:"


def load(file: Path, settings: EvalSettings) -> list[EvalQuestion]:
    """Return every snippet, zero-shot and few-shot; label 1 is positive."""
    eval_rows, train_rows = split_train_rows(load_labeled_rows(file, settings, _CHOICES, "sentence", "label"))
    return build_classification_questions(eval_rows, settings, _INSTRUCTION, format_sst2_question, _CHOICES, train_rows)


def measure(replies: Sequence[QuestionReply], settings: EvalSettings) -> list[ResultRow]:  # noqa: ARG001
    return choice_accuracy_rows(_NAME, replies)


TASK = EvalTask(_NAME, "sentiment of film reviews", "sst2_dev.jsonl.gz", load, measure, limit=500)
