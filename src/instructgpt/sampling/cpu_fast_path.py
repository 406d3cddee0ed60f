"""A model laid out for sampling on a CPU: its modules are called directly, its matrices stand column by column.

With few rows, a step is hundreds of small operations, and much of its time goes into finding and calling them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

MAX_COPIED_BYTES = 2**30
"""A model whose matrices take more keeps them as they are."""


class DirectCall:
    """Stands before a module: a call goes straight to its function, all else to the module."""

    __slots__ = ("call", "module")

    def __init__(self, module: nn.Module, call: Callable[..., Any]) -> None:
        self.module, self.call = module, call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the module computes."""
        return self.call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


@contextmanager
def cpu_fast_path(model: Any) -> Iterator[None]:
    """Until this is left, modules find the modules they call at once, and matrices stand column by column. Nothing may learn.

    Products of few rows read a matrix by columns faster. A module that has hooks, or is called in a way of its own, is called as ever.
    """
    if model.device.type != "cpu":
        yield
        return
    children = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if _is_plain_module(child)
    ]
    linear_layers = {child for *_, child in children if _has_float32_weight(child)}
    copy_weights = sum(4 * child.weight.numel() for child in linear_layers) <= MAX_COPIED_BYTES
    replaced = []
    try:
        for parent, name, child in children:
            if name not in parent.__dict__:
                call = _column_major_linear(child) if copy_weights and child in linear_layers else child.forward
                parent.__dict__[name] = DirectCall(child, call)  # found before what is registered under this name
                replaced.append((parent, name))
        yield
    finally:
        for parent, name in replaced:
            del parent.__dict__[name]


def _is_plain_module(module: nn.Module) -> bool:
    """Whether to call a module is to call its `forward`, and nothing more, and it is no list of others."""
    module_class = type(module)
    if module_class.forward is nn.Module.forward or hasattr(module_class, "__getitem__"):
        return False
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return module_class.__call__ is nn.Module.__call__ and module._compiled_call_impl is None and not any(hooks)


def _has_float32_weight(module: nn.Module) -> bool:
    """Whether a module is torch's own product with a matrix that lies here, whole and in float32."""
    return type(module) is nn.Linear and type(module.weight) is nn.Parameter and module.weight.dtype == torch.float32


def _column_major_linear(layer: Any) -> Callable[..., Any]:
    """The product of a linear layer with its matrix, column by column."""
    transposed_weight = layer.weight.detach().t().contiguous()
    return (
        partial(torch.matmul, other=transposed_weight)
        if layer.bias is None
        else partial(F.linear, weight=transposed_weight.t(), bias=layer.bias)
    )
