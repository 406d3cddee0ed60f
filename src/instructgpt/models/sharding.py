"""Models sharded over ranks: each rank holds a part of every weight, and gathers the other parts while it computes.

Sharding is torch's FSDP2 (`fully_shard` over a device mesh). A model is sharded once, after loading, and gathered for
what needs all of it: saving, and sampling where memory allows. With one rank nothing is done, unless the weights wait
on the CPU and come to the GPU layer by layer (`--memory offload`), which is a shard of one. Small models are not worth
the communication: every rank holds all their weights, and gradients are all-reduced before a step.
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

from instructgpt.distributed.comm import SHARDED_CALL, any_rank, get_dist_info, is_sharded, uses_nccl
from instructgpt.models.loading import saved_dtype, set_saved_dtype
from instructgpt.models.lora import get_backbone
from instructgpt.models.policy import count_parameters
from instructgpt.models.precision import (
    COMPUTE_DEVICE,
    compute_device,
    free_gpu_memory,
    hold_frozen_in_bf16,
    matrix_layers,
)

MIN_SHARDED_PARAMETERS = 25_000_000
"""Models of fewer parameters are replicated (`docs/explanation/performance.md`, several processes)."""
MIN_FSDP_GROUP_PARAMETERS = 25_000_000
"""Layers are gathered in groups of at least so many parameters, because every gathering makes all ranks wait."""
MAX_UNSHARDED_MEMORY_SHARE = 0.5
"""Share of the memory that gathered weights may take; a model that needs more samples with sharded weights."""

_empty_copies: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()
"""For each sharded model a copy without weights, into which they are gathered."""
_gathered_in_bf16: WeakKeyDictionary[nn.Module, frozenset[str]] = WeakKeyDictionary()
"""For each sharded model the names of the parameters that FSDP gathers in bf16."""
_replicated_parameters = WeakTensorKeyDictionary()
"""Parameters of models that every rank holds in full."""


def shard(*models: Any, memory: Collection[str] = (), gather_in_bf16: bool = True) -> None:
    """Shard models over all ranks, in place: groups of layers, then the rest. Small models are replicated.

    Call it before the optimizers are made. Each rank's part goes to its device; no GPU ever holds a whole model.

    Args:
        models: causal models, reward models or value models, loaded on the CPU.
        memory: with `offload`, weights, gradients and optimizer state stay on the CPU; a GPU computes.
        gather_in_bf16: whether layers of a model that computes in bf16 are gathered in bf16, norms included; gradients
            are added up in float32. False where the model will compute in float32 later.
    """
    offload = "offload" in memory
    if get_dist_info().world_size == 1 and not offload:
        return
    device = _shard_device()
    for model in models:
        # where rank 0 alone has read the weights: its parameters before sharding, which it then hands out
        filled = any_rank(any(parameter.is_meta for parameter in model.parameters()))[0]
        full_weights = dict(model.named_parameters()) if filled and get_dist_info().rank == 0 else {}
        if count_parameters(model) < MIN_SHARDED_PARAMETERS and not offload:
            if filled:
                _allocate_weights(model, device)
            model.to(device)
            if filled:
                _receive_weights(model, full_weights)
            object.__setattr__(model, SHARDED_CALL, _call_function)
            _replicated_parameters.update(dict.fromkeys(model.parameters()))
            continue
        _fully_shard(model, device, offload, gather_in_bf16)
        if filled:
            _allocate_weights(model, torch.device("cpu") if offload else device)
            _receive_weights(model, full_weights)
            _copy_buffers(_empty_copies[model], dict(model.named_buffers()))


def copy_model(model: Any, *, trainable: bool, memory: Collection[str] = ()) -> Any:
    """Return a copy of a model, sharded as it is: each rank copies its own part, and no weights are gathered.

    Args:
        model: a model that `shard` has had, without adapters.
        trainable: whether the copy's parameters get gradients.
        memory: as for `shard`.
    """
    if model not in _empty_copies:
        full_copy = copy.deepcopy(model).requires_grad_(trainable)
        if not trainable:
            hold_frozen_in_bf16(full_copy)
        if is_sharded(model):
            _replicated_parameters.update(dict.fromkeys(full_copy.parameters()))
        return full_copy
    offload = "offload" in memory
    sharded_copy = copy.deepcopy(_empty_copies[model]).requires_grad_(trainable)
    if not trainable:
        hold_frozen_in_bf16(sharded_copy)
    _fully_shard(sharded_copy, _shard_device(), offload, gather_in_bf16=True)
    _allocate_weights(sharded_copy, torch.device("cpu") if offload else _shard_device())
    with torch.no_grad():
        for name, part in sharded_copy.named_parameters():
            part.copy_(model.get_parameter(name))
    return sharded_copy


def copy_weights(module: nn.Module) -> nn.Module:
    """Return a frozen copy of a model's weights, each rank's part of them, to average or to keep: not to compute with.

    Args:
        module: a model, or what trains of one with adapters.
    """
    if module not in _empty_copies:
        return copy.deepcopy(module).requires_grad_(False)
    weights = copy.deepcopy(_empty_copies[module])
    parts: dict[int, nn.Parameter] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        part = parts.setdefault(id(parameter), nn.Parameter(parameter.detach().clone(), requires_grad=False))
        module_name, _, parameter_name = name.rpartition(".")
        weights.get_submodule(module_name)._parameters[parameter_name] = part
    return weights


def _shard_device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if uses_nccl() else torch.device("cpu")


def _fully_shard(model: Any, device: torch.device, offload: bool, gather_in_bf16: bool) -> None:
    """Apply FSDP2 to groups of layers, then to the rest of a model, in place.

    The rest (embeddings, last norm, head) computes in float32, so it is gathered in float32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (
        CPUOffloadPolicy,
        FSDPModule,
        MixedPrecisionPolicy,
        OffloadPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    offload_policy = CPUOffloadPolicy(pin_memory=uses_nccl()) if offload else OffloadPolicy()
    mesh = init_device_mesh(device.type, (get_dist_info().world_size,))
    _empty_copies[model] = _empty_copy(model)
    groups, precision = layer_groups(model), MixedPrecisionPolicy()
    if gather_in_bf16 and getattr(get_backbone(model), "computes_in_bf16", False):
        precision = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        ids = {id(parameter) for layers in groups for layer in layers for parameter in layer.parameters()}
        named = model.named_parameters(remove_duplicate=False)
        _gathered_in_bf16[model] = frozenset(name for name, parameter in named if id(parameter) in ids)
    for layers in groups:
        fully_shard(layers, mesh=mesh, reshard_after_forward=True, offload_policy=offload_policy, mp_policy=precision)
    fully_shard(model, mesh=mesh, reshard_after_forward=False, offload_policy=offload_policy)
    _set_compute_device(model, device)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # the loss of a rank is a share of the whole batch's: gradients are summed, not averaged
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    # FSDP gathers weights around the forward method alone; our functions enter the model by this one instead
    object.__setattr__(model, SHARDED_CALL, _call_function)
    register_fsdp_forward_method(model, SHARDED_CALL)
    object.__setattr__(model, SHARDED_CALL, _reshard_after(getattr(model, SHARDED_CALL), model))


def _allocate_weights(model: nn.Module, device: torch.device) -> None:
    """Replace parameters on the device `meta` by memory on a device; sharded ones by that of this rank's part."""
    if not any(parameter.is_meta for parameter in model.parameters()):
        return
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    model.to_empty(device=device)
    for first, *shared in names.values():  # parameters that modules share have become several
        for name in shared:
            module_name, _, parameter_name = name.rpartition(".")
            model.get_submodule(module_name)._parameters[parameter_name] = model.get_parameter(first)
    _copy_buffers(model, buffers)


@torch.no_grad()
def _copy_buffers(target: nn.Module, buffers: dict[str, Tensor]) -> None:
    for name, buffer in target.named_buffers():
        buffer.copy_(buffers[name])


@torch.no_grad()
def _receive_weights(model: nn.Module, full_weights: dict[str, Any]) -> None:
    """Give every rank its weights, or its part of them, one parameter after the other; rank 0 has `full_weights`.

    A parameter is taken out of `full_weights` when it is handed out, so that its memory is free again.
    """
    from torch.distributed.tensor import DTensor, distribute_tensor

    saved_names = set(model.state_dict())
    for name, parameter in model.named_parameters():
        full = full_weights.pop(name, None)
        if isinstance(parameter, DTensor):
            mesh = parameter.device_mesh
            # other ranks give a tensor of the right shape, whose memory is never touched
            source = torch.empty(parameter.shape, dtype=parameter.dtype) if full is None else full.detach()
            part = distribute_tensor(source.to(mesh.device_type), mesh, parameter.placements)
            parameter.to_local().copy_(part.to_local())
        else:
            dist.broadcast(parameter.data, 0)
    for name, buffer in model.named_buffers():
        if name in saved_names:
            dist.broadcast(buffer, 0)


def all_reduce_replicated_grads(trainable: Sequence[Tensor]) -> None:
    """Sum gradients of replicated parameters over ranks. FSDP sums those of sharded ones in the backward pass."""
    replicated = [parameter for parameter in trainable if parameter in _replicated_parameters]
    if not replicated or get_dist_info().world_size == 1:
        return
    for parameter in replicated:  # a rank without rows has no gradients, but takes part
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    gradients = [parameter.grad for parameter in replicated if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, chunk in zip(gradients, torch.split(flat, [gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(chunk.view_as(gradient))


def _set_compute_device(model: Any, device: torch.device) -> None:
    base_model = model.get_base_model() if hasattr(model, "get_base_model") else model
    for module in (model, base_model, getattr(base_model, "base_model", None)):
        if module is not None:
            object.__setattr__(module, COMPUTE_DEVICE, device)


def _call_function(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def _reshard_after(method: Callable[..., Any], model: Any) -> Callable[..., Any]:
    """Wrap a method to free gathered weights at once where no backward pass needs them, after an error too."""
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
    """Group neighboring layers that are gathered together; none where the whole model is smaller than one group."""
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
        num_parameters += count_parameters(layer)
    return groups


def _empty_copy(model: nn.Module) -> nn.Module:
    """Copy a model with its parameters on the device `meta`; shared parameters stay shared."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, memo)


@contextmanager
def unsharded(model: Any) -> Iterator[Any]:
    """Gather all weights on every rank, for work that each rank does alone; free them afterwards."""
    if model not in _empty_copies:
        with _independent_forwards(model):
            yield model
        return
    full_model, device = _empty_copies[model], compute_device(model)
    _copy_sharded_weights(full_model, model, lambda full: full.to(device), _gathered_in_bf16.get(model, frozenset()))
    try:
        yield full_model.to(device)
    finally:
        _copy_sharded_weights(full_model, None, lambda full: full.to("meta"))


def fits_unsharded(model: Any) -> bool:
    """Return whether every rank has memory for all weights of a model. The same answer on each; all ranks call it.

    On a GPU free memory counts; on a CPU all memory of the machine, so that the answer does not change from run to run.
    """
    if model not in _empty_copies:
        return True
    weight_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    device = compute_device(model)
    if device.type == "cuda":
        available_bytes = float(free_gpu_memory(device))
    else:
        local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", get_dist_info().world_size))
        available_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / local_ranks
    return not any_rank(weight_bytes > MAX_UNSHARDED_MEMORY_SHARE * available_bytes)[0]


@contextmanager
def synchronized_forwards(model: Any, idle_forward: Callable[[], object]) -> Iterator[None]:
    """Let ranks call a sharded model different numbers of times; a rank that is done runs idle forwards until all are.

    Each call gathers the same weights in the same order, so one rank may decode while another prefills. All call it.

    Args:
        model: a sharded model.
        idle_forward: a forward pass whose result is dropped.
    """
    sharded_call = vars(model)[SHARDED_CALL]

    def call(function: Callable[..., Any], *args: Any) -> Any:
        any_rank(True)  # meets the loop below on ranks that are done
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
    """Let each rank compute alone with a replicated model."""
    sharded_call = vars(model).pop(SHARDED_CALL, None)
    try:
        yield
    finally:
        if sharded_call is not None:
            object.__setattr__(model, SHARDED_CALL, sharded_call)


def full_model_on_rank0(model: Any) -> Any:
    """Return the model to save: on rank 0 with all weights, on the CPU where it was sharded. All ranks call it."""
    if model not in _empty_copies:
        model_copy = copy.copy(model)  # shares its weights
        vars(model_copy).pop(SHARDED_CALL, None)
        return model_copy
    is_rank0 = get_dist_info().rank == 0
    set_saved_dtype(_empty_copies[model], saved_dtype(model))  # an option may have set it after sharding
    _copy_sharded_weights(_empty_copies[model], model, lambda full: full.cpu() if is_rank0 else full.to("meta"))
    return _empty_copies[model].cpu() if is_rank0 else _empty_copies[model]


@torch.no_grad()
def _copy_sharded_weights(
    target: nn.Module,
    source: nn.Module | None,
    convert: Callable[[Tensor], Tensor],
    gathered_in_bf16: Collection[str] = (),
) -> None:
    """Replace the weights of `target` one by one: by those of a sharded model, or its own where None; converted.

    Those gathered in bf16 are the numbers that training computes with; matrices stay in bf16.
    """
    source_parameters: Any = dict((source or target).named_parameters(remove_duplicate=False))
    matrices = {id(p) for layer in matrix_layers(target) for p in layer.parameters(recurse=False)}
    new_parameters: dict[int, nn.Parameter] = {}
    for name, old_parameter in list(target.named_parameters(remove_duplicate=False)):
        if id(old_parameter) not in new_parameters:
            parameter = source_parameters[name].detach()
            if name in gathered_in_bf16:
                full = parameter.to(torch.bfloat16).full_tensor()
                tensor = full if id(old_parameter) in matrices else full.float()
            else:
                tensor = parameter if source is None else parameter.full_tensor()
            new_parameters[id(old_parameter)] = nn.Parameter(convert(tensor), requires_grad=False)
        module_name, _, parameter_name = name.rpartition(".")
        target.get_submodule(module_name)._parameters[parameter_name] = new_parameters[id(old_parameter)]
