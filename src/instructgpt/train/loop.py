"""What the stages' loops share: optimizer, one step, losses over microbatches, and sums over several processes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from instructgpt.data.batches import Example, collate, microbatches, token_budget
from instructgpt.errors import BadInput, RunFailed
from instructgpt.models.load import completion_logp

ADAM_BETAS = (0.9, 0.95)
"""Everywhere in the paper (appendix C)."""
GRADIENT_NORM = 1.0


def adam(model: nn.Module, *, weight_decay: float = 0.0, eps: float = 1e-8, memory: Collection[str] = ()) -> torch.optim.Optimizer:
    """AdamW with the paper's betas on what is trained in a model. Weight decay acts on matrices only.

    Raises:
        BadInput: `adam8bit` is among what is done to need less memory, and the library for it is not installed.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim >= 2]
    others = [parameter for parameter in trained if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    kind = eight_bit_adam() if "adam8bit" in memory else torch.optim.AdamW
    return kind(groups, lr=0.0, betas=ADAM_BETAS, eps=eps)


def eight_bit_adam() -> Any:
    """AdamW that keeps its two averages in 8 bits, in blocks with a scale each (Dettmers et al. 2021); small tensors in 32.

    Raises:
        BadInput: the library for it is not installed.
    """
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise BadInput("--memory adam8bit: needs bitsandbytes, which is not installed; pip install 'bitsandbytes>=0.50'") from error
    return AdamW8bit


def descend(optimizer: torch.optim.Optimizer, lr: float) -> float:
    """One optimizer step on the accumulated gradients, clipped. Returns their norm before clipping.

    Raises:
        RunFailed: a gradient is not finite; the weights are left as they were.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.requires_grad]
    if processes() > 1:
        for parameter in parameters:  # a process whose share of the batch was empty has none
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        add_over_processes([parameter.grad for parameter in parameters if parameter.grad is not None])
    norm = float(nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM))
    if not norm < float("inf"):
        raise RunFailed(f"the gradient is {norm}: the learning rate ({lr:.2g}) is likely too high, or the data holds a degenerate row")
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def language_loss(model: Any, examples: Sequence[Example], *, weight: float = 1.0, backward: bool = True, seed: int = 0) -> float:
    """Mean cross-entropy of the completion tokens of a whole batch, in nats, however it is split into microbatches.

    Args:
        model: a policy; examples: this step's batch (every process is given all of it and takes its share).
        weight: factor on the loss whose gradient is accumulated.
        backward: False only measures.
        seed: of the dropout, where the model is in training mode.

    Returns the loss over the whole batch (not multiplied by the weight).

    Raises:
        RunFailed: the loss is not finite.
    """
    total = sum(len(example.completion) for example in examples)
    mine = examples[process() :: processes()]
    device = model.device
    torch.manual_seed(seed * processes() + process())
    loss = torch.zeros((), device=device)
    with torch.set_grad_enabled(backward):
        for rows in microbatches([len(example) for example in mine], token_budget(device)):
            batch = collate([mine[row] for row in rows], device)
            part = -completion_logp(model, batch).sum() / total
            if backward:
                (weight * part).backward()  # type: ignore[no-untyped-call]
            loss += part.detach()
    add_over_processes([loss])
    if not loss.isfinite():
        raise RunFailed(f"the loss is {loss.item()}: the learning rate is likely too high, or the weights it started from are damaged")
    return float(loss)


def state_of(models: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer], **more: Any) -> dict[str, Any]:
    """What a checkpoint holds. Random numbers are functions of seed and step, so no generator is stored."""
    return {
        "models": {k: m.state_dict() for k, m in models.items()},
        "optimizers": {k: o.state_dict() for k, o in optimizers.items()},
    } | more


def load_state(state: dict[str, Any], models: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
    """Put a checkpoint back."""
    for name, model in models.items():
        model.load_state_dict(state["models"][name])
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(state["optimizers"][name])


# --- several processes on one machine ------------------------------------------------------------------------------
# A batch is divided among them and gradients are added, so their number changes no result but rounding. On CPUs two
# processes of one thread each are faster than one process of two threads at the sizes that fit a CPU.


def process() -> int:
    """Number of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def processes() -> int:
    """How many processes work on this stage."""
    return dist.get_world_size() if dist.is_initialized() else 1


def add_over_processes(tensors: Sequence[Tensor]) -> None:
    """Add tensors of all processes, in place."""
    if processes() == 1:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
