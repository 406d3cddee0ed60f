"""Options that save memory, applied to a model from outside: the stage loops do not know about them."""

from __future__ import annotations

import types
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
from instructgpt.models.loading import add_notice
from instructgpt.models.lora import get_backbone
from instructgpt.models.quantization import quantize_matrices

COMPUTE_DEVICE = "instructgpt_compute_device"
"""The attribute of a model whose weights wait on another device than it computes on."""
_AUTOCAST_CONTEXTS_KEY = "_bf16_contexts"
_BF16_DATA_KEY = "_bf16_data"
_bf16_buffers: WeakKeyDictionary[nn.Module, list[Tensor]] = WeakKeyDictionary()
"""Memory for the bf16 copies of a backbone's matrices while it samples."""


def compute_device(model: Any) -> torch.device:
    """Return the device a model computes on, and its inputs go to. Weights of an offloaded model wait on the CPU."""
    device: torch.device | None = getattr(model, COMPUTE_DEVICE, None)
    return model.device if device is None else device


def apply_memory_options(model: Any, options: Collection[str]) -> None:
    """Apply `4bit`, `bf16` and `checkpointing` to a model; deep copies keep them. The others belong to optimizer and
    `shard`.

    Args:
        model: all of it frozen with `4bit`, but for adapters that are added afterwards.
        options: values of --memory.

    Raises:
        InputError: transformers does not support checkpointing for this family, or bitsandbytes no 4 bits here.
    """
    if "4bit" in options:
        _quantize_frozen(model)
    if "checkpointing" in options:
        _enable_activation_checkpointing(model)
    if "bf16" in options:
        _enable_bf16(model)


def _quantize_frozen(model: Any) -> None:
    num_weights = quantize_matrices(get_backbone(model))
    if not num_weights:
        raise InputError(f"--memory 4bit: the family '{model.config.model_type}' has no linear layers; drop the option")
    rounding = "rounded so in the saved model too"
    add_notice(model, f"{num_weights:,} frozen weights are held in 4 bits (NF4), {rounding}")


def _enable_bf16(model: Any) -> None:
    """Run the backbone under bf16 autocast, while sampling too. Weights and the resulting hidden states are float32.

    Logits, scores, values and everything after them stay float32: bf16 would round a logit of 20 to a tenth. On CUDA
    their matrix products may use TF32, which has the range of float32 and rounds to 11 bits.
    """
    backbone = get_backbone(model)
    backbone.computes_in_bf16 = True
    backbone.register_forward_pre_hook(_enter_autocast)
    backbone.register_forward_hook(_exit_autocast, always_call=True)
    if backbone.device.type == "cuda" or uses_nccl():
        torch.set_float32_matmul_precision("high")


def disable_bf16(model: Any) -> None:
    """Compute in float32 from now on, as the model will once it is saved and loaded again.

    Matrices held in bf16 stay so, and are cast while their layer computes.
    """
    backbone = get_backbone(model)
    backbone.computes_in_bf16 = False
    for layer in matrix_layers(backbone):
        if any(parameter.dtype == torch.bfloat16 for parameter in layer.parameters(recurse=False)):
            layer.register_forward_pre_hook(_cast_to_float32)
            layer.register_forward_hook(_cast_back_to_bf16, always_call=True)


def matrix_layers(module: nn.Module) -> list[nn.Module]:
    """Return the linear layers below a module, whose weights autocast rounds to bf16 at every use."""
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear | Conv1D)]


@torch.no_grad()
def hold_frozen_in_bf16(model: Any) -> None:
    """Hold the frozen matrices of a backbone that computes in bf16 in bf16, half the bytes; no result changes a bit.

    Call it before sharding, and after adapters were added. Embeddings, norms and heads, which compute in float32, stay.
    """
    backbone = get_backbone(model)
    if not getattr(backbone, "computes_in_bf16", False):
        return
    num_frozen, is_rounded = 0, False
    for layer in matrix_layers(backbone):
        for parameter in layer.parameters(recurse=False):
            if not parameter.requires_grad and parameter.dtype == torch.float32:
                narrow = parameter.data.to(torch.bfloat16)
                is_rounded = is_rounded or not (parameter.is_meta or torch.equal(narrow.float(), parameter.data))
                parameter.data, num_frozen = narrow, num_frozen + parameter.numel()
    if num_frozen:
        rounding = ", rounded as bf16 computes with them, in the saved model too" if is_rounded else ""
        add_notice(model, f"{num_frozen:,} frozen weights are held in bf16{rounding}")


def _cast_to_float32(layer: nn.Module, _: Any) -> None:
    layer.__dict__[_BF16_DATA_KEY] = {name: p.data for name, p in layer.named_parameters(recurse=False)}
    for parameter in layer.parameters(recurse=False):
        parameter.data = parameter.data.float()


def _cast_back_to_bf16(layer: nn.Module, *_: Any) -> None:
    for name, data in layer.__dict__.pop(_BF16_DATA_KEY).items():
        layer.get_parameter(name).data = data


@contextmanager
def cached_bf16_weights(model: Any) -> Iterator[None]:
    """Cast the matrices of a bf16 model once, not again for every sampled token. Do not train it meanwhile."""
    backbone = get_backbone(model)
    if not getattr(backbone, "computes_in_bf16", False):
        yield
        return
    parameters = [
        parameter
        for layer in matrix_layers(backbone)
        for parameter in layer.parameters(recurse=False)
        if parameter.dtype == torch.float32
    ]
    # the same memory every time: CUDA graphs of sampling steps have recorded its addresses
    if backbone not in _bf16_buffers:
        _bf16_buffers[backbone] = [torch.empty_like(parameter, dtype=torch.bfloat16) for parameter in parameters]
    float32_weights = [parameter.data for parameter in parameters]
    try:
        for parameter, buffer in zip(parameters, _bf16_buffers[backbone], strict=True):
            parameter.data = buffer.copy_(parameter.data)
        yield
    finally:
        for parameter, weight in zip(parameters, float32_weights, strict=True):
            parameter.data = weight


def _enter_autocast(module: nn.Module, _: Any) -> None:
    # without autocast's weight cache: one pass uses no weight twice, and a captured CUDA graph must not keep the cache
    device_type, enabled = compute_device(module).type, bool(module.computes_in_bf16)
    context = torch.autocast(device_type, torch.bfloat16, enabled=enabled, cache_enabled=False)
    context.__enter__()  # type: ignore[no-untyped-call]
    module.__dict__.setdefault(_AUTOCAST_CONTEXTS_KEY, []).append(context)


def _exit_autocast(module: nn.Module, _: Any, output: Any) -> Any:
    module.__dict__[_AUTOCAST_CONTEXTS_KEY].pop().__exit__(None, None, None)
    if output is not None:  # None where the backbone raised
        for name, value in list(output.items()):  # a classifier's head may read the pooled state
            if isinstance(value, Tensor) and value.dtype == torch.bfloat16:
                output[name] = value.float()
    return output


def _enable_activation_checkpointing(model: Any) -> None:
    """Keep only the inputs of each layer, and compute the layer again in the backward pass. Exact, dropout included.

    transformers' own switch acts in training mode only, and the stages without dropout run in evaluation mode.
    """
    layers = [module for module in get_backbone(model).modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        family = model.config.model_type
        raise InputError(f"--memory checkpointing: not supported for the family '{family}'; leave the option out")
    for layer in layers:
        # set on the instance: FSDP finds layers by the name of their class, and deep copies bind it to the copy
        layer.forward = types.MethodType(_checkpointed_forward, layer)


def recomputes_layers(model: Any) -> bool:
    """Return whether layers are computed again in the backward pass."""
    return any(getattr(module.forward, "__func__", None) is _checkpointed_forward for module in model.modules())


def _checkpointed_forward(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = type(layer).forward
    if not torch.is_grad_enabled():
        return forward(layer, *args, **kwargs)
    return checkpoint(forward, layer, *args, use_reentrant=False, **kwargs)


def free_gpu_memory(device: torch.device) -> int:
    """Return the bytes available on a GPU: free ones, and those torch has reserved but does not use."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + unused)


def bf16_warning(device: torch.device, options: Collection[str]) -> str | None:
    """Return a warning where bf16 is asked for on a CPU without bf16 instructions."""
    if "bf16" not in options or device.type != "cpu" or uses_nccl() or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    return "this CPU lacks native bf16; --memory bf16 can be 60 times slower here"
