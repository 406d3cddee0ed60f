"""Sampling on all ranks: each takes its share of the prompts, and every rank gets all completions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from instructgpt.data.packing import collate
from instructgpt.distributed.comm import gather_in_order, get_model_dist_info, shard_by_length
from instructgpt.models.packed_attention import hidden_states
from instructgpt.models.precision import cached_bf16_weights, compute_device
from instructgpt.models.sharding import fits_unsharded, synchronized_forwards, unsharded
from instructgpt.sampling.engine import SampledTokens, cache_bytes_per_token, sample_tokens
from instructgpt.sampling.random_streams import StreamKey, default_stream_keys
from instructgpt.sampling.stop_strings import StopStrings


def sample_on_ranks(
    model: Any,
    prompts: Sequence[list[int]],
    *,
    stop_tokens: Sequence[int],
    max_tokens: int,
    seed: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    stop: StopStrings | None = None,
    max_rows: int | None = None,
    keys: Sequence[StreamKey] | None = None,
) -> list[SampledTokens]:
    """Sample as `sample_tokens` does, with the same arguments, result and errors, whatever the number of ranks.

    Weights of a sharded model are gathered once where they fit in memory, else again for every token, layer by layer.
    """
    dist_info = get_model_dist_info(model)
    stream_keys = default_stream_keys(len(prompts)) if keys is None else keys
    indices = shard_by_length([len(prompt) + max_tokens for prompt in prompts], dist_info)

    sample_local = partial(
        sample_tokens,
        prompts=[prompts[row] for row in indices],
        stop_tokens=stop_tokens,
        max_tokens=max_tokens,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        stop=stop,
        max_rows=max_rows,
        keys=[stream_keys[row] for row in indices],
    )
    if fits_unsharded(model):
        with unsharded(model) as policy, cached_bf16_weights(policy):
            samples = sample_local(policy)
    else:
        empty_batch = collate([], compute_device(model))
        with torch.no_grad(), synchronized_forwards(model, lambda: hidden_states(model, empty_batch)):
            cache_bytes_per_token(model)  # all ranks probe together, those without prompts too
            samples = sample_local(model)
    return gather_in_order(indices, samples, len(prompts), dist_info)
