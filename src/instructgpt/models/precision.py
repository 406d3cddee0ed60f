"""What is done to need less memory, applied to a model from outside: the loops of the stages know nothing of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from instructgpt.distributed.comm import uses_nccl
from instructgpt.errors import InputError
from instructgpt.models.lora import get_backbone

_AUTOCAST_CONTEXTS_KEY = "_bf16_contexts"
_bf16_buffers: WeakKeyDictionary[nn.Module, list[Tensor]] = WeakKeyDictionary()
"""Where a trunk's matrices lie in bf16 while it samples."""


def apply_memory_options(model: Any, options: Collection[str]) -> None:
    """Do to a model what the words say: `bf16`, `checkpointing` (other words are the optimizer's, and `shard`'s). Its copies are like it.

    Raises:
        BadInput: transformers has no layers for this family that can be computed again.
    """
    if "checkpointing" in options:
        _enable_activation_checkpointing(model)
    if "bf16" in options:
        _enable_bf16(model)


def _enable_bf16(model: Any) -> None:
    """The trunk computes in bf16 wherever it runs, while sampling too. Weights stay float32, and hidden states come out as float32.

    What is made of hidden states (logits, scores, values) and everything after stays in float32: bf16 would round a logit
    of 20 to a tenth. On CUDA their products may use TF32, which has the range of float32 and rounds to 11 bits.
    """
    backbone = get_backbone(model)
    backbone.computes_in_bf16 = True
    backbone.register_forward_pre_hook(_enter_autocast)
    backbone.register_forward_hook(_exit_autocast, always_call=True)
    if backbone.device.type == "cuda" or uses_nccl():
        torch.set_float32_matmul_precision("high")


def disable_bf16(model: Any) -> None:
    """From now on all of the model computes in float32: as it will once it is saved and loaded again."""
    get_backbone(model).computes_in_bf16 = False


@contextmanager
def cached_bf16_weights(model: Any) -> Iterator[None]:
    """While tokens are sampled: a model that computes in bf16 has its matrices cast once, and not again for every token.

    Nothing may learn meanwhile. The cast matrices lie where they lay the last time, so that what was recorded of them stays right.
    """
    backbone = get_backbone(model)
    if not getattr(backbone, "computes_in_bf16", False):
        yield
        return
    layers = [module for module in backbone.modules() if isinstance(module, nn.Linear | Conv1D)]
    parameters = [parameter for layer in layers for parameter in layer.parameters(recurse=False)]
    buffers = _bf16_buffers.setdefault(
        backbone, [torch.empty_like(parameter, dtype=torch.bfloat16) for parameter in parameters]
    )
    float32_weights = [parameter.data for parameter in parameters]
    try:
        for parameter, buffer in zip(parameters, buffers, strict=True):
            parameter.data = buffer.copy_(parameter.data)
        yield
    finally:
        for parameter, weight in zip(parameters, float32_weights, strict=True):
            parameter.data = weight


def _enter_autocast(module: nn.Module, _: Any) -> None:
    # without a cache of cast weights: in one pass none is used twice, and a captured graph must not keep them
    device: Any = module.device
    context = torch.autocast(device.type, torch.bfloat16, enabled=bool(module.computes_in_bf16), cache_enabled=False)
    context.__enter__()  # type: ignore[no-untyped-call]
    module.__dict__.setdefault(_AUTOCAST_CONTEXTS_KEY, []).append(context)


def _exit_autocast(module: nn.Module, _: Any, output: Any) -> Any:
    module.__dict__[_AUTOCAST_CONTEXTS_KEY].pop().__exit__(None, None, None)
    if output is not None:  # None where the trunk has raised
        output.last_hidden_state = output.last_hidden_state.float()
    return output


def _enable_activation_checkpointing(model: Any) -> None:
    """Keep only what goes into each layer, and compute the layer once more in the backward pass. Exact, dropout too.

    transformers' own switch acts in training mode alone, and the stages that have no dropout run in evaluation mode.

    Raises:
        BadInput: transformers has no layers for this family that can be computed again.
    """
    layers = [module for module in get_backbone(model).modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise InputError(
            f"--memory checkpointing: not known how for the family '{model.config.model_type}'; leave the word out"
        )
    for layer in layers:
        layer.__class__ = _checkpointed_class(type(layer))


def _checkpointed_class(layer_class: type[nn.Module]) -> type[nn.Module]:
    """The same kind of layer, whose activations are not kept. It goes by the same name, by which others find it."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return layer_class.forward(self, *args, **kwargs)
        return checkpoint(layer_class.forward, self, *args, use_reentrant=False, **kwargs)

    return type(layer_class.__name__, (layer_class,), {"forward": forward, "__module__": layer_class.__module__})


def free_gpu_memory(device: torch.device) -> int:
    """Memory of a GPU that can be had: what is free, and what torch has taken and does not use."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + unused)


def bf16_warning(device: torch.device, options: Collection[str]) -> str | None:
    """A line for whoever asked for bf16 on a processor that has no instructions for it."""
    if "bf16" not in options or device.type != "cpu" or uses_nccl() or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    return "this CPU has no bf16 products: --memory bf16 computes up to 60 times slower here than without the word"
