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

from instructgpt.errors import InputError
from instructgpt.evaluate.aggregate import Observation, ResultRow, aggregate_per_model, with_judge
from instructgpt.evaluate.metrics import toxicity
from instructgpt.evaluate.tasks.base import (
    PERSON_PROMPTS,
    EvalQuestion,
    EvalSettings,
    EvalTask,
    QuestionReply,
    load_task_rows,
)
from instructgpt.evaluate.toxicity.services import ToxicityModel, cached_text_values, load_toxicity_model
from instructgpt.models.policy import pick_device

_NAME = "real_toxicity"
TOXICITY_MAX_TOKENS = 20
_NUM_BINS = 10


def load(file: Path, settings: EvalSettings) -> list[EvalQuestion]:
    """Prompts about evenly spread over their own toxicity, as the paper drew its 5,000, each under three prompts."""
    return [
        EvalQuestion(
            f"{row_number}",
            condition,
            prompt + row["prompt"]["text"],
            max_tokens=TOXICITY_MAX_TOKENS,
            target={"toxicity": row["prompt"]["toxicity"]},
        )
        for row_number, row in enumerate(stratified_sample(load_toxicity_prompts(file), settings))
        for condition, prompt in PERSON_PROMPTS.items()
    ]


def load_toxicity_prompts(file: Path) -> list[dict[str, Any]]:
    """Records whose prompt has a text and a toxicity. Raises BadInput where there is none."""
    rows = [
        row
        for row in load_task_rows(file, "prompt")
        if isinstance(row["prompt"], dict) and row["prompt"].get("toxicity") is not None
    ]
    if not rows:
        raise InputError(f"{file}: no prompt with a toxicity; expected records with 'prompt': {{'text', 'toxicity'}}")
    return rows


def stratified_sample(rows: Sequence[dict[str, Any]], settings: EvalSettings) -> list[dict[str, Any]]:
    """As many rows as are wanted, drawn in turn from each tenth of the range of toxicity, as long as it has some."""
    if settings.limit is None or settings.limit >= len(rows):
        return list(rows)
    bins: list[list[dict[str, Any]]] = [[] for _ in range(_NUM_BINS)]
    for row in Random(f"toxicity {settings.seed}").sample(list(rows), len(rows)):
        bins[min(_NUM_BINS - 1, int(row["prompt"]["toxicity"] * _NUM_BINS))].append(row)
    sampled_rows: list[dict[str, Any]] = []
    while len(sampled_rows) < settings.limit:
        for bin_rows in bins:
            if bin_rows and len(sampled_rows) < settings.limit:
                sampled_rows.append(bin_rows.pop())
    return sampled_rows


def measure(replies: Sequence[QuestionReply], settings: EvalSettings) -> list[ResultRow]:
    """`mean_toxicity` and `unscored` by condition and model, and the mean by the prompt's own toxicity (paper, Figure 39).

    Raises:
        BadInput: no scorer was named, or it cannot be had.
        RunFailed: a service that scores is down.
    """
    return toxicity_rows(
        _NAME,
        replies,
        settings,
        lambda question: (question.condition, f"{question.condition}/{toxicity_bucket(question)}"),
    )


def toxicity_bucket(question: EvalQuestion) -> str:
    """Whether a prompt is toxic itself."""
    return "toxic_prompts" if question.target["toxicity"] >= toxicity.TOXICITY_THRESHOLD else "harmless_prompts"


def toxicity_rows(
    evaluation: str,
    replies: Sequence[QuestionReply],
    settings: EvalSettings,
    get_conditions: Callable[[EvalQuestion], Sequence[str]],
) -> list[ResultRow]:
    """The measures of `evaluate.toxicity` over continuations, who scored them beside every row, and the share that got no score.

    Args:
        conditions: under which names a question counts. `truth["prompt"]`, where there is one, is the prompt that several share.
    """
    scorer = require_scorer(evaluation, settings)
    toxicity_values = cached_text_values(
        settings.verdict_cache_dir, scorer.identity, [reply.said or "" for _, reply in replies], scorer
    )
    continuations: list[toxicity.Continuation] = []
    unscored: dict[str, list[Observation]] = {}
    for (question, reply), toxicity_value in zip(replies, toxicity_values, strict=True):
        prompt = str(question.target.get("prompt", question.id))
        for condition in get_conditions(question):
            unscored.setdefault(condition, []).append(
                Observation(reply.model, float(math.isnan(toxicity_value)), (prompt,))
            )
            if not math.isnan(toxicity_value):
                fields = {
                    "model": reply.model,
                    "condition": condition,
                    "prompt": prompt,
                    "completion": reply.said or "",
                }
                continuations.append(toxicity.Continuation(**fields, toxicity=toxicity_value))
    rows = toxicity.measure_toxicity(continuations, baselines=(), evaluation=evaluation)
    for condition, observations in unscored.items():
        if "/" not in condition:
            rows += aggregate_per_model(evaluation, "unscored", condition, observations, share=True)
    return with_judge(rows, scorer.identity)


def require_scorer(evaluation: str, settings: EvalSettings) -> ToxicityModel:
    """The scorer that was named. Raises BadInput where none was, or it cannot be had."""
    if settings.scorer is None:
        raise InputError(
            f"evaluate: {evaluation} needs --scorer, a directory made by 'instructgpt judge toxicity' "
            "(or detoxify, perspective:URL, moderation:URL)"
        )
    return load_toxicity_model(settings.scorer, str(pick_device(settings.device)))


TASK = EvalTask(
    _NAME, "how toxic continuations are (needs --scorer)", "real_toxicity_prompts.jsonl.gz", load, measure, limit=1000
)
