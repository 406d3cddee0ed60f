"""WinoGrande: which of two nouns fits the blank? (Sakaguchi et al. 2020; not in the paper; accuracy)

Each noun fills the blank; the model's choice is the one that makes the rest of the sentence more likely.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructgpt.evaluate.aggregate import Observation, aggregate_per_model
from instructgpt.evaluate.tasks.base import EvalQuestion, EvalSettings, EvalTask, QuestionReply
from instructgpt.evaluate.tasks.few_shot import (
    best_choice_index,
    format_few_shot_prefix,
    iter_shot_conditions,
    split_train_rows,
)
from instructgpt.evaluate.tasks.loading import load_task_rows
from instructgpt.results import ResultRow

_NAME = "winogrande"


def _split_at_blank(row: dict[str, Any]) -> tuple[list[str], str, Any]:
    """Return (beginnings with either noun, the rest, index of the right noun)."""
    if "sentence" in row:
        prefix, _, suffix = str(row["sentence"]).partition("_")
        right_index = {"1": 0, "2": 1}.get(str(row.get("answer")))
        return [f"{prefix}{row['option1']}", f"{prefix}{row['option2']}"], suffix.strip(), right_index
    return list(row["contexts"]), str(row["continuation"]).strip(), row.get("gold")


def _format_full_sentence(row: dict[str, Any]) -> str:
    contexts, suffix, right_index = _split_at_blank(row)
    return f"{contexts[int(right_index)]} {suffix}"


def load(file: Path, settings: EvalSettings) -> list[EvalQuestion]:
    """Return every sentence twice, once with each noun; few-shot only if `--shots` is given."""
    rows = load_task_rows(file, skip_bad=settings.skip_bad, check_row=_check_row)
    eval_rows, train_rows = split_train_rows(rows)
    questions = []
    for index, condition, row, examples in iter_shot_conditions(eval_rows, settings, train_rows, shots=0):
        contexts, suffix, right_index = _split_at_blank(row)
        prefix = format_few_shot_prefix(examples, _format_full_sentence)
        for noun_index, context in enumerate(contexts):
            target = {"right": int(right_index), "place": noun_index, "sentence": index}
            question_id = f"{index}/{noun_index}"
            questions.append(EvalQuestion(question_id, condition, prefix + context, (f" {suffix}",), target=target))
    return questions


def _check_row(row: dict[str, Any]) -> None:
    try:
        contexts, suffix, right_index = _split_at_blank(row)
    except KeyError as error:
        raise ValueError(f"column {error} is missing (columns found: {', '.join(map(str, row))})") from error
    if str(right_index) not in ("0", "1") or len(contexts) != 2 or not suffix:
        problem = f"{len(contexts)} beginnings and {right_index!r} as the right one; expected two, and 0 or 1"
        raise ValueError(problem)


def measure(replies: Sequence[QuestionReply], settings: EvalSettings) -> list[ResultRow]:  # noqa: ARG001
    noun_logps: dict[tuple[str, str, int], list[float]] = {}
    for question, reply in replies:
        key = (question.condition, reply.model, question.target["sentence"])
        noun_logps.setdefault(key, [0.0, 0.0])[question.target["place"]] = reply.logp[0]
    right_indices = {question.target["sentence"]: question.target["right"] for question, _ in replies}
    observations: dict[str, list[Observation]] = {}
    for (condition, model, sentence), logps in noun_logps.items():
        is_correct = float(best_choice_index(logps, [1, 1]) == right_indices[sentence])
        observations.setdefault(condition, []).append(Observation(model, is_correct, (f"{sentence}",)))
    rows: list[ResultRow] = []
    for condition, values in observations.items():
        rows += aggregate_per_model(_NAME, "accuracy", condition, values, share=True)
    return rows


TASK = EvalTask(_NAME, "which of two nouns a sentence means", "winogrande.jsonl", load, measure)
