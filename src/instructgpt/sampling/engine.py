"""Sampling completions: rows share a batch, keep their keys and values, leave it when they have ended, and others take their place.

Sampling is exact (temperature alone, no top-k, and no top-p unless asked for: the distribution that PPO differentiates is
the one that was sampled from) and a row's completion is a function of its prompt, the seed, its index and `max_tokens`:
each row has its own stream of uniform numbers, so neither the rows beside it nor the memory there is change it.

A family whose keys and values cannot be kept in slots (it says something else than its own forward then) is computed
anew for every token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from instructgpt.data.packing import PackedBatch, TokenizedExample, collate, microbatches, token_budget
from instructgpt.distributed.comm import call_sharded, is_sharded
from instructgpt.errors import InputError
from instructgpt.models.packed_attention import hidden_states
from instructgpt.models.policy import MAX_LOGITS, completion_logp, compute_logits, context_length, get_backbone
from instructgpt.models.precision import free_gpu_memory
from instructgpt.sampling.cpu_fast_path import cpu_fast_path
from instructgpt.sampling.decoder import (
    FINISH_CHECK_INTERVAL,
    REFILL_FREE_SHARE,
    Decoder,
    SamplingParams,
    sample_with_logp,
)

CPU_CACHE_BYTES = 2**28
"""Memory for keys and values on a CPU. Four times as much makes small models slower: more of it lies outside of the cache."""
_CUDA_CACHE_SHARE = 0.5
"""Share of a GPU's free memory for keys and values."""
_MIN_FAST_PATH_TOKENS = 8
"""With so many tokens a row it pays to lay a model out for sampling."""
_PROBE_PROMPTS = ([1, 2, 0, 1, 2, 0, 1, 1, 2], [2, 1], [2, 1], [0], [2, 1])
_PROBE_TOKENS = 3


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """What a model keeps of a token while rows are sampled."""

    num_layers: int
    bytes_per_token: int


_CACHE_SPECS: WeakKeyDictionary[Any, tuple[int, CacheSpec | None]] = WeakKeyDictionary()
"""What was found out about a model, and what it was then."""


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """One sampled completion: its tokens (with the end-of-text token when it `finished`), and their logp when sampled."""

    tokens: list[int]
    logp: list[float]
    finished: bool


def sample_tokens(
    model: Any,
    prompts: Sequence[list[int]],
    *,
    eos: int,
    max_tokens: int,
    seed: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_rows: int | None = None,
    indices: Sequence[int] | None = None,
) -> list[SampledTokens]:
    """Sample one completion a prompt.

    Args:
        model: a causal language model in evaluation mode. Who holds a part of a divided one calls this while all are `in_lockstep`.
        prompts: rendered prompts; repeat one to get several completions of it.
        eos: the token that ends a completion.
        max_tokens: where a completion is cut off.
        seed: with the row's index it fixes the completion.
        temperature: 0 takes the likeliest token.
        top_p: below 1, sample from the likeliest tokens that together have this probability (Holtzman et al. 2020).
        rows: how many are sampled at once at most; where it is not given, as many as there is memory for. It changes no completion.
        indices: the index of each prompt, where these are only some of more prompts; 0, 1, 2 … without it.

    Raises:
        BadInput: a prompt leaves no room for `max_tokens` in the model's context.
    """
    max_prompt_tokens = context_length(model) - max_tokens
    for index, prompt in enumerate(prompts):
        if not 0 < len(prompt) <= max_prompt_tokens:
            raise InputError(
                f"prompt {index + 1} has {len(prompt)} tokens, but the context leaves room for 1 to {max_prompt_tokens} before {max_tokens} new ones"
            )
    if not prompts:
        return []
    row_indices = list(range(len(prompts)) if indices is None else indices)
    uniforms = torch.rand(
        max(row_indices) + 1, max_tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )[row_indices]
    params = SamplingParams(eos, temperature, top_p)
    sharded = is_sharded(model)
    # weights of a divided model are gathered into tensors that will learn, which tensors of inference mode may not
    with (
        torch.no_grad() if sharded else torch.inference_mode(),
        cpu_fast_path(model) if not sharded and max_tokens >= _MIN_FAST_PATH_TOKENS else nullcontext(),
    ):
        cache_spec = get_cache_spec(model)
        if cache_spec is None:
            return list(_sample_without_cache(model, prompts, uniforms, params))
        width = max(map(len, prompts)) + max_tokens - 1
        num_slots = min(
            len(prompts), max_rows or len(prompts), max_batch_rows(model, cache_spec.bytes_per_token * width)
        )
        decoder = Decoder(model, num_slots, width, max_tokens, params, None if sharded else cache_spec.num_layers)
        return _decode_all(model, decoder, prompts, uniforms)


def get_cache_spec(model: Any) -> CacheSpec | None:
    """`what_is_kept`, tried out once, and again where a model was made into another: adapters came, it was cast or moved."""
    uses_bf16 = getattr(get_backbone(model), "computes_in_bf16", False)
    module_types = tuple(type(module) for module in model.modules())
    fingerprint = hash((module_types, model.config._attn_implementation, uses_bf16, model.dtype, model.device))
    if model not in _CACHE_SPECS or _CACHE_SPECS[model][0] != fingerprint:
        _CACHE_SPECS[model] = (fingerprint, probe_cache(model))
    return _CACHE_SPECS[model][1]


def max_batch_rows(model: Any, bytes_per_row: int) -> int:
    """How many rows are sampled at once: as many as there is memory for, for their keys and values and for their logits."""
    budget = CPU_CACHE_BYTES
    if model.device.type == "cuda":
        budget = int(_CUDA_CACHE_SHARE * free_gpu_memory(model.device))
    return max(1, min(budget // bytes_per_row, MAX_LOGITS // len(model.get_output_embeddings().weight)))


def probe_cache(model: Any) -> CacheSpec | None:
    """What a model keeps of a token, tried out; None where slots make a model say something else than it says alone."""
    decoder = Decoder(
        model,
        2,
        max(map(len, _PROBE_PROMPTS)) + _PROBE_TOKENS - 1,
        _PROBE_TOKENS,
        SamplingParams(eos=-1, temperature=0.0),
    )
    try:
        samples = _decode_all(
            model, decoder, _PROBE_PROMPTS, torch.zeros(len(_PROBE_PROMPTS), _PROBE_TOKENS, dtype=torch.float64)
        )
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return None  # the family's forward does not take what the others take
    batch = collate(
        [
            TokenizedExample(list(prompt), completion.tokens)
            for prompt, completion in zip(_PROBE_PROMPTS, samples, strict=True)
        ],
        model.device,
    )
    sampled_logp = torch.tensor([logp for completion in samples for logp in completion.logp])
    tolerance = 1e-4 if decoder.cache.key_values[0][0].dtype == torch.float32 else 0.1
    matches = torch.allclose(sampled_logp, completion_logp(model, batch).float().cpu(), atol=tolerance, rtol=tolerance)
    return CacheSpec(len(decoder.cache.key_values), decoder.cache.bytes_per_token()) if matches else None


def _decode_all(model: Any, decoder: Decoder, prompts: Sequence[list[int]], uniforms: Tensor) -> list[SampledTokens]:
    """Decode all rows: alike prompts enter together, short ones first."""
    pending_rows = sorted(
        range(len(prompts)), key=lambda row: (len(prompts[row]), prompts[row]), reverse=True
    )  # the last enters first
    row_of_slot: list[int] = []  # the row of each slot in use
    samples: list[SampledTokens | None] = [None] * len(prompts)
    refill_at = max(1, int(REFILL_FREE_SHARE * decoder.cache.num_slots))
    check_every = FINISH_CHECK_INTERVAL.get(model.device.type, 1)
    while pending_rows or row_of_slot:
        if pending_rows and decoder.num_free_slots >= min(refill_at, len(pending_rows)):
            rows = [pending_rows.pop() for _ in range(min(decoder.num_free_slots, len(pending_rows)))]
            decoder.add_rows(
                model, [prompts[row] for row in rows], uniforms[rows], [prompts[row] for row in row_of_slot]
            )
            row_of_slot += rows
        for _ in range(check_every):
            decoder.step_all(model)
        finished_slots = decoder.finished_slots()
        if finished_slots:
            results, source_slots = decoder.remove_rows(finished_slots)
            for slot, (tokens, logp) in zip(finished_slots, results, strict=True):
                samples[row_of_slot[slot]] = SampledTokens(tokens, logp, finished=tokens[-1] == decoder.params.eos)
            row_of_slot = [row_of_slot[slot] for slot in source_slots]
    return [completion for completion in samples if completion is not None]


def _last_token_logits(model: Any, batch: PackedBatch) -> Tensor:
    return compute_logits(model, hidden_states(model, batch, "last_positions"))


def _sample_without_cache(
    model: Any, prompts: Sequence[list[int]], uniforms: Tensor, params: SamplingParams
) -> Iterator[SampledTokens]:
    """The same without keeping anything between tokens, for families whose caches are of another kind."""
    rows = [(list[int](), list[float]()) for _ in prompts]
    alive = list(range(len(prompts)))
    for t in range(uniforms.shape[1]):
        for group in microbatches([len(prompts[row]) + t for row in alive], token_budget(model.device)):
            row_indices = [alive[index] for index in group]
            batch = collate([TokenizedExample(prompts[row] + rows[row][0], []) for row in row_indices], model.device)
            logits = call_sharded(model, _last_token_logits, model, batch)
            next_tokens, logp = sample_with_logp(logits, uniforms[row_indices, t].to(model.device), params)
            for row, token, token_logp in zip(row_indices, next_tokens.tolist(), logp.tolist(), strict=True):
                rows[row][0].append(token)
                rows[row][1].append(token_logp)
        alive = [row for row in alive if rows[row][0][-1] != params.eos]
    for tokens, row_logp in rows:
        yield SampledTokens(tokens, row_logp, finished=tokens[-1] == params.eos)
