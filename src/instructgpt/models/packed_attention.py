"""Attention over a batch without padding, and over a prompt that several completions share.

The models are transformers' own: embeddings, norms and matrices see one line of tokens with their positions, and only
attention, which must know where texts begin, is a function of ours behind transformers' attention interface. It lays the
spans of a batch side by side in blocks, calls torch's attention on each, and puts the results back: exact, forward and
backward, on any device. A completion reads the keys and values of its prompt, which were computed once. Of the last layer
all tokens need keys and values only; everything after them is computed for the tokens whose states are read.

A family that cannot be computed so (its attention is not behind that interface, or looks through a sliding window) is
computed in padded rows, a row for each text.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from instructgpt.data.packing import Batch, Example, Span, collate
from instructgpt.models.lora import trunk

PACKED = "instructgpt_packed"
"""What our function is called in transformers' table of attention functions."""
LAYOUT, READING, READS_FEW = "layout", "reading ", "reads_few"
FEW = 0.6
"""Where at most this share of a batch's tokens is read, the last layer is computed for them alone; else that saves nothing."""
Read = Literal["last", "predicts"]
"""Which of a batch's tokens are read, by the batch's own names."""
ALIKE = 1.25
"""Spans of a block differ in length by at most this factor, and a few tokens."""
PROBE = [Example([1, 2], [0, 1, 2, 0, 1]), *(Example([2, 1, 0, 2] * 3, completion) for completion in ([1, 0, 2], [0]))]


@dataclass(frozen=True, slots=True)
class Block:
    """Spans that are computed side by side. What fills a row up to the longest is some real token, whose result nobody reads."""

    asks: Tensor  # (b, A) the tokens of the spans that are computed, by their place among all that are
    keys: Tensor  # (b, P + L) the tokens they may read, their prompts' first, by their place in the batch
    sees: Tensor | None  # (b, 1, A, P + L) bool: which of them each reads; None where all tokens of texts without prompts are computed


@dataclass(frozen=True, slots=True)
class Layout:
    """Where attention finds the tokens of a batch."""

    blocks: tuple[Block, ...]
    places: Tensor  # (n,) where each computed token's result stands in the blocks, laid end to end


@dataclass(frozen=True, slots=True)
class Reading:
    """The tokens of a batch whose states are read."""

    tokens: Tensor  # (n,) where they stand in the batch, each once
    among: Tensor  # (N,) the place among them of each token that is read; for the others of some other one
    layout: Layout  # of the last layer's attention


class Enough(Exception):
    """A layer has made its keys and values, and nothing that it computes after them is of use."""


class LastKeys(Cache):  # type: ignore[misc]
    """Passes keys and values on; in the last layer it keeps those of all tokens for the tokens that are read."""

    def __init__(self, reading: Reading) -> None:
        super().__init__(layers=[])
        self.reading, self.in_last = reading, False
        self.kept: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keys and values as they are; in the last layer first all of them are kept, then those are handed back."""
        if self.in_last and self.kept is None:
            self.kept = key_states, value_states
            raise Enough
        return self.kept if self.in_last and self.kept else (key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002, nothing comes before
        """Tokens before those that come next."""
        return 0


def hidden_states(model: Any, batch: Batch, read: Read | None = None) -> Tensor:
    """Last hidden states of the tokens that are read, or of all. -> (m, D). For policies, value models and reward models alike."""
    places = None if read is None else getattr(batch, read)
    if model.config._attn_implementation != PACKED:
        rows, where = padded_rows(batch)
        padded: Tensor = trunk(model)(input_ids=batch.tokens[rows], use_cache=False).last_hidden_state
        return padded.flatten(0, 1)[where if places is None else where[places]]
    reading = reading_of(batch, read) if read and hasattr(model, READS_FEW) else None
    nothing = batch.tokens.new_empty((1, 1, 0, 0))  # a mask of four dimensions is taken as it is, so that none is made
    states: Tensor = trunk(model)(
        input_ids=batch.tokens[None],
        position_ids=batch.positions[None],
        attention_mask=nothing,
        layout=layout_of(batch),
        past_key_values=LastKeys(reading) if reading else None,
        use_cache=reading is not None,
    ).last_hidden_state[0]
    return states if places is None else F.embedding(places, states)


@torch.no_grad()
def use_packed_attention(model: Any) -> None:
    """Let a model compute batches without padding, if on a small one it then says what it says of padded rows."""
    stock = model.config._attn_implementation
    if stock != "sdpa" or not model._can_set_attn_implementation():
        return
    batch = collate(PROBE, model.device)
    expected = hidden_states(model, batch)

    def same(read: Read | None) -> bool:
        try:
            found = hidden_states(model, batch, read)
        except (IndexError, NotImplementedError, RuntimeError, TypeError):
            return False
        return torch.allclose(found, expected if read is None else expected[getattr(batch, read)], atol=1e-4, rtol=1e-4)

    model.set_attn_implementation(PACKED)
    if not same(None):
        model.set_attn_implementation(stock)
        return
    read_few(model)
    if not (same("last") and same("predicts")):
        delattr(model, READS_FEW)


def read_few(model: Any) -> None:
    """Let the last layer of a model compute, beside keys and values, only what is read."""
    layers = next(part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == model.config.num_hidden_layers)
    layers[-1].__class__ = reads_few(type(layers[-1]))
    setattr(model, READS_FEW, True)


def reads_few(kind: type[nn.Module]) -> type[nn.Module]:
    """The same kind of layer, which as the last one is asked for few tokens. It goes by the same name, by which others find it."""

    def forward(self: nn.Module, states: Tensor, *inputs: Any, **more: Any) -> Any:
        keys = next((given for given in (*inputs, *more.values()) if isinstance(given, LastKeys)), None)
        if keys is None:
            return kind.forward(self, states, *inputs, **more)

        def picked(given: Any) -> Any:
            """Of what there is for every token, that of those which are read."""
            if isinstance(given, tuple):
                return tuple(map(picked, given))
            every = isinstance(given, Tensor) and given.shape[:2] == states.shape[:2]
            return F.embedding(keys.reading.tokens, given[0].view(len(given[0]), -1)).view(1, -1, *given.shape[2:]) if every else given

        keys.in_last, keys.kept = True, None
        with suppress(Enough):
            kind.forward(self, states, *inputs, **more)
        more = {name: picked(given) for name, given in more.items()} | {"layout": keys.reading.layout}
        result = kind.forward(self, picked(states), *map(picked, inputs), **more)
        keys.in_last, keys.kept = False, None
        return F.embedding(keys.reading.among[None], result[0])  # no view of something: FSDP hangs its gathering on what comes out

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


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

    q (1, H, n, D), k and v (1, H or fewer, N, D) -> (1, n, H, D).

    Raises:
        NotImplementedError: the family asks for more than plain causal attention.
    """
    if layout is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(module, q, k, v, attention_mask, dropout, scaling, **more)
        return plain
    if any(more.get(name) is not None for name in ("sliding_window", "softcap", "s_aux", "position_bias")):
        raise NotImplementedError(f"{type(module).__name__} asks for more than causal attention")
    heads, width = q.shape[1], q.shape[3]
    q, k, v = (x[0].transpose(0, 1).flatten(1) for x in (q, k, v))  # (n or N, H D)

    def pick(x: Tensor, places: Tensor) -> Tensor:
        picked = F.embedding(places, x).view(*places.shape, -1, width).transpose(1, 2)  # (b, H, L, D)
        repeated: Tensor = repeat_kv(picked, heads // picked.shape[1])
        return repeated

    results = []
    for block in layout.blocks:
        keys, values = pick(k, block.keys), pick(v, block.keys)
        causal = block.sees is None
        result = F.scaled_dot_product_attention(pick(q, block.asks), keys, values, block.sees, dropout, causal, scale=scaling)
        results.append(result.transpose(1, 2).reshape(-1, heads * width))  # (b A, H D)
    return F.embedding(layout.places, torch.cat(results)).view(1, -1, heads, width), None


def layout_of(batch: Batch) -> Layout:
    """The blocks of a batch: texts that begin by themselves, and completions of shared prompts. Worked out once a batch."""
    if LAYOUT not in batch.known:
        batch.known[LAYOUT] = lay_out(batch)
    layout: Layout = batch.known[LAYOUT]
    return layout


def reading_of(batch: Batch, read: Read) -> Reading | None:
    """What is read of a batch, where that is few. Worked out once a batch."""
    if READING + read not in batch.known:
        asked = torch.zeros_like(batch.tokens, dtype=torch.bool)
        asked[getattr(batch, read)] = True
        few = 0 < asked.sum() <= FEW * len(asked)
        batch.known[READING + read] = Reading(asked.nonzero()[:, 0], number(asked), lay_out(batch, asked)) if few else None
    reading: Reading | None = batch.known[READING + read]
    return reading


def number(asked: Tensor) -> Tensor:
    """The place of each token that is asked for among all that are; for any other that of one before it. (N,) bool -> (N,)."""
    return (asked.cumsum(0) - 1).clamp_min(0)


def lay_out(batch: Batch, few: Tensor | None = None) -> Layout:
    """The blocks of a batch, worked out; for all tokens, or for few, (N,) bool."""
    device = batch.tokens.device
    asked = torch.ones(len(batch.tokens), dtype=torch.bool) if few is None else few.cpu()
    among = number(asked)
    blocks: list[Block] = []
    places = torch.empty(int(asked.sum()), dtype=torch.long)
    filled = 0
    alone = [span for span in batch.spans if span.prompt is None]
    continued = [span for span in batch.spans if span.prompt is not None]
    for spans in (*alike(alone), *alike(continued)):
        own, real = grid(spans)
        wanted = asked[own] & real
        most = int(wanted.sum(1).max())
        if not most:
            continue
        columns = wanted.byte().argsort(dim=1, descending=True, stable=True)[:, :most]  # (b, A)
        wanted, asks = wanted.gather(1, columns), among[own.gather(1, columns)]
        keys, sees = own, None if few is None else torch.arange(own.shape[1]) <= columns[..., None]
        if spans[0].prompt is not None:
            before, known = grid([span.prompt for span in spans if span.prompt])
            keys = torch.cat([before, own], 1)
            causal = torch.arange(own.shape[1]) <= columns[..., None]
            sees = torch.cat([known[:, None, :].expand(-1, most, -1), causal], -1)
        places[asks[wanted]] = filled + wanted.flatten().nonzero()[:, 0]
        filled += wanted.numel()
        blocks.append(Block(asks.to(device), keys.to(device), None if sees is None else sees[:, None].to(device)))
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
