"""Loading with several ranks: rank 0 reads the weights, the others build the model without any, and sharding fills it.

Were every rank to read every model, a host with eight ranks would hold eight copies of all weights before the first is
sharded. A model without weights has its parameters on the device `meta`; buffers that are no weights are computed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from instructgpt.distributed.comm import broadcast_from_rank0, get_dist_info
from instructgpt.errors import InputError
from instructgpt.models.head import has_plain_head
from instructgpt.models.loading import add_notice, model_notices, saved_dtype, set_saved_dtype
from instructgpt.models.packed_attention import AttentionChoice, apply_attention_choice, attention_choice

_P = ParamSpec("_P")
_LoadedT = TypeVar("_LoadedT")


@dataclass(frozen=True, slots=True)
class _Blueprint:
    """What the other ranks need of rank 0's model, beside its weights."""

    model_class: type
    config: Any
    attention: str
    choice: AttentionChoice
    saved_dtype: torch.dtype
    notices: tuple[str, ...]
    shapes: dict[str, torch.Size]  # of all parameters, such as the bias of a head whose stock class has none

    @classmethod
    def from_model(cls, model: Any) -> _Blueprint:
        config = copy.deepcopy(model.config)
        attention = "sdpa" if attention_choice(model).packed else config._attn_implementation
        choice = attention_choice(model)
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        return cls(type(model), config, attention, choice, saved_dtype(model), model_notices(model), shapes)

    def build(self) -> Any:
        """Build the model with its parameters on the device `meta`."""
        from accelerate import init_empty_weights

        with init_empty_weights(include_buffers=False):
            model = self.model_class._from_config(  # type: ignore[attr-defined]
                self.config, dtype=torch.float32, attn_implementation=self.attention
            )
        model.tie_weights()
        names = {name for name, _ in model.named_parameters()}
        for name, shape in self.shapes.items():
            if name not in names:
                module_name, _, parameter_name = name.rpartition(".")
                parameter = nn.Parameter(torch.empty(shape, device="meta"))
                model.get_submodule(module_name).register_parameter(parameter_name, parameter)
        model.eval()
        if model.get_output_embeddings() is not None:
            has_plain_head(model)  # found out once, before it is sharded
        apply_attention_choice(model, self.choice)
        set_saved_dtype(model, self.saved_dtype)
        for notice in self.notices:
            add_notice(model, notice)
        return model


def load_on_rank0(load: Callable[_P, _LoadedT], *args: _P.args, **kwargs: _P.kwargs) -> _LoadedT:
    """Call `load` on rank 0; other ranks return the same with a model without weights, which `shard` fills.

    Args:
        load: returns a model and its tokenizer, or a `ScalarModel`.
        args: its arguments.
        kwargs: its arguments by name.

    Raises:
        InputError: on all ranks, where `load` raises it.
    """
    dist_info = get_dist_info()
    if dist_info.world_size == 1:
        return load(*args, **kwargs)
    loaded: Any = None
    message: tuple[str, Any, Any] = ("", None, None)
    if dist_info.rank == 0:
        try:
            loaded = load(*args, **kwargs)
            message = ("loaded", _without_model(loaded), _Blueprint.from_model(_get_model(loaded)))
        except InputError as error:
            message = ("refused", str(error), None)
    outcome, rest, blueprint = broadcast_from_rank0(message)
    if outcome == "refused":
        raise InputError(rest)
    result: _LoadedT = loaded if dist_info.rank == 0 else _with_model(rest, blueprint.build())
    return result


def _get_model(loaded: Any) -> nn.Module:
    model: nn.Module = loaded[0] if isinstance(loaded, tuple) else loaded.model
    return model


def _without_model(loaded: Any) -> Any:
    return _with_model(loaded, None)


def _with_model(loaded: Any, model: Any) -> Any:
    if isinstance(loaded, tuple):
        return (model, *loaded[1:])
    changed = copy.copy(loaded)
    changed.model = model
    return changed
