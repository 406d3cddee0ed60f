"""Cached reward-model scores of completions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from instructgpt.evaluate.cache import ResultCache
from instructgpt.evaluate.reward.metrics import ScoredRanking
from instructgpt.models.reward_model import ScalarModel, load_reward_model
from instructgpt.records import PromptFields, Ranking
from instructgpt.run.directory import content_hash

_PromptCompletion = tuple[PromptFields, str, bool]
"""Prompt, completion, and whether the completion ended by itself."""
ScoreAndLength = tuple[float | None, int]
_PER_COMPLETION_COLUMNS = ("completions", "ranks", "models", "finish", "ratings", "labels")


def ranks_by_score(scores: Sequence[float]) -> tuple[int, ...]:
    """Return ranks by descending score; ties share a rank and the next rank skips: [3, 9, 3, 1] -> (2, 1, 2, 4)."""
    return tuple(1 + sum(other > score for other in scores) for score in scores)


def score_with_lengths(reward_model: ScalarModel, texts: Sequence[Sequence[Any]]) -> list[ScoreAndLength]:
    """Return the score and length of each completion; no score if it exceeds the context with its prompt.

    Args:
        texts: the prompt's columns, the completion, and whether it ended by itself.
    """
    max_length = reward_model.context
    encode = reward_model.tokenizer.encode_example
    examples = [
        encode(PromptFields.model_validate(columns), text, finished=finished) for columns, text, finished in texts
    ]
    fitting = [index for index, example in enumerate(examples) if len(example) <= max_length]
    scores = reward_model.score([examples[index] for index in fitting]).tolist()
    score_of: dict[int, float] = dict(zip(fitting, scores, strict=True))
    return [(score_of.get(index), len(example.completion_ids)) for index, example in enumerate(examples)]


def cached_reward_scores(
    source: str,
    device: str,
    cache: ResultCache,
    title: str,
    map_fn: Callable[..., Any],
    texts: Sequence[_PromptCompletion],
) -> list[ScoreAndLength]:
    """Return `score_with_lengths` of a model directory, each text scored once."""
    template = load_cached_reward_model(source, device).tokenizer.hf_tokenizer.chat_template
    settings, compute = {"part": "score", "template": template}, partial(_score_with_model_at, source, device)
    items = [[prompt.prompt_columns(), text, finished] for prompt, text, finished in texts]
    weights_hash = content_hash(Path(source))
    results = cache.get_or_compute(weights_hash, items, settings, compute, title=title, map_fn=map_fn)
    return [(score, length) for score, length in results]


@lru_cache(maxsize=1)
def load_cached_reward_model(source: str, device: str) -> ScalarModel:
    """Load a reward model and keep it until another one is requested, so that each process loads it once."""
    return load_reward_model(source, torch.device(device))


def _score_with_model_at(source: str, device: str, texts: Sequence[Any], _seed: int) -> list[ScoreAndLength]:
    return score_with_lengths(load_cached_reward_model(source, device), texts)


def attach_reward_scores(
    rankings: Sequence[Ranking], score_fn: Callable[[list[_PromptCompletion]], list[ScoreAndLength]]
) -> tuple[list[ScoredRanking], int]:
    """Return rankings with scores and lengths, and the number of completions left out for exceeding the context."""
    texts: list[_PromptCompletion] = []
    for ranking in rankings:
        finish = ranking.finish or ("stop",) * len(ranking.completions)
        texts += [
            (ranking.bare_prompt, text, how == "stop") for text, how in zip(ranking.completions, finish, strict=True)
        ]
    unique_texts = dict.fromkeys(texts)  # several labelers' rankings of the same completions are scored once
    result_of = dict(zip(unique_texts, score_fn(list(unique_texts)), strict=True))
    results = iter([result_of[text] for text in texts])
    scored: list[ScoredRanking] = []
    num_too_long = 0
    for ranking in rankings:
        entries = [next(results) for _ in ranking.completions]
        fitting = [index for index, (score, _) in enumerate(entries) if score is not None]
        num_too_long += len(entries) - len(fitting)
        if len(fitting) > 1:
            row = ranking.to_dict()
            row |= {name: [row[name][i] for i in fitting] for name in _PER_COMPLETION_COLUMNS if name in row}
            row |= {"scores": [entries[i][0] for i in fitting], "lengths": [entries[i][1] for i in fitting]}
            scored.append(ScoredRanking.model_validate(row))
    return scored, num_too_long
