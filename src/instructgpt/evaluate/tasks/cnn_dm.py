"""CNN/Daily Mail: summaries of articles after `TL;DR:` (paper, appendix D: ROUGE-L)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from instructgpt.evaluate.metrics.text_metrics import max_over_references, rouge_l
from instructgpt.evaluate.tasks.base import EvalQuestion, EvalSettings, EvalTask, QuestionReply, subsample
from instructgpt.evaluate.tasks.loading import load_task_rows
from instructgpt.evaluate.tasks.reading_comprehension import metric_rows_by_context
from instructgpt.results import ResultRow

_NAME = "cnn_dm"
_SUMMARY_SUFFIX = "\n\nTL;DR:"
_MAX_TOKENS = 100


def load(file: Path, settings: EvalSettings) -> list[EvalQuestion]:
    """Return every article; one that is too long loses its end, since news starts with what matters."""
    return build_summary_questions(file, settings, "article|document|text", "highlights|summary")


def build_summary_questions(
    file: Path, settings: EvalSettings, text_columns: str, summary_columns: str
) -> list[EvalQuestion]:
    text_column, summary_column = text_columns.partition("|")[0], summary_columns.partition("|")[0]
    return [
        EvalQuestion(
            str(row.get("id") or row_number),
            "zero_shot",
            str(row[text_column]).strip().removesuffix("TL;DR:").rstrip(),
            max_tokens=_MAX_TOKENS,
            tail=_SUMMARY_SUFFIX,
            target={"answers": [str(row[summary_column]).strip()], "context": str(row[text_column])},
        )
        for row_number, row in subsample(list(enumerate(load_task_rows(file, text_columns, summary_columns))), settings)
        if row.get("split") != "train"
    ]


def measure(replies: Sequence[QuestionReply], settings: EvalSettings) -> list[ResultRow]:  # noqa: ARG001
    return metric_rows_by_context(_NAME, replies, {"rouge_l": max_over_references(rouge_l)})


TASK = EvalTask(_NAME, "summaries of news", "cnn_dm_test.jsonl", load, measure, limit=300)
