"""The last layer's feed-forward part, computed only for the tokens whose hidden states are read.

Losses and scores read few hidden states of a batch: those that predict completion tokens, or those of the last
tokens. Attention and norms of the last layer run for all tokens, as in the stock model. Its feed-forward part (`mlp`)
works token by token: a hook before it gathers the n tokens of the subset, and a hook after it gives all N tokens a
result again. Tokens outside the subset get the result of some token in it, which nobody reads.

The subset travels in the attention layout, a keyword argument that transformers passes through the layers to attention,
where a third hook picks it up. Activation checkpointing runs the layer again in the backward pass with the arguments of
its own batch, so the hooks find the right subset there too; a variable set around the forward pass would be stale.

Without the hooks the model computes the whole layer, with the same result: for families without a module `mlp`, where
the probe at load time finds a difference, and with `INSTRUCTGPT_LAST_LAYER_SUBSET=0` in the environment.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from instructgpt.data.packing import PackedBatch

SWITCH = "INSTRUCTGPT_LAST_LAYER_SUBSET"
MAX_SUBSET_SHARE = 0.6
"""A subset of a larger share of the batch saves less than gathering and scattering cost."""
TokenSelection = Literal["last_positions", "target_positions"]
"""The field of a batch with the positions of the hidden states that are read."""


@dataclass(frozen=True, slots=True)
class TokenSubset:
    """The n tokens of a batch whose hidden states are read."""

    token_index: Tensor  # (n,) their positions in the batch, each once
    subset_index: Tensor  # (N,) the row of each token of the batch among these n; any valid row for the other tokens


def get_token_subset(batch: PackedBatch, select: TokenSelection) -> TokenSubset | None:
    """Return the tokens of a batch that are read, or None where they are too many to gain. Computed once a batch."""
    key = f"subset {select}"
    if key not in batch.cache:
        is_selected = torch.zeros_like(batch.input_ids, dtype=torch.bool)
        is_selected[getattr(batch, select)] = True
        is_small = 0 < is_selected.sum() <= MAX_SUBSET_SHARE * len(is_selected)
        subset_index = (is_selected.cumsum(0) - 1).clamp_min(0)
        batch.cache[key] = TokenSubset(is_selected.nonzero()[:, 0], subset_index) if is_small else None
    subset: TokenSubset | None = batch.cache[key]
    return subset


class _SubsetHooks:
    """The hooks of one last layer. `copy.deepcopy` of a model copies them with it, because they are bound methods."""

    def __init__(self) -> None:
        self.subset: TokenSubset | None = None

    def read_layout(self, _: nn.Module, __: Any, kwargs: dict[str, Any]) -> None:
        # every call sets it: a pass that raised before `scatter` left a subset behind (checkpointing stops passes so)
        layout = kwargs.get("layout")
        self.subset = None if layout is None else layout.subset

    def gather(self, _: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return inputs if self.subset is None else (F.embedding(self.subset.token_index[None], inputs[0][0]),)

    def scatter(self, _: nn.Module, __: Any, output: Tensor) -> Tensor:
        subset, self.subset = self.subset, None
        return output if subset is None else F.embedding(subset.subset_index[None], output[0])


def find_last_mlp(model: Any) -> tuple[nn.Module, nn.Module] | None:
    """Return attention and feed-forward part of a model's last layer; None where it has no module `mlp`."""
    depth = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    stacks = (part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == depth)
    layer = next((stack[-1] for stack in stacks), None)
    mlp = getattr(layer, "mlp", None)
    if layer is None or mlp is None:
        return None
    attention = next((part for part in layer.children() if part is not mlp and hasattr(part, "layer_idx")), None)
    return None if attention is None else (attention, mlp)


def enable_last_layer_subset(model: Any) -> list[RemovableHandle]:
    """Register the hooks and return their handles; none with the switch off, or for an unknown kind of layer."""
    modules = find_last_mlp(model)
    if modules is None or os.environ.get(SWITCH) == "0":
        return []
    (attention, mlp), hooks = modules, _SubsetHooks()
    return [
        attention.register_forward_pre_hook(hooks.read_layout, with_kwargs=True),
        mlp.register_forward_pre_hook(hooks.gather),
        mlp.register_forward_hook(hooks.scatter),
    ]
