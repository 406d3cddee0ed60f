"""RealToxicityPrompts as in the paper: mean toxicity of one greedy continuation, with three prefixes (appendix D).

`--scorer` names the scorer. A continuation without a score (no words, or the scorer failed) is left out of the mean and
counted in `unscored`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from instructgpt.errors import InputError
from instructgpt.evaluate.aggregate import Observation, aggregate_per_model
from instructgpt.evaluate.metrics import toxicity
from instructgpt.evaluate.tasks.base import BIAS_PROMPTS, EvalQuestion, EvalSettings, EvalTask, QuestionReply
from instructgpt.evaluate.tasks.loading import load_task_rows
from instructgpt.evaluate.toxicity.services import ToxicityModel, cached_text_values, load_toxicity_model
from instructgpt.models.policy import pick_device
from instructgpt.results import ResultRow, with_judge
from instructgpt.run.directory import console

_NAME = "real_toxicity"
TOXICITY_MAX_TOKENS = 20
_NUM_BINS = 10


def load(file: Path, settings: EvalSettings) -> list[EvalQuestion]:
    """Return prompts spread evenly over their own toxicity, as the paper drew its 5,000, each with three prefixes."""
    questions = []
    for index, row in enumerate(stratified_sample(load_toxicity_prompts(file, settings), settings)):
        text, target = row["prompt"]["text"], {"toxicity": row["prompt"]["toxicity"]}
        for condition, prefix in BIAS_PROMPTS.items():
            question = EvalQuestion(f"{index}", condition, prefix + text, max_tokens=TOXICITY_MAX_TOKENS, target=target)
            questions.append(question)
    return questions


def load_toxicity_prompts(file: Path, settings: EvalSettings) -> list[dict[str, Any]]:
    """Return the rows whose prompt has a toxicity; the published set has some without, which are counted."""
    rows = load_task_rows(file, "prompt", skip_bad=settings.skip_bad, check_row=_check_prompt)
    scored_rows = [row for row in rows if row["prompt"].get("toxicity") is not None]
    if not scored_rows:
        raise InputError(f"{file}: no prompt with a toxicity; expected records with 'prompt': {{'text', 'toxicity'}}")
    if num_unscored := len(rows) - len(scored_rows):
        console.print(f"{file}: left out {num_unscored} of {len(rows)} prompts without a toxicity", markup=False)
    return scored_rows


def _check_prompt(row: dict[str, Any]) -> None:
    prompt = row["prompt"]
    if not isinstance(prompt, dict) or not str(prompt.get("text") or "").strip():
        raise ValueError("'prompt' has no text; expected 'prompt': {'text', 'toxicity'}")
    if prompt.get("toxicity") is not None:
        prompt["toxicity"] = float(prompt["toxicity"])


def stratified_sample(rows: Sequence[dict[str, Any]], settings: EvalSettings) -> list[dict[str, Any]]:
    """Return `settings.limit` rows, drawn in turn from each tenth of the toxicity range."""
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
    """Return `mean_toxicity` and `unscored`, the mean also by the prompt's toxicity (paper, Figure 39)."""

    def get_conditions(question: EvalQuestion) -> tuple[str, str]:
        return question.condition, f"{question.condition}/{toxicity_bucket(question)}"

    return toxicity_rows(_NAME, replies, settings, get_conditions)


def toxicity_bucket(question: EvalQuestion) -> str:
    return "toxic_prompts" if question.target["toxicity"] >= toxicity.TOXICITY_THRESHOLD else "harmless_prompts"


def toxicity_rows(
    evaluation: str,
    replies: Sequence[QuestionReply],
    settings: EvalSettings,
    get_conditions: Callable[[EvalQuestion], Sequence[str]],
) -> list[ResultRow]:
    """Score continuations and return their measures and the share without a score.

    `get_conditions` gives the conditions a question counts under. Continuations share a prompt through
    `target["prompt"]`.
    """
    scorer = require_scorer(evaluation, settings)
    texts = [reply.said or "" for _, reply in replies]
    scores = cached_text_values(settings.verdict_cache_dir, scorer.identity, texts, scorer)
    continuations: list[toxicity.Continuation] = []
    unscored: dict[str, list[Observation]] = {}
    for (question, reply), score in zip(replies, scores, strict=True):
        prompt = str(question.target.get("prompt", question.id))
        for condition in get_conditions(question):
            observation = Observation(reply.model, float(math.isnan(score)), (prompt,))
            unscored.setdefault(condition, []).append(observation)
            if not math.isnan(score):
                fields = {"model": reply.model, "condition": condition, "prompt": prompt}
                continuations.append(toxicity.Continuation(completion=reply.said or "", toxicity=score, **fields))
    rows = toxicity.measure_toxicity(continuations, baselines=(), evaluation=evaluation)
    for condition, observations in unscored.items():
        if "/" not in condition:
            rows += aggregate_per_model(evaluation, "unscored", condition, observations, share=True)
    return with_judge(rows, scorer.identity)


def require_scorer(evaluation: str, settings: EvalSettings) -> ToxicityModel:
    """Load the scorer. Raise InputError if none was named or it does not load."""
    if settings.scorer is None:
        expected = "a directory made by 'instructgpt judge toxicity', detoxify, perspective:URL or moderation:URL"
        raise InputError(f"evaluate: {evaluation} needs --scorer: {expected}")
    return load_toxicity_model(settings.scorer, str(pick_device(settings.device)))


_DESCRIPTION = "how toxic continuations are (needs --scorer)"
TASK = EvalTask(_NAME, _DESCRIPTION, "real_toxicity_prompts.jsonl.gz", load, measure, limit=1000)
