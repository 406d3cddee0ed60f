"""Cached reward-model scores of completions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from instructgpt.evaluate.cache import ResultCache
from instructgpt.evaluate.reward.metrics import ScoredRanking
from instructgpt.models.policy import context_length
from instructgpt.models.reward_model import ScalarModel, load_reward_model
from instructgpt.records import Ranking
from instructgpt.run.directory import content_hash

_PromptCompletion = tuple[str, str, bool]
"""Prompt, completion, and whether the completion ended by itself."""
ScoreAndLength = tuple[float | None, int]
_PER_COMPLETION_COLUMNS = ("completions", "ranks", "models", "finish", "ratings", "labels")


def ranks_by_score(scores: Sequence[float]) -> tuple[int, ...]:
    """Return ranks by descending score; ties share a rank and the next rank skips: [3, 9, 3, 1] -> (2, 1, 2, 4)."""
    return tuple(1 + sum(other > score for other in scores) for score in scores)


def score_with_lengths(reward_model: ScalarModel, texts: Sequence[Sequence[Any]]) -> list[ScoreAndLength]:
    """Return the score and length of each completion; no score if it exceeds the context with its prompt."""
    max_length = context_length(reward_model.model)
    examples = [
        reward_model.tokenizer.encode_example(prompt, text, finished=finished) for prompt, text, finished in texts
    ]
    fitting_indices = [index for index, example in enumerate(examples) if len(example) <= max_length]
    scores: dict[int, float] = dict(
        zip(fitting_indices, reward_model.score([examples[index] for index in fitting_indices]).tolist(), strict=True)
    )
    return [(scores.get(index), len(example.completion_ids)) for index, example in enumerate(examples)]


def cached_reward_scores(
    source: str,
    device: str,
    cache: ResultCache,
    title: str,
    map_fn: Callable[..., Any],
    texts: Sequence[_PromptCompletion],
) -> list[ScoreAndLength]:
    """Return `score_with_lengths` of a model directory, each text scored once."""
    settings = {
        "part": "score",
        "template": load_cached_reward_model(source, device).tokenizer.hf_tokenizer.chat_template,
    }
    json_texts = [list(text) for text in texts]
    results = cache.get_or_compute(
        content_hash(Path(source)),
        json_texts,
        settings,
        partial(_score_with_model_at, source, device),
        title=title,
        map_fn=map_fn,
    )
    return [(score, length) for score, length in results]


@lru_cache(maxsize=1)
def load_cached_reward_model(source: str, device: str) -> ScalarModel:
    """Load a reward model and keep it until another one is requested, so that each process loads it once."""
    return load_reward_model(source, torch.device(device))


def _score_with_model_at(
    source: str,
    device: str,
    texts: Sequence[Sequence[Any]],
    seed: int = 0,  # noqa: ARG001
) -> list[ScoreAndLength]:
    return score_with_lengths(load_cached_reward_model(source, device), texts)


def attach_reward_scores(
    rankings: Sequence[Ranking], score_fn: Callable[[list[_PromptCompletion]], list[ScoreAndLength]]
) -> tuple[list[ScoredRanking], int]:
    """Return rankings with scores and lengths, and the number of completions left out for exceeding the context."""
    texts: list[_PromptCompletion] = []
    for ranking in rankings:
        finish = ranking.finish or ("stop",) * len(ranking.completions)
        texts += [(ranking.prompt, text, how == "stop") for text, how in zip(ranking.completions, finish, strict=True)]
    unique_texts = dict.fromkeys(texts)  # several labelers' rankings of the same completions are scored once
    result_by_text = dict(zip(unique_texts, score_fn(list(unique_texts)), strict=True))
    text_iterator = iter(texts)
    rankings_with_scores: list[ScoredRanking] = []
    too_long_count = 0
    for ranking in rankings:
        results = [result_by_text[next(text_iterator)] for _ in ranking.completions]
        fitting_indices = [place for place, (score_fn, _) in enumerate(results) if score_fn is not None]
        too_long_count += len(results) - len(fitting_indices)
        if len(fitting_indices) > 1:
            row = ranking.to_dict()
            row |= {
                name: [row[name][place] for place in fitting_indices] for name in _PER_COMPLETION_COLUMNS if name in row
            }
            row |= {
                "scores": [results[place][0] for place in fitting_indices],
                "lengths": [results[place][1] for place in fitting_indices],
            }
            rankings_with_scores.append(ScoredRanking.model_validate(row))
    return rankings_with_scores, too_long_count
