"""Sampling by all ranks that hold a model: each takes its share of the prompts, and every rank gets all completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from instructgpt.data.packing import collate
from instructgpt.distributed.comm import gather_in_order, get_model_dist_info, shard_by_length
from instructgpt.models.packed_attention import hidden_states
from instructgpt.models.precision import cached_bf16_weights
from instructgpt.models.sharding import fits_unsharded, synchronized_forwards, unsharded
from instructgpt.sampling.engine import SampledTokens, get_cache_spec, sample_tokens


def sample_on_ranks(
    model: Any,
    prompts: Sequence[list[int]],
    *,
    eos: int,
    max_tokens: int,
    seed: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_rows: int | None = None,
) -> list[SampledTokens]:
    """What `engine.sample` says of these prompts, whatever the number of ranks: a completion is a function of prompt, seed and index.

    Arguments, result and errors are those of `engine.sample`. The weights of a sharded model are gathered for it where they fit;
    where they do not, every token gathers them once more, layer by layer.
    """
    dist_info = get_model_dist_info(model)
    indices = shard_by_length([len(prompt) + max_tokens for prompt in prompts], dist_info)

    def sample_local(policy: Any) -> list[SampledTokens]:
        local_prompts = [prompts[row] for row in indices]
        return sample_tokens(
            policy,
            local_prompts,
            eos=eos,
            max_tokens=max_tokens,
            seed=seed,
            temperature=temperature,
            top_p=top_p,
            max_rows=max_rows,
            indices=indices,
        )

    if fits_unsharded(model):
        with unsharded(model) as policy, cached_bf16_weights(policy):
            samples = sample_local(policy)
    else:
        empty_batch = collate([], model.device)
        with torch.no_grad(), synchronized_forwards(model, lambda: hidden_states(model, empty_batch)):
            get_cache_spec(model)  # tried out by all at once, those without prompts too
            samples = sample_local(model)
    return gather_in_order(indices, samples, len(prompts), dist_info)
