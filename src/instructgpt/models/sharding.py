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

from instructgpt.distributed.comm import SHARDED_CALL, any_rank, get_dist_info, uses_nccl
from instructgpt.models.policy import count_parameters
from instructgpt.models.precision import free_gpu_memory

MIN_SHARDED_PARAMETERS = 25_000_000
"""Models of fewer parameters are held whole by every rank (`docs/performance.md`, several processes)."""
MIN_FSDP_GROUP_PARAMETERS = 25_000_000
"""Parameters from which on layers are gathered by themselves. Smaller ones are gathered several at once: each gathering makes all wait."""
MAX_UNSHARDED_MEMORY_SHARE = 0.5
"""Share of the memory there is that the gathered weights of a model may take; where they need more it samples with shards."""

_empty_copies: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()
"""For each sharded model another of the same kind without weights."""
_replicated_parameters = WeakTensorKeyDictionary()
"""Parameters of models that every rank holds whole."""


def shard(*models: Any, memory: Collection[str] = ()) -> None:
    """Divide models among all ranks, in place: layer by layer, then the rest. Optimizers are made afterwards. Small ones stay whole.

    Each rank's part goes to its device, so that no GPU ever holds a whole model that was loaded to the CPU.

    Args:
        models: any that are to compute from now on.
        memory: with `offload` in it parts stay on the CPU, gradients and what the optimizer keeps too, and go to the device to compute.
    """
    offload = "offload" in memory
    if get_dist_info().world_size == 1 and not offload:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (
        CPUOffloadPolicy,
        FSDPModule,
        OffloadPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    device = torch.device("cuda", torch.cuda.current_device()) if uses_nccl() else torch.device("cpu")
    offload_policy = CPUOffloadPolicy(pin_memory=uses_nccl()) if offload else OffloadPolicy()
    for model in models:
        if count_parameters(model) < MIN_SHARDED_PARAMETERS and not offload:
            model.to(device)
            object.__setattr__(model, SHARDED_CALL, _call_function)
            _replicated_parameters.update(dict.fromkeys(model.parameters()))
            continue
        mesh = init_device_mesh(device.type, (get_dist_info().world_size,))
        _empty_copies[model] = _empty_copy(model)
        for layers in layer_groups(model):
            fully_shard(layers, mesh=mesh, reshard_after_forward=True, offload_policy=offload_policy)
        fully_shard(model, mesh=mesh, reshard_after_forward=False, offload_policy=offload_policy)
        _set_compute_device(model, device)
        for module in model.modules():
            if isinstance(
                module, FSDPModule
            ):  # every loss is a share of the whole batch's: gradients are added, not averaged
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        object.__setattr__(model, SHARDED_CALL, _call_function)
        register_fsdp_forward_method(model, SHARDED_CALL)
        object.__setattr__(model, SHARDED_CALL, _reshard_after(getattr(model, SHARDED_CALL), model))


def all_reduce_replicated_grads(trainable: Sequence[Tensor]) -> None:
    """Add the gradients of parameters that every rank has copies of. Those of sharded ones were added in the backward pass."""
    replicated = [parameter for parameter in trainable if parameter in _replicated_parameters]
    if not replicated or get_dist_info().world_size == 1:
        return
    for parameter in replicated:  # a rank whose share was empty has none
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    gradients = [parameter.grad for parameter in replicated if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, chunk in zip(gradients, torch.split(flat, [gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(chunk.view_as(gradient))


def _set_compute_device(model: Any, device: torch.device) -> None:
    """Let a model say that it is where it computes, which is where its inputs have to be, wherever its weights wait."""
    base_model = model.get_base_model() if hasattr(model, "get_base_model") else model
    for module in (base_model, base_model.base_model) if hasattr(base_model, "base_model") else ():
        if module.device != device:
            module_class = type(module)
            module.__class__ = type(
                module_class.__name__, (module_class,), {"device": device, "__module__": module_class.__module__}
            )


def _call_function(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def _reshard_after(method: Callable[..., Any], model: Any) -> Callable[..., Any]:
    """The same method, but weights that no backward pass will need are given up at once, also those of a layer that has failed."""
    fsdp_modules = [module for module in model.modules() if hasattr(module, "reshard")]

    def call(function: Callable[..., Any], *args: Any) -> Any:
        try:
            return method(function, *args)
        finally:
            if not torch.is_grad_enabled():
                for module in fsdp_modules:
                    module.reshard()

    return call


def layer_groups(model: Any) -> list[list[nn.Module]]:
    """Neighbouring layers that are gathered together; none where the whole model is no larger than one group."""
    names = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if count_parameters(model) < MIN_FSDP_GROUP_PARAMETERS:
        return []
    groups: list[list[nn.Module]] = []
    num_parameters = MIN_FSDP_GROUP_PARAMETERS
    for layer in layers:
        if num_parameters >= MIN_FSDP_GROUP_PARAMETERS:
            groups.append([])
            num_parameters = 0
        groups[-1].append(layer)
        num_parameters += sum(parameter.numel() for parameter in layer.parameters())
    return groups


def _empty_copy(model: nn.Module) -> nn.Module:
    """A copy that has everything but numbers in its parameters; shared parameters stay shared."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, memo)


@contextmanager
def unsharded(model: Any) -> Iterator[Any]:
    """The model with all of its weights on every rank, for what is computed by each alone; they are given up afterwards."""
    if model not in _empty_copies:
        with _independent_forwards(model):
            yield model
        return
    full_model, device = _empty_copies[model], model.device
    _copy_sharded_weights(full_model, model, lambda full: full.to(device))
    try:
        yield full_model.to(device)
    finally:
        _copy_sharded_weights(full_model, None, lambda full: full.to("meta"))


def fits_unsharded(model: Any) -> bool:
    """Whether all ranks have room for all weights of a model at once; the same answer on each. All ranks call it.

    On a GPU what is free counts; on a CPU all that the machine has, so that the answer is always the same there.
    """
    if model not in _empty_copies:
        return True
    weight_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    if model.device.type == "cuda":
        available_bytes = float(free_gpu_memory(model.device))
    else:
        local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", get_dist_info().world_size))
        available_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / local_ranks
    return not any_rank(weight_bytes > MAX_UNSHARDED_MEMORY_SHARE * available_bytes)[0]


@contextmanager
def synchronized_forwards(model: Any, idle_forward: Callable[[], object]) -> Iterator[None]:
    """While ranks enter a sharded model, each as often as it has to: whoever is done goes on entering until all are. All ranks call it.

    Every entrance gathers the same weights in the same order, so that one rank may decode a token while another reads prompts.

    Args:
        model: that is sharded.
        idle: computes something with it that nobody reads.
    """
    sharded_call = vars(model)[SHARDED_CALL]

    def call(function: Callable[..., Any], *args: Any) -> Any:
        any_rank(True)
        return sharded_call(function, *args)

    object.__setattr__(model, SHARDED_CALL, call)
    try:
        yield
        while any_rank(False)[0]:
            sharded_call(idle_forward)
    finally:
        object.__setattr__(model, SHARDED_CALL, sharded_call)


@contextmanager
def _independent_forwards(model: Any) -> Iterator[None]:
    """Each rank computes alone with a model that it holds whole."""
    sharded_call = vars(model).pop(SHARDED_CALL, None)
    try:
        yield
    finally:
        if sharded_call is not None:
            object.__setattr__(model, SHARDED_CALL, sharded_call)


def full_model_on_rank0(model: Any) -> Any:
    """The model as it is saved: on rank 0 with all of its weights, on the CPU where it was sharded. All ranks call it."""
    if model not in _empty_copies:
        model_copy = copy.copy(model)  # of the very same weights
        vars(model_copy).pop(SHARDED_CALL, None)
        return model_copy
    is_rank0 = get_dist_info().rank == 0
    _copy_sharded_weights(_empty_copies[model], model, lambda full: full.cpu() if is_rank0 else full.to("meta"))
    return _empty_copies[model].cpu() if is_rank0 else _empty_copies[model]


@torch.no_grad()
def _copy_sharded_weights(
    target: nn.Module, sharded_model: nn.Module | None, convert: Callable[[Tensor], Tensor]
) -> None:
    """Put the weights of a sharded model into another of its kind, one by one; without one, change those that are there."""
    source_parameters: Any = dict((sharded_model or target).named_parameters(remove_duplicate=False))
    new_parameters: dict[int, nn.Parameter] = {}
    for name, old_parameter in list(target.named_parameters(remove_duplicate=False)):
        if id(old_parameter) not in new_parameters:
            tensor = (
                source_parameters[name].full_tensor() if sharded_model is not None else source_parameters[name].detach()
            )
            new_parameters[id(old_parameter)] = nn.Parameter(convert(tensor), requires_grad=False)
        module_name, _, parameter_name = name.rpartition(".")
        target.get_submodule(module_name)._parameters[parameter_name] = new_parameters[id(old_parameter)]
