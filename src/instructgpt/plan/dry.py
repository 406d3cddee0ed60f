"""How much memory a computation needs, by doing it on tensors that have shapes and no numbers.

The very functions of the stages run, forward and backward; only what they would have held is counted. So a family whose
attention or whose output layer keeps more than another's is counted as it is, and no formula has to follow the code.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from instructgpt.data.batches import Batch, Example, collate
from instructgpt.models.attention import PACKED, layout_of, read_few, reading_of
from instructgpt.models.load import completion_logp
from instructgpt.models.scalar import ScalarModel
from instructgpt.models.shape import FLOAT, build, fake, without_numbers

Measure = Callable[[Any, Batch], Tensor]

LAYERS = (4, 8)
"""Deeper models are counted at these two depths and continued in a straight line: every layer holds the same."""


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


def held(
    config: Any, examples: Sequence[Example], measure: Measure, *, scalar: bool = False, learns: bool = True, again: bool = False
) -> Held:
    """Bytes a model holds beside its weights while it computes a microbatch.

    Args:
        config: the model's; examples: of the microbatch, of which only lengths and equal prompts count.
        measure: what is computed of them. scalar: the model is a reward or value model.
        learns: forward and backward, the gradients it makes included; otherwise forward alone.
        again: gradients of an earlier microbatch are there and are included, and these are added to them.
    """
    depth = config.num_hidden_layers
    if depth <= LAYERS[1]:
        return _held(config, examples, measure, scalar, learns, again)
    few, more = (_held(_cut(config, layers), examples, measure, scalar, learns, again) for layers in LAYERS)
    return few.continued(more, (depth - LAYERS[0]) / (LAYERS[1] - LAYERS[0]))


def logp(model: Any, batch: Batch) -> Tensor:
    """What supervised training measures."""
    return completion_logp(model, batch)


def values(model: Any, batch: Batch) -> Tensor:
    """What a value model measures."""
    return ScalarModel(model, NO_RENDERER).per_token(batch, "predicts")


def scores(model: Any, batch: Batch) -> Tensor:
    """What a reward model measures."""
    return ScalarModel(model, NO_RENDERER).last(batch)


def _cut(config: Any, layers: int) -> Any:
    shorter = type(config)(**config.to_dict())
    shorter.num_hidden_layers = layers
    if getattr(shorter, "layer_types", None):
        shorter.layer_types = shorter.layer_types[:layers]
    return shorter


def _held(config: Any, examples: Sequence[Example], measure: Measure, scalar: bool, learns: bool, again: bool) -> Held:
    batch = collate(examples)
    layout_of(batch)
    for read in ("last", "predicts"):
        reading_of(batch, read)
    with without_numbers() as mode:
        model = build(config, scalar=scalar).train(learns)
        model.set_attn_implementation(PACKED)
        read_few(model)
        batch = _without_numbers(batch, lambda tensor: fake(tensor, mode))
        if again:
            for parameter in model.parameters():
                parameter.grad = torch.empty_like(parameter)
        with Counter([*model.parameters(), *model.buffers()]) as counter, torch.set_grad_enabled(learns):
            total = measure(model, batch).sum()
            kept = counter.now
            if learns:
                total.backward()  # type: ignore[no-untyped-call]
    gradients = sum(FLOAT * parameter.numel() for parameter in model.parameters()) if again else 0
    return Held(counter.peak + gradients, kept)


def _without_numbers(given: Any, empty: Callable[[Tensor], Tensor]) -> Any:
    """The same of tensors without numbers: a batch, and where its tokens stand, which is known already."""
    if isinstance(given, Tensor):
        return empty(given)
    if isinstance(given, dict):
        return {name: _without_numbers(one, empty) for name, one in given.items()}
    if is_dataclass(given):
        return replace(given, **{one.name: _without_numbers(getattr(given, one.name), empty) for one in fields(given)})  # type: ignore[type-var]
    return tuple(_without_numbers(one, empty) for one in given) if type(given) is tuple else given
