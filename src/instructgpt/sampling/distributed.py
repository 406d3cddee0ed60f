"""Sampling by all ranks that hold a model: each takes its share of the prompts, and every rank gets all completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from instructgpt.data.packing import collate
from instructgpt.distributed.comm import collect, ranks_of, share
from instructgpt.models.packed_attention import hidden_states
from instructgpt.models.precision import cast_once
from instructgpt.models.sharding import fits_gathered, gathered, in_lockstep
from instructgpt.sampling.engine import Sample, kept_by, sample


def sample_on_ranks(
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

    Arguments, result and errors are those of `engine.sample`. The weights of a sharded model are gathered for it where they fit;
    where they do not, every token gathers them once more, layer by layer.
    """
    ranks = ranks_of(model)
    mine = share([len(prompt) + max_tokens for prompt in prompts], ranks)

    def own(policy: Any) -> list[Sample]:
        some = [prompts[row] for row in mine]
        return sample(
            policy, some, eos=eos, max_tokens=max_tokens, seed=seed, temperature=temperature, top_p=top_p, rows=rows, indices=mine
        )

    if fits_gathered(model):
        with gathered(model) as policy, cast_once(policy):
            samples = own(policy)
    else:
        nothing = collate([], model.device)
        with torch.no_grad(), in_lockstep(model, lambda: hidden_states(model, nothing)):
            kept_by(model)  # tried out by all at once, those without prompts too
            samples = own(model)
    return collect(mine, samples, len(prompts), ranks)
