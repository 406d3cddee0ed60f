"""The Winograd schema challenge of SuperGLUE: what does a pronoun refer to? (paper, appendix D: accuracy)

The model names the noun; its answer matches if one of the two texts contains the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructgpt.evaluate.tasks.base import (
    EvalQuestion,
    EvalSettings,
    EvalTask,
    ModelReply,
    QuestionReply,
    measure_by_condition,
)
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
    rows = load_task_rows(file, "text", "label", skip_bad=settings.skip_bad, check_row=_check_row)
    questions = []
    eval_rows, train_rows = split_train_rows(rows)
    example_rows = [row for row in (train_rows or eval_rows) if _refers_to_noun(row)]
    for index, condition, row, examples in iter_shot_conditions(eval_rows, settings, example_rows):
        prefix = format_few_shot_prefix([e for e in examples if e is not row], _format_answered_passage)
        text = f"{_INSTRUCTION}\n{prefix}{_format_passage(row)}"
        target = {"noun": row["span1_text"], "label": _refers_to_noun(row)}
        questions.append(EvalQuestion(f"{index}", condition, text, max_tokens=_MAX_TOKENS, target=target))
    return questions


def _check_row(row: dict[str, Any]) -> None:
    """Move the columns of the official `target` into the row. Raise ValueError if one or the label is missing."""
    row |= row["target"] if isinstance(row.get("target"), dict) else {}
    if missing := [column for column in _COLUMNS if row.get(column) is None]:
        raise ValueError(f"column '{missing[0]}' is missing (columns found: {', '.join(map(str, row))})")
    if str(row["label"]).lower() not in ("true", "false", "1", "0"):
        raise ValueError(f"the label is {row['label']!r}; expected true or false")
    _format_passage(row)


def _refers_to_noun(row: dict[str, Any]) -> bool:
    return str(row["label"]).lower() in ("true", "1")


def _format_passage(row: dict[str, Any]) -> str:
    """Return a passage with its pronoun marked, and the question."""
    words, start, pronoun = str(row["text"]).split(" "), int(row["span2_index"]), str(row["span2_text"])
    end = start + len(pronoun.split(" "))
    marked = " ".join([*words[:start], f"*{' '.join(words[start:end])}*", *words[end:]])
    question = f'In the passage above, what does the pronoun "*{pronoun}*" refer to?'
    return f"Passage: {marked.strip()}\nQuestion: {question}\nAnswer:"


def _format_answered_passage(row: dict[str, Any]) -> str:
    return f"{_format_passage(row)} {row['span1_text']}"


def measure(replies: Sequence[QuestionReply], settings: EvalSettings) -> list[ResultRow]:  # noqa: ARG001
    return measure_by_condition(_NAME, replies, {"accuracy": _is_correct})


def _is_correct(question: EvalQuestion, reply: ModelReply) -> float:
    return float(_nouns_match(reply.said or "", question.target["noun"]) is question.target["label"])


def _nouns_match(completion: str, noun: str) -> bool:
    """Return whether one text contains the other; an empty answer matches nothing."""
    answer, noun_text = completion.strip().strip('."*').lower(), noun.strip().lower()
    return bool(answer) and (answer in noun_text or noun_text in answer)


TASK = EvalTask(_NAME, "what a pronoun refers to", "wsc.jsonl", load, measure)
