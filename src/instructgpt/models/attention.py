"""Attention over a batch without padding, and over a prompt that several completions share.

The models are transformers' own: embeddings, norms and matrices see one line of tokens with their positions, and only
attention, which must know where texts begin, is a function of ours behind transformers' attention interface. It lays the
spans of a batch side by side in blocks, calls torch's attention on each, and puts the results back: exact, forward and
backward, on any device. A completion reads the keys and values of its prompt, which were computed once.

A family that cannot be computed so (its attention is not behind that interface, or looks through a sliding window) is
computed in padded rows, a row for each text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from instructgpt.data.batches import Batch, Example, Span, collate
from instructgpt.models.adapters import trunk

PACKED = "instructgpt_packed"
"""What our function is called in transformers' table of attention functions."""
ALIKE = 1.25
"""Spans of a block differ in length by at most this factor, and a few tokens."""
PROBE = [Example([1, 2], [0, 1, 2, 0, 1]), *(Example([2, 1, 0, 2] * 3, completion) for completion in ([1, 0, 2], [0]))]


@dataclass(frozen=True, slots=True)
class Block:
    """Spans that are computed side by side. What fills a row up to the longest is some real token, whose result nobody reads."""

    own: Tensor  # (b, L) the spans' own tokens, by their place in the batch
    keys: Tensor  # (b, P + L) the tokens they may read, their prompts' first
    sees: Tensor | None  # (b, 1, L, P + L) bool: which of them each reads; None where there are no prompts, and they are the own ones


@dataclass(frozen=True, slots=True)
class Layout:
    """Where attention finds the tokens of a batch."""

    blocks: tuple[Block, ...]
    places: Tensor  # (N,) where each token's result stands in the blocks, laid end to end


def hidden_states(model: Any, batch: Batch) -> Tensor:
    """Last hidden states of all tokens of a batch. -> (N, D). For policies, value models and reward models alike."""
    if model.config._attn_implementation != PACKED:
        rows, places = padded_rows(batch)
        padded: Tensor = trunk(model)(input_ids=batch.tokens[rows], use_cache=False).last_hidden_state
        return padded.flatten(0, 1)[places]
    nothing = batch.tokens.new_empty((1, 1, 0, 0))  # a mask of four dimensions is taken as it is, so that none is made
    states: Tensor = trunk(model)(
        input_ids=batch.tokens[None],
        position_ids=batch.positions[None],
        attention_mask=nothing,
        layout=layout_of(batch),
        use_cache=False,
    ).last_hidden_state
    return states[0]


@torch.no_grad()
def use_packed_attention(model: Any) -> None:
    """Let a model compute batches without padding, if on a small one it then says what it says of padded rows."""
    stock = model.config._attn_implementation
    if stock != "sdpa" or not model._can_set_attn_implementation():
        return
    batch = collate(PROBE, model.device)
    expected = hidden_states(model, batch)
    model.set_attn_implementation(PACKED)
    try:
        same = torch.allclose(hidden_states(model, batch), expected, atol=1e-4, rtol=1e-4)
    except NotImplementedError:
        same = False
    if not same:
        model.set_attn_implementation(stock)


def attend(
    module: nn.Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    layout: Layout | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """What transformers calls for attention. Without a layout (while sampling) it is transformers' own.

    q (1, H, N, D), k and v (1, H or fewer, N, D) -> (1, N, H, D).

    Raises:
        NotImplementedError: the family asks for more than plain causal attention.
    """
    if layout is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(module, q, k, v, attention_mask, dropout, scaling, **more)
        return plain
    if any(more.get(name) is not None for name in ("sliding_window", "softcap", "s_aux", "position_bias")):
        raise NotImplementedError(f"{type(module).__name__} asks for more than causal attention")
    heads, width = q.shape[1], q.shape[3]
    q, k, v = (x[0].transpose(0, 1).flatten(1) for x in (q, k, v))  # (N, H D)

    def pick(x: Tensor, places: Tensor) -> Tensor:
        picked = F.embedding(places, x).view(*places.shape, -1, width).transpose(1, 2)  # (b, H, L, D)
        repeated: Tensor = repeat_kv(picked, heads // picked.shape[1])
        return repeated

    results = []
    for block in layout.blocks:
        keys, values = pick(k, block.keys), pick(v, block.keys)
        causal = block.sees is None
        result = F.scaled_dot_product_attention(pick(q, block.own), keys, values, block.sees, dropout, causal, scale=scaling)
        results.append(result.transpose(1, 2).reshape(-1, heads * width))  # (b L, H D)
    return F.embedding(layout.places, torch.cat(results)).view(1, -1, heads, width), None


def layout_of(batch: Batch) -> Layout:
    """The blocks of a batch: texts that begin by themselves, and completions of shared prompts."""
    device = batch.tokens.device
    blocks: list[Block] = []
    places = torch.empty(len(batch.tokens), dtype=torch.long)
    filled = 0
    alone = [span for span in batch.spans if span.prompt is None]
    continued = [span for span in batch.spans if span.prompt is not None]
    for spans in (*alike(alone), *alike(continued)):
        own, real = grid(spans)
        keys, sees = own, None
        if spans[0].prompt is not None:
            before, known = grid([span.prompt for span in spans if span.prompt])
            keys = torch.cat([before, own], 1)
            causal = torch.ones(own.shape[1], own.shape[1], dtype=torch.bool).tril()
            shape = (len(spans), 1, own.shape[1], -1)
            sees = torch.cat([known[:, None, None, :].expand(shape), causal.expand(shape)], -1).to(device)
        places[own[real]] = filled + real.flatten().nonzero()[:, 0]
        filled += real.numel()
        blocks.append(Block(own.to(device), keys.to(device), sees))
    return Layout(tuple(blocks), places.to(device))


def alike(spans: Sequence[Span]) -> list[list[Span]]:
    """Spans in groups of about equal length, prompts included."""
    groups: list[list[Span]] = []
    shortest = 0
    for span in sorted(spans, key=lambda span: (span.origin, span.end - span.start)):
        length = span.origin + span.end - span.start
        if not groups or length > ALIKE * shortest + 8:
            groups.append([])
            shortest = length
        groups[-1].append(span)
    return groups


def grid(spans: Sequence[Span]) -> tuple[Tensor, Tensor]:
    """Tokens of spans as rows. -> places in the batch (b, L), and which of them are real (b, L); the others point at a row's first."""
    starts, ends = torch.tensor([span[:2] for span in spans])[..., None].unbind(1)
    places = starts + torch.arange(int((ends - starts).max()))
    real = places < ends
    return places.where(real, starts), real


def padded_rows(batch: Batch) -> tuple[Tensor, Tensor]:
    """Every span with its prompt as a row, padded on the right, where causal attention never looks.

    -> which token of the batch stands where (S, T); where each token of the batch stands in these rows (N,).
    """
    rows = [torch.cat([torch.arange(*part[:2]) for part in (span.prompt, span) if part]) for span in batch.spans]
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    width = padded.shape[1]
    places = [row * width + span.origin + torch.arange(span.end - span.start) for row, span in enumerate(batch.spans)]
    device = batch.tokens.device
    return padded.to(device), torch.cat(places).to(device)


AttentionInterface.register(PACKED, attend)
AttentionMaskInterface.register(PACKED, sdpa_mask)
