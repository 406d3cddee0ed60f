"""Sampling by all ranks that hold a model: each takes its share of the prompts, and every rank gets all completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from instructgpt.generate.engine import Sample, sample
from instructgpt.models.memory import cast_once
from instructgpt.models.sharding import gathered
from instructgpt.ranks import collect, ranks_of, share


def sample_divided(
    model: Any,
    prompts: Sequence[list[int]],
    *,
    eos: int,
    max_tokens: int,
    seed: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    rows: int | None = None,
) -> list[Sample]:
    """What `engine.sample` says of these prompts, whatever the number of ranks: a completion is a function of prompt, seed and index.

    Arguments, result and errors are those of `engine.sample`. The weights of a sharded model are gathered for it.
    """
    ranks = ranks_of(model)
    mine = share([len(prompt) + max_tokens for prompt in prompts], ranks)
    with gathered(model) as policy, cast_once(policy):
        own = [prompts[row] for row in mine]
        samples = sample(
            policy, own, eos=eos, max_tokens=max_tokens, seed=seed, temperature=temperature, top_p=top_p, rows=rows, indices=mine
        )
    return collect(mine, samples, len(prompts), ranks)
