"""Sampling completions: batched, with a key-value cache; rows that have ended leave the batch.

Sampling is exact (temperature alone, no top-k, no top-p: the distribution that PPO differentiates is the one that was
sampled from) and a row's completion is a function of its prompt, the seed, its index and `max_tokens`: each row has its own
stream of uniform numbers, so neither batch size nor the order in which other rows end changes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from instructgpt import functional
from instructgpt.errors import BadInput
from instructgpt.models.load import context_length, next_logits, trunk

WAVE_ROWS = 256
"""Rows decoded together."""
COMPACT_BELOW = 0.75
"""Finished rows leave the cache when fewer than this share of its rows are still alive."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sampled completion: its tokens (with the end-of-text token when it `finished`), and their logp when sampled."""

    tokens: list[int]
    logp: list[float]
    finished: bool


@dataclass(slots=True)
class _Wave:
    """Rows that are decoded together. Prompts are padded on the left, so that all rows write in the same column."""

    rows: Tensor  # (B,) which prompt each row answers
    mask: Tensor  # (B, L) real positions so far
    cache: Any
    logits: Tensor  # (B, V) of the next token


@torch.inference_mode()
def sample(
    model: Any,
    prompts: Sequence[list[int]],
    *,
    eos: int,
    max_tokens: int,
    seed: int,
    temperature: float = 1.0,
    rows: Sequence[int] | None = None,
) -> list[Sample]:
    """Sample one completion a prompt.

    Args:
        model: a causal language model in evaluation mode.
        prompts: rendered prompts; repeat one to get several completions of it.
        eos: the token that ends a completion.
        max_tokens: where a completion is cut off.
        seed: with the row's index it fixes the completion.
        temperature: 0 takes the likeliest token.
        rows: the index of each prompt, where these are only some of more prompts; 0, 1, 2 … without it.

    Raises:
        BadInput: a prompt leaves no room for `max_tokens` in the model's context.
    """
    room = context_length(model) - max_tokens
    for index, prompt in enumerate(prompts):
        if not 0 < len(prompt) <= room:
            raise BadInput(
                f"prompt {index + 1} has {len(prompt)} tokens, but the context leaves room for 1 to {room} before {max_tokens} new ones"
            )
    numbers = list(range(len(prompts)) if rows is None else rows)
    uniforms = torch.rand(max(numbers, default=-1) + 1, max_tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    uniforms = uniforms[numbers]
    samples: list[Sample | None] = [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    for start in range(0, len(order), WAVE_ROWS):
        wave = order[start : start + WAVE_ROWS]
        for row, result in zip(wave, _decode(model, [prompts[row] for row in wave], uniforms[wave], eos, temperature), strict=True):
            samples[row] = result
    return [result for result in samples if result is not None]


def _decode(model: Any, prompts: list[list[int]], uniforms: Tensor, eos: int, temperature: float) -> list[Sample]:
    """Decode one wave to its end."""
    device = model.device
    uniforms = uniforms.to(device)
    count, max_tokens = uniforms.shape
    tokens = torch.full((count, max_tokens), -1, device=device)
    logp = torch.full((count, max_tokens), float("nan"), device=device)
    wave = _prefill(model, prompts, device)
    alive = torch.ones(count, dtype=torch.bool, device=device)  # of the wave's rows
    for t in range(max_tokens):
        chosen = choose(wave.logits, uniforms[wave.rows, t], temperature)  # (B,)
        now = wave.rows[alive]
        tokens[now, t] = chosen[alive]
        logp[now, t] = functional.token_logp(wave.logits[alive], chosen[alive], temperature or 1.0)
        alive = alive & (chosen != eos)
        if t + 1 == max_tokens or not alive.any():
            break
        if alive.float().mean() < COMPACT_BELOW:
            wave, chosen = _compact(wave, alive), chosen[alive]
            alive = alive[alive]
        _advance(model, wave, chosen)
    return [_result(tokens[row], logp[row], eos) for row in range(count)]


def choose(logits: Tensor, uniforms: Tensor, temperature: float) -> Tensor:
    """The token of each row: the inverse of the distribution function at the row's uniform number. (B, V), (B,) -> (B,)."""
    if temperature == 0:
        return logits.argmax(-1)
    cumulative = (logits.float() / temperature).softmax(-1).double().cumsum(-1)
    target = uniforms[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0].clamp_max(logits.shape[-1] - 1)


def _prefill(model: Any, prompts: list[list[int]], device: torch.device) -> _Wave:
    width = max(map(len, prompts))
    tokens = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    wave = _Wave(torch.arange(len(prompts), device=device), mask.to(device), transformers.DynamicCache(config=model.config), torch.empty(0))
    _forward(model, wave, tokens.to(device), (wave.mask.cumsum(-1) - 1).clamp_min(0))
    return wave


def _advance(model: Any, wave: _Wave, chosen: Tensor) -> None:
    """One more column."""
    wave.mask = torch.nn.functional.pad(wave.mask, (0, 1), value=1)
    _forward(model, wave, chosen[:, None], wave.mask.sum(-1, keepdim=True) - 1)


def _forward(model: Any, wave: _Wave, tokens: Tensor, positions: Tensor) -> None:
    states = trunk(model)(
        input_ids=tokens, attention_mask=wave.mask, position_ids=positions, past_key_values=wave.cache, use_cache=True
    ).last_hidden_state
    wave.logits = next_logits(model, states[:, -1])


def _compact(wave: _Wave, alive: Tensor) -> _Wave:
    keep = alive.nonzero()[:, 0]
    wave.cache.batch_select_indices(keep)
    return _Wave(wave.rows[keep], wave.mask[keep], wave.cache, wave.logits[keep])


def _result(tokens: Tensor, logp: Tensor, eos: int) -> Sample:
    length = int((tokens >= 0).sum())
    taken = tokens[:length].tolist()
    return Sample(taken, logp[:length].tolist(), finished=taken[-1] == eos)
