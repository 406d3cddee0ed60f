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

from instructgpt.distributed.comm import on_gpus
from instructgpt.errors import BadInput
from instructgpt.models.lora import trunk

CONTEXTS = "_bf16_contexts"
_cast: WeakKeyDictionary[nn.Module, list[Tensor]] = WeakKeyDictionary()
"""Where a trunk's matrices lie in bf16 while it samples."""


def need_less(model: Any, words: Collection[str]) -> None:
    """Do to a model what the words say: `bf16`, `checkpointing` (other words are the optimizer's, and `shard`'s). Its copies are like it.

    Raises:
        BadInput: transformers has no layers for this family that can be computed again.
    """
    if "checkpointing" in words:
        recompute(model)
    if "bf16" in words:
        compute_in_bf16(model)


def compute_in_bf16(model: Any) -> None:
    """The trunk computes in bf16 wherever it runs, while sampling too. Weights stay float32, and hidden states come out as float32.

    What is made of hidden states (logits, scores, values) and everything after stays in float32: bf16 would round a logit
    of 20 to a tenth. On CUDA their products may use TF32, which has the range of float32 and rounds to 11 bits.
    """
    inner = trunk(model)
    inner.computes_in_bf16 = True
    inner.register_forward_pre_hook(_enter)
    inner.register_forward_hook(_leave, always_call=True)
    if inner.device.type == "cuda" or on_gpus():
        torch.set_float32_matmul_precision("high")


def compute_in_float32(model: Any) -> None:
    """From now on all of the model computes in float32: as it will once it is saved and loaded again."""
    trunk(model).computes_in_bf16 = False


@contextmanager
def cast_once(model: Any) -> Iterator[None]:
    """While tokens are sampled: a model that computes in bf16 has its matrices cast once, and not again for every token.

    Nothing may learn meanwhile. The cast matrices lie where they lay the last time, so that what was recorded of them stays right.
    """
    inner = trunk(model)
    if not getattr(inner, "computes_in_bf16", False):
        yield
        return
    layers = [module for module in inner.modules() if isinstance(module, nn.Linear | Conv1D)]
    parameters = [parameter for layer in layers for parameter in layer.parameters(recurse=False)]
    cast = _cast.setdefault(inner, [torch.empty_like(parameter, dtype=torch.bfloat16) for parameter in parameters])
    masters = [parameter.data for parameter in parameters]
    try:
        for parameter, place in zip(parameters, cast, strict=True):
            parameter.data = place.copy_(parameter.data)
        yield
    finally:
        for parameter, master in zip(parameters, masters, strict=True):
            parameter.data = master


def _enter(module: nn.Module, _: Any) -> None:
    # without a cache of cast weights: in one pass none is used twice, and a captured graph must not keep them
    device: Any = module.device
    context = torch.autocast(device.type, torch.bfloat16, enabled=bool(module.computes_in_bf16), cache_enabled=False)
    context.__enter__()  # type: ignore[no-untyped-call]
    module.__dict__.setdefault(CONTEXTS, []).append(context)


def _leave(module: nn.Module, _: Any, output: Any) -> Any:
    module.__dict__[CONTEXTS].pop().__exit__(None, None, None)
    if output is not None:  # None where the trunk has raised
        output.last_hidden_state = output.last_hidden_state.float()
    return output


def recompute(model: Any) -> None:
    """Keep only what goes into each layer, and compute the layer once more in the backward pass. Exact, dropout too.

    transformers' own switch acts in training mode alone, and the stages that have no dropout run in evaluation mode.

    Raises:
        BadInput: transformers has no layers for this family that can be computed again.
    """
    layers = [module for module in trunk(model).modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise BadInput(f"--memory checkpointing: not known how for the family '{model.config.model_type}'; leave the word out")
    for layer in layers:
        layer.__class__ = recomputed(type(layer))


def recomputed(kind: type[nn.Module]) -> type[nn.Module]:
    """The same kind of layer, whose activations are not kept. It goes by the same name, by which others find it."""

    def forward(self: nn.Module, *inputs: Any, **more: Any) -> Any:
        if not torch.is_grad_enabled():
            return kind.forward(self, *inputs, **more)
        return checkpoint(kind.forward, self, *inputs, use_reentrant=False, **more)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def free_bytes(device: torch.device) -> int:
    """Memory of a GPU that can be had: what is free, and what torch has taken and does not use."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + unused)


def slow_here(device: torch.device, words: Collection[str]) -> str | None:
    """A line for whoever asked for bf16 on a processor that has no instructions for it."""
    if "bf16" not in words or device.type != "cpu" or on_gpus() or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    return "this CPU has no bf16 products: --memory bf16 computes up to 60 times slower here than without the word"
