"""What the stages' loops share: optimizer, one step, losses over microbatches, and what a checkpoint holds."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from instructgpt.data.packing import Example, collate, microbatches, token_budget
from instructgpt.distributed.comm import add_up, all_ranks, in_step, ranks_of, share, where_not_finite
from instructgpt.errors import BadInput, RunFailed
from instructgpt.models.policy import completion_logp, pick_device
from instructgpt.models.precision import slow_here
from instructgpt.models.sharding import add_gradients
from instructgpt.run.checkpoints import placed
from instructgpt.run.directory import Run
from instructgpt.run.timing import PHASES

ADAM_BETAS = (0.9, 0.95)
"""Everywhere in the paper (appendix C)."""
GRADIENT_NORM = 1.0


def device_of(run: Run) -> torch.device:
    """The device a stage's models are loaded to; says so where what was asked for is slow on it. Raises BadInput where it is not there."""
    device = pick_device(run.config.device, run.config.memory)
    if warning := slow_here(device, run.config.memory):
        run.say(warning)
    return device


def adam(model: nn.Module, *, weight_decay: float = 0.0, eps: float = 1e-8, memory: Collection[str] = ()) -> torch.optim.Optimizer:
    """AdamW with the paper's betas on what is trained in a model. Weight decay acts on matrices only.

    Raises:
        BadInput: `adam8bit` is among what is done to need less memory, and does not go with the rest, or is not installed.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim >= 2]
    others = [parameter for parameter in trained if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    if {"adam8bit", "offload"} <= set(memory):
        raise BadInput("--memory adam8bit: not with offload, whose Adam computes on the CPU; leave one of the words out")
    if "adam8bit" in memory:
        small: torch.optim.Optimizer = eight_bit_adam()(groups, lr=0.0, betas=ADAM_BETAS, eps=eps)
        return small
    return torch.optim.AdamW(groups, lr=0.0, betas=ADAM_BETAS, eps=eps, fused=True)


def eight_bit_adam() -> Any:
    """AdamW that keeps its two averages in 8 bits, in blocks with a scale each (Dettmers et al. 2021); small tensors in 32.

    Raises:
        BadInput: the library for it is not installed, or there are several ranks, whose divided weights it does not know.
    """
    if all_ranks().total > 1:
        raise BadInput("--memory adam8bit: not with several ranks, which divide what Adam keeps among them already; leave the word out")
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
    with PHASES("optimizer"):
        add_gradients(parameters)
        total = nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM)
        norm = float(total.full_tensor() if isinstance(total, DTensor) else total)
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
        model: a policy; examples: this step's batch (every rank is given all of it and takes its share).
        weight: factor on the loss whose gradient is accumulated.
        backward: False only measures.
        seed: of the dropout, where the model is in training mode.

    Returns the loss over the whole batch (not multiplied by the weight).

    Raises:
        RunFailed: the loss is not finite.
    """
    total = sum(len(example.completion) for example in examples)
    device, ranks = model.device, ranks_of(model)
    mine = [examples[row] for row in share([len(example) for example in examples], ranks)]
    torch.manual_seed(seed * ranks.total + ranks.own)
    own = torch.zeros((), device=device)
    with torch.set_grad_enabled(backward):
        for rows in in_step(microbatches([len(example) for example in mine], token_budget(device)), ranks):
            batch = collate([mine[row] for row in rows], device)
            with PHASES("forward" if backward else "validation", len(batch.tokens)):
                part = -completion_logp(model, batch).sum() / total
            if backward:
                with PHASES("backward", len(batch.tokens)):
                    (weight * part).backward()  # type: ignore[no-untyped-call]
            own += part.detach()
    loss = add_up(own.clone(), ranks)
    if not loss.isfinite():
        where = where_not_finite(own, ranks)
        raise RunFailed(
            f"the loss is {loss.item()}{where}: the learning rate is likely too high, or the weights it started from are damaged"
        )
    return float(loss)


class Best:
    """The weights that a stage saves: those that validated best so far, or the last ones. Without `best` it keeps nothing."""

    def __init__(self, model: nn.Module, keep: Literal["best", "last"], state: Mapping[str, Any] | None = None) -> None:
        """Begin, or go on from what a checkpoint holds.

        Args:
            model: what is trained; keep: which of its weights are wanted.
            state: what `state` said.
        """
        self.model, self.keep = model, keep
        self.quality, self.place = float("-inf"), 0
        self.weights: dict[str, Any] = {}
        if state:
            self.quality, self.place = state["quality"], state["place"]
            self.weights = placed(state["weights"], model.state_dict())

    def judge(self, quality: float, place: int) -> None:
        """Remember the weights as they are at this step or epoch, if they validate better than all before. NaN is never better."""
        if self.keep == "last":
            self.place = place
        elif quality > self.quality:
            self.quality, self.place, self.weights = quality, place, copy.deepcopy(self.model.state_dict())

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"quality": self.quality, "place": self.place, "weights": self.weights}

    def put_back(self) -> None:
        """Give the model the best weights."""
        if self.weights:
            self.model.load_state_dict(self.weights)


def state_of(models: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer], **more: Any) -> dict[str, Any]:
    """What a checkpoint holds. Random numbers are functions of seed and step, so no generator is stored."""
    held = {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
    return {
        "models": {name: model.state_dict() for name, model in models.items()},
        "optimizers": {name: {str(number): numbers for number, numbers in one["state"].items()} for name, one in held.items()},
        "groups": {name: one["param_groups"] for name, one in held.items()},
    } | more


def load_state(state: dict[str, Any], models: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
    """Put a checkpoint back, divided as the models are now."""
    for name, model in models.items():
        model.load_state_dict(placed(state["models"][name], model.state_dict()))
    for name, optimizer in optimizers.items():
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        held = {int(number): placed(numbers, parameters[int(number)]) for number, numbers in state["optimizers"][name].items()}
        optimizer.load_state_dict({"state": held, "param_groups": state["groups"][name]})
