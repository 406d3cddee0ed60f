"""The size of a model, read from its configuration alone, and the FLOPs of passes over sequences and of a PPO update.

transformers itself builds the model, on the device `meta`, so that every family is counted as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import transformers
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.pytorch_utils import Conv1D

from instructgpt.data.packing import TokenizedExample
from instructgpt.models.head import has_plain_head, vocabulary_rows
from instructgpt.models.last_layer_subset import enable_last_layer_subset, find_last_mlp
from instructgpt.models.lora import add_lora, get_backbone
from instructgpt.models.precision import apply_memory_options
from instructgpt.models.quantization import count_quantized, count_weights

FLOAT_BYTES = 4
"""Bytes of a float32: weights, gradients, Adam's moments, activations and the KV cache."""
BF16_BYTES = 2
BACKWARD_FLOPS_FACTOR = 2
"""A backward pass multiplies twice as much as a forward pass: for gradients of inputs, and of trained weights."""


class SequenceShape(NamedTuple):
    """Tokens that are computed, after tokens whose keys and values are cached."""

    tokens: int
    past_tokens: int = 0
    output_tokens: int | None = None  # those whose hidden states are read; None for all

    @property
    def attention_pairs(self) -> float:
        """Pairs of a token and one it attends to: n p + n (n + 1) / 2 for n tokens after p."""
        return self.tokens * self.past_tokens + self.tokens * (self.tokens + 1) / 2

    @property
    def unread_tokens(self) -> int:
        """Tokens that the last layer's feed-forward part skips (`models/last_layer_subset.py`)."""
        return 0 if self.output_tokens is None else self.tokens - self.output_tokens


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the FLOPs and the memory of a model depend on."""

    parameters: int
    matrix_parameters: int  # weights that every token is multiplied by, without the output layer
    layers: int
    attention_width: int  # all heads together
    kv_cache_size_per_token: int  # numbers in the KV cache, all layers
    hidden_size: int
    vocab_size: int
    last_mlp_parameters: int = 0  # those of `matrix_parameters` that only tokens that are read are multiplied by
    frozen_parameters: int = 0
    frozen_matrix_parameters: int = 0  # those of `matrix_parameters` that are frozen
    frozen_last_mlp_parameters: int = 0  # those of `last_mlp_parameters` that are frozen
    output_layer_frozen: bool = False
    quantized_parameters: int = 0  # those of `frozen_matrix_parameters` held in 4 bits

    def forward_flops(self, sequences: Iterable[SequenceShape], predicted_tokens: float = 0) -> float:
        """Count a forward pass: 2 a weight and token, 4 times the attention width a pair and layer, and the logits."""
        sequences = list(sequences)
        pairs = sum(sequence.attention_pairs for sequence in sequences)
        matmul_flops = _matmul_flops(self.matrix_parameters, self.last_mlp_parameters, sequences)
        attention_flops = 4 * self.attention_width * self.layers * pairs
        return matmul_flops + attention_flops + self.output_layer_flops(predicted_tokens)

    def backward_flops(self, sequences: Iterable[SequenceShape], predicted_tokens: float = 0) -> float:
        """Count a backward pass. Through a frozen matrix only the gradient of its input is computed."""
        sequences = list(sequences)
        frozen_flops = _matmul_flops(self.frozen_matrix_parameters, self.frozen_last_mlp_parameters, sequences)
        frozen_flops += self.output_layer_frozen * self.output_layer_flops(predicted_tokens)
        return BACKWARD_FLOPS_FACTOR * self.forward_flops(sequences, predicted_tokens) - frozen_flops

    def output_layer_flops(self, predicted_tokens: float) -> float:
        """Count the output layer."""
        return 2 * self.hidden_size * self.vocab_size * predicted_tokens

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights in float32."""
        return FLOAT_BYTES * self.parameters

    @property
    def trainable_parameters(self) -> int:
        """Parameters that are not frozen."""
        return self.parameters - self.frozen_parameters


def _matmul_flops(weights: int, last_mlp_weights: int, sequences: Iterable[SequenceShape]) -> float:
    return 2 * sum(weights * sequence.tokens - last_mlp_weights * sequence.unread_tokens for sequence in sequences)


@contextmanager
def fake_tensors() -> Any:
    """Make tensors with shapes and without data; computing with them takes no memory."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        yield mode


def fake_like(tensor: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    """Return a fake tensor like a real one."""
    fake_tensor: torch.Tensor = mode.from_tensor(tensor)
    return fake_tensor


def build_on_meta(config: Any, *, scalar: bool = False, lora: int = 0, memory: Collection[str] = ()) -> Any:
    """Build a model as a stage does, but on the device `meta`.

    Args:
        config: the model's configuration.
        scalar: whether to build a reward or value model.
        lora: rank of the adapters, 0 for none.
        memory: memory options.
    """
    auto_class = transformers.AutoModelForSequenceClassification if scalar else transformers.AutoModelForCausalLM
    if scalar:
        config.num_labels = config.get_text_config().num_labels = 1
    with torch.device("meta"):
        model = auto_class.from_config(config, dtype=torch.float32).eval()
        enable_last_layer_subset(model)
        apply_memory_options(model, memory)
        if not scalar:
            has_plain_head(model)  # found out once, with numbers, before there are none
        return add_lora(model, lora, 0)


def to_fake_device(model: Any) -> Any:
    """Copy a `build_on_meta` model to fake tensors on the CPU, within `fake_tensors`; shared parameters stay shared."""
    memo: dict[int, Any] = {id(b): torch.empty(b.shape, dtype=b.dtype) for b in model.buffers()}
    for parameter in model.parameters():
        data = torch.empty(parameter.shape, dtype=parameter.dtype)
        memo[id(parameter)] = nn.Parameter(data, requires_grad=parameter.requires_grad)
    return copy.deepcopy(model, memo)


def get_model_shape(model: Any) -> ModelShape:
    """Return the shape of a policy, or of a reward or value model, which has no output layer."""
    output_layer = model.get_output_embeddings()
    layers, attention_width, kv_width, hidden_size = _attention_sizes(model.config.get_text_config())
    backbone, last_modules = get_backbone(getattr(model, "peft_model", model)), find_last_mlp(model)
    weights, last_mlp_weights = (
        [
            count_weights(part)
            for part in (module.modules() if module is not None else ())
            if isinstance(part, nn.Linear | Conv1D) and part is not output_layer
        ]
        for module in (backbone, last_modules and last_modules[1])
    )
    frozen_parameters = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    quantized = count_quantized(model)
    return ModelShape(
        parameters=sum(parameter.numel() for parameter in model.parameters()) + quantized,
        matrix_parameters=sum(count for count, _ in weights),
        layers=layers,
        attention_width=attention_width,
        kv_cache_size_per_token=2 * layers * kv_width,
        hidden_size=hidden_size,
        vocab_size=0 if output_layer is None else vocabulary_rows(model),
        last_mlp_parameters=sum(count for count, _ in last_mlp_weights),
        frozen_parameters=frozen_parameters + quantized,
        frozen_matrix_parameters=sum(count for count, is_frozen in weights if is_frozen),
        frozen_last_mlp_parameters=sum(count for count, is_frozen in last_mlp_weights if is_frozen),
        quantized_parameters=quantized,
        output_layer_frozen=output_layer is not None and not any(p.requires_grad for p in output_layer.parameters()),
    )


def _attention_sizes(config: Any) -> tuple[int, int, int, int]:
    """Return layers, width of all heads, of all keys' heads, and of a hidden state; no heads in recurrent models.

    Numbers that differ from layer to layer are taken as their largest.
    """

    def size(name: str) -> int:
        try:
            value = getattr(config, name, None)
        except Exception:  # transformers refuses to name one number where layers differ (Gemma 4)
            value = [getattr(layer, name, None) for layer in config.per_layer_config]
        value = max((one for one in value if one), default=0) if isinstance(value, list | tuple) else value
        return int(value or 0)

    layers, hidden_size, heads = size("num_hidden_layers"), size("hidden_size"), size("num_attention_heads")
    head_dim = size("head_dim") or (hidden_size // heads if heads else 0)
    return layers, heads * head_dim, (size("num_key_value_heads") or heads) * head_dim, hidden_size


def ppo_update_flops(
    policy: ModelShape, value: ModelShape, reward: ModelShape, episodes: Sequence[TokenizedExample], epochs: int = 1
) -> dict[str, float]:
    """Return the FLOPs of a PPO update, phase by phase: the bound that its speed is measured by.

    No token is computed twice. Sampling computes each once, but the last of an episode; each model that scores computes
    it once, each that trains three times, forward and backward. Logits are those of completion tokens.
    """
    sequences = [SequenceShape(len(episode), output_tokens=len(episode.completion_ids)) for episode in episodes]
    completion_tokens = sum(len(episode.completion_ids) for episode in episodes)
    policy_forward, value_forward = policy.forward_flops(sequences, completion_tokens), value.forward_flops(sequences)
    return {
        "sampling": policy.forward_flops([SequenceShape(len(e) - 1) for e in episodes], completion_tokens),
        "score": reward.forward_flops([SequenceShape(len(episode), output_tokens=1) for episode in episodes]),
        "reference": policy_forward,
        "values": value_forward,
        "policy update": epochs * (policy_forward + policy.backward_flops(sequences, completion_tokens)),
        "value update": epochs * (value_forward + value.backward_flops(sequences)),
    }


def pretraining_flops(policy: ModelShape, rows: float, sequence_length: int) -> float:
    """Return the FLOPs of training on rows of pretraining text, each taken as one document."""
    sequences = [SequenceShape(sequence_length)]
    return rows * (policy.forward_flops(sequences, sequence_length) + policy.backward_flops(sequences, sequence_length))
