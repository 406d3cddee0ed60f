"""The Winograd schema challenge of SuperGLUE: what does a pronoun refer to? (paper, appendix D: accuracy, zero and 15 examples)

The model names the noun; its answer matches if one of the two texts contains the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructgpt.errors import InputError
from instructgpt.evaluate.aggregate import Observation, aggregate_per_model
from instructgpt.evaluate.tasks.base import EvalQuestion, EvalSettings, EvalTask, QuestionReply
from instructgpt.evaluate.tasks.few_shot import format_few_shot_prefix, iter_shot_conditions, split_train_rows
from instructgpt.evaluate.tasks.loading import load_task_rows
from instructgpt.results import ResultRow

_NAME = "wsc"
_INSTRUCTION = (
    "Final Exam with Answer Key\nInstructions: Please carefully read the following passages. "
    "For each passage, you must identify which noun the pronoun marked in *asterisks* refers to.\n====="
)
_MAX_TOKENS = 16
_COLUMNS = ("span1_text", "span2_text", "span2_index")


def load(file: Path, settings: EvalSettings) -> list[EvalQuestion]:
    """Return every passage, zero-shot and few-shot; examples are passages whose pronoun refers to the given noun."""
    rows = [
        row | (row["target"] if isinstance(row.get("target"), dict) else {})
        for row in load_task_rows(file, "text", "label")
    ]
    for row_number, row in enumerate(rows, 1):
        if missing_columns := [column for column in _COLUMNS if row.get(column) is None]:
            raise InputError(
                f"{file}: row {row_number}: column '{missing_columns[0]}' is missing (columns found: {', '.join(map(str, row))})"
            )
    eval_rows, train_rows = split_train_rows(rows)
    example_rows = [row for row in (train_rows or eval_rows) if _refers_to_noun(row)]
    return [
        EvalQuestion(
            f"{row_number}",
            condition,
            f"{_INSTRUCTION}\n{format_few_shot_prefix([example for example in examples if example is not row], _format_answered_passage)}{_format_passage(row)}",
            max_tokens=_MAX_TOKENS,
            target={"noun": row["span1_text"], "label": _refers_to_noun(row)},
        )
        for row_number, condition, row, examples in iter_shot_conditions(eval_rows, settings, example_rows)
    ]


def _refers_to_noun(row: dict[str, Any]) -> bool:
    return str(row["label"]).lower() in ("true", "1")


def _format_passage(row: dict[str, Any]) -> str:
    """Return a passage with its pronoun marked, and the question."""
    words, pronoun_index, pronoun = str(row["text"]).split(" "), int(row["span2_index"]), str(row["span2_text"])
    pronoun_length = len(pronoun.split(" "))
    marked = " ".join(
        [
            *words[:pronoun_index],
            f"*{' '.join(words[pronoun_index : pronoun_index + pronoun_length])}*",
            *words[pronoun_index + pronoun_length :],
        ]
    )
    return f'Passage: {marked.strip()}\nQuestion: In the passage above, what does the pronoun "*{pronoun}*" refer to?\nAnswer:'


def _format_answered_passage(row: dict[str, Any]) -> str:
    return f"{_format_passage(row)} {row['span1_text']}"


def measure(replies: Sequence[QuestionReply], settings: EvalSettings) -> list[ResultRow]:  # noqa: ARG001
    rows: list[ResultRow] = []
    for condition in dict.fromkeys(question.condition for question, _ in replies):
        observations = [
            Observation(
                reply.model,
                float(_nouns_match(reply.said or "", question.target["noun"]) is question.target["label"]),
                (question.id,),
            )
            for question, reply in replies
            if question.condition == condition
        ]
        rows += aggregate_per_model(_NAME, "accuracy", condition, observations, share=True)
    return rows


def _nouns_match(completion: str, noun: str) -> bool:
    """Return whether one text contains the other; an empty answer matches nothing."""
    answer, noun_text = completion.strip().strip('."*').lower(), noun.strip().lower()
    return bool(answer) and (answer in noun_text or noun_text in answer)


TASK = EvalTask(_NAME, "what a pronoun refers to", "wsc.jsonl", load, measure)
