"""Models that are divided among ranks: each holds a part of every weight, and gathers the others while it computes.

Sharding is torch's own (FSDP2, `fully_shard` over a device mesh). A model is sharded once, after it has been loaded, and
made whole for what needs all of it: saving, and sampling, where there is room. With one rank nothing is done at all, unless
the weights are to stay on the CPU and come to the GPU layer by layer, which is a shard of one. Small models are not worth the
gathering: every rank holds them whole, and gradients are added before a step.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from instructgpt.distributed.comm import INSIDE, all_ranks, any_says, on_gpus
from instructgpt.models.policy import parameters
from instructgpt.models.precision import free_bytes

HELD_WHOLE = 25_000_000
"""Models of fewer parameters are held whole by every rank (`docs/performance.md`, several processes)."""
GATHERED_TOGETHER = 25_000_000
"""Parameters from which on layers are gathered by themselves. Smaller ones are gathered several at once: each gathering makes all wait."""
GATHERED_SHARE = 0.5
"""Share of the memory there is that the gathered weights of a model may take; where they need more it samples with shards."""

_empty: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()
"""For each sharded model another of the same kind without weights."""
_copies = WeakTensorKeyDictionary()
"""Parameters of models that every rank holds whole."""


def shard(*models: Any, memory: Collection[str] = ()) -> None:
    """Divide models among all ranks, in place: layer by layer, then the rest. Optimizers are made afterwards. Small ones stay whole.

    Each rank's part goes to its device, so that no GPU ever holds a whole model that was loaded to the CPU.

    Args:
        models: any that are to compute from now on.
        memory: with `offload` in it parts stay on the CPU, gradients and what the optimizer keeps too, and go to the device to compute.
    """
    offload = "offload" in memory
    if all_ranks().total == 1 and not offload:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard, register_fsdp_forward_method

    device = torch.device("cuda", torch.cuda.current_device()) if on_gpus() else torch.device("cpu")
    policy = CPUOffloadPolicy(pin_memory=on_gpus()) if offload else OffloadPolicy()
    for model in models:
        if parameters(model) < HELD_WHOLE and not offload:
            model.to(device)
            object.__setattr__(model, INSIDE, _inside)
            _copies.update(dict.fromkeys(model.parameters()))
            continue
        mesh = init_device_mesh(device.type, (all_ranks().total,))
        _empty[model] = without_weights(model)
        for layers in layer_groups(model):
            fully_shard(layers, mesh=mesh, reshard_after_forward=True, offload_policy=policy)
        fully_shard(model, mesh=mesh, reshard_after_forward=False, offload_policy=policy)
        _computes_on(model, device)
        for part in model.modules():
            if isinstance(part, FSDPModule):  # every loss is a share of the whole batch's: gradients are added, not averaged
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)
        object.__setattr__(model, INSIDE, _inside)
        register_fsdp_forward_method(model, INSIDE)
        object.__setattr__(model, INSIDE, _leaving(getattr(model, INSIDE), model))


def add_gradients(trained: Sequence[Tensor]) -> None:
    """Add the gradients of parameters that every rank has copies of. Those of sharded ones were added in the backward pass."""
    copies = [parameter for parameter in trained if parameter in _copies]
    if not copies or all_ranks().total == 1:
        return
    for parameter in copies:  # a rank whose share was empty has none
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    gradients = [parameter.grad for parameter in copies if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, torch.split(flat, [gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _computes_on(model: Any, device: torch.device) -> None:
    """Let a model say that it is where it computes, which is where its inputs have to be, wherever its weights wait."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    for module in (inner, inner.base_model) if hasattr(inner, "base_model") else ():
        if module.device != device:
            kind = type(module)
            module.__class__ = type(kind.__name__, (kind,), {"device": device, "__module__": kind.__module__})


def _inside(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def _leaving(method: Callable[..., Any], model: Any) -> Callable[..., Any]:
    """The same method, but weights that no backward pass will need are given up at once, also those of a layer that has failed."""
    parts = [module for module in model.modules() if hasattr(module, "reshard")]

    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return method(function, *arguments)
        finally:
            if not torch.is_grad_enabled():
                for part in parts:
                    part.reshard()

    return call


def layer_groups(model: Any) -> list[list[nn.Module]]:
    """Neighbouring layers that are gathered together; none where the whole model is no larger than one group."""
    names = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if parameters(model) < GATHERED_TOGETHER:
        return []
    groups: list[list[nn.Module]] = []
    size = GATHERED_TOGETHER
    for layer in layers:
        if size >= GATHERED_TOGETHER:
            groups.append([])
            size = 0
        groups[-1].append(layer)
        size += sum(parameter.numel() for parameter in layer.parameters())
    return groups


def without_weights(model: nn.Module) -> nn.Module:
    """A copy that has everything but numbers in its parameters; shared parameters stay shared."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, memo)


@contextmanager
def gathered(model: Any) -> Iterator[Any]:
    """The model with all of its weights on every rank, for what is computed by each alone; they are given up afterwards."""
    if model not in _empty:
        with by_itself(model):
            yield model
        return
    whole, device = _empty[model], model.device
    fill(whole, model, lambda full: full.to(device))
    try:
        yield whole.to(device)
    finally:
        fill(whole, None, lambda full: full.to("meta"))


def fits_gathered(model: Any) -> bool:
    """Whether all ranks have room for all weights of a model at once; the same answer on each. All ranks call it.

    On a GPU what is free counts; on a CPU all that the machine has, so that the answer is always the same there.
    """
    if model not in _empty:
        return True
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    if model.device.type == "cuda":
        room = float(free_bytes(model.device))
    else:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", all_ranks().total))
        room = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / here
    return not any_says(size > GATHERED_SHARE * room)[0]


@contextmanager
def in_lockstep(model: Any, idle: Callable[[], object]) -> Iterator[None]:
    """While ranks enter a sharded model, each as often as it has to: whoever is done goes on entering until all are. All ranks call it.

    Every entrance gathers the same weights in the same order, so that one rank may decode a token while another reads prompts.

    Args:
        model: that is sharded.
        idle: computes something with it that nobody reads.
    """
    inside = vars(model)[INSIDE]

    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        any_says(True)
        return inside(function, *arguments)

    object.__setattr__(model, INSIDE, call)
    try:
        yield
        while any_says(False)[0]:
            inside(idle)
    finally:
        object.__setattr__(model, INSIDE, inside)


@contextmanager
def by_itself(model: Any) -> Iterator[None]:
    """Each rank computes alone with a model that it holds whole."""
    inside = vars(model).pop(INSIDE, None)
    try:
        yield
    finally:
        if inside is not None:
            object.__setattr__(model, INSIDE, inside)


def whole(model: Any) -> Any:
    """The model as it is saved: on rank 0 with all of its weights, on the CPU where it was sharded. All ranks call it."""
    if model not in _empty:
        same = copy.copy(model)  # of the very same weights
        vars(same).pop(INSIDE, None)
        return same
    first = all_ranks().own == 0
    fill(_empty[model], model, lambda full: full.cpu() if first else full.to("meta"))
    return _empty[model].cpu() if first else _empty[model]


@torch.no_grad()
def fill(empty: nn.Module, sharded: nn.Module | None, keep: Callable[[Tensor], Tensor]) -> None:
    """Put the weights of a sharded model into another of its kind, one by one; without one, change those that are there."""
    source: Any = dict((sharded or empty).named_parameters(remove_duplicate=False))
    kept: dict[int, nn.Parameter] = {}
    for name, old in list(empty.named_parameters(remove_duplicate=False)):
        if id(old) not in kept:
            number = source[name].full_tensor() if sharded is not None else source[name].detach()
            kept[id(old)] = nn.Parameter(keep(number), requires_grad=False)
        module, _, last = name.rpartition(".")
        empty.get_submodule(module)._parameters[last] = kept[id(old)]
