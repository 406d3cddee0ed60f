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

from instructgpt.data.packing import Batch, Example, collate, microbatches, token_budget
from instructgpt.distributed.comm import enter, is_divided
from instructgpt.errors import BadInput
from instructgpt.models.packed_attention import hidden_states
from instructgpt.models.policy import LOGITS_HELD, completion_logp, context_length, next_logits, trunk
from instructgpt.models.precision import free_bytes
from instructgpt.sampling.cpu_fast_path import cpu_layout
from instructgpt.sampling.decoder import CHECK_EVERY, REFILL_AT, Choice, Decoder, draw

CPU_BYTES = 2**28
"""Memory for keys and values on a CPU. Four times as much makes small models slower: more of it lies outside of the cache."""
CUDA_SHARE = 0.5
"""Share of a GPU's free memory for keys and values."""
CPU_LAYOUT_PAYS = 8
"""With so many tokens a row it pays to lay a model out for sampling."""
PROBE = ([1, 2, 0, 1, 2, 0, 1, 1, 2], [2, 1], [2, 1], [0], [2, 1])
PROBE_TOKENS = 3


@dataclass(frozen=True, slots=True)
class Kept:
    """What a model keeps of a token while rows are sampled."""

    layers: int
    bytes: int


_KEPT: WeakKeyDictionary[Any, tuple[int, Kept | None]] = WeakKeyDictionary()
"""What was found out about a model, and what it was then."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sampled completion: its tokens (with the end-of-text token when it `finished`), and their logp when sampled."""

    tokens: list[int]
    logp: list[float]
    finished: bool


def sample(
    model: Any,
    prompts: Sequence[list[int]],
    *,
    eos: int,
    max_tokens: int,
    seed: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    rows: int | None = None,
    indices: Sequence[int] | None = None,
) -> list[Sample]:
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
    room = context_length(model) - max_tokens
    for index, prompt in enumerate(prompts):
        if not 0 < len(prompt) <= room:
            raise BadInput(
                f"prompt {index + 1} has {len(prompt)} tokens, but the context leaves room for 1 to {room} before {max_tokens} new ones"
            )
    if not prompts:
        return []
    numbers = list(range(len(prompts)) if indices is None else indices)
    uniforms = torch.rand(max(numbers) + 1, max_tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)[numbers]
    choice = Choice(eos, temperature, top_p)
    divided = is_divided(model)
    # weights of a divided model are gathered into tensors that will learn, which tensors of inference mode may not
    with (
        torch.no_grad() if divided else torch.inference_mode(),
        cpu_layout(model) if not divided and max_tokens >= CPU_LAYOUT_PAYS else nullcontext(),
    ):
        kept = kept_by(model)
        if kept is None:
            return list(_recompute(model, prompts, uniforms, choice))
        width = max(map(len, prompts)) + max_tokens - 1
        slots = min(len(prompts), rows or len(prompts), rows_that_fit(model, kept.bytes * width))
        decoder = Decoder(model, slots, width, max_tokens, choice, None if divided else kept.layers)
        return _run(model, decoder, prompts, uniforms)


def kept_by(model: Any) -> Kept | None:
    """`what_is_kept`, tried out once, and again where a model was made into another: adapters came, it was cast or moved."""
    computes = getattr(trunk(model), "computes_in_bf16", False)
    made_of = tuple(type(module) for module in model.modules())
    now = hash((made_of, model.config._attn_implementation, computes, model.dtype, model.device))
    if model not in _KEPT or _KEPT[model][0] != now:
        _KEPT[model] = (now, what_is_kept(model))
    return _KEPT[model][1]


def rows_that_fit(model: Any, bytes_a_row: int) -> int:
    """How many rows are sampled at once: as many as there is memory for, for their keys and values and for their logits."""
    budget = CPU_BYTES
    if model.device.type == "cuda":
        budget = int(CUDA_SHARE * free_bytes(model.device))
    return max(1, min(budget // bytes_a_row, LOGITS_HELD // len(model.get_output_embeddings().weight)))


def what_is_kept(model: Any) -> Kept | None:
    """What a model keeps of a token, tried out; None where slots make a model say something else than it says alone."""
    decoder = Decoder(model, 2, max(map(len, PROBE)) + PROBE_TOKENS - 1, PROBE_TOKENS, Choice(eos=-1, temperature=0.0))
    try:
        samples = _run(model, decoder, PROBE, torch.zeros(len(PROBE), PROBE_TOKENS, dtype=torch.float64))
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return None  # the family's forward does not take what the others take
    batch = collate([Example(list(prompt), one.tokens) for prompt, one in zip(PROBE, samples, strict=True)], model.device)
    sampled = torch.tensor([number for one in samples for number in one.logp])
    near = 1e-4 if decoder.cache.stored[0][0].dtype == torch.float32 else 0.1
    same = torch.allclose(sampled, completion_logp(model, batch).float().cpu(), atol=near, rtol=near)
    return Kept(len(decoder.cache.stored), decoder.cache.bytes_a_token()) if same else None


def _run(model: Any, decoder: Decoder, prompts: Sequence[list[int]], uniforms: Tensor) -> list[Sample]:
    """Decode all rows: alike prompts enter together, short ones first."""
    waiting = sorted(range(len(prompts)), key=lambda row: (len(prompts[row]), prompts[row]), reverse=True)  # the last enters first
    owners: list[int] = []  # the row of each slot in use
    samples: list[Sample | None] = [None] * len(prompts)
    refill_at = max(1, int(REFILL_AT * decoder.cache.slots))
    check_every = CHECK_EVERY.get(model.device.type, 1)
    while waiting or owners:
        if waiting and decoder.free >= min(refill_at, len(waiting)):
            rows = [waiting.pop() for _ in range(min(decoder.free, len(waiting)))]
            decoder.admit(model, [prompts[row] for row in rows], uniforms[rows], [prompts[row] for row in owners])
            owners += rows
        for _ in range(check_every):
            decoder.advance(model)
        ended = decoder.ended()
        if ended:
            results, came = decoder.leave(ended)
            for slot, (tokens, logp) in zip(ended, results, strict=True):
                samples[owners[slot]] = Sample(tokens, logp, finished=tokens[-1] == decoder.choice.eos)
            owners = [owners[slot] for slot in came]
    return [one for one in samples if one is not None]


def _next_logits(model: Any, batch: Batch) -> Tensor:
    return next_logits(model, hidden_states(model, batch, "last"))


def _recompute(model: Any, prompts: Sequence[list[int]], uniforms: Tensor, choice: Choice) -> Iterator[Sample]:
    """The same without keeping anything between tokens, for families whose caches are of another kind."""
    rows = [(list[int](), list[float]()) for _ in prompts]
    alive = list(range(len(prompts)))
    for t in range(uniforms.shape[1]):
        for group in microbatches([len(prompts[row]) + t for row in alive], token_budget(model.device)):
            members = [alive[place] for place in group]
            batch = collate([Example(prompts[row] + rows[row][0], []) for row in members], model.device)
            logits = enter(model, _next_logits, model, batch)
            chosen, logp = draw(logits, uniforms[members, t].to(model.device), choice)
            for row, token, number in zip(members, chosen.tolist(), logp.tolist(), strict=True):
                rows[row][0].append(token)
                rows[row][1].append(number)
        alive = [row for row in alive if rows[row][0][-1] != choice.eos]
    for tokens, numbers in rows:
        yield Sample(tokens, numbers, finished=tokens[-1] == choice.eos)
