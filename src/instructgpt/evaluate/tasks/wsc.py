"""The Winograd schema challenge as in SuperGLUE: what does a pronoun refer to? (paper, appendix D: accuracy, zero and 15 examples)

The model says what the pronoun refers to; that counts as "refers to the noun" where one of the two texts holds the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructgpt.errors import BadInput
from instructgpt.evaluate.aggregate import Observation, Row, per_model
from instructgpt.evaluate.tasks.base import Asked, Evaluation, Question, Told
from instructgpt.evaluate.tasks.few_shot import conditions, in_front, split_off
from instructgpt.evaluate.tasks.loading import rows_of

NAME = "wsc"
INSTRUCTION = (
    "Final Exam with Answer Key\nInstructions: Please carefully read the following passages. "
    "For each passage, you must identify which noun the pronoun marked in *asterisks* refers to.\n====="
)
MAX_TOKENS = 16
COLUMNS = ("span1_text", "span2_text", "span2_index")


def read(file: Path, told: Told) -> list[Question]:
    """Every passage without and with examples, which are passages whose pronoun does refer to the noun."""
    rows = [row | (row["target"] if isinstance(row.get("target"), dict) else {}) for row in rows_of(file, "text", "label")]
    for number, row in enumerate(rows, 1):
        if missing := [column for column in COLUMNS if row.get(column) is None]:
            raise BadInput(f"{file}: row {number}: column '{missing[0]}' is missing (columns found: {', '.join(map(str, row))})")
    asked, training = split_off(rows)
    told_apart = [row for row in (training or asked) if truth_of(row)]
    return [
        Question(
            f"{number}",
            condition,
            f"{INSTRUCTION}\n{in_front([other for other in examples if other is not row], answered)}{show(row)}",
            max_tokens=MAX_TOKENS,
            truth={"noun": row["span1_text"], "label": truth_of(row)},
        )
        for number, condition, row, examples in conditions(asked, told, told_apart)
    ]


def truth_of(row: dict[str, Any]) -> bool:
    """Whether the pronoun refers to the noun: true, 1, "True"."""
    return str(row["label"]).lower() in ("true", "1")


def show(row: dict[str, Any]) -> str:
    """A passage with its pronoun marked, and the question, up to the answer."""
    words, place, pronoun = str(row["text"]).split(" "), int(row["span2_index"]), str(row["span2_text"])
    count = len(pronoun.split(" "))
    marked = " ".join([*words[:place], f"*{' '.join(words[place : place + count])}*", *words[place + count :]])
    return f'Passage: {marked.strip()}\nQuestion: In the passage above, what does the pronoun "*{pronoun}*" refer to?\nAnswer:'


def answered(row: dict[str, Any]) -> str:
    """A passage whose pronoun refers to the noun, with that answer."""
    return f"{show(row)} {row['span1_text']}"


def measure(asked: Sequence[Asked], told: Told) -> list[Row]:  # noqa: ARG001
    """`accuracy` by condition and model."""
    rows: list[Row] = []
    for condition in dict.fromkeys(question.condition for question, _ in asked):
        observations = [
            Observation(reply.model, float(same(reply.said or "", question.truth["noun"]) is question.truth["label"]), (question.id,))
            for question, reply in asked
            if question.condition == condition
        ]
        rows += per_model(NAME, "accuracy", condition, observations, share=True)
    return rows


def same(said: str, noun: str) -> bool:
    """Whether one text holds the other; nothing said is nothing meant."""
    answer, right = said.strip().strip('."*').lower(), noun.strip().lower()
    return bool(answer) and (answer in right or right in answer)


EVALUATION = Evaluation(NAME, "what a pronoun refers to", "wsc.jsonl", read, measure)
