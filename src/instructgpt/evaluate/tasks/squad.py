"""SQuADv2: questions about a background, some of which it does not answer (paper, appendix D: F1).

A question that the background does not answer has one right answer: `Not in background.` The paper compares words with that text; the
data set's own script wants nothing said there. Both are measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from instructgpt.evaluate.aggregate import Row
from instructgpt.evaluate.metrics.text_metrics import best, exact_match, squad2, word_f1, words
from instructgpt.evaluate.tasks.base import Asked, Evaluation, Question, Told
from instructgpt.evaluate.tasks.loading import listed, rows_of
from instructgpt.evaluate.tasks.reading_comprehension import Exchange, Form, passages_of, questions_about, rows_by_context

NAME = "squad"
NOT_THERE = "Not in background."
FORM = Form(
    "Answer each question using information in the preceding background paragraph. "
    f"If there is not enough information provided, answer with “{NOT_THERE}”",
    ask="Q: {}\n\nA:".format,
    after="\n\n",
    shots=4,
    earlier=4,
)


def read(file: Path, told: Told) -> list[Question]:
    """Every question after its background and the questions before it; then with example backgrounds."""
    exchanges = []
    for number, row in enumerate(rows_of(file, "context", "question", "answers")):
        references = [str(answer) for answer in listed(row["answers"])] or [NOT_THERE]
        text = f"Title: {row.get('title') or ''}\n\nBackground: {row['context']}\n\n"
        one = Exchange(str(row.get("id") or number), row["question"].strip(), references, references[0])
        exchanges.append(("", text, row.get("split") == "train", one))
    return questions_about(passages_of(exchanges), told, FORM)


def measure(asked: Sequence[Asked], told: Told) -> list[Row]:  # noqa: ARG001
    """`f1`, `exact_match`, and by the data set's own rules `official_f1`, `official_exact_match`; apart for those without an answer."""
    scores = {
        "f1": best(word_f1),
        "exact_match": best(exact_match),
        "official_f1": squad2(word_f1, NOT_THERE),
        "official_exact_match": squad2(exact_match, NOT_THERE),
    }
    rows = rows_by_context(NAME, asked, scores)
    for part, there in (("answerable", True), ("unanswerable", False)):
        found = [
            (question, reply)
            for question, reply in asked
            if any(words(answer) != words(NOT_THERE) for answer in question.truth["answers"]) is there
        ]
        named = [(replace(question, condition=f"{question.condition}/{part}"), reply) for question, reply in found]
        rows += rows_by_context(NAME, named, scores)
    return rows


EVALUATION = Evaluation(
    NAME, "questions about a background, some without an answer", "squad_v2_dev_half.jsonl.gz", read, measure, limit=300
)
