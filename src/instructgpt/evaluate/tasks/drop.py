"""DROP: questions about a passage whose answers are numbers, dates or spans (Dua et al. 2019; paper, appendix D: F1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from instructgpt.errors import BadInput
from instructgpt.evaluate.aggregate import Row
from instructgpt.evaluate.metrics.text_metrics import drop_exact_match, drop_f1
from instructgpt.evaluate.tasks.base import Asked, Evaluation, Question, Told
from instructgpt.evaluate.tasks.loading import listed, rows_of
from instructgpt.evaluate.tasks.reading_comprehension import Exchange, Form, passages_of, questions_about, rows_by_context

NAME = "drop"
FORM = Form(
    "Answer each question using information in the preceding passage.",
    ask="Question: {}\nAnswer:".format,
    after="\n",
    shots=4,
    earlier=0,
)


def read(file: Path, told: Told) -> list[Question]:
    """Every question after its passage; then with example passages."""
    exchanges = []
    for number, row in enumerate(questions_in(rows_of(file))):
        references = references_of(row)
        if not references:
            raise BadInput(f"{file}: question {number + 1} has no answer; expected 'answer' or 'answers'")
        one = Exchange(str(row.get("query_id") or number), str(row["question"]).strip(), references, ", ".join(references[0]))
        exchanges.append(("", f"Passage: {str(row['passage']).strip()}\n", row.get("split") == "train", one))
    return questions_about(passages_of(exchanges), told, FORM)


def questions_in(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a question: as it stands, or from the data set's own layout, passages by name with `qa_pairs`.

    Raises:
        BadInput: a passage or a question is missing.
    """
    questions = []
    for row in rows:
        passages = row.values() if row and all(isinstance(each, dict) and "qa_pairs" in each for each in row.values()) else [row]
        questions += [passage | asked for passage in passages for asked in passage.get("qa_pairs", [{}])]
    for number, question in enumerate(questions, 1):
        for column in ("passage", "question"):
            if not question.get(column):
                raise BadInput(f"drop: question {number} has no '{column}' (columns found: {', '.join(question)})")
    return questions


def references_of(row: dict[str, Any]) -> list[tuple[str, ...]]:
    """Every accepted answer as its spans: from `answers` (each a text or a list of spans), or `answer` and `validated_answers`."""
    if row.get("answers"):
        return [tuple(map(str, each)) if isinstance(each, list | tuple) else (str(each),) for each in listed(row["answers"])]
    validated = row.get("validated_answers") or []
    if isinstance(validated, dict):  # columns in place of rows
        validated = [dict(zip(validated, each, strict=True)) for each in zip(*validated.values(), strict=True)]
    answers = [row["answer"], *validated] if isinstance(row.get("answer"), dict) else []
    return [spans for spans in dict.fromkeys(map(spans_of, answers)) if spans and spans[0].strip()]


def spans_of(answer: dict[str, Any]) -> tuple[str, ...]:
    """A number, one or more spans, or a date as its day, month and year."""
    if str(answer.get("number") or "") != "":
        return (str(answer["number"]),)
    if answer.get("spans"):
        return tuple(map(str, answer["spans"]))
    date = answer.get("date") or {}
    return (" ".join(str(date.get(part) or "") for part in ("day", "month", "year")).strip(),)


def measure(asked: Sequence[Asked], told: Told) -> list[Row]:  # noqa: ARG001
    """`f1` and `exact_match` by condition and model, the best reference counts; what was said is one span."""
    return rows_by_context(NAME, asked, {"f1": over_spans(drop_f1), "exact_match": over_spans(drop_exact_match)})


def over_spans(score: Callable[[Sequence[str], Sequence[str]], float]) -> Callable[[str, Sequence[Any]], float]:
    """The highest score over references, each one span or several."""
    return lambda said, references: max(score([said], [each] if isinstance(each, str) else each) for each in references)


EVALUATION = Evaluation(NAME, "numbers, dates and spans from a passage", "drop_dev.json", read, measure, limit=300)
