"""Where rows that are being sampled keep their keys and values: memory that is taken once and written in place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from instructgpt.models.packed_attention import Enough


class Slots(transformers.Cache):  # type: ignore[misc]
    """S slots of W columns in every layer. A row owns a slot; its token at position p stands in column p.

    The models write to it as to any cache of transformers. What they pass is either the tokens of prompts, which go to
    the slots and columns told by `write_prompts` and are handed back as they are, for attention among themselves; or one
    token for each of the first slots (`write_tokens`), which are handed back with what stands before them.

    Args:
        slots: S.
        width: W.
        layers: how many layers write, where that is known; `Enough` is then raised when the last has written prompts.
    """

    def __init__(self, slots: int, width: int, layers: int | None = None) -> None:
        super().__init__(layers=[])
        self.last = None if layers is None else layers - 1
        self.slots, self.width = slots, width
        self.stored: list[tuple[Tensor, Tensor]] = []  # keys (S, H, W, D) and values of each layer
        self.read = 0  # columns that the next tokens see; 0 while prompts are written
        self.places: Tensor | None = None
        self.rows = self.columns = torch.empty(0, dtype=torch.long)
        self.lines: dict[int, Tensor] = {}  # where what comes next stands among all lines of D numbers, by number of heads

    def write_prompts(self, places: Tensor | None, rows: Tensor, columns: Tensor) -> None:
        """What comes next are prompts: of their tokens, laid end to end, those at `places` go to slots `rows`, `columns`. All (N,).

        Without places every token goes somewhere, in this order.
        """
        self.places, self.rows, self.columns, self.read, self.lines = places, rows, columns, 0, {}

    def write_tokens(self, rows: Tensor, columns: Tensor, read: int) -> None:
        """What comes next is one token a slot, for the first slots, which see the first `read` columns. rows, columns (n,)."""
        self.places, self.rows, self.columns, self.read, self.lines = None, rows, columns, read, {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Keep new keys and values (b, H, t, D). -> those that the new tokens may see."""
        if layer_idx == len(self.stored):  # zeros, for a column that nobody may see must not be NaN
            new = (key_states, value_states)
            self.stored.append(tuple(x.new_zeros(self.slots, x.shape[1], self.width, x.shape[3]) for x in new))  # type: ignore[arg-type]
        keys, values = self.stored[layer_idx]
        lines, count, read = self._lines(key_states.shape[1]), key_states.shape[0], self.read
        if read:
            keys.view(-1, keys.shape[3]).index_copy_(0, lines, key_states.reshape(-1, keys.shape[3]))
            values.view(-1, values.shape[3]).index_copy_(0, lines, value_states.reshape(-1, values.shape[3]))
            return keys[:count, :, :read], values[:count, :, :read]
        for kept, x in ((keys, key_states), (values, value_states)):
            tokens = x.transpose(1, 2).flatten(0, 1)  # (b t, H, D)
            tokens = tokens if self.places is None else tokens[self.places]
            kept.view(-1, kept.shape[3]).index_copy_(0, lines, tokens.flatten(0, 1))
        if layer_idx == self.last:
            raise Enough
        return key_states, value_states

    def _lines(self, heads: int) -> Tensor:
        """Where the new tokens' keys stand, head after head, in memory that is seen as lines of D numbers. -> (N heads,)."""
        if heads not in self.lines:
            head = torch.arange(heads, device=self.rows.device)
            self.lines[heads] = ((self.rows[:, None] * heads + head) * self.width + self.columns[:, None]).flatten()
        return self.lines[heads]

    def copy(self, sources: list[int], targets: list[int], width: int) -> None:
        """Copy the first `width` columns of slots to others. No slot is a source and a target."""
        for layer in self.stored:
            for kept in layer:
                for source, target in zip(sources, targets, strict=True):
                    kept[target, :, :width] = kept[source, :, :width]

    def bytes_a_token(self) -> int:
        """What one column of one slot takes in all layers."""
        return sum(x.element_size() * x.shape[1] * x.shape[3] for layer in self.stored for x in layer)

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002, all layers are alike
        """Columns before those that come next, which transformers asks for where it makes masks or positions itself."""
        return max(0, self.read - 1)

    def get_mask_sizes(self, length: int, layer_idx: int) -> tuple[int, int]:  # noqa: ARG002, all layers are alike
        """Columns that are read, and the first of them."""
        return self.read or length, 0


@dataclass(frozen=True, slots=True)
class Sight:
    """How far back the layers of a model see."""

    window: int | None  # how many columns, in layers that do not see all
    both: bool  # whether there are layers of both kinds

    @classmethod
    def of(cls, config: Any) -> Sight:
        """What a configuration says."""
        window = getattr(config, "sliding_window", None)
        kinds = set(getattr(config, "layer_types", None) or (["sliding_attention"] if window else ["full_attention"]))
        return cls(window if "sliding_attention" in kinds else None, len(kinds) > 1)


def visible(sight: Sight, positions: Tensor, width: int, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
    """Masks for one token a slot: it sees the columns up to its own position, or, in a layer with a window, the last of them.

    positions (n,) -> (n, 1, 1, width), 0 where it sees and minus infinity elsewhere; by kind of layer where a model has several.
    """
    columns = torch.arange(width, device=positions.device)
    positions = positions[:, None, None, None]
    hidden = columns > positions
    seen = torch.zeros((), dtype=dtype, device=positions.device)
    if not sight.window:
        return seen.masked_fill(hidden, float("-inf"))
    near = seen.masked_fill(hidden | (columns <= positions - sight.window), float("-inf"))
    return {"full_attention": seen.masked_fill(hidden, float("-inf")), "sliding_attention": near} if sight.both else near
