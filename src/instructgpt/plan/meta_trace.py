"""How much memory a computation needs, by doing it on tensors that have shapes and no numbers.

The very functions of the stages run, forward and backward; only what they would have held is counted. So a family whose
attention or whose output layer keeps more than another's is counted as it is, and no formula has to follow the code.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import Any, get_args

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from instructgpt.data.packing import Batch, Example, collate
from instructgpt.models.flops import FLOAT, Shape, build, fake, shape_from, to_compute_with, without_numbers
from instructgpt.models.packed_attention import PACKED, Read, layout_of, reading_of
from instructgpt.models.policy import completion_logp
from instructgpt.models.reward_model import ScalarModel
from instructgpt.models.sharding import layer_groups
from instructgpt.train.rollout import values_of

Measure = Callable[[Any, Batch], Tensor]

DEEP, LAYERS = 8, (2, 4)
"""Models of more layers are counted at two depths and continued in a straight line: every layer holds the same."""


NO_RENDERER: Any = None
"""Nothing is rendered here."""


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes beside the weights: at the worst moment, and at the end of the forward pass (kept for the backward pass)."""

    peak: float
    kept: float

    def continued(self, other: Held, times: float) -> Held:
        """The point `times` as far from here as another one."""
        return Held(self.peak + times * (other.peak - self.peak), self.kept + times * (other.kept - self.kept))


class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that are alive, while it is in force."""

    def __init__(self, there: Iterable[Tensor]) -> None:
        """Begin with nothing; what is `there` before does not count."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._there = [tensor.untyped_storage() for tensor in there]
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet(self._there)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and note what it has made."""
        result = function(*args, **(kwargs or {}))
        for made in tree_iter(result):
            if isinstance(made, Tensor) and (storage := made.untyped_storage()) not in self._seen:
                self._seen.add(storage)
                size = storage.nbytes()
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, size)
        return result

    def _gone(self, size: int) -> None:
        self.now -= size


@dataclass(frozen=True)
class Network:
    """A model that is planned with: what it is made of, and what is measured of a batch."""

    config: Any
    measure: Measure
    scalar: bool = False  # a reward or value model
    lora: int = 0
    memory: tuple[str, ...] = ()

    def build(self) -> Any:
        """It, without numbers."""
        return build(self.config, scalar=self.scalar, lora=self.lora, memory=self.memory)

    @cached_property
    def shape(self) -> Shape:
        """Its shape."""
        return shape_from(self.build())

    @cached_property
    def groups(self) -> list[int]:
        """Parameters that ranks gather at once, where they hold parts of it: those outside the layers first, then group by group."""
        layers = [sum(p.numel() for layer in group for p in layer.parameters()) for group in layer_groups(self.build())]
        return [self.shape.parameters - sum(layers), *layers]

    @cached_property
    def learned(self) -> list[int]:
        """Numbers in each tensor that is trained."""
        return [parameter.numel() for parameter in self.build().parameters() if parameter.requires_grad]

    def holds(self, group: Sequence[Example], *, learns: bool = True, again: bool = False, divided: bool = False) -> Held:
        """Bytes it holds beside its weights while it computes a microbatch.

        Args:
            group: the microbatch, of which only lengths and equal prompts count.
            learns: forward and backward, the gradients it makes included; otherwise forward alone.
            again: gradients of an earlier microbatch are there and are included, and these are added to them.
            divided: gradients go to other ranks as soon as they are made, and are not included.
        """
        depth = self.config.num_hidden_layers
        if depth <= DEEP:
            return self._holds(group, learns, again, divided)
        few, more = (replace(self, config=_cut(self.config, layers))._holds(group, learns, again, divided) for layers in LAYERS)
        return few.continued(more, (depth - LAYERS[0]) / (LAYERS[1] - LAYERS[0]))

    def _holds(self, group: Sequence[Example], learns: bool, again: bool, divided: bool) -> Held:
        batch = collate(group)
        for read in get_args(Read):  # worked out of the numbers, before these are gone
            reading_of(batch, read)
        layout_of(batch)
        with without_numbers() as mode:
            model = to_compute_with(self.build()).train(learns)
            model.set_attn_implementation(PACKED)
            batch = _without_numbers(batch, lambda tensor: fake(tensor, mode))
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            for parameter in trained:
                if divided:
                    parameter.register_post_accumulate_grad_hook(_give_up)
                elif again:
                    parameter.grad = torch.empty_like(parameter)
            with Counter([*model.parameters(), *model.buffers()]) as counter, torch.set_grad_enabled(learns):
                total = self.measure(model, batch).sum()
                kept = counter.now
                if learns:
                    total.backward()  # type: ignore[no-untyped-call]
        gradients = FLOAT * sum(parameter.numel() for parameter in trained) if again and not divided else 0
        return Held(counter.peak + gradients, kept)


def _give_up(parameter: Tensor) -> None:
    parameter.grad = None


def logp(model: Any, batch: Batch) -> Tensor:
    """What supervised training measures."""
    return completion_logp(model, batch)


def scores(model: Any, batch: Batch) -> Tensor:
    """What reward models measure."""
    return ScalarModel(model, NO_RENDERER).last(batch)


def values(model: Any, batch: Batch) -> Tensor:
    """What value models measure."""
    return values_of(ScalarModel(model, NO_RENDERER), batch)


def _cut(config: Any, layers: int) -> Any:
    shorter = type(config)(**config.to_dict())
    shorter.num_hidden_layers = layers
    if getattr(shorter, "layer_types", None):
        shorter.layer_types = shorter.layer_types[:layers]
    return shorter


def _without_numbers(given: Any, empty: Callable[[Tensor], Tensor]) -> Any:
    """The same of tensors without numbers: a batch, and where its tokens stand, which is known already."""
    if isinstance(given, Tensor):
        return empty(given)
    if isinstance(given, dict):
        return {name: _without_numbers(one, empty) for name, one in given.items()}
    if is_dataclass(given):
        return replace(given, **{one.name: _without_numbers(getattr(given, one.name), empty) for one in fields(given)})  # type: ignore[type-var]
    return tuple(_without_numbers(one, empty) for one in given) if type(given) is tuple else given
