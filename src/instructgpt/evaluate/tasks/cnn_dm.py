"""CNN/Daily Mail: summaries of articles after `TL;DR:` (paper, appendix D: ROUGE-L)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    options: dict[str, Any] = {
        "skip_bad": settings.skip_bad,
        "check_row": lambda row: _parse_summaries(row[summary_column]),
    }
    rows = load_task_rows(file, text_columns, summary_columns, **options)
    return [
        EvalQuestion(
            str(row.get("id") or row_number),
            "zero_shot",
            str(row[text_column]).strip().removesuffix("TL;DR:").rstrip(),
            max_tokens=_MAX_TOKENS,
            tail=_SUMMARY_SUFFIX,
            target={"answers": _parse_summaries(row[summary_column]), "context": str(row[text_column])},
        )
        for row_number, row in subsample(list(enumerate(rows)), settings)
        if row.get("split") != "train"
    ]


def _parse_summaries(cell: Any) -> list[str]:
    """Return the references: a text is one, a list holds alternatives. Raise ValueError if there is none."""
    summaries = [str(text).strip() for text in (cell if isinstance(cell, list) else [cell]) if text is not None]
    if not any(summaries):
        raise ValueError("the summary is empty")
    return [summary for summary in summaries if summary]


def measure(replies: Sequence[QuestionReply], settings: EvalSettings) -> list[ResultRow]:  # noqa: ARG001
    return metric_rows_by_context(_NAME, replies, {"rouge_l": max_over_references(rouge_l)})


TASK = EvalTask(_NAME, "summaries of news", "cnn_dm_test.jsonl", load, measure, limit=300)
