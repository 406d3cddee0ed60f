"""RTE: does a sentence follow from a passage? (paper, appendix D: accuracy, zero and 15 examples)"""

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

_NAME = "rte"
_INSTRUCTION = "The following are examples for a standardized test."
_CHOICES = (" Yes", " No")


def format_rte_question(row: dict[str, Any]) -> str:
    question = f'From this passage can one reasonably conclude that "{row["hypothesis"].strip()}"?'
    return f"Passage: {row['premise'].strip()}\nQuestion: {question}\nAnswer:"


def load(file: Path, settings: EvalSettings) -> list[EvalQuestion]:
    """Return every passage, zero-shot and with examples from the training split; label 0 is yes."""
    eval_rows, train_rows = split_train_rows(
        load_labeled_rows(file, settings, _CHOICES, "premise|sentence1", "hypothesis|sentence2", "label")
    )
    return build_classification_questions(eval_rows, settings, _INSTRUCTION, format_rte_question, _CHOICES, train_rows)


def measure(replies: Sequence[QuestionReply], settings: EvalSettings) -> list[ResultRow]:  # noqa: ARG001
    return choice_accuracy_rows(_NAME, replies)


TASK = EvalTask(_NAME, "entailment", "rte.jsonl.gz", load, measure)
