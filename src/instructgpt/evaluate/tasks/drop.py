"""DROP: questions about a passage, answered by numbers, dates or spans (Dua et al. 2019; paper, appendix D: F1)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from instructgpt.evaluate.metrics.text_metrics import drop_exact_match, drop_f1
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

_NAME = "drop"
_PROMPT_FORMAT = PromptFormat(
    "Answer each question using information in the preceding passage.",
    format_question="Question: {}\nAnswer:".format,
    separator="\n",
    shots=4,
    max_history=0,
)


def load(file: Path, settings: EvalSettings) -> list[EvalQuestion]:
    exchanges = []
    options: dict[str, Any] = {"skip_bad": settings.skip_bad, "check_row": _check_answers}
    rows = load_task_rows(file, "passage", "question", **options, split_row=_split_passages)
    for row_number, row in enumerate(rows):
        references = parse_drop_references(row)
        question_id, question = str(row.get("query_id") or row_number), str(row["question"]).strip()
        exchange = QAExchange(question_id, question, references, ", ".join(references[0]))
        exchanges.append(("", f"Passage: {str(row['passage']).strip()}\n", row.get("split") == "train", exchange))
    return build_passage_questions(group_by_passage(exchanges), settings, _PROMPT_FORMAT)


def _split_passages(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a row per question; the data set's own files hold passages by name with `qa_pairs`."""
    is_official = row and all(isinstance(value, dict) and "qa_pairs" in value for value in row.values())
    for passage in row.values() if is_official else [row]:
        for qa_pair in passage.get("qa_pairs", [{}]):
            yield passage | qa_pair


def _check_answers(row: dict[str, Any]) -> None:
    if not parse_drop_references(row):
        raise ValueError("the question has no answer; expected 'answer' or 'answers'")


def parse_drop_references(row: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the spans of every accepted answer, from `answers`, or from `answer` and `validated_answers`."""
    if row.get("answers"):
        answers = [answer for answer in as_list(row["answers"]) if answer is not None]
        spans_of_answers = [tuple(map(str, a)) if isinstance(a, list | tuple) else (str(a),) for a in answers]
        return [spans for spans in spans_of_answers if any(span.strip() for span in spans)]
    validated = row.get("validated_answers") or []
    if isinstance(validated, dict):  # the hub stores columns instead of rows
        validated = [dict(zip(validated, cells, strict=True)) for cells in zip(*validated.values(), strict=True)]
    answers = [row["answer"], *validated] if isinstance(row.get("answer"), dict) else []
    return [spans for spans in dict.fromkeys(map(_answer_spans, answers)) if spans and spans[0].strip()]


def _answer_spans(answer: dict[str, Any]) -> tuple[str, ...]:
    """Return a number, the spans, or a date as day, month and year."""
    if str(answer.get("number") or "") != "":
        return (str(answer["number"]),)
    if answer.get("spans"):
        return tuple(map(str, answer["spans"]))
    date = answer.get("date") or {}
    return (" ".join(str(date.get(part) or "") for part in ("day", "month", "year")).strip(),)


def measure(replies: Sequence[QuestionReply], settings: EvalSettings) -> list[ResultRow]:  # noqa: ARG001
    """Return `f1` and `exact_match` by condition and model, also by kind of answer; a reply is one span.

    Numbers are much harder than spans, so that two samples of questions are comparable only with equal shares of both.
    """
    metric_fns = {"f1": _max_over_references(drop_f1), "exact_match": _max_over_references(drop_exact_match)}
    rows = metric_rows_by_context(_NAME, replies, metric_fns)
    parts: dict[str, list[QuestionReply]] = {"numbers": [], "spans": []}
    for question, reply in replies:
        part = "numbers" if any(map(_is_number, question.target["answers"])) else "spans"
        parts[part].append((replace(question, condition=f"{question.condition}/{part}"), reply))
    return rows + [row for part in parts.values() for row in metric_rows_by_context(_NAME, part, metric_fns)]


def _is_number(reference: str | Sequence[str]) -> bool:
    spans = [reference] if isinstance(reference, str) else reference
    return len(spans) == 1 and re.fullmatch(r"[-+]?[\d,]*\.?\d+%?", spans[0].strip()) is not None


def _max_over_references(metric_fn: Callable[..., float]) -> Callable[[str, Sequence[Any]], float]:
    def best(reply: str, references: Sequence[Any]) -> float:
        return max(metric_fn([reply], [spans] if isinstance(spans, str) else spans) for spans in references)

    return best


TASK = EvalTask(_NAME, "numbers, dates and spans from a passage", "drop_dev.json", load, measure, limit=300)
