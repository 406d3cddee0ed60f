"""Reddit TL;DR: a summary of a post, asked for by `TL;DR:` (paper, appendix D: ROUGE-L)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from instructgpt.evaluate.aggregate import Row
from instructgpt.evaluate.metrics.text_metrics import best, rouge_l
from instructgpt.evaluate.tasks.base import Asked, Evaluation, Question, Told
from instructgpt.evaluate.tasks.cnn_dm import summaries
from instructgpt.evaluate.tasks.reading_comprehension import rows_by_context

NAME = "tldr"


def read(file: Path, told: Told) -> list[Question]:
    """Every post; one too long loses its end."""
    return summaries(file, told, "post|content|prompt", "summary|label|completion")


def measure(asked: Sequence[Asked], told: Told) -> list[Row]:  # noqa: ARG001
    """`rouge_l` by model: the F-measure over stemmed words."""
    return rows_by_context(NAME, asked, {"rouge_l": best(rouge_l)})


EVALUATION = Evaluation(NAME, "summaries of posts", "tldr_test.jsonl", read, measure, limit=300)
