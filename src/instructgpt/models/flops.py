"""The size of a model, read from its configuration alone, and the arithmetic of one pass over some texts.

The model is built by transformers itself, of tensors that have shapes and no numbers, so every family is counted as it is.

    n tokens of a text     p tokens it continues     L layers     H heads of width h     D width     V vocabulary
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.pytorch_utils import Conv1D

from instructgpt.models.lora import add_lora, get_backbone
from instructgpt.models.packed_attention import enable_last_layer_subset
from instructgpt.models.policy import from_pretrained
from instructgpt.models.precision import apply_memory_options

FLOAT_BYTES = 4
"""Bytes of a number: weights, gradients, Adam's moments, activations and the cache are float32."""
BACKWARD_FLOPS_FACTOR = 2
"""A backward pass multiplies twice as much as the forward pass: once for the inputs' gradients, once for the weights', if they learn."""


class SequenceShape(NamedTuple):
    """Tokens that are computed, after tokens that were computed before and are read again."""

    tokens: int
    past_tokens: int = 0
    output_tokens: int | None = (
        None  # how many of them, the last ones, have states that are read; all where it is not said
    )

    @property
    def last_layer_tokens(self) -> int:
        """How many of its tokens go through the whole last layer."""
        return self.tokens if self.output_tokens is None else self.output_tokens

    def attention_pairs(self, attending_tokens: int) -> float:
        """Pairs of tokens that see each other, where only the last ones ask."""
        return (
            attending_tokens * (self.past_tokens + self.tokens - attending_tokens)
            + attending_tokens * (attending_tokens + 1) / 2
        )


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the arithmetic of a model depends on."""

    parameters: int
    matrix_parameters: int  # weights that every token is multiplied by, the output layer left out
    layers: int
    attention_width: int  # width of all heads together, H h
    kv_cache_size_per_token: int  # numbers the key-value cache holds for a token, all layers
    hidden_size: int
    vocab_size: int
    frozen_parameters: int = 0  # parameters that training leaves as they are
    frozen_matrix_parameters: int = 0  # those among `matrices`
    output_layer_frozen: bool = False  # the output layer is one of them

    def forward_flops(self, sequences: Iterable[SequenceShape], predicted_tokens: float = 0) -> float:
        """FLOPs of a forward pass. Each matrix 2 a weight and token; attention 4 H h a pair of tokens and layer, and only pairs that see
        each other count, n p + n (n + 1) / 2 of them; logits 2 D V a predicted token. Tokens that are not read go no further in the
        last layer than to their keys and values.
        """
        sequences = list(sequences)
        pairs = (
            sum(text.attention_pairs(text.tokens) for text in sequences),
            sum(text.attention_pairs(text.last_layer_tokens) for text in sequences),
        )
        attention_flops = 4 * self.attention_width * ((self.layers - 1) * pairs[0] + pairs[1])
        return (
            self.matmul_flops(self.matrix_parameters, sequences)
            + attention_flops
            + self.output_layer_flops(predicted_tokens)
        )

    def matmul_flops(self, weights: int, sequences: Iterable[SequenceShape]) -> float:
        """FLOPs of matrices of so many weights, in which those for keys and values are."""
        non_kv_weights = (weights - self.hidden_size * self.kv_cache_size_per_token) / self.layers
        return 2 * sum(
            weights * text.tokens - non_kv_weights * (text.tokens - text.last_layer_tokens) for text in sequences
        )

    def backward_flops(self, sequences: Iterable[SequenceShape], predicted_tokens: float = 0) -> float:
        """FLOPs of a backward pass. A matrix that stays as it is has no gradient of its own, only passes its inputs' on."""
        sequences = list(sequences)
        frozen_flops = (
            self.matmul_flops(self.frozen_matrix_parameters, sequences) if self.frozen_matrix_parameters else 0
        )
        return (
            BACKWARD_FLOPS_FACTOR * self.forward_flops(sequences, predicted_tokens)
            - frozen_flops
            - self.output_layer_frozen * self.output_layer_flops(predicted_tokens)
        )

    def output_layer_flops(self, predicted_tokens: float) -> float:
        """FLOPs of the output layer."""
        return 2 * self.hidden_size * self.vocab_size * predicted_tokens

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights."""
        return FLOAT_BYTES * self.parameters

    @property
    def trainable_parameters(self) -> int:
        """Parameters that training changes."""
        return self.parameters - self.frozen_parameters


@contextmanager
def fake_tensors() -> Any:
    """Tensors made in here have shapes and no numbers; whatever is computed with them takes no memory."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        yield mode


def load_model_config(source: Path | str) -> Any:
    """The configuration of a model directory or hub name. Raises BadInput where there is none."""
    return from_pretrained(transformers.AutoConfig, source)


def build_on_meta(config: Any, *, scalar: bool = False, lora: int = 0, memory: Collection[str] = ()) -> Any:
    """A model as a stage makes it, on the device `meta`, where tensors have shapes and no numbers.

    Args:
        config: the model's; scalar: a reward or value model.
        lora: rank of its adapters; memory: what is done to need less memory.
    """
    auto_class = transformers.AutoModelForSequenceClassification if scalar else transformers.AutoModelForCausalLM
    if scalar:
        config.num_labels = 1
    with torch.device("meta"):
        model = auto_class.from_config(config, attn_implementation="sdpa").eval()
        enable_last_layer_subset(model)
        apply_memory_options(model, memory)
        return add_lora(model, lora, 0)


def to_fake_device(model: Any) -> Any:
    """A model from `build` as one that computes; called inside `without_numbers`. Parameters that are shared stay shared."""
    memo: dict[int, Any] = {id(b): torch.empty(b.shape, dtype=b.dtype) for b in model.buffers()}
    memo |= {
        id(p): nn.Parameter(torch.empty(p.shape, dtype=p.dtype), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    return copy.deepcopy(model, memo)


def model_shape_from_config(config: Any, *, scalar: bool = False, lora: int = 0) -> ModelShape:
    """The shape of the model that a configuration describes."""
    return get_model_shape(build_on_meta(config, scalar=scalar, lora=lora))


def get_model_shape(model: Any) -> ModelShape:
    """The shape of a model: a policy, or a reward or value model, which have no output layer."""
    config = model.config
    output_layer = model.get_output_embeddings() if model.can_generate() else None
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    linear_weights = [
        module.weight
        for module in get_backbone(getattr(model, "peft_model", model)).modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not output_layer
    ]
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    return ModelShape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        matrix_parameters=sum(weight.numel() for weight in linear_weights),
        layers=config.num_hidden_layers,
        attention_width=heads * head_dim,
        kv_cache_size_per_token=2 * config.num_hidden_layers * kv_heads * head_dim,
        hidden_size=config.hidden_size,
        vocab_size=0 if output_layer is None else output_layer.weight.shape[0],
        frozen_parameters=sum(parameter.numel() for parameter in frozen),
        frozen_matrix_parameters=sum(weight.numel() for weight in linear_weights if not weight.requires_grad),
        output_layer_frozen=output_layer is not None and not output_layer.weight.requires_grad,
    )


def fake_like(tensor: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    """A tensor without numbers like another one."""
    fake_tensor: torch.Tensor = mode.from_tensor(tensor)
    return fake_tensor
