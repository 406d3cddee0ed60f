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

from instructgpt.data.packing import PackedBatch, Span, TokenizedExample, collate
from instructgpt.models.lora import get_backbone

PACKED_ATTENTION = "instructgpt_packed"
"""What our function is called in transformers' table of attention functions."""
_LAYOUT_KEY, _SUBSET_KEY, _LAST_LAYER_SUBSET_ATTRIBUTE = "layout", "reading ", "reads_few"
MAX_SUBSET_SHARE = 0.6
"""Where at most this share of a batch's tokens is read, the last layer is computed for them alone; else that saves nothing."""
TokenSelection = Literal["last_positions", "target_positions"]
"""Which of a batch's tokens are read, by the batch's own names."""
MAX_LENGTH_RATIO = 1.25
"""Spans of a block differ in length by at most this factor, and a few tokens."""
_PROBE_EXAMPLES = [
    TokenizedExample([1, 2], [0, 1, 2, 0, 1]),
    *(TokenizedExample([2, 1, 0, 2] * 3, completion) for completion in ([1, 0, 2], [0])),
]


@dataclass(frozen=True, slots=True)
class AttentionBlock:
    """Spans that are computed side by side. What fills a row up to the longest is some real token, whose result nobody reads."""

    q_index: Tensor  # (b, A) the tokens of the spans that are computed, by their place among all that are
    k_index: Tensor  # (b, P + L) the tokens they may read, their prompts' first, by their place in the batch
    mask: (
        Tensor | None
    )  # (b, 1, A, P + L) bool: which of them each reads; None where all tokens of texts without prompts are computed


@dataclass(frozen=True, slots=True)
class AttentionLayout:
    """Where attention finds the tokens of a batch."""

    blocks: tuple[AttentionBlock, ...]
    output_index: Tensor  # (n,) where each computed token's result stands in the blocks, laid end to end


@dataclass(frozen=True, slots=True)
class TokenSubset:
    """The tokens of a batch whose states are read."""

    token_index: Tensor  # (n,) where they stand in the batch, each once
    subset_index: Tensor  # (N,) the place among them of each token that is read; for the others of some other one
    layout: AttentionLayout  # of the last layer's attention


class StopForwardError(Exception):
    """A layer has made its keys and values, and nothing that it computes after them is of use."""


class LastLayerCache(Cache):  # type: ignore[misc]
    """Passes keys and values on; in the last layer it keeps those of all tokens for the tokens that are read."""

    def __init__(self, subset: TokenSubset) -> None:
        super().__init__(layers=[])
        self.subset, self.in_last_layer = subset, False
        self.key_values: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keys and values as they are; in the last layer first all of them are kept, then those are handed back."""
        if self.in_last_layer and self.key_values is None:
            self.key_values = key_states, value_states
            raise StopForwardError
        return self.key_values if self.in_last_layer and self.key_values else (key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002, nothing comes before
        """Tokens before those that come next."""
        return 0


def hidden_states(model: Any, batch: PackedBatch, select: TokenSelection | None = None) -> Tensor:
    """Last hidden states of the tokens that are read, or of all. -> (m, D). For policies, value models and reward models alike."""
    index = None if select is None else getattr(batch, select)
    if model.config._attn_implementation != PACKED_ATTENTION:
        padded_token_index, flat_index = padded_rows(batch)
        padded: Tensor = get_backbone(model)(
            input_ids=batch.input_ids[padded_token_index], use_cache=False
        ).last_hidden_state
        return padded.flatten(0, 1)[flat_index if index is None else flat_index[index]]
    subset = get_token_subset(batch, select) if select and hasattr(model, _LAST_LAYER_SUBSET_ATTRIBUTE) else None
    empty_mask = batch.input_ids.new_empty(
        (1, 1, 0, 0)
    )  # a mask of four dimensions is taken as it is, so that none is made
    states: Tensor = get_backbone(model)(
        input_ids=batch.input_ids[None],
        position_ids=batch.position_ids[None],
        attention_mask=empty_mask,
        layout=get_attention_layout(batch),
        past_key_values=LastLayerCache(subset) if subset else None,
        use_cache=subset is not None,
    ).last_hidden_state[0]
    return states if index is None else F.embedding(index, states)


@torch.no_grad()
def use_packed_attention(model: Any) -> None:
    """Let a model compute batches without padding, if on a small one it then says what it says of padded rows."""
    stock_attention = model.config._attn_implementation
    if stock_attention != "sdpa" or not model._can_set_attn_implementation():
        return
    batch = collate(_PROBE_EXAMPLES, model.device)
    expected = hidden_states(model, batch)

    def outputs_match(select: TokenSelection | None) -> bool:
        try:
            states = hidden_states(model, batch, select)
        except (IndexError, NotImplementedError, RuntimeError, TypeError):
            return False
        return torch.allclose(
            states, expected if select is None else expected[getattr(batch, select)], atol=1e-4, rtol=1e-4
        )

    model.set_attn_implementation(PACKED_ATTENTION)
    if not outputs_match(None):
        model.set_attn_implementation(stock_attention)
        return
    enable_last_layer_subset(model)
    if not (outputs_match("last_positions") and outputs_match("target_positions")):
        delattr(model, _LAST_LAYER_SUBSET_ATTRIBUTE)


def enable_last_layer_subset(model: Any) -> None:
    """Let the last layer of a model compute, beside keys and values, only what is read."""
    layers = next(
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(module) == model.config.num_hidden_layers
    )
    layers[-1].__class__ = _subset_layer_class(type(layers[-1]))
    setattr(model, _LAST_LAYER_SUBSET_ATTRIBUTE, True)


def _subset_layer_class(layer_class: type[nn.Module]) -> type[nn.Module]:
    """The same kind of layer, which as the last one is asked for few tokens. It goes by the same name, by which others find it."""

    def forward(self: nn.Module, states: Tensor, *args: Any, **kwargs: Any) -> Any:
        cache = next((value for value in (*args, *kwargs.values()) if isinstance(value, LastLayerCache)), None)
        if cache is None:
            return layer_class.forward(self, states, *args, **kwargs)

        def select_tokens(value: Any) -> Any:
            """Of what there is for every token, that of those which are read."""
            if isinstance(value, tuple):
                return tuple(map(select_tokens, value))
            is_per_token = isinstance(value, Tensor) and value.shape[:2] == states.shape[:2]
            return (
                F.embedding(cache.subset.token_index, value[0].view(len(value[0]), -1)).view(1, -1, *value.shape[2:])
                if is_per_token
                else value
            )

        cache.in_last_layer, cache.key_values = True, None
        with suppress(StopForwardError):
            layer_class.forward(self, states, *args, **kwargs)
        kwargs = {name: select_tokens(value) for name, value in kwargs.items()} | {"layout": cache.subset.layout}
        outputs = layer_class.forward(self, select_tokens(states), *map(select_tokens, args), **kwargs)
        cache.in_last_layer, cache.key_values = False, None
        return F.embedding(
            cache.subset.subset_index[None], outputs[0]
        )  # no view of something: FSDP hangs its gathering on what comes out

    return type(layer_class.__name__, (layer_class,), {"forward": forward, "__module__": layer_class.__module__})


def _packed_attention_forward(
    module: nn.Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    layout: AttentionLayout | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls for attention. Without a layout (while sampling) it is transformers' own.

    q (1, H, n, D), k and v (1, H or fewer, N, D) -> (1, n, H, D).

    Raises:
        NotImplementedError: the family asks for more than plain causal attention.
    """
    if layout is None:
        stock_output: tuple[Tensor, None] = sdpa_attention_forward(
            module, q, k, v, attention_mask, dropout, scaling, **kwargs
        )
        return stock_output
    if any(kwargs.get(name) is not None for name in ("sliding_window", "softcap", "s_aux", "position_bias")):
        raise NotImplementedError(f"{type(module).__name__} asks for more than causal attention")
    heads, head_dim = q.shape[1], q.shape[3]
    q, k, v = (x[0].transpose(0, 1).flatten(1) for x in (q, k, v))  # (n or N, H D)

    def gather_heads(x: Tensor, index: Tensor) -> Tensor:
        gathered = F.embedding(index, x).view(*index.shape, -1, head_dim).transpose(1, 2)  # (b, H, L, D)
        repeated: Tensor = repeat_kv(gathered, heads // gathered.shape[1])
        return repeated

    results = []
    for block in layout.blocks:
        keys, values = gather_heads(k, block.k_index), gather_heads(v, block.k_index)
        is_causal = block.mask is None
        result = F.scaled_dot_product_attention(
            gather_heads(q, block.q_index), keys, values, block.mask, dropout, is_causal, scale=scaling
        )
        results.append(result.transpose(1, 2).reshape(-1, heads * head_dim))  # (b A, H D)
    return F.embedding(layout.output_index, torch.cat(results)).view(1, -1, heads, head_dim), None


def get_attention_layout(batch: PackedBatch) -> AttentionLayout:
    """The blocks of a batch: texts that begin by themselves, and completions of shared prompts. Worked out once a batch."""
    if _LAYOUT_KEY not in batch.cache:
        batch.cache[_LAYOUT_KEY] = _build_layout(batch)
    layout: AttentionLayout = batch.cache[_LAYOUT_KEY]
    return layout


def get_token_subset(batch: PackedBatch, select: TokenSelection) -> TokenSubset | None:
    """What is read of a batch, where that is few. Worked out once a batch."""
    if _SUBSET_KEY + select not in batch.cache:
        is_selected = torch.zeros_like(batch.input_ids, dtype=torch.bool)
        is_selected[getattr(batch, select)] = True
        is_small = 0 < is_selected.sum() <= MAX_SUBSET_SHARE * len(is_selected)
        batch.cache[_SUBSET_KEY + select] = (
            TokenSubset(is_selected.nonzero()[:, 0], _compact_index(is_selected), _build_layout(batch, is_selected))
            if is_small
            else None
        )
    subset: TokenSubset | None = batch.cache[_SUBSET_KEY + select]
    return subset


def _compact_index(mask: Tensor) -> Tensor:
    """The place of each token that is asked for among all that are; for any other that of one before it. (N,) bool -> (N,)."""
    return (mask.cumsum(0) - 1).clamp_min(0)


def _build_layout(batch: PackedBatch, selected: Tensor | None = None) -> AttentionLayout:
    """The blocks of a batch, worked out; for all tokens, or for few, (N,) bool."""
    device = batch.input_ids.device
    is_selected = torch.ones(len(batch.input_ids), dtype=torch.bool) if selected is None else selected.cpu()
    compact_index = _compact_index(is_selected)
    blocks: list[AttentionBlock] = []
    output_index = torch.empty(int(is_selected.sum()), dtype=torch.long)
    offset = 0
    standalone_spans = [span for span in batch.spans if span.prompt is None]
    continuation_spans = [span for span in batch.spans if span.prompt is not None]
    for spans in (*_group_by_length(standalone_spans), *_group_by_length(continuation_spans)):
        token_index, is_real = _span_gather_index(spans)
        q_mask = is_selected[token_index] & is_real
        max_selected = int(q_mask.sum(1).max())
        if not max_selected:
            continue
        columns = q_mask.byte().argsort(dim=1, descending=True, stable=True)[:, :max_selected]  # (b, A)
        q_mask, q_index = q_mask.gather(1, columns), compact_index[token_index.gather(1, columns)]
        k_index, mask = (
            token_index,
            None if selected is None else torch.arange(token_index.shape[1]) <= columns[..., None],
        )
        if spans[0].prompt is not None:
            prompt_index, prompt_is_real = _span_gather_index([span.prompt for span in spans if span.prompt])
            k_index = torch.cat([prompt_index, token_index], 1)
            causal = torch.arange(token_index.shape[1]) <= columns[..., None]
            mask = torch.cat([prompt_is_real[:, None, :].expand(-1, max_selected, -1), causal], -1)
        output_index[q_index[q_mask]] = offset + q_mask.flatten().nonzero()[:, 0]
        offset += q_mask.numel()
        blocks.append(
            AttentionBlock(q_index.to(device), k_index.to(device), None if mask is None else mask[:, None].to(device))
        )
    return AttentionLayout(tuple(blocks), output_index.to(device))


def _group_by_length(spans: Sequence[Span]) -> list[list[Span]]:
    """Spans in groups of about equal length, prompts included."""
    groups: list[list[Span]] = []
    min_length = 0
    for span in sorted(spans, key=lambda span: (span.offset, span.end - span.start)):
        length = span.offset + span.end - span.start
        if not groups or length > MAX_LENGTH_RATIO * min_length + 8:
            groups.append([])
            min_length = length
        groups[-1].append(span)
    return groups


def _span_gather_index(spans: Sequence[Span]) -> tuple[Tensor, Tensor]:
    """Tokens of spans as rows. -> places in the batch (b, L), and which of them are real (b, L); the others point at a row's first."""
    starts, ends = torch.tensor([span[:2] for span in spans])[..., None].unbind(1)
    index = starts + torch.arange(int((ends - starts).max()))
    is_real = index < ends
    return index.where(is_real, starts), is_real


def padded_rows(batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Every span with its prompt as a row, padded on the right, where causal attention never looks.

    -> which token of the batch stands where (S, T); where each token of the batch stands in these rows (N,).
    """
    rows = [torch.cat([torch.arange(*part[:2]) for part in (span.prompt, span) if part]) for span in batch.spans]
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    width = padded.shape[1]
    flat_index = [
        row * width + span.offset + torch.arange(span.end - span.start) for row, span in enumerate(batch.spans)
    ]
    device = batch.input_ids.device
    return padded.to(device), torch.cat(flat_index).to(device)


AttentionInterface.register(PACKED_ATTENTION, _packed_attention_forward)
AttentionMaskInterface.register(PACKED_ATTENTION, sdpa_mask)
