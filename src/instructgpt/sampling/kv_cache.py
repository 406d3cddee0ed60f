"""A static KV cache: memory for a fixed number of rows, allocated once and written in place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

KeyValues = tuple[Tensor, Tensor]


class StaticKVCache(transformers.Cache):  # type: ignore[misc]
    """`num_slots` slots (S) of `width` columns (W) a layer. A row owns a slot; its token at position p is in column p.

    Models write to it as to any cache of transformers. Before a forward pass, `write_prompts` or `write_tokens` says
    what comes: tokens of prompts, which attend among themselves and get back their own keys and values; or one token
    for each of the first slots, which gets back those of its slot too.
    """

    def __init__(self, num_slots: int, width: int) -> None:
        super().__init__(layers=[])
        self.num_slots, self.width = num_slots, width
        self.key_values: list[KeyValues] = []  # keys (S, H, W, D) and values of each layer
        nothing = torch.empty(0, dtype=torch.long)
        self._set_target(None, nothing, nothing, 0)

    def write_prompts(self, token_index: Tensor | None, rows: Tensor, columns: Tensor) -> None:
        """Prepare for prompts laid end to end: tokens at `token_index` go to slots `rows`, columns `columns`, (N,).

        A prompt may go to several slots. Without `token_index` every token goes to one place, in this order.
        """
        self._set_target(token_index, rows, columns, 0)

    def write_tokens(self, rows: Tensor, columns: Tensor, visible_columns: int) -> None:
        """Prepare for a token each of the first n slots, which sees the first `visible_columns`. rows, columns (n,)."""
        self._set_target(None, rows, columns, visible_columns)

    def _set_target(self, token_index: Tensor | None, rows: Tensor, columns: Tensor, visible_columns: int) -> None:
        self.token_index, self.rows, self.columns, self.visible_columns = token_index, rows, columns, visible_columns
        self._flat_indices: dict[int, Tensor] = {}  # by number of heads

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> KeyValues:
        """Store new keys and values (b, H, t, D) of a layer. Return those that the new tokens may attend to."""
        if layer_idx == len(self.key_values):
            # zeros: masked columns are multiplied by a probability of 0, which NaN would survive
            new = (key_states, value_states)
            keys, values = (x.new_zeros(self.num_slots, x.shape[1], self.width, x.shape[3]) for x in new)
            self.key_values.append((keys, values))
        keys, values = self.key_values[layer_idx]
        flat_index, num_rows = self._flat_index(key_states.shape[1]), key_states.shape[0]
        for buffer, states in ((keys, key_states), (values, value_states)):
            if not self.visible_columns:
                states = states.transpose(1, 2).flatten(0, 1)  # (b t, H, D)
                states = states if self.token_index is None else states[self.token_index]
            buffer.view(-1, buffer.shape[3]).index_copy_(0, flat_index, states.reshape(-1, buffer.shape[3]))
        if not self.visible_columns:
            return key_states, value_states
        return keys[:num_rows, :, : self.visible_columns], values[:num_rows, :, : self.visible_columns]

    def _flat_index(self, heads: int) -> Tensor:
        """Return the positions of the new tokens' heads in a layer's buffer, seen as (S H W, D). -> (N heads,)."""
        if heads not in self._flat_indices:
            head_index = torch.arange(heads, device=self.rows.device)
            index = (self.rows[:, None] * heads + head_index) * self.width + self.columns[:, None]
            self._flat_indices[heads] = index.flatten()
        return self._flat_indices[heads]

    def copy(self, sources: list[int], targets: list[int], num_columns: int) -> None:
        """Copy the first `num_columns` columns of slots to other slots. No slot is both a source and a target."""
        for layer in self.key_values:
            for buffer in layer:
                for source, target in zip(sources, targets, strict=True):
                    buffer[target, :, :num_columns] = buffer[source, :, :num_columns]

    def resize(self, num_slots: int, width: int) -> None:
        """Change the number of slots and columns. What lies in the remaining ones is kept."""
        slots, columns = min(num_slots, self.num_slots), min(width, self.width)
        for index, layer in enumerate(self.key_values):
            resized = tuple(x.new_zeros(num_slots, x.shape[1], width, x.shape[3]) for x in layer)
            for target, source in zip(resized, layer, strict=True):
                target[:slots, :, :columns] = source[:slots, :, :columns]
            self.key_values[index] = (resized[0], resized[1])
        self.num_slots, self.width = num_slots, width

    def bytes_per_token(self) -> int:
        """Return the bytes of one column of one slot in all layers."""
        return sum(x.element_size() * x.shape[1] * x.shape[3] for layer in self.key_values for x in layer)

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002, all layers are alike
        """Return the number of tokens before the next, from which transformers makes masks and positions."""
        return max(0, self.visible_columns - 1)

    def get_mask_sizes(self, length: int, layer_idx: int) -> tuple[int, int]:  # noqa: ARG002, all layers are alike
        """Return the number of columns that are attended to, and the first of them."""
        return self.visible_columns or length, 0


@dataclass(frozen=True, slots=True)
class AttentionWindow:
    """The sliding window or the chunks of a model."""

    size: int | None  # columns that layers with a window see; None without such layers
    has_mixed_layers: bool  # whether some layers have a window and others see all
    chunk_size: int | None = None  # layers with chunks see the columns of their own chunk; None without such layers

    @classmethod
    def from_config(cls, config: Any) -> AttentionWindow:
        """Read a configuration."""
        text = config.get_text_config()
        size, chunk_size = getattr(text, "sliding_window", None), getattr(text, "attention_chunk_size", None)
        layer_types = set(getattr(text, "layer_types", None) or [f"{'sliding' if size else 'full'}_attention"])
        return cls(
            size if "sliding_attention" in layer_types else None,
            len(layer_types) > 1,
            chunk_size if "chunked_attention" in layer_types else None,
        )


def decode_mask(
    window: AttentionWindow, positions: Tensor, width: int, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """Build the masks for one token a slot, which sees the columns up to its own position, or the last in a window.

    positions (n,) -> (n, 1, 1, width), 0 where it sees and minus infinity elsewhere; by layer type where a model has
    two.
    """
    columns = torch.arange(width, device=positions.device)
    positions = positions[:, None, None, None]
    is_future = columns > positions
    zero = torch.zeros((), dtype=dtype, device=positions.device)
    masks = {"full_attention": zero.masked_fill(is_future, float("-inf"))}
    if window.size:
        is_outside = is_future | (columns <= positions - window.size)
        masks["sliding_attention"] = zero.masked_fill(is_outside, float("-inf"))
    if window.chunk_size:
        is_outside = is_future | (columns < positions // window.chunk_size * window.chunk_size)
        masks["chunked_attention"] = zero.masked_fill(is_outside, float("-inf"))
    return masks if window.has_mixed_layers and len(masks) > 1 else list(masks.values())[-1]
