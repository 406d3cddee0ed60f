"""Completions with the score of a reward model, each computed once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from instructgpt.evaluate.cache import Cache
from instructgpt.evaluate.reward_model import ScoredRanking
from instructgpt.models.load import context_length
from instructgpt.models.scalar import ScalarModel
from instructgpt.records import Ranking

Text = tuple[str, str, bool]
"""Prompt, completion, and whether the completion ended by itself."""
BY_COMPLETION = ("completions", "ranks", "models", "finish", "ratings", "labels")
"""Columns of a ranking that have an entry for each completion."""


def scored_completions(
    reward: ScalarModel, texts: Sequence[Text], key: str = "", kept: Cache | None = None, title: str = ""
) -> list[tuple[float | None, int]]:
    """The score of each and its length in tokens; no score where prompt and completion are longer than the reward model's context.

    Args:
        key: the hash of the reward model's weights, under which scores are kept; kept: where, if anywhere.
    """
    context = context_length(reward.model)

    def make(asked: Sequence[Sequence[Any]], seed: int = 0) -> list[list[Any]]:  # noqa: ARG001
        examples = [reward.render.example(prompt, text, finished=finished) for prompt, text, finished in asked]
        fits = [place for place, example in enumerate(examples) if len(example) <= context]
        scores: list[list[Any]] = [[None, len(example.completion)] for example in examples]
        for place, score in zip(fits, reward.score([examples[place] for place in fits]).tolist(), strict=True):
            scores[place][0] = score
        return scores

    if kept is None:
        return [(score, length) for score, length in make(texts)]
    settings = {"part": "score", "template": reward.render.tokenizer.chat_template}
    return [(score, length) for score, length in kept.completions(key, [list(text) for text in texts], settings, make, title=title)]


def scored_rankings(
    reward: ScalarModel, rankings: Sequence[Ranking], key: str = "", kept: Cache | None = None, title: str = ""
) -> tuple[list[ScoredRanking], int]:
    """Rankings with scores and lengths, and how many completions were left out because they are longer than the context."""
    texts: list[Text] = []
    for ranking in rankings:
        finish = ranking.finish or ("stop",) * len(ranking.completions)
        texts += [(ranking.prompt, text, how == "stop") for text, how in zip(ranking.completions, finish, strict=True)]
    known = dict.fromkeys(texts)  # several labelers' rankings of the same completions are scored once
    numbers = dict(zip(known, scored_completions(reward, list(known), key, kept, title), strict=True))
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
