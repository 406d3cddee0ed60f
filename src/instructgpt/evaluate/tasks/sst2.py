"""SST-2: is a snippet of a film review positive or negative? (paper, appendix D: accuracy, zero and 15 examples)"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructgpt.evaluate.aggregate import Row
from instructgpt.evaluate.tasks.base import Asked, Evaluation, Question, Told, rows_of
from instructgpt.evaluate.tasks.few_shot import accuracy, split_off, with_examples

NAME = "sst2"
INSTRUCTION = "For each snippet of text, label the sentiment of the text as positive or negative."
CHOICES = (" negative", " positive")


def show(row: dict[str, Any]) -> str:
    """A snippet, up to its label."""
    return f"Text: {row['sentence'].strip()}\nLabel:"


def read(file: Path, told: Told) -> list[Question]:
    """Every snippet without and with examples; label 1 is positive."""
    asked, training = split_off(rows_of(file, "sentence", "label"))
    return with_examples(asked, told, INSTRUCTION, show, CHOICES, training)


def measure(asked: Sequence[Asked], told: Told) -> list[Row]:  # noqa: ARG001
    """`accuracy` by condition and model."""
    return accuracy(NAME, asked)


EVALUATION = Evaluation(NAME, "sentiment of film reviews", "sst2_dev.jsonl.gz", read, measure, limit=500)
