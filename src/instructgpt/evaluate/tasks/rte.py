"""RTE: does a sentence follow from a passage? (paper, appendix D: accuracy, zero and 15 examples)"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructgpt.evaluate.aggregate import Row
from instructgpt.evaluate.tasks.base import Asked, Evaluation, Question, Told, rows_of
from instructgpt.evaluate.tasks.few_shot import accuracy, split_off, with_examples

NAME = "rte"
INSTRUCTION = "The following are examples for a standardized test."
CHOICES = (" Yes", " No")


def show(row: dict[str, Any]) -> str:
    """A passage and what might follow from it, up to the answer."""
    asked = f'From this passage can one reasonably conclude that "{row["hypothesis"].strip()}"?'
    return f"Passage: {row['premise'].strip()}\nQuestion: {asked}\nAnswer:"


def read(file: Path, told: Told) -> list[Question]:
    """Every passage of the development split without and with examples from the training split; label 0 is yes."""
    asked, training = split_off(rows_of(file, "premise|sentence1", "hypothesis|sentence2", "label"))
    return with_examples(asked, told, INSTRUCTION, show, CHOICES, training)


def measure(asked: Sequence[Asked], told: Told) -> list[Row]:  # noqa: ARG001
    """`accuracy` by condition and model."""
    return accuracy(NAME, asked)


EVALUATION = Evaluation(NAME, "entailment", "rte.jsonl.gz", read, measure)
