"""Sampling completions with continuous batching: finished rows leave the batch, and waiting prompts take their slots.

Sampling is exact: temperature alone, no top-k, and no top-p unless asked for, because PPO differentiates the
distribution that was sampled from. A completion is a function of its prompt, the seed and its key (`random_streams`):
every row has its own stream of uniform numbers, so neither the rest of the batch nor the memory changes it.

A family for which the static KV cache is not exact is sampled without a cache, the whole sequence again for each token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from instructgpt.data.packing import PackedBatch, TokenizedExample, collate, microbatches, token_budget
from instructgpt.distributed.comm import call_sharded, is_sharded
from instructgpt.errors import InputError, is_out_of_memory
from instructgpt.models.families import get_family
from instructgpt.models.flop_count import count_sampled
from instructgpt.models.head import compute_logits, vocabulary_rows
from instructgpt.models.lora import get_backbone
from instructgpt.models.packed_attention import FORWARD_ERRORS, hidden_states
from instructgpt.models.policy import MAX_LOGITS, completion_logp, context_length
from instructgpt.models.precision import compute_device, free_gpu_memory
from instructgpt.run.timing import PHASE_TIMER
from instructgpt.sampling.decoder import (
    FINISH_CHECK_INTERVAL,
    REFILL_FREE_SHARE,
    Decoder,
    SamplingParams,
    sample_with_logp,
)
from instructgpt.sampling.random_streams import StreamKey, default_stream_keys, draw_uniforms
from instructgpt.sampling.stop_strings import StopStrings, StopTracker

CPU_CACHE_BYTES = 2**28
"""Memory for keys and values on a CPU. Four times as much makes small models slower: it misses the CPU's cache."""
CUDA_CACHE_SHARE = 0.5
"""Share of a GPU's free memory for keys and values."""
_PROBE_PROMPTS = ([1, 2, 0, 1, 2, 0, 1, 1, 2], [2, 1], [2, 1], [0], [2, 1])
_PROBE_TOKENS = 3


_CACHE_PROBES: WeakKeyDictionary[Any, tuple[int, int | None]] = WeakKeyDictionary()
"""For each model a fingerprint, and the result of `probe_cache` for it."""


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """One sampled completion: its tokens, with the stop token if it finished, and their logp when sampled."""

    tokens: list[int]
    logp: list[float]
    finished: bool
    """Whether it ended with a stop token."""


def sample_tokens(
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
    """Sample one completion a prompt.

    Args:
        model: a causal language model in evaluation mode; a sharded one within `synchronized_forwards`.
        prompts: token ids; repeat a prompt for several completions of it.
        stop_tokens: the tokens that end a completion.
        max_tokens: length at which a completion is cut off.
        seed: fixes a completion, together with its key.
        temperature: 0 takes the likeliest token.
        top_p: below 1, sample from the likeliest tokens that together have this probability (Holtzman et al. 2020).
        stop: texts that end a completion too, with the token that completes them.
        max_rows: rows sampled at once, by default as many as memory allows; changes no completion.
        keys: the stream of random numbers of each completion; by default (0, 0), (1, 0), (2, 0) ...

    Raises:
        InputError: a prompt is empty, or leaves no room for `max_tokens` in the model's context.
    """
    max_prompt_tokens = context_length(model) - max_tokens
    for index, prompt in enumerate(prompts):
        if not 0 < len(prompt) <= max_prompt_tokens:
            room = f"the context leaves room for 1 to {max_prompt_tokens} before {max_tokens} new ones"
            raise InputError(f"prompt {index + 1} has {len(prompt)} tokens, but {room}")
    if not prompts:
        return []
    stream_keys = default_stream_keys(len(prompts)) if keys is None else keys

    def draw(rows: Sequence[int]) -> Tensor:
        return draw_uniforms(seed, [stream_keys[row] for row in rows], max_tokens)

    params = SamplingParams(tuple(stop_tokens), temperature, top_p)
    # FSDP gathers weights into tensors that are trained later, which tensors made in inference mode cannot be
    with torch.no_grad() if is_sharded(model) else torch.inference_mode():
        bytes_per_token = cache_bytes_per_token(model)
        if bytes_per_token is None:
            return list(_sample_without_cache(model, prompts, draw(range(len(prompts))), params, stop))
        width = max(map(len, prompts)) + max_tokens - 1  # the last token is sampled, never fed
        max_slots = max_batch_rows(model, bytes_per_token * width)
        decoder = Decoder(model, min(len(prompts), max_rows or len(prompts), max_slots), width, max_tokens, params)
        samples = _decode_all(model, decoder, prompts, draw, stop)
        count_sampled(model, list(map(len, prompts)), [len(sample.tokens) for sample in samples])
        return samples


def cache_bytes_per_token(model: Any) -> int | None:
    """Return the result of `probe_cache`, probed again where adapters were added, or the model was cast or moved.

    None without a probe where the table of families says that slots are not exact.
    """
    family = get_family(model.config)
    if family is None or not family.cache:
        return None
    uses_bf16 = getattr(get_backbone(model), "computes_in_bf16", False)
    module_types = tuple(type(module) for module in model.modules())
    attention, device = model.config._attn_implementation, compute_device(model)
    fingerprint = hash((module_types, attention, uses_bf16, model.dtype, device))
    if model not in _CACHE_PROBES or _CACHE_PROBES[model][0] != fingerprint:
        with PHASE_TIMER.pause_flops():
            _CACHE_PROBES[model] = (fingerprint, probe_cache(model))
    return _CACHE_PROBES[model][1]


def max_batch_rows(model: Any, bytes_per_row: int) -> int:
    """Return the number of rows whose keys and values, and logits, fit in memory; at least 1."""
    budget, device = CPU_CACHE_BYTES, compute_device(model)
    if device.type == "cuda":
        budget = int(CUDA_CACHE_SHARE * free_gpu_memory(device))
    return rows_within(budget, bytes_per_row, vocabulary_rows(model))


def rows_within(cache_bytes: float, bytes_per_row: int, vocab_size: int) -> int:
    """Return the number of rows whose keys and values fit in `cache_bytes`, and logits in `MAX_LOGITS`; at least 1."""
    return int(max(1, min(cache_bytes / bytes_per_row, MAX_LOGITS // vocab_size)))


def probe_cache(model: Any) -> int | None:
    """Decode a few tokens; return the cache's bytes a token, or None where logps differ from a plain forward pass."""
    width = max(map(len, _PROBE_PROMPTS)) + _PROBE_TOKENS - 1
    decoder = Decoder(model, 2, width, _PROBE_TOKENS, SamplingParams(stop_tokens=(), temperature=0.0))

    def draw(rows: Sequence[int]) -> Tensor:
        return torch.zeros(len(rows), _PROBE_TOKENS, dtype=torch.float64)

    try:
        samples = _decode_all(model, decoder, _PROBE_PROMPTS, draw)
    except FORWARD_ERRORS as error:
        if is_out_of_memory(error):
            raise
        return None  # the family's forward takes other arguments
    pairs = zip(_PROBE_PROMPTS, samples, strict=True)
    examples = [TokenizedExample(list(prompt), sample.tokens) for prompt, sample in pairs]
    expected = completion_logp(model, collate(examples, compute_device(model))).float().cpu()
    sampled = torch.tensor([logp for sample in samples for logp in sample.logp])
    if not decoder.cache.key_values:
        return None  # the family keeps its state in another kind of cache
    tolerance = 1e-4 if decoder.cache.key_values[0][0].dtype == torch.float32 else 0.1
    matches = torch.allclose(sampled, expected, atol=tolerance, rtol=tolerance)
    return decoder.cache.bytes_per_token() if matches else None


def _decode_all(
    model: Any,
    decoder: Decoder,
    prompts: Sequence[list[int]],
    draw: Callable[[Sequence[int]], Tensor],
    stop: StopStrings | None = None,
) -> list[SampledTokens]:
    """Decode all rows. Short prompts enter first, equal ones together; the last of `pending_rows` enters next.

    Args:
        draw: uniform numbers of the rows with these indices, (rows, max_tokens).
    """
    pending_rows = sorted(range(len(prompts)), key=lambda row: (len(prompts[row]), prompts[row]), reverse=True)
    row_of_slot: list[int] = []  # the row of each slot in use
    samples: list[SampledTokens | None] = [None] * len(prompts)
    tracker = StopTracker(stop) if stop else None
    refill_at = max(1, int(REFILL_FREE_SHARE * decoder.cache.num_slots))
    check_every = FINISH_CHECK_INTERVAL.get(compute_device(model).type, 1)
    while pending_rows or row_of_slot:
        if pending_rows and decoder.num_free_slots >= min(refill_at, len(pending_rows)):
            rows = [pending_rows.pop() for _ in range(min(decoder.num_free_slots, len(pending_rows)))]
            slot_prompts = [prompts[row] for row in row_of_slot]
            decoder.add_rows(model, [prompts[row] for row in rows], draw(rows), slot_prompts)
            row_of_slot += rows
        for _ in range(check_every):
            decoder.step_all(model)
        if tracker:
            for slot, (count, last_tokens) in enumerate(decoder.last_tokens(check_every)):
                if (end := tracker.find_stop(row_of_slot[slot], count, last_tokens)) is not None:
                    decoder.end_row(slot, end)
        finished_slots = decoder.finished_slots()
        if finished_slots:
            results, source_slots = decoder.remove_rows(finished_slots)
            for slot, (tokens, logp) in zip(finished_slots, results, strict=True):
                samples[row_of_slot[slot]] = SampledTokens(
                    tokens, logp, finished=tokens[-1] in decoder.params.stop_tokens
                )
                if tracker:
                    tracker.forget(row_of_slot[slot])
            row_of_slot = [row_of_slot[slot] for slot in source_slots]
    return [sample for sample in samples if sample is not None]


def _last_token_logits(model: Any, batch: PackedBatch) -> Tensor:
    return compute_logits(model, hidden_states(model, batch, "last_positions"))


def _sample_without_cache(
    model: Any, prompts: Sequence[list[int]], uniforms: Tensor, params: SamplingParams, stop: StopStrings | None
) -> Iterator[SampledTokens]:
    """Sample without a KV cache, for families whose caches are of another kind."""
    device = compute_device(model)
    rows = [(list[int](), list[float]()) for _ in prompts]
    alive = list(range(len(prompts)))
    tracker = StopTracker(stop) if stop else None
    for t in range(uniforms.shape[1]):
        for group in microbatches([len(prompts[row]) + t for row in alive], token_budget(device)):
            row_indices = [alive[index] for index in group]
            batch = collate([TokenizedExample(prompts[row] + rows[row][0], []) for row in row_indices], device)
            logits = call_sharded(model, _last_token_logits, model, batch)
            next_tokens, logp = sample_with_logp(logits, uniforms[row_indices, t].to(device), params)
            for row, token, token_logp in zip(row_indices, next_tokens.tolist(), logp.tolist(), strict=True):
                rows[row][0].append(token)
                rows[row][1].append(token_logp)
        alive = [row for row in alive if rows[row][0][-1] not in params.stop_tokens]
        if tracker:
            alive = [row for row in alive if tracker.find_stop(row, t + 1, rows[row][0][-1:]) is None]
    for tokens, row_logp in rows:
        yield SampledTokens(tokens, row_logp, finished=tokens[-1] in params.stop_tokens)
