"""Frozen matrices in 4 bits (NF4, Dettmers et al. 2023), by bitsandbytes.

64 numbers share a float32 scale, their largest magnitude, and each is one of 16 quantiles of a normal distribution
times this scale: 4.5 bits a number. A matrix is dequantized when its layer computes and again in the backward pass, so
whole numbers exist for one matrix at a time. Sampling and training multiply by the same numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers.pytorch_utils import Conv1D

from instructgpt.distributed.comm import get_dist_info
from instructgpt.errors import InputError, is_out_of_memory, one_line

BLOCK_SIZE = 64
"""Numbers that share a scale."""
QUANTIZED_BYTES = 0.5 + 4 / BLOCK_SIZE
"""Bytes of a number, with its part of the scale."""
_INSTALL = "pip install 'bitsandbytes>=0.50'"


class _QuantizedMatrix(nn.Module):
    """A linear layer's weight in 4 bits, in place of the parameter `weight`."""

    packed: Tensor  # (ceil(number of weights / 2), 1) uint8
    scales: Tensor  # (number of blocks,)
    shape: torch.Size

    @classmethod
    def convert(cls, layer: Any) -> None:
        """Make a layer one of this class, in place, so that its hooks and all references to it stay."""
        weight = layer._parameters.pop("weight")
        packed, scales = _quantize(weight.detach())
        layer.__class__ = cls
        layer.shape = weight.shape
        layer.register_buffer("packed", packed, persistent=False)
        layer.register_buffer("scales", scales, persistent=False)

    @property
    def weight(self) -> Tensor:
        """Return the dequantized weight, float32 and frozen, for whatever reads it outside of `forward`."""
        return self.dequantize(torch.float32)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """Return the weight in this type."""
        if self.packed.is_meta or isinstance(self.packed, FakeTensor):  # a plan, which needs no bitsandbytes
            return torch.empty(self.shape, dtype=dtype, device=self.packed.device)
        from bitsandbytes.functional import QuantState, dequantize_4bit, get_4bit_type

        code = get_4bit_type("nf4", device=self.packed.device)
        # as one row: version 0.50 reads wrong scales on a CPU where a row of the matrix is no multiple of a block
        state = QuantState(self.scales, torch.Size([self.shape.numel()]), code, BLOCK_SIZE, "nf4", dtype)
        matrix: Tensor = dequantize_4bit(self.packed, state).view(self.shape)
        return matrix

    def _multiply(self, inputs: Tensor, *, transposed: bool) -> Tensor:
        device_type, dtype = inputs.device.type, inputs.dtype
        if torch.is_autocast_enabled(device_type):
            dtype = torch.get_autocast_dtype(device_type)
        output: Tensor = _Multiply.apply(inputs.to(dtype), self, transposed)  # type: ignore[no-untyped-call]
        bias = self.bias
        return output if bias is None else output + bias.to(dtype)  # type: ignore[operator]


class _Multiply(torch.autograd.Function):
    """x W, or x W^T, which keeps neither x nor W for the backward pass: W is frozen and dequantized again."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: _QuantizedMatrix, transposed: bool) -> Tensor:
        ctx.layer, ctx.transposed = layer, transposed
        matrix = layer.dequantize(inputs.dtype)
        return inputs @ (matrix.T if transposed else matrix)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        matrix = ctx.layer.dequantize(gradient.dtype)
        return gradient @ (matrix if ctx.transposed else matrix.T), None, None


class QuantizedLinear(_QuantizedMatrix, nn.Linear):  # type: ignore[override]
    """`nn.Linear` with a frozen weight in 4 bits."""

    def forward(self, input: Tensor) -> Tensor:
        return self._multiply(input, transposed=True)


class QuantizedConv1D(_QuantizedMatrix, Conv1D):  # type: ignore[misc]
    """transformers' `Conv1D`, a linear layer whose weight is transposed, with a frozen weight in 4 bits."""

    def forward(self, x: Tensor) -> Tensor:
        return self._multiply(x, transposed=False)


def _quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return packed numbers and scales."""
    if weight.is_meta:
        sizes = (-(-weight.numel() // 2), 1), (-(-weight.numel() // BLOCK_SIZE),)
        return (
            torch.empty(sizes[0], dtype=torch.uint8, device="meta"),
            torch.empty(sizes[1], dtype=torch.float32, device="meta"),
        )
    try:
        from bitsandbytes.functional import quantize_4bit

        packed, state = quantize_4bit(weight.float().flatten(), blocksize=BLOCK_SIZE, quant_type="nf4")
    except ImportError as error:
        raise InputError(f"--memory 4bit needs bitsandbytes; run: {_INSTALL}") from error
    except Exception as error:  # its kernels for a device are found, or not, when they are called
        if is_out_of_memory(error):
            raise
        reason = f"bitsandbytes cannot quantize on the device '{weight.device.type}' ({one_line(error, 150)})"
        raise InputError(f"--memory 4bit: {reason}; use a CUDA device, or a newer version: {_INSTALL}") from error
    return packed, state.absmax


def check_quantization(device: torch.device) -> None:
    """Quantize a block, so that a missing library or kernel is found before a model is loaded.

    Raises:
        InputError: bitsandbytes is missing or has no kernels for the device, or there are several ranks.
    """
    if get_dist_info().world_size > 1:
        raise InputError("--memory 4bit does not work with several ranks; use one process, or bf16")
    _quantize(torch.ones(BLOCK_SIZE, 1, device=device))


@torch.no_grad()
def quantize_matrices(backbone: nn.Module) -> int:
    """Replace the linear layers of a backbone that will be frozen by quantized ones; return the number of weights.

    Embeddings, norms and heads stay, and so do matrices that are no linear layers, such as stacked experts.
    """
    num_weights = 0
    for module in list(backbone.modules()):
        kind = QuantizedConv1D if isinstance(module, Conv1D) else QuantizedLinear
        if type(module) not in (nn.Linear, Conv1D):  # subclasses compute something else, or are quantized already
            continue
        kind.convert(module)
        num_weights += module.shape.numel()  # type: ignore[operator]
    return num_weights


def is_quantized(module: nn.Module) -> bool:
    """Return whether a module is a linear layer whose weight is held in 4 bits."""
    return isinstance(module, _QuantizedMatrix)


def count_quantized(model: nn.Module) -> int:
    """Return the number of weights of a model that are held in 4 bits, which are no parameters."""
    return sum(module.shape.numel() for module in model.modules() if isinstance(module, _QuantizedMatrix))


def count_weights(module: nn.Module) -> tuple[int, bool]:
    """Return the number of weights of a linear layer's matrix, and whether they are frozen, without dequantizing it."""
    if isinstance(module, _QuantizedMatrix):
        return module.shape.numel(), True
    weight = module.weight
    return weight.numel(), not weight.requires_grad  # type: ignore[operator]
