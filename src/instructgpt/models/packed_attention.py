"""Attention over a batch without padding, and over a prompt that several completions share.

The models are transformers' own. Embeddings, norms and matrices see one row of tokens with their positions. Only
attention must know where sequences begin, so it is our function behind transformers' attention interface. It gathers
the spans of a batch into blocks of sequences of similar length, calls torch's attention on each block, and scatters
the results back: exact, forward and backward, on any device. In half precision on CUDA one kernel computes the spans as
they lie (`varlen_attention.py`). A completion attends to its prompt's keys and values,
which are computed once.

A family for which this is not exact (no attention interface, a sliding window, ...) is computed in padded rows instead,
one row a sequence. A probe at load time decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from instructgpt.data.packing import PackedBatch, Span, TokenizedExample, collate
from instructgpt.models.families import get_family
from instructgpt.models.flop_count import count_batch
from instructgpt.models.last_layer_subset import (
    TokenSelection,
    TokenSubset,
    enable_last_layer_subset,
    get_token_subset,
)
from instructgpt.models.lora import get_backbone
from instructgpt.models.varlen_attention import (
    VARLEN_DTYPES,
    VarlenLayout,
    build_varlen_layout,
    has_varlen_attention,
    varlen_attention,
)

PACKED_ATTENTION = "instructgpt_packed"
"""The name of our function in transformers' attention interface."""
MAX_LENGTH_RATIO = 1.25
"""Spans of a block differ in length by at most this factor, plus 8 tokens."""
FORWARD_ERRORS = (
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What forward passes of transformers raise where a family needs other inputs."""
_LAYOUT_KEY, _CHOICE_KEY = "layout", "_instructgpt_attention_choice"
_IGNORED_ARGUMENTS = frozenset(["position_ids", "use_cache", "output_attentions", "cache_position", "is_causal"])
"""Arguments of attention that change nothing here. Any other one, such as a window or a bias, needs stock attention."""
_PROBE_EXAMPLES = [
    TokenizedExample([1, 2], [0, 1, 2, 0, 1]),
    *(TokenizedExample([2, 1, 0, 2] * 3, completion) for completion in ([1, 0, 2], [0])),
]


@dataclass(frozen=True, slots=True)
class AttentionBlock:
    """b spans of at most L tokens, side by side; shorter rows repeat their first token, whose result is dropped."""

    q_index: Tensor  # (b, L) positions in the batch of the tokens that attend
    k_index: Tensor  # (b, P + L) positions of the tokens attended to: P of the prompts, then those of the spans
    mask: Tensor | None  # (b, 1, L, P + L) bool, True where a token attends; None for plain causal attention (P = 0)


@dataclass(frozen=True, slots=True)
class AttentionLayout:
    """The blocks of a batch."""

    blocks: tuple[AttentionBlock, ...]
    output_index: Tensor  # (N,) the position of each token's result in the blocks, laid end to end
    varlen: VarlenLayout | None = None  # the same spans for one kernel, where the device has it
    subset: TokenSubset | None = None  # the tokens whose hidden states are read, for the hooks on the last layer

    @property
    def computed_pairs(self) -> int:
        """Pairs of tokens in the blocks, with masked ones and padding."""
        return sum(block.q_index.numel() * block.k_index.shape[1] for block in self.blocks)


def hidden_states(model: Any, batch: PackedBatch, select: TokenSelection | None = None) -> Tensor:
    """Return the last hidden states at the selected positions of a batch, or at all. -> (m, D)."""
    index = None if select is None else getattr(batch, select)
    if model.config._attn_implementation != PACKED_ATTENTION:
        padded_index, flat_index = padded_rows(batch)
        row_count, length = padded_index.shape
        count_batch(model, batch, select, (row_count * length, row_count * length**2), subset=False)
        rows: Tensor = get_backbone(model)(input_ids=batch.input_ids[padded_index], use_cache=False).last_hidden_state
        return rows.flatten(0, 1)[flat_index if index is None else flat_index[index]]
    layout = get_attention_layout(batch)
    if select is not None:
        layout = replace(layout, subset=get_token_subset(batch, select))
    cells = (len(batch.input_ids), layout.computed_pairs)
    count_batch(model, batch, select, cells, subset=layout.subset is not None)
    states: Tensor = get_backbone(model)(
        input_ids=batch.input_ids[None],
        position_ids=batch.position_ids[None],
        attention_mask=no_mask(batch.input_ids.device),
        layout=layout,
        use_cache=False,
    ).last_hidden_state[0]
    return states if index is None else F.embedding(index, states)


def no_mask(device: torch.device) -> Tensor:
    """Return an empty mask: transformers takes a mask of four dimensions as it is, and so builds none."""
    return torch.empty((1, 1, 0, 0), dtype=torch.long, device=device)


class AttentionChoice(NamedTuple):
    """How a model computes attention: packed or as transformers does, and the last feed-forward part of few tokens."""

    packed: bool = False
    last_layer_subset: bool = False


@torch.no_grad()
def use_packed_attention(model: Any) -> AttentionChoice:
    """Switch a model to packed attention if its family's row allows it and a small batch gives equal hidden states."""
    choice = _choose_attention(model)
    object.__setattr__(model, _CHOICE_KEY, choice)
    return choice


def attention_choice(model: Any) -> AttentionChoice:
    """Return what `use_packed_attention` has chosen for a model."""
    choice: AttentionChoice = vars(model).get(_CHOICE_KEY, AttentionChoice())
    return choice


def _choose_attention(model: Any) -> AttentionChoice:
    family, stock_attention = get_family(model.config), model.config._attn_implementation
    if family is None or not family.packed or stock_attention != "sdpa" or not model._can_set_attn_implementation():
        return AttentionChoice()
    batch = collate(_PROBE_EXAMPLES, model.device)
    expected = hidden_states(model, batch)

    def outputs_match(select: TokenSelection | None) -> bool:
        try:
            states = hidden_states(model, batch, select)
        except FORWARD_ERRORS:
            return False  # the family's layers take other arguments, or its attention needs more than ours does
        target = expected if select is None else expected[getattr(batch, select)]
        return torch.allclose(states, target, atol=1e-4, rtol=1e-4)

    model.set_attn_implementation(PACKED_ATTENTION)
    if not outputs_match(None):
        model.set_attn_implementation(stock_attention)
        return AttentionChoice()
    handles = enable_last_layer_subset(model)
    is_exact = outputs_match("last_positions") and outputs_match("target_positions")
    if not is_exact:
        for handle in handles:
            handle.remove()
    return AttentionChoice(packed=True, last_layer_subset=is_exact)


def apply_attention_choice(model: Any, choice: AttentionChoice) -> None:
    """Switch a model to what another rank has chosen for it."""
    object.__setattr__(model, _CHOICE_KEY, choice)
    if choice.packed:
        model.set_attn_implementation(PACKED_ATTENTION)
    if choice.last_layer_subset:
        enable_last_layer_subset(model)


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
    """Compute attention in blocks; without a layout (a decoding step) as transformers does.

    q (1, H, N, D), k and v (1, H or fewer, N, D) -> (1, N, H, D).

    Raises:
        NotImplementedError: the family needs more than plain causal attention.
    """
    if layout is None:
        out: tuple[Tensor, None] = sdpa_attention_forward(module, q, k, v, attention_mask, dropout, scaling, **kwargs)
        return out
    needed = [name for name, value in kwargs.items() if value is not None and name not in _IGNORED_ARGUMENTS]
    if needed or (attention_mask is not None and attention_mask.numel()):
        raise NotImplementedError(f"{type(module).__name__} needs more than causal attention: {needed}")
    heads, head_dim = q.shape[1], q.shape[3]
    device_type = q.device.type
    dtype = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else q.dtype
    if layout.varlen is not None and dtype in VARLEN_DTYPES and not dropout:
        flat_q, flat_k, flat_v = (x[0].transpose(0, 1).to(dtype) for x in (q, k, v))
        return varlen_attention(flat_q, flat_k, flat_v, layout.varlen, scaling)[None], None
    q, k, v = (x[0].transpose(0, 1).flatten(1) for x in (q, k, v))  # (N, H D), a token's heads side by side

    def gather_heads(x: Tensor, index: Tensor) -> Tensor:
        # F.embedding instead of x[index]: its backward pass is faster on a CPU
        gathered = F.embedding(index, x).view(*index.shape, -1, head_dim).transpose(1, 2)  # (b, H, L, D)
        repeated: Tensor = repeat_kv(gathered, heads // gathered.shape[1])
        return repeated

    results = []
    for block in layout.blocks:
        q_rows, (k_rows, v_rows) = gather_heads(q, block.q_index), (gather_heads(x, block.k_index) for x in (k, v))
        is_causal = block.mask is None
        result = F.scaled_dot_product_attention(q_rows, k_rows, v_rows, block.mask, dropout, is_causal, scale=scaling)
        results.append(result.transpose(1, 2).reshape(-1, heads * head_dim))  # (b L, H D)
    return F.embedding(layout.output_index, torch.cat(results)).view(1, -1, heads, head_dim), None


def get_attention_layout(batch: PackedBatch) -> AttentionLayout:
    """Return the blocks of a batch: whole sequences, and completions of shared prompts. Computed once a batch."""
    if _LAYOUT_KEY not in batch.cache:
        batch.cache[_LAYOUT_KEY] = _build_layout(batch)
    layout: AttentionLayout = batch.cache[_LAYOUT_KEY]
    return layout


def _build_layout(batch: PackedBatch) -> AttentionLayout:
    device = batch.input_ids.device
    blocks: list[AttentionBlock] = []
    output_index = torch.empty(len(batch.input_ids), dtype=torch.long)
    offset = 0
    standalone_spans = [span for span in batch.spans if span.prompt is None]
    continuation_spans = [span for span in batch.spans if span.prompt is not None]
    for spans in (*_group_by_length(standalone_spans), *_group_by_length(continuation_spans)):
        q_index, is_real = _span_gather_index(spans)
        k_index, mask = q_index, None
        if spans[0].prompt is not None:
            prompt_index, prompt_is_real = _span_gather_index([span.prompt for span in spans if span.prompt])
            k_index = torch.cat([prompt_index, q_index], 1)
            rows, length = q_index.shape
            causal = torch.ones(length, length, dtype=torch.bool).tril().expand(rows, -1, -1)
            mask = torch.cat([prompt_is_real[:, None].expand(-1, length, -1), causal], -1)[:, None].to(device)
        output_index[q_index[is_real]] = offset + is_real.flatten().nonzero()[:, 0]
        offset += is_real.numel()
        blocks.append(AttentionBlock(q_index.to(device), k_index.to(device), mask))
    varlen = build_varlen_layout(batch.spans, device) if has_varlen_attention(device) else None
    return AttentionLayout(tuple(blocks), output_index.to(device), varlen)


def _group_by_length(spans: Sequence[Span]) -> list[list[Span]]:
    """Group spans whose lengths, prompts included, are similar."""
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
    """Return positions of the tokens of b spans (b, L), padded with each span's first, and which are real (b, L)."""
    starts, ends = torch.tensor([span[:2] for span in spans])[..., None].unbind(1)
    index = starts + torch.arange(int((ends - starts).max()))
    is_real = index < ends
    return index.where(is_real, starts), is_real


def padded_rows(batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """Lay out every span with its prompt as a row, padded on the right, where causal attention never looks.

    Returns the batch position of each cell (S, T), and the cell of each token of the batch in the flattened rows (N,).
    """
    rows = [torch.cat([torch.arange(*part[:2]) for part in (span.prompt, span) if part]) for span in batch.spans]
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    starts = [row * padded.shape[1] + span.offset for row, span in enumerate(batch.spans)]
    cells = [start + torch.arange(span.end - span.start) for start, span in zip(starts, batch.spans, strict=True)]
    device = batch.input_ids.device
    return padded.to(device), torch.cat(cells).to(device)


AttentionInterface.register(PACKED_ATTENTION, _packed_attention_forward)
AttentionMaskInterface.register(PACKED_ATTENTION, sdpa_mask)
