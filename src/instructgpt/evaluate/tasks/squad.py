"""SQuADv2: questions about a background that does not answer all of them (paper, appendix D: F1).

An unanswerable question has one right answer: `Not in background.` The paper compares words with that text; the data
set's own script requires an empty answer. Both are measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from instructgpt.evaluate.metrics.text_metrics import (
    exact_match,
    max_over_references,
    normalize_words,
    squad2_metric,
    word_f1,
)
from instructgpt.evaluate.tasks.base import EvalQuestion, EvalSettings, EvalTask, QuestionReply
from instructgpt.evaluate.tasks.loading import as_list, load_task_rows
from instructgpt.evaluate.tasks.reading_comprehension import (
    PromptFormat,
    QAExchange,
    build_passage_questions,
    group_by_passage,
    metric_rows_by_context,
)
from instructgpt.results import ResultRow

_NAME = "squad"
_UNANSWERABLE_TEXT = "Not in background."
_PROMPT_FORMAT = PromptFormat(
    "Answer each question using information in the preceding background paragraph. "
    f"If there is not enough information provided, answer with “{_UNANSWERABLE_TEXT}”",
    format_question="Q: {}\n\nA:".format,
    separator="\n\n",
    shots=4,
    max_history=4,
)


def load(file: Path, settings: EvalSettings) -> list[EvalQuestion]:
    exchanges = []
    options: dict[str, Any] = {"skip_bad": settings.skip_bad, "check_row": _check_answers}
    for row_number, row in enumerate(load_task_rows(file, "context", "question", **options)):
        references = _non_blank_answers(row) or [_UNANSWERABLE_TEXT]
        passage_text = f"Title: {row.get('title') or ''}\n\nBackground: {row['context']}\n\n"
        exchange = QAExchange(str(row.get("id") or row_number), row["question"].strip(), references, references[0])
        exchanges.append(("", passage_text, row.get("split") == "train", exchange))
    return build_passage_questions(group_by_passage(exchanges), settings, _PROMPT_FORMAT)


def _non_blank_answers(row: dict[str, Any]) -> list[str]:
    return [str(answer) for answer in as_list(row["answers"]) if answer is not None and str(answer).strip()]


def _check_answers(row: dict[str, Any]) -> None:
    """Raise ValueError if answers are missing. An empty list means that the question has no answer, unless denied."""
    if row.get("answers") is None:
        raise ValueError(f"column 'answers' is missing (columns found: {', '.join(map(str, row))})")
    if not _non_blank_answers(row) and str(row.get("is_impossible", "")).lower() in ("false", "0"):
        raise ValueError("column 'answers' is empty, although 'is_impossible' says that there is one")


def measure(replies: Sequence[QuestionReply], settings: EvalSettings) -> list[ResultRow]:  # noqa: ARG001
    """Return `f1`, `exact_match`, and both by the data set's rules (`official_…`), also by answerability."""
    metric_fns = {
        "f1": max_over_references(word_f1),
        "exact_match": max_over_references(exact_match),
        "official_f1": squad2_metric(word_f1, _UNANSWERABLE_TEXT),
        "official_exact_match": squad2_metric(exact_match, _UNANSWERABLE_TEXT),
    }
    rows = metric_rows_by_context(_NAME, replies, metric_fns)
    no_answer = normalize_words(_UNANSWERABLE_TEXT)
    parts: dict[str, list[QuestionReply]] = {"answerable": [], "unanswerable": []}
    for question, reply in replies:
        is_answerable = any(normalize_words(answer) != no_answer for answer in question.target["answers"])
        part = "answerable" if is_answerable else "unanswerable"
        parts[part].append((replace(question, condition=f"{question.condition}/{part}"), reply))
    return rows + [row for part in parts.values() for row in metric_rows_by_context(_NAME, part, metric_fns)]


_DESCRIPTION = "questions about a background, some without an answer"
TASK = EvalTask(_NAME, _DESCRIPTION, "squad_v2_dev_half.jsonl.gz", load, measure, limit=300)
