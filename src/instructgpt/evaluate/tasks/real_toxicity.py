"""RealToxicityPrompts as the paper ran it: one greedy continuation, cut at the first newline, mean toxicity, three prompts (appendix D).

Who scores is named by `--scorer`. A continuation without a score (without a word in it, or the scorer failed) is left out of the mean and
counted in `unscored`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from instructgpt.errors import BadInput
from instructgpt.evaluate.aggregate import Observation, Row, judged, per_model
from instructgpt.evaluate.metrics import toxicity
from instructgpt.evaluate.tasks.base import PERSON_PROMPTS, Asked, Evaluation, Question, Told, rows_of
from instructgpt.evaluate.toxicity.services import Scorer, kept_scores, load_scorer
from instructgpt.models.policy import pick_device

NAME = "real_toxicity"
MAX_TOKENS = 20
BINS = 10


def read(file: Path, told: Told) -> list[Question]:
    """Prompts about evenly spread over their own toxicity, as the paper drew its 5,000, each under three prompts."""
    return [
        Question(
            f"{number}", condition, prompt + row["prompt"]["text"], max_tokens=MAX_TOKENS, truth={"toxicity": row["prompt"]["toxicity"]}
        )
        for number, row in enumerate(evenly(prompts_in(file), told))
        for condition, prompt in PERSON_PROMPTS.items()
    ]


def prompts_in(file: Path) -> list[dict[str, Any]]:
    """Records whose prompt has a text and a toxicity. Raises BadInput where there is none."""
    rows = [row for row in rows_of(file, "prompt") if isinstance(row["prompt"], dict) and row["prompt"].get("toxicity") is not None]
    if not rows:
        raise BadInput(f"{file}: no prompt with a toxicity; expected records with 'prompt': {{'text', 'toxicity'}}")
    return rows


def evenly(rows: Sequence[dict[str, Any]], told: Told) -> list[dict[str, Any]]:
    """As many rows as are wanted, drawn in turn from each tenth of the range of toxicity, as long as it has some."""
    if told.limit is None or told.limit >= len(rows):
        return list(rows)
    bins: list[list[dict[str, Any]]] = [[] for _ in range(BINS)]
    for row in Random(f"toxicity {told.seed}").sample(list(rows), len(rows)):
        bins[min(BINS - 1, int(row["prompt"]["toxicity"] * BINS))].append(row)
    drawn: list[dict[str, Any]] = []
    while len(drawn) < told.limit:
        for some in bins:
            if some and len(drawn) < told.limit:
                drawn.append(some.pop())
    return drawn


def measure(asked: Sequence[Asked], told: Told) -> list[Row]:
    """`mean_toxicity` and `unscored` by condition and model, and the mean by the prompt's own toxicity (paper, Figure 39).

    Raises:
        BadInput: no scorer was named, or it cannot be had.
        RunFailed: a service that scores is down.
    """
    return scored_rows(NAME, asked, told, lambda question: (question.condition, f"{question.condition}/{kind_of(question)}"))


def kind_of(question: Question) -> str:
    """Whether a prompt is toxic itself."""
    return "toxic_prompts" if question.truth["toxicity"] >= toxicity.TOXIC else "harmless_prompts"


def scored_rows(evaluation: str, asked: Sequence[Asked], told: Told, conditions: Callable[[Question], Sequence[str]]) -> list[Row]:
    """The measures of `evaluate.toxicity` over continuations, who scored them beside every row, and the share that got no score.

    Args:
        conditions: under which names a question counts. `truth["prompt"]`, where there is one, is the prompt that several share.
    """
    scorer = scorer_of(evaluation, told)
    scores = kept_scores(told.verdicts, scorer.identity, [reply.said or "" for _, reply in asked], scorer)
    found: list[toxicity.Continuation] = []
    missing: dict[str, list[Observation]] = {}
    for (question, reply), score in zip(asked, scores, strict=True):
        prompt = str(question.truth.get("prompt", question.id))
        for condition in conditions(question):
            missing.setdefault(condition, []).append(Observation(reply.model, float(math.isnan(score)), (prompt,)))
            if not math.isnan(score):
                said = {"model": reply.model, "condition": condition, "prompt": prompt, "completion": reply.said or ""}
                found.append(toxicity.Continuation(**said, toxicity=score))
    rows = toxicity.measure(found, against=(), evaluation=evaluation)
    for condition, observations in missing.items():
        if "/" not in condition:
            rows += per_model(evaluation, "unscored", condition, observations, share=True)
    return judged(rows, scorer.identity)


def scorer_of(evaluation: str, told: Told) -> Scorer:
    """The scorer that was named. Raises BadInput where none was, or it cannot be had."""
    if told.scorer is None:
        raise BadInput(
            f"evaluate: {evaluation} needs --scorer, a directory made by 'instructgpt judge toxicity' "
            "(or detoxify, perspective:URL, moderation:URL)"
        )
    return load_scorer(told.scorer, str(pick_device(told.device)))


EVALUATION = Evaluation(NAME, "how toxic continuations are (needs --scorer)", "real_toxicity_prompts.jsonl.gz", read, measure, limit=1000)
