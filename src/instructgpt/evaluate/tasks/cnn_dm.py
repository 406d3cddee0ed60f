"""CNN/Daily Mail: a summary of an article, asked for by `TL;DR:` (paper, appendix D: ROUGE-L)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from instructgpt.evaluate.aggregate import Row
from instructgpt.evaluate.metrics.text_metrics import best, rouge_l
from instructgpt.evaluate.tasks.base import Asked, Evaluation, Question, Told, some
from instructgpt.evaluate.tasks.loading import rows_of
from instructgpt.evaluate.tasks.reading_comprehension import rows_by_context

NAME = "cnn_dm"
TAIL = "\n\nTL;DR:"
MAX_TOKENS = 100


def read(file: Path, told: Told) -> list[Question]:
    """Every article; one too long loses its end, for news begin with what matters."""
    return summaries(file, told, "article|document|text", "highlights|summary")


def summaries(file: Path, told: Told, text: str, summary: str) -> list[Question]:
    """Texts to be summed up, from the columns of a file."""
    body, reference = text.partition("|")[0], summary.partition("|")[0]
    return [
        Question(
            str(row.get("id") or number),
            "zero_shot",
            str(row[body]).strip().removesuffix("TL;DR:").rstrip(),
            max_tokens=MAX_TOKENS,
            tail=TAIL,
            truth={"answers": [str(row[reference]).strip()], "context": str(row[body])},
        )
        for number, row in some(list(enumerate(rows_of(file, text, summary))), told)
        if row.get("split") != "train"
    ]


def measure(asked: Sequence[Asked], told: Told) -> list[Row]:  # noqa: ARG001
    """`rouge_l` by model: the F-measure over stemmed words."""
    return rows_by_context(NAME, asked, {"rouge_l": best(rouge_l)})


EVALUATION = Evaluation(NAME, "summaries of news", "cnn_dm_test.jsonl", read, measure, limit=300)
