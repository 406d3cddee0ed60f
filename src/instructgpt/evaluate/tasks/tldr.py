"""Reddit TL;DR: summaries of posts after `TL;DR:` (paper, appendix D: ROUGE-L)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from instructgpt.evaluate.metrics.text_metrics import max_over_references, rouge_l
from instructgpt.evaluate.tasks.base import EvalQuestion, EvalSettings, EvalTask, QuestionReply
from instructgpt.evaluate.tasks.cnn_dm import build_summary_questions
from instructgpt.evaluate.tasks.reading_comprehension import metric_rows_by_context
from instructgpt.results import ResultRow

_NAME = "tldr"


def load(file: Path, settings: EvalSettings) -> list[EvalQuestion]:
    return build_summary_questions(file, settings, "post|content|prompt", "summary|label|completion")


def measure(replies: Sequence[QuestionReply], settings: EvalSettings) -> list[ResultRow]:  # noqa: ARG001
    return metric_rows_by_context(_NAME, replies, {"rouge_l": max_over_references(rouge_l)})


TASK = EvalTask(_NAME, "summaries of posts", "tldr_test.jsonl", load, measure, limit=300)
