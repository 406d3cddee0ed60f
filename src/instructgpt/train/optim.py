"""Optimizer, optimizer step, language-model loss, best checkpoint and training state shared by the stage loops."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from rich.markup import escape
from torch import nn
from torch.distributed.tensor import DTensor

from instructgpt.data.packing import MICROBATCH_TOKENS, TokenizedExample, collate, microbatches, token_budget
from instructgpt.distributed.comm import (
    all_reduce_sum,
    get_dist_info,
    get_model_dist_info,
    nonfinite_ranks_suffix,
    pad_steps,
    shard_by_length,
)
from instructgpt.errors import InputError, RunError
from instructgpt.models.execution import enable_cuda_graphs, execution_path
from instructgpt.models.loading import model_notices, saved_dtype, set_saved_dtype
from instructgpt.models.policy import completion_logp, pick_device
from instructgpt.models.precision import bf16_warning, compute_device
from instructgpt.models.quantization import check_quantization
from instructgpt.models.sharding import all_reduce_replicated_grads
from instructgpt.run.checkpoints import load_tensors
from instructgpt.run.directory import RunDirectory
from instructgpt.run.timing import PHASE_TIMER
from instructgpt.train.configs import OptimizerConfig

ADAM_BETAS = (0.9, 0.95)  # appendix C, all stages


def get_stage_device(run: RunDirectory) -> torch.device:
    """Return the device to load a stage's models to, and warn where bf16 is slow on it."""
    enable_cuda_graphs(getattr(run.config, "cuda_graphs", True))
    device = pick_device(run.config.device, run.config.memory)
    if "4bit" in run.config.memory:
        check_quantization(device)
    run.summary["microbatch_tokens"] = dict(MICROBATCH_TOKENS)
    if warning := bf16_warning(device, run.config.memory):
        run.info(warning)
    return device


def report_models(run: RunDirectory, **models: Any) -> None:
    """Print how each model of a stage is computed, and keep it for `run.json`; set the type that it is saved in."""
    for name, model in models.items():
        if run.config.save_dtype != "base":
            set_saved_dtype(model, run.config.save_dtype)
        path = execution_path(model, sampled=name == "policy")
        for text in (str(path), *model_notices(model)):
            run.info(f"{name}: {escape(text)}")
        run.summary.setdefault("execution", {})[name] = path.as_record()
    saved = {str(saved_dtype(model)).removeprefix("torch.") for model in models.values()} - {"float32"}
    if saved and run.config.save_dtype == "base":
        types = ", ".join(sorted(saved))
        run.info(f"weights are saved in {types}, the base's type; --save-dtype float32 keeps all their digits")


def build_optimizer(
    model: nn.Module,
    *,
    weight_decay: float = 0.0,
    eps: float = 1e-8,
    memory: Collection[str] = (),
    excluded: Iterable[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """Build AdamW with the paper's betas on the trainable parameters but those `excluded`; weight decay acts on
    matrices only.
    """
    other_ids = set(map(id, excluded))
    trainable = [p for p in model.parameters() if p.requires_grad and id(p) not in other_ids]
    matrices = [parameter for parameter in trainable if parameter.ndim >= 2]
    vectors = [parameter for parameter in trainable if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    if {"adam8bit", "offload"} <= set(memory):
        raise InputError("--memory adam8bit does not work with offload, which runs Adam on the CPU; drop one of them")
    if "adam8bit" in memory:
        optimizer: torch.optim.Optimizer = _load_adam8bit()(groups, lr=0.0, betas=ADAM_BETAS, eps=eps)
        return optimizer
    return torch.optim.AdamW(groups, lr=0.0, betas=ADAM_BETAS, eps=eps, fused=True)


def build_stage_optimizers(
    config: OptimizerConfig, model: Any, *, weight_decay: float = 0.0
) -> dict[str, torch.optim.Optimizer]:
    """Build the optimizers that `config` names; their names are those of checkpoints."""
    if config.optimizer == "muon":
        ratio = config.muon_lr / config.lr
        return build_muon(model, lr_ratio=ratio, weight_decay=weight_decay, memory=config.memory)
    return {"adam": build_optimizer(model, weight_decay=weight_decay, memory=config.memory)}


def build_muon(
    model: Any, *, lr_ratio: float, weight_decay: float = 0.0, memory: Collection[str] = ()
) -> dict[str, torch.optim.Optimizer]:
    """Build Muon (Jordan et al. 2024) for the matrices of the layers, and AdamW for all other parameters.

    Muon orthogonalizes the momentum of each matrix, so every rank must hold whole matrices.

    Args:
        model: any model of transformers; its layers are the modules in a `ModuleList`.
        lr_ratio: learning rate of Muon divided by AdamW's.
        weight_decay: decay of the matrices, relative to each optimizer's learning rate.
        memory: memory savings; Muon knows none of Adam's.

    Raises:
        InputError: the model is sharded.
    """
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    parameters = {id(p): p for stack in stacks for p in stack.parameters() if p.requires_grad and p.ndim == 2}
    matrices = list(parameters.values())
    if any(isinstance(parameter, DTensor) for parameter in matrices):
        raise InputError("--optimizer muon needs whole matrices, and this model is sharded; use adamw")
    muon = torch.optim.Muon([{"params": matrices, "lr_ratio": lr_ratio}], lr=0.0, weight_decay=weight_decay)
    return {"adam": build_optimizer(model, weight_decay=weight_decay, memory=memory, excluded=matrices), "muon": muon}


def _load_adam8bit() -> Any:
    """Import AdamW with block-wise 8-bit moments (Dettmers et al. 2021); small tensors keep 32 bits."""
    if get_dist_info().world_size > 1:  # bitsandbytes does not know DTensor
        raise InputError("--memory adam8bit does not work with several ranks, which shard Adam's state; drop it")
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise InputError("--memory adam8bit needs bitsandbytes; run: pip install 'bitsandbytes>=0.50'") from error
    return AdamW8bit


def optimizer_step(
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer], lr: float, max_norm: float = 1.0
) -> float:
    """Clip the accumulated gradients, step, and return the norm before clipping. Raise RunError if it is not finite.

    Several optimizers share one norm. A group's `lr_ratio` multiplies the learning rate. A `max_norm` of 0 clips
    nothing.
    """
    optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else optimizer
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    parameters = [p for group in groups for p in group["params"] if p.requires_grad]
    with PHASE_TIMER("optimizer"):
        all_reduce_replicated_grads(parameters)
        total_norm = nn.utils.clip_grad_norm_(parameters, max_norm or float("inf"))
        norm = float(total_norm.full_tensor() if isinstance(total_norm, DTensor) else total_norm)
        if not norm < float("inf"):  # also true for NaN
            cause = f"the learning rate ({lr:.2g}) is likely too high, or the data contains a degenerate row"
            raise RunError(f"the gradient norm is {norm}: {cause}")
        for group in groups:
            group["lr"] = lr * group.get("lr_ratio", 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    return norm


def lm_loss(
    model: Any, examples: Sequence[TokenizedExample], *, weight: float = 1.0, backward: bool = True, seed: int = 0
) -> float:
    """Return the mean cross-entropy of a batch's completion tokens, in nats; accumulate `weight` times its gradient.

    Every rank passes the whole batch. Microbatches and ranks do not change the result, except for the dropout that
    `seed` fixes. Raises RunError if the loss is not finite.
    """
    token_count = sum(len(example.completion_ids) for example in examples)
    device, dist_info = compute_device(model), get_model_dist_info(model)
    examples = [examples[row] for row in shard_by_length([len(example) for example in examples], dist_info)]
    # Seeded per step and rank: a resumed run draws the same dropout without a stored generator.
    torch.manual_seed(seed * dist_info.world_size + dist_info.rank)
    rank_loss = torch.zeros((), device=device)
    groups = microbatches([len(example) for example in examples], token_budget(device))
    with torch.set_grad_enabled(backward):
        for rows in pad_steps(groups, dist_info):
            batch = collate([examples[row] for row in rows], device)
            with PHASE_TIMER("forward" if backward else "validation", len(batch.input_ids)):
                loss = -completion_logp(model, batch).sum() / token_count
            if backward:
                with PHASE_TIMER("backward", len(batch.input_ids)):
                    (weight * loss).backward()  # type: ignore[no-untyped-call]
            rank_loss += loss.detach()
    total = all_reduce_sum(rank_loss.clone(), dist_info)
    if not total.isfinite():
        cause = "the learning rate is likely too high, or the initial weights are damaged"
        raise RunError(f"the loss is {total.item()}{nonfinite_ranks_suffix(rank_loss, dist_info)}: {cause}")
    return float(total)


class BestCheckpoint:
    """The weights a stage saves: the best by a validation metric, or with `keep="last"` the final ones."""

    def __init__(self, model: nn.Module, keep: Literal["best", "last"], state: Mapping[str, Any] | None = None) -> None:
        self.model, self.keep = model, keep
        self.metric, self.position = float("-inf"), 0
        self.weights: dict[str, Any] = {}
        if state:
            self.metric, self.position = state["quality"], state["place"]
            self.weights = load_tensors(state["weights"], model.state_dict())

    def update(self, metric: float, position: int) -> None:
        """Copy the weights if `metric` beats all before (NaN never does); `position` is the step or epoch."""
        if self.keep == "last":
            self.position = position
        elif metric > self.metric:
            self.metric, self.position, self.weights = metric, position, copy.deepcopy(self.model.state_dict())

    def state_dict(self) -> dict[str, Any]:
        return {"quality": self.metric, "place": self.position, "weights": self.weights}

    def restore(self) -> None:
        """Load the best weights into the model."""
        if self.weights:
            self.model.load_state_dict(self.weights)


def get_training_state(
    models: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer], **extra: Any
) -> dict[str, Any]:
    """Return a checkpoint's contents. Random numbers depend on seed and step only, so no generator is stored."""
    states = {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
    return {
        "models": {name: model.state_dict() for name, model in models.items()},
        # state.json has string keys only
        "optimizers": {name: {str(i): state for i, state in states[name]["state"].items()} for name in states},
        "groups": {name: state["param_groups"] for name, state in states.items()},
    } | extra


def load_training_state(
    state: dict[str, Any], models: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> None:
    """Load a checkpoint into models and optimizers, resharded to the current number of ranks."""
    for name, model in models.items():
        model.load_state_dict(load_tensors(state["models"][name], model.state_dict()))
    for name, optimizer in optimizers.items():
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        saved = state["optimizers"][name].items()
        states = {int(i): load_tensors(tensors, parameters[int(i)]) for i, tensors in saved}
        optimizer.load_state_dict({"state": states, "param_groups": state["groups"][name]})
