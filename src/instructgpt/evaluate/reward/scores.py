"""Completions with the score of a reward model, each computed once and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from instructgpt.evaluate.cache import Cache
from instructgpt.evaluate.reward.metrics import ScoredRanking
from instructgpt.models.policy import context_length
from instructgpt.models.reward_model import ScalarModel, load_reward_model
from instructgpt.records import Ranking
from instructgpt.run.directory import content_hash

Text = tuple[str, str, bool]
"""Prompt, completion, and whether the completion ended by itself."""
Scored = tuple[float | None, int]
"""A score, and the length of the completion in tokens."""
BY_COMPLETION = ("completions", "ranks", "models", "finish", "ratings", "labels")
"""Columns of a ranking that have an entry for each completion."""


def ranks_by_score(scores: Sequence[float]) -> tuple[int, ...]:
    """Ranks of completions by score: 1 for the highest; equal scores tie, the next rank counts them: [3, 9, 3, 1] -> (2, 1, 2, 4)."""
    return tuple(1 + sum(other > score for other in scores) for score in scores)


def score_texts(reward: ScalarModel, texts: Sequence[Sequence[Any]]) -> list[Scored]:
    """The score of each completion and its length in tokens; no score where it is longer, with its prompt, than the model's context."""
    context = context_length(reward.model)
    examples = [reward.render.example(prompt, text, finished=finished) for prompt, text, finished in texts]
    fits = [place for place, example in enumerate(examples) if len(example) <= context]
    scores: dict[int, float] = dict(zip(fits, reward.score([examples[place] for place in fits]).tolist(), strict=True))
    return [(scores.get(place), len(example.completion)) for place, example in enumerate(examples)]


def kept_scores(source: str, device: str, kept: Cache, title: str, over: Callable[..., Any], texts: Sequence[Text]) -> list[Scored]:
    """What `score_texts` says by the reward model of a directory, each text scored once and kept, the work divided by `over`."""
    settings = {"part": "score", "template": reward_at(source, device).render.tokenizer.chat_template}
    asked = [list(text) for text in texts]
    found = kept.completions(content_hash(Path(source)), asked, settings, partial(score_at, source, device), title=title, over=over)
    return [(score, length) for score, length in found]


@lru_cache(maxsize=1)
def reward_at(source: str, device: str) -> ScalarModel:
    """The reward model of a directory, kept until another one is asked: each process loads it when it first needs it."""
    return load_reward_model(source, torch.device(device))


def score_at(source: str, device: str, texts: Sequence[Sequence[Any]], seed: int = 0) -> list[Scored]:  # noqa: ARG001
    """`score_texts` by the reward model of a directory."""
    return score_texts(reward_at(source, device), texts)


def scored_rankings(rankings: Sequence[Ranking], score: Callable[[list[Text]], list[Scored]]) -> tuple[list[ScoredRanking], int]:
    """Rankings with scores and lengths, and how many completions were left out because they are longer than the context."""
    texts: list[Text] = []
    for ranking in rankings:
        finish = ranking.finish or ("stop",) * len(ranking.completions)
        texts += [(ranking.prompt, text, how == "stop") for text, how in zip(ranking.completions, finish, strict=True)]
    known = dict.fromkeys(texts)  # several labelers' rankings of the same completions are scored once
    numbers = dict(zip(known, score(list(known)), strict=True))
    every = iter(texts)
    scored: list[ScoredRanking] = []
    unread = 0
    for ranking in rankings:
        found = [numbers[next(every)] for _ in ranking.completions]
        fits = [place for place, (score, _) in enumerate(found) if score is not None]
        unread += len(found) - len(fits)
        if len(fits) > 1:
            row = ranking.row()
            row |= {name: [row[name][place] for place in fits] for name in BY_COMPLETION if name in row}
            row |= {"scores": [found[place][0] for place in fits], "lengths": [found[place][1] for place in fits]}
            scored.append(ScoredRanking.model_validate(row))
    return scored, unread
