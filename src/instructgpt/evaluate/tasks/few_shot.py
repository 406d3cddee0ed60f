"""Examples in front of a question, and answers chosen by likelihood: what the classification tasks of appendix D share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from instructgpt.evaluate.rows import Observation, Row, per_model
from instructgpt.evaluate.tasks.shape import Asked, Question, Told, some

SHOTS = 15
"""Examples of the few-shot condition (paper, appendix D)."""


def with_examples(
    rows: Sequence[dict[str, Any]],
    told: Told,
    instruction: str,
    show: Callable[[dict[str, Any]], str],
    choices: Sequence[str],
    pool: Sequence[dict[str, Any]] | None = None,
) -> list[Question]:
    """Zero-shot and few-shot questions. Examples come from `pool`, or from the other rows, drawn for each question by the seed.

    Args:
        show: a row as it is asked, up to the answer. choices: answers by label; `label` in a row is the right one's place.
    """
    questions: list[Question] = []
    wanted = SHOTS if told.shots is None else told.shots
    numbered = list(enumerate(rows))
    for number, row in some(numbered, told):
        truth = {"label": int(row["label"])}
        questions.append(Question(f"{number}", "zero_shot", f"{instruction}\n\n{show(row)}", tuple(choices), truth=truth))
        if wanted:
            rng = Random(f"examples {told.seed} {number}")
            others = pool if pool is not None else [other for place, other in numbered if place != number]
            examples = "".join(f"{show(other)}{choices[int(other['label'])]}\n\n" for other in rng.sample(list(others), wanted))
            questions.append(Question(f"{number}", "few_shot", f"{instruction}\n\n{examples}{show(row)}", tuple(choices), truth=truth))
    return questions


def accuracy(evaluation: str, asked: Sequence[Asked]) -> list[Row]:
    """How often the right answer has the highest mean log-probability a token (appendix D), by condition and model; ties are wrong."""
    rows: list[Row] = []
    for condition in dict.fromkeys(question.condition for question, _ in asked):
        observations = [
            Observation(reply.model, float(picked(reply.logp, reply.tokens) == question.truth["label"]), (question.id,))
            for question, reply in asked
            if question.condition == condition
        ]
        rows += per_model(evaluation, "accuracy", condition, observations, share=True)
    return rows


def picked(logp: Sequence[float], tokens: Sequence[int]) -> int:
    """The place of the choice with the highest mean log-probability a token; -1 where two share it."""
    means = [total / count for total, count in zip(logp, tokens, strict=True)]
    best = max(means)
    return means.index(best) if means.count(best) == 1 else -1
