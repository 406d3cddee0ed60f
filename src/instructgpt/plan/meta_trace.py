"""Peak memory of a computation, traced on fake tensors without data.

The stages' own forward and backward functions run, and live tensors are counted, so every model family is measured as
it is and no formula has to follow the code.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import Any, get_args

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from instructgpt.data.packing import PackedBatch, TokenizedExample, collate
from instructgpt.models.execution import ExecutionPath, execution_path
from instructgpt.models.families import get_family
from instructgpt.models.flops import (
    BF16_BYTES,
    FLOAT_BYTES,
    ModelShape,
    build_on_meta,
    fake_like,
    fake_tensors,
    get_model_shape,
    to_fake_device,
)
from instructgpt.models.last_layer_subset import TokenSelection, get_token_subset
from instructgpt.models.packed_attention import PACKED_ATTENTION, get_attention_layout, hidden_states
from instructgpt.models.policy import completion_logp
from instructgpt.models.reward_model import ScalarModel
from instructgpt.models.sharding import layer_groups
from instructgpt.train.rollout import token_values

ForwardFn = Callable[[Any, PackedBatch], Tensor]

_MAX_TRACED_LAYERS, _TRACED_DEPTHS = 8, (2, 4)
"""Deeper models are traced at two depths and extrapolated linearly: every layer holds the same."""


_NO_TOKENIZER: Any = None
"""Tracing tokenizes nothing."""


@dataclass(frozen=True, slots=True)
class PeakMemory:
    """Bytes beside the weights: at the peak, and after the forward pass (kept for the backward pass)."""

    peak: float
    saved_for_backward: float

    def extrapolate(self, target: PeakMemory, factor: float) -> PeakMemory:
        """Return the point `factor` times as far from here as `target`."""
        return PeakMemory(
            self.peak + factor * (target.peak - self.peak),
            self.saved_for_backward + factor * (target.saved_for_backward - self.saved_for_backward),
        )


class _AllocationTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the bytes of live tensors while the mode is active."""

    def __init__(self, existing: Iterable[Tensor]) -> None:
        """Start at zero; `existing` tensors are not counted."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.current = self.peak = 0
        self._existing = [tensor.untyped_storage() for tensor in existing]
        self._tracked: weakref.WeakSet[Any] = weakref.WeakSet(self._existing)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count its results."""
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._tracked:
                self._tracked.add(storage)
                size = storage.nbytes()
                self.current += size
                self.peak = max(self.peak, self.current)
                weakref.finalize(storage, self._on_free, size)
        return result

    def _on_free(self, size: int) -> None:
        self.current -= size


@dataclass(frozen=True)
class TracedModel:
    """A planned model: its configuration, and what a batch computes."""

    config: Any
    forward_fn: ForwardFn
    scalar: bool = False  # a reward or value model
    lora: int = 0
    memory: tuple[str, ...] = ()

    def build(self) -> Any:
        """Build the model without weights, with the attention that a stage chooses for it."""
        model = self._build()
        if self.is_packed:
            model.set_attn_implementation(PACKED_ATTENTION)
        return model

    @cached_property
    def is_packed(self) -> bool:
        """Whether batches are packed: the family's row allows it, and no layer needs more than causal attention."""
        family = get_family(self.config)
        if family is None or not family.packed:
            return False
        shallow = replace(self, config=truncate_layers(self.config, _TRACED_DEPTHS[1]))._build()
        if shallow.config._attn_implementation != "sdpa":
            return False
        shallow.set_attn_implementation(PACKED_ATTENTION)
        batch = collate([TokenizedExample([0, 1], [0])])
        get_attention_layout(batch)
        try:
            with fake_tensors() as mode, torch.no_grad():
                hidden_states(to_fake_device(shallow), _to_fake(batch, lambda tensor: fake_like(tensor, mode)))
        except NotImplementedError:
            return False
        return True

    @property
    def gather_bytes(self) -> int:
        """Bytes of a number of the layers when ranks gather it; the reward stage gathers in float32."""
        return BF16_BYTES if "bf16" in self.memory and self.forward_fn is not forward_scores else FLOAT_BYTES

    def path(self, device: torch.device) -> ExecutionPath:
        """Return how the model will be computed on a device."""
        return execution_path(self.build(), device)

    def _build(self) -> Any:
        return build_on_meta(self.config, scalar=self.scalar, lora=self.lora, memory=self.memory)

    @cached_property
    def shape(self) -> ModelShape:
        return get_model_shape(self.build())

    @cached_property
    def gather_sizes(self) -> list[int]:
        """Return the parameters gathered together: those outside the layers first, then group by group."""
        layers = [sum(p.numel() for layer in group for p in layer.parameters()) for group in layer_groups(self.build())]
        return [self.shape.parameters - sum(layers), *layers]

    @cached_property
    def trainable_sizes(self) -> list[int]:
        """Return the sizes of all trained tensors."""
        return [parameter.numel() for parameter in self.build().parameters() if parameter.requires_grad]

    def trace(
        self,
        microbatch: Sequence[TokenizedExample],
        *,
        backward: bool = True,
        accumulate: bool = False,
        sharded: bool = False,
    ) -> PeakMemory:
        """Return the bytes a model holds beside its weights while it computes a microbatch.

        Args:
            microbatch: only its lengths and shared prompts matter.
            backward: include the backward pass and its gradients.
            accumulate: gradients of an earlier microbatch exist and are included.
            sharded: gradients are reduced as soon as they are computed and not included.
        """
        depth = self.config.get_text_config().num_hidden_layers
        if depth <= _MAX_TRACED_LAYERS:
            return self._trace(microbatch, backward, accumulate, sharded)
        shallow, deep = (
            replace(self, config=truncate_layers(self.config, layers))._trace(microbatch, backward, accumulate, sharded)
            for layers in _TRACED_DEPTHS
        )
        return shallow.extrapolate(deep, (depth - _TRACED_DEPTHS[0]) / (_TRACED_DEPTHS[1] - _TRACED_DEPTHS[0]))

    def _trace(
        self, microbatch: Sequence[TokenizedExample], backward: bool, accumulate: bool, sharded: bool
    ) -> PeakMemory:
        batch = collate(microbatch)
        for read in get_args(TokenSelection):  # worked out of the numbers, before these are gone
            get_token_subset(batch, read)
        get_attention_layout(batch)
        _ = self.is_packed  # found out before tensors have no numbers
        with fake_tensors() as mode:
            model = to_fake_device(self.build()).train(backward)
            batch = _to_fake(batch, lambda tensor: fake_like(tensor, mode))
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            for parameter in trained:
                if sharded:
                    parameter.register_post_accumulate_grad_hook(_free_gradient)
                elif accumulate:
                    parameter.grad = torch.empty_like(parameter)
            with (
                _AllocationTracker([*model.parameters(), *model.buffers()]) as tracker,
                torch.set_grad_enabled(backward),
            ):
                total = self.forward_fn(model, batch).sum()
                saved = tracker.current
                if backward:
                    total.backward()  # type: ignore[no-untyped-call]
        gradients = FLOAT_BYTES * sum(parameter.numel() for parameter in trained) if accumulate and not sharded else 0
        return PeakMemory(tracker.peak + gradients, saved)


def _free_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def forward_logp(model: Any, batch: PackedBatch) -> Tensor:
    return completion_logp(model, batch)


def forward_scores(model: Any, batch: PackedBatch) -> Tensor:
    return ScalarModel(model, _NO_TOKENIZER).sequence_scores(batch)


def forward_values(model: Any, batch: PackedBatch) -> Tensor:
    return token_values(ScalarModel(model, _NO_TOKENIZER), batch)


def truncate_layers(config: Any, layers: int) -> Any:
    """Return a configuration with fewer layers; lists with an entry a layer are cut too."""
    truncated = copy.deepcopy(config)
    text = truncated.get_text_config()
    depth = text.num_hidden_layers
    if layers < depth:
        for name, value in text.to_dict().items():
            if isinstance(value, list) and len(value) == depth:
                setattr(text, name, value[:layers])
        text.num_hidden_layers = layers
    return truncated


def _to_fake(value: Any, convert: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return convert(value)
    if isinstance(value, dict):
        return {name: _to_fake(one, convert) for name, one in value.items()}
    if is_dataclass(value):
        return replace(value, **{f.name: _to_fake(getattr(value, f.name), convert) for f in fields(value)})  # type: ignore[type-var]
    return tuple(_to_fake(one, convert) for one in value) if type(value) is tuple else value
