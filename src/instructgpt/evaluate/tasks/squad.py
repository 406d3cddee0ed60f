"""SQuADv2: questions about a background, some of which it does not answer (paper, appendix D: F1).

A question that the background does not answer has one right answer: `Not in background.`
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from instructgpt.evaluate.rows import Observation, Row, per_model
from instructgpt.evaluate.tasks.shape import Asked, Evaluation, Question, Told, rows_of, some
from instructgpt.evaluate.text_metrics import exact_match, word_f1

NAME = "squad"
INSTRUCTION = (
    "Answer each question using information in the preceding background paragraph. "
    "If there is not enough information provided, answer with “Not in background.”"
)
NOT_THERE = "Not in background."
MAX_TOKENS = 30


def read(file: Path, told: Told) -> list[Question]:
    """Every question after its background."""
    return [
        Question(
            row.get("id") or f"{number}",
            "zero_shot",
            f"{INSTRUCTION}\n\nTitle: {row.get('title') or ''}\n\nBackground: {row['context']}\n\nQ: {row['question']}\n\nA:",
            max_tokens=MAX_TOKENS,
            truth={"answers": row["answers"] or [NOT_THERE], "context": row["context"]},
        )
        for number, row in enumerate(some(rows_of(file, "context", "question", "answers"), told))
    ]


def measure(asked: Sequence[Asked], told: Told) -> list[Row]:  # noqa: ARG001
    """`f1` and `exact_match`, over all questions and apart for those with and without an answer, clustered by background."""
    rows: list[Row] = []
    parts = {"zero_shot": (True, False), "zero_shot/answerable": (True,), "zero_shot/unanswerable": (False,)}
    for condition, kinds in parts.items():
        found = [(question, reply) for question, reply in asked if (question.truth["answers"] != [NOT_THERE]) in kinds]
        for metric, score in (("f1", word_f1), ("exact_match", exact_match)):
            observations = [
                Observation(
                    reply.model, max(score(reply.said or "", answer) for answer in question.truth["answers"]), (question.truth["context"],)
                )
                for question, reply in found
            ]
            rows += per_model(NAME, metric, condition, observations, share=True)
    return rows


EVALUATION = Evaluation(NAME, "questions about a background, some without an answer", "squad_v2_dev_half.jsonl.gz", read, measure)
