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

from instructgpt.models.lora import trunk, with_adapters
from instructgpt.models.packed_attention import read_few
from instructgpt.models.policy import from_pretrained
from instructgpt.models.precision import need_less

FLOAT = 4
"""Bytes of a number: weights, gradients, Adam's moments, activations and the cache are float32."""
BACKWARD = 2
"""A backward pass multiplies twice as much as the forward pass: once for the inputs' gradients, once for the weights', if they learn."""


class Text(NamedTuple):
    """Tokens that are computed, after tokens that were computed before and are read again."""

    tokens: int
    before: int = 0
    read: int | None = None  # how many of them, the last ones, have states that are read; all where it is not said

    @property
    def asking(self) -> int:
        """How many of its tokens go through the whole last layer."""
        return self.tokens if self.read is None else self.read

    def pairs(self, asking: int) -> float:
        """Pairs of tokens that see each other, where only the last ones ask."""
        return asking * (self.before + self.tokens - asking) + asking * (asking + 1) / 2


@dataclass(frozen=True, slots=True)
class Shape:
    """What the arithmetic of a model depends on."""

    parameters: int
    matrices: int  # weights that every token is multiplied by, the output layer left out
    layers: int
    attention: int  # width of all heads together, H h
    cached: int  # numbers the key-value cache holds for a token, all layers
    width: int
    vocabulary: int
    still: int = 0  # parameters that training leaves as they are
    still_matrices: int = 0  # those among `matrices`
    still_logits: bool = False  # the output layer is one of them

    def forward(self, texts: Iterable[Text], predicted: float = 0) -> float:
        """FLOPs of a forward pass. Each matrix 2 a weight and token; attention 4 H h a pair of tokens and layer, and only pairs that see
        each other count, n p + n (n + 1) / 2 of them; logits 2 D V a predicted token. Tokens that are not read go no further in the
        last layer than to their keys and values.
        """
        texts = list(texts)
        pairs = sum(text.pairs(text.tokens) for text in texts), sum(text.pairs(text.asking) for text in texts)
        attention = 4 * self.attention * ((self.layers - 1) * pairs[0] + pairs[1])
        return self.products(self.matrices, texts) + attention + self.logits(predicted)

    def products(self, weights: int, texts: Iterable[Text]) -> float:
        """FLOPs of matrices of so many weights, in which those for keys and values are."""
        beyond_keys = (weights - self.width * self.cached) / self.layers
        return 2 * sum(weights * text.tokens - beyond_keys * (text.tokens - text.asking) for text in texts)

    def backward(self, texts: Iterable[Text], predicted: float = 0) -> float:
        """FLOPs of a backward pass. A matrix that stays as it is has no gradient of its own, only passes its inputs' on."""
        texts = list(texts)
        unlearned = self.products(self.still_matrices, texts) if self.still_matrices else 0
        return BACKWARD * self.forward(texts, predicted) - unlearned - self.still_logits * self.logits(predicted)

    def logits(self, predicted: float) -> float:
        """FLOPs of the output layer."""
        return 2 * self.width * self.vocabulary * predicted

    @property
    def bytes(self) -> int:
        """Bytes of the weights."""
        return FLOAT * self.parameters

    @property
    def trained(self) -> int:
        """Parameters that training changes."""
        return self.parameters - self.still


@contextmanager
def without_numbers() -> Any:
    """Tensors made in here have shapes and no numbers; whatever is computed with them takes no memory."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        yield mode


def configuration(source: Path | str) -> Any:
    """The configuration of a model directory or hub name. Raises BadInput where there is none."""
    return from_pretrained(transformers.AutoConfig, source)


def build(config: Any, *, scalar: bool = False, lora: int = 0, memory: Collection[str] = ()) -> Any:
    """A model as a stage makes it, on the device `meta`, where tensors have shapes and no numbers.

    Args:
        config: the model's; scalar: a reward or value model.
        lora: rank of its adapters; memory: what is done to need less memory.
    """
    kind = transformers.AutoModelForSequenceClassification if scalar else transformers.AutoModelForCausalLM
    if scalar:
        config.num_labels = 1
    with torch.device("meta"):
        model = kind.from_config(config, attn_implementation="sdpa").eval()
        read_few(model)
        need_less(model, memory)
        return with_adapters(model, lora, 0)


def to_compute_with(model: Any) -> Any:
    """A model from `build` as one that computes; called inside `without_numbers`. Parameters that are shared stay shared."""
    memo: dict[int, Any] = {id(b): torch.empty(b.shape, dtype=b.dtype) for b in model.buffers()}
    memo |= {id(p): nn.Parameter(torch.empty(p.shape, dtype=p.dtype), requires_grad=p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, memo)


def shape_of(config: Any, *, scalar: bool = False, lora: int = 0) -> Shape:
    """The shape of the model that a configuration describes."""
    return shape_from(build(config, scalar=scalar, lora=lora))


def shape_from(model: Any) -> Shape:
    """The shape of a model: a policy, or a reward or value model, which have no output layer."""
    config = model.config
    head = model.get_output_embeddings() if model.can_generate() else None
    heads = config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    matrices = [
        part.weight
        for part in trunk(getattr(model, "adapted", model)).modules()
        if isinstance(part, nn.Linear | Conv1D) and part is not head
    ]
    still = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    return Shape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        matrices=sum(weight.numel() for weight in matrices),
        layers=config.num_hidden_layers,
        attention=heads * head_width,
        cached=2 * config.num_hidden_layers * key_heads * head_width,
        width=config.hidden_size,
        vocabulary=0 if head is None else head.weight.shape[0],
        still=sum(parameter.numel() for parameter in still),
        still_matrices=sum(weight.numel() for weight in matrices if not weight.requires_grad),
        still_logits=head is not None and not head.weight.requires_grad,
    )


def fake(tensor: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    """A tensor without numbers like another one."""
    made: torch.Tensor = mode.from_tensor(tensor)
    return made
