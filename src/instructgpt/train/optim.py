"""What the stages' loops share: optimizer, one step, losses over microbatches, and what a checkpoint holds."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from instructgpt.data.packing import TokenizedExample, collate, microbatches, token_budget
from instructgpt.distributed.comm import (
    all_reduce_sum,
    get_dist_info,
    get_model_dist_info,
    nonfinite_ranks_suffix,
    pad_steps,
    shard_by_length,
)
from instructgpt.errors import InputError, RunError
from instructgpt.models.policy import completion_logp, pick_device
from instructgpt.models.precision import bf16_warning
from instructgpt.models.sharding import all_reduce_replicated_grads
from instructgpt.run.checkpoints import load_tensors
from instructgpt.run.directory import RunDirectory
from instructgpt.run.timing import PHASE_TIMER

ADAM_BETAS = (0.9, 0.95)
"""Everywhere in the paper (appendix C)."""
MAX_GRADIENT_NORM = 1.0


def get_stage_device(run: RunDirectory) -> torch.device:
    """The device a stage's models are loaded to; says so where what was asked for is slow on it. Raises BadInput where it is not there."""
    device = pick_device(run.config.device, run.config.memory)
    if warning := bf16_warning(device, run.config.memory):
        run.info(warning)
    return device


def build_optimizer(
    model: nn.Module, *, weight_decay: float = 0.0, eps: float = 1e-8, memory: Collection[str] = ()
) -> torch.optim.Optimizer:
    """AdamW with the paper's betas on what is trained in a model. Weight decay acts on matrices only.

    Raises:
        BadInput: `adam8bit` is among what is done to need less memory, and does not go with the rest, or is not installed.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trainable if parameter.ndim >= 2]
    vectors = [parameter for parameter in trainable if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    if {"adam8bit", "offload"} <= set(memory):
        raise InputError(
            "--memory adam8bit: not with offload, whose Adam computes on the CPU; leave one of the words out"
        )
    if "adam8bit" in memory:
        optimizer: torch.optim.Optimizer = _load_adam8bit()(groups, lr=0.0, betas=ADAM_BETAS, eps=eps)
        return optimizer
    return torch.optim.AdamW(groups, lr=0.0, betas=ADAM_BETAS, eps=eps, fused=True)


def _load_adam8bit() -> Any:
    """AdamW that keeps its two averages in 8 bits, in blocks with a scale each (Dettmers et al. 2021); small tensors in 32.

    Raises:
        BadInput: the library for it is not installed, or there are several ranks, whose divided weights it does not know.
    """
    if get_dist_info().world_size > 1:
        raise InputError(
            "--memory adam8bit: not with several ranks, which divide what Adam keeps among them already; leave the word out"
        )
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise InputError(
            "--memory adam8bit: needs bitsandbytes, which is not installed; pip install 'bitsandbytes>=0.50'"
        ) from error
    return AdamW8bit


def optimizer_step(optimizer: torch.optim.Optimizer, lr: float) -> float:
    """One optimizer step on the accumulated gradients, clipped. Returns their norm before clipping.

    Raises:
        RunFailed: a gradient is not finite; the weights are left as they were.
    """
    parameters = [
        parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.requires_grad
    ]
    with PHASE_TIMER("optimizer"):
        all_reduce_replicated_grads(parameters)
        total_norm = nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        norm = float(total_norm.full_tensor() if isinstance(total_norm, DTensor) else total_norm)
        if not norm < float("inf"):
            raise RunError(
                f"the gradient is {norm}: the learning rate ({lr:.2g}) is likely too high, or the data holds a degenerate row"
            )
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return norm


def lm_loss(
    model: Any, examples: Sequence[TokenizedExample], *, weight: float = 1.0, backward: bool = True, seed: int = 0
) -> float:
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
    token_count = sum(len(example.completion_ids) for example in examples)
    device, dist_info = model.device, get_model_dist_info(model)
    rank_examples = [examples[row] for row in shard_by_length([len(example) for example in examples], dist_info)]
    torch.manual_seed(seed * dist_info.world_size + dist_info.rank)
    rank_loss = torch.zeros((), device=device)
    with torch.set_grad_enabled(backward):
        for rows in pad_steps(
            microbatches([len(example) for example in rank_examples], token_budget(device)), dist_info
        ):
            batch = collate([rank_examples[row] for row in rows], device)
            with PHASE_TIMER("forward" if backward else "validation", len(batch.input_ids)):
                microbatch_loss = -completion_logp(model, batch).sum() / token_count
            if backward:
                with PHASE_TIMER("backward", len(batch.input_ids)):
                    (weight * microbatch_loss).backward()  # type: ignore[no-untyped-call]
            rank_loss += microbatch_loss.detach()
    loss = all_reduce_sum(rank_loss.clone(), dist_info)
    if not loss.isfinite():
        ranks_suffix = nonfinite_ranks_suffix(rank_loss, dist_info)
        raise RunError(
            f"the loss is {loss.item()}{ranks_suffix}: the learning rate is likely too high, or the weights it started from are damaged"
        )
    return float(loss)


class BestCheckpoint:
    """The weights that a stage saves: those that validated best so far, or the last ones. Without `best` it keeps nothing."""

    def __init__(self, model: nn.Module, keep: Literal["best", "last"], state: Mapping[str, Any] | None = None) -> None:
        """Begin, or go on from what a checkpoint holds.

        Args:
            model: what is trained; keep: which of its weights are wanted.
            state: what `state` said.
        """
        self.model, self.keep = model, keep
        self.metric, self.position = float("-inf"), 0
        self.weights: dict[str, Any] = {}
        if state:
            self.metric, self.position = state["quality"], state["place"]
            self.weights = load_tensors(state["weights"], model.state_dict())

    def update(self, metric: float, position: int) -> None:
        """Remember the weights as they are at this step or epoch, if they validate better than all before. NaN is never better."""
        if self.keep == "last":
            self.position = position
        elif metric > self.metric:
            self.metric, self.position, self.weights = metric, position, copy.deepcopy(self.model.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"quality": self.metric, "place": self.position, "weights": self.weights}

    def restore(self) -> None:
        """Give the model the best weights."""
        if self.weights:
            self.model.load_state_dict(self.weights)


def get_training_state(
    models: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer], **extra: Any
) -> dict[str, Any]:
    """What a checkpoint holds. Random numbers are functions of seed and step, so no generator is stored."""
    optimizer_states = {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
    return {
        "models": {name: model.state_dict() for name, model in models.items()},
        "optimizers": {
            name: {
                str(parameter_index): parameter_state
                for parameter_index, parameter_state in optimizer_state["state"].items()
            }
            for name, optimizer_state in optimizer_states.items()
        },
        "groups": {name: optimizer_state["param_groups"] for name, optimizer_state in optimizer_states.items()},
    } | extra


def load_training_state(
    state: dict[str, Any], models: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> None:
    """Put a checkpoint back, divided as the models are now."""
    for name, model in models.items():
        model.load_state_dict(load_tensors(state["models"][name], model.state_dict()))
    for name, optimizer in optimizers.items():
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        parameter_states = {
            int(parameter_index): load_tensors(parameter_state, parameters[int(parameter_index)])
            for parameter_index, parameter_state in state["optimizers"][name].items()
        }
        optimizer.load_state_dict({"state": parameter_states, "param_groups": state["groups"][name]})
