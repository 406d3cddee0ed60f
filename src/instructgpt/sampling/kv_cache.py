"""Where rows that are being sampled keep their keys and values: memory that is taken once and written in place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from instructgpt.models.packed_attention import StopForwardError


class StaticKVCache(transformers.Cache):  # type: ignore[misc]
    """S slots of W columns in every layer. A row owns a slot; its token at position p stands in column p.

    The models write to it as to any cache of transformers. What they pass is either the tokens of prompts, which go to
    the slots and columns told by `write_prompts` and are handed back as they are, for attention among themselves; or one
    token for each of the first slots (`write_tokens`), which are handed back with what stands before them.

    Args:
        slots: S.
        width: W.
        layers: how many layers write, where that is known; `Enough` is then raised when the last has written prompts.
    """

    def __init__(self, num_slots: int, width: int, num_layers: int | None = None) -> None:
        super().__init__(layers=[])
        self.last_layer = None if num_layers is None else num_layers - 1
        self.num_slots, self.width = num_slots, width
        self.key_values: list[tuple[Tensor, Tensor]] = []  # keys (S, H, W, D) and values of each layer
        self.visible_columns = 0  # columns that the next tokens see; 0 while prompts are written
        self.token_index: Tensor | None = None
        self.rows = self.columns = torch.empty(0, dtype=torch.long)
        self.flat_index_by_heads: dict[
            int, Tensor
        ] = {}  # where what comes next stands among all lines of D numbers, by number of heads

    def write_prompts(self, token_index: Tensor | None, rows: Tensor, columns: Tensor) -> None:
        """What comes next are prompts: of their tokens, laid end to end, those at `places` go to slots `rows`, `columns`. All (N,).

        Without places every token goes somewhere, in this order.
        """
        self.token_index, self.rows, self.columns, self.visible_columns, self.flat_index_by_heads = (
            token_index,
            rows,
            columns,
            0,
            {},
        )

    def write_tokens(self, rows: Tensor, columns: Tensor, visible_columns: int) -> None:
        """What comes next is one token a slot, for the first slots, which see the first `read` columns. rows, columns (n,)."""
        self.token_index, self.rows, self.columns, self.visible_columns, self.flat_index_by_heads = (
            None,
            rows,
            columns,
            visible_columns,
            {},
        )

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep new keys and values (b, H, t, D). -> those that the new tokens may see."""
        if layer_idx == len(self.key_values):  # zeros, for a column that nobody may see must not be NaN
            states = (key_states, value_states)
            self.key_values.append(
                tuple(x.new_zeros(self.num_slots, x.shape[1], self.width, x.shape[3]) for x in states)
            )  # type: ignore[arg-type]
        keys, values = self.key_values[layer_idx]
        flat_index, num_rows, visible_columns = (
            self._flat_index(key_states.shape[1]),
            key_states.shape[0],
            self.visible_columns,
        )
        if visible_columns:
            keys.view(-1, keys.shape[3]).index_copy_(0, flat_index, key_states.reshape(-1, keys.shape[3]))
            values.view(-1, values.shape[3]).index_copy_(0, flat_index, value_states.reshape(-1, values.shape[3]))
            return keys[:num_rows, :, :visible_columns], values[:num_rows, :, :visible_columns]
        for buffer, x in ((keys, key_states), (values, value_states)):
            tokens = x.transpose(1, 2).flatten(0, 1)  # (b t, H, D)
            tokens = tokens if self.token_index is None else tokens[self.token_index]
            buffer.view(-1, buffer.shape[3]).index_copy_(0, flat_index, tokens.flatten(0, 1))
        if layer_idx == self.last_layer:
            raise StopForwardError
        return key_states, value_states

    def _flat_index(self, heads: int) -> Tensor:
        """Where the new tokens' keys stand, head after head, in memory that is seen as lines of D numbers. -> (N heads,)."""
        if heads not in self.flat_index_by_heads:
            head_index = torch.arange(heads, device=self.rows.device)
            self.flat_index_by_heads[heads] = (
                (self.rows[:, None] * heads + head_index) * self.width + self.columns[:, None]
            ).flatten()
        return self.flat_index_by_heads[heads]

    def copy(self, sources: list[int], targets: list[int], num_columns: int) -> None:
        """Copy the first `width` columns of slots to others. No slot is a source and a target."""
        for layer in self.key_values:
            for buffer in layer:
                for source, target in zip(sources, targets, strict=True):
                    buffer[target, :, :num_columns] = buffer[source, :, :num_columns]

    def bytes_per_token(self) -> int:
        """What one column of one slot takes in all layers."""
        return sum(x.element_size() * x.shape[1] * x.shape[3] for layer in self.key_values for x in layer)

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002, all layers are alike
        """Columns before those that come next, which transformers asks for where it makes masks or positions itself."""
        return max(0, self.visible_columns - 1)

    def get_mask_sizes(self, length: int, layer_idx: int) -> tuple[int, int]:  # noqa: ARG002, all layers are alike
        """Columns that are read, and the first of them."""
        return self.visible_columns or length, 0


@dataclass(frozen=True, slots=True)
class AttentionWindow:
    """How far back the layers of a model see."""

    size: int | None  # how many columns, in layers that do not see all
    has_mixed_layers: bool  # whether there are layers of both kinds

    @classmethod
    def from_config(cls, config: Any) -> AttentionWindow:
        """What a configuration says."""
        size = getattr(config, "sliding_window", None)
        layer_types = set(
            getattr(config, "layer_types", None) or (["sliding_attention"] if size else ["full_attention"])
        )
        return cls(size if "sliding_attention" in layer_types else None, len(layer_types) > 1)


def decode_mask(
    window: AttentionWindow, positions: Tensor, width: int, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """Masks for one token a slot: it sees the columns up to its own position, or, in a layer with a window, the last of them.

    positions (n,) -> (n, 1, 1, width), 0 where it sees and minus infinity elsewhere; by kind of layer where a model has several.
    """
    columns = torch.arange(width, device=positions.device)
    positions = positions[:, None, None, None]
    is_future = columns > positions
    zero = torch.zeros((), dtype=dtype, device=positions.device)
    if not window.size:
        return zero.masked_fill(is_future, float("-inf"))
    window_mask = zero.masked_fill(is_future | (columns <= positions - window.size), float("-inf"))
    return (
        {"full_attention": zero.masked_fill(is_future, float("-inf")), "sliding_attention": window_mask}
        if window.has_mixed_layers
        else window_mask
    )
