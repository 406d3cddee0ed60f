"""`dpo`: direct preference optimization on the rankings that train the reward model (Rafailov et al. 2023).

    instructgpt dpo --policy runs/start --data rankings.jsonl --out runs/dpo

A policy implies scores (`functional.dpo_scores`); DPO is the reward model's loss on them, so it has the same data, the
same weights and the same accuracy. The initial policy is the frozen reference, whose log-probabilities are computed
once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instructgpt import functional
from instructgpt.data.packing import PackedBatch, step_indices, steps_per_epoch
from instructgpt.data.rankings import RankedPrompt, count_ranking_tokens
from instructgpt.distributed.launch import launch
from instructgpt.models.lora import add_lora, get_trainable_module
from instructgpt.models.policy import completion_logp, context_length, count_parameters, load_policy
from instructgpt.models.precision import apply_memory_options, hold_frozen_in_bf16
from instructgpt.models.rank0 import load_on_rank0
from instructgpt.models.sharding import full_model_on_rank0, shard
from instructgpt.records import SkippedLines
from instructgpt.run.directory import RunDirectory
from instructgpt.run.lineage import named_inputs
from instructgpt.run.timing import PHASE_TIMER
from instructgpt.train.configs import DPOConfig
from instructgpt.train.optim import (
    BestCheckpoint,
    build_optimizer,
    get_stage_device,
    get_training_state,
    load_training_state,
    optimizer_step,
    report_models,
)
from instructgpt.train.rankings import backward_ranking_losses, load_rankings, measure_pair_accuracy
from instructgpt.train.rollout import per_token_values
from instructgpt.train.saved_policies import SavedPolicies
from instructgpt.train.startup import announce_tokenizer, save_and_verify_policy, try_saving

_VALIDATIONS_PER_RUN = 5
_SELECTION_METRIC = "validation/accuracy"


def main(config: DPOConfig) -> Path:
    """Train in `config.processes` processes and return the run directory."""
    launch(train, config, config.processes, config.patience)
    return config.out


def train(config: DPOConfig) -> None:
    """Run the stage in one rank."""
    inputs = named_inputs(data=config.data, validation=config.validation)
    run = RunDirectory.open(config, {"policy": config.policy} | inputs)
    if run.is_finished:
        return
    device = get_stage_device(run)
    model, tokenizer = load_on_rank0(load_policy, config.policy, device)
    announce_tokenizer(tokenizer, run)
    skipped = SkippedLines(config.skip_bad)
    training, validation = load_rankings(config, tokenizer, context_length(model), run, skipped)
    apply_memory_options(model, config.memory)
    model = add_lora(model, config.lora, config.seed)
    hold_frozen_in_bf16(model)
    shard(model, memory=config.memory)
    report_models(run, policy=model)
    training, validation = (add_reference_logps(model, part) for part in (training, validation))
    trainable, optimizer = get_trainable_module(model), build_optimizer(model, memory=config.memory)

    steps = steps_per_epoch(len(training), config.batch) * config.epochs
    models, optimizers = {"model": trainable}, {"adam": optimizer}
    state = run.restore()
    if state:
        load_training_state(state, models, optimizers)
    else:
        full_model = full_model_on_rank0(model)
        try_saving(run, lambda folder: save_and_verify_policy(full_model, tokenizer, folder))
    best = BestCheckpoint(trainable, config.keep, state and state["best"])
    validation_metrics: dict[str, float] = {}
    policies = SavedPolicies(run, config, model, state["step"] if state else 0, steps, "step")
    for step in range(state["step"] if state else 0, steps):
        rows = step_indices(step, len(training), config.batch, config.seed)
        loss, accuracy = dpo_backward(model, [training[row] for row in rows], config)
        lr = config.lr * functional.cosine_decay(step, steps, warmup=round(config.warmup * steps))
        norm = optimizer_step(optimizer, lr, config.max_grad_norm)
        metrics = {"loss/train": loss, "accuracy/train": accuracy, "lr": lr, "gradient_norm": norm}
        if (step + 1) % max(1, steps // _VALIDATIONS_PER_RUN) == 0 or step + 1 == steps:
            validation_metrics = evaluate_implied_scores(model, validation, config.beta)
            metrics |= validation_metrics
            best.update(metrics.get(_SELECTION_METRIC, -metrics["loss/train"]), step + 1)
        run.log(step + 1, steps, metrics, show=("loss/train", "accuracy/train", _SELECTION_METRIC))
        policies.save(model, tokenizer, step + 1)
        run.save_checkpoint(step + 1, lambda: get_training_state(models, optimizers, best=best.state_dict()))
    best.restore()
    if config.keep == "best":
        run.info(f"keeps step {best.position} of {steps}, chosen by accuracy on validation rankings")
    if best.position != steps or not validation_metrics:  # other weights than the last measured, or a resumed run
        validation_metrics = evaluate_implied_scores(model, validation, config.beta)
    summary = {
        "tokens": config.epochs * count_ranking_tokens(training),
        "step": best.position,
        "parameters": count_parameters(model),
        "trained": count_parameters(trainable),
        "validation": validation_metrics,
    }
    full_model = full_model_on_rank0(model)
    run.finish(lambda folder: save_and_verify_policy(full_model, tokenizer, folder), **summary)


def dpo_backward(model: Any, prompts: Sequence[RankedPrompt], config: DPOConfig) -> tuple[float, float]:
    """Accumulate the gradient of the loss over a batch of prompts; return the loss and the accuracy of its scores."""
    losses = functional.plackett_luce_losses if config.loss == "plackett-luce" else functional.ranking_losses
    return backward_ranking_losses(model, prompts, partial(implied_scores, model, config.beta), losses)


def implied_scores(model: Any, beta: float, batch: PackedBatch, prompts: Sequence[RankedPrompt]) -> Tensor:
    """Return the scores that the policy implies, of all completions of the prompts, (N,)."""
    logp = completion_logp(model, batch)  # (M,), flat
    sizes = [len(example.completion_ids) for prompt in prompts for example in prompt.examples]
    index = torch.repeat_interleave(torch.tensor(sizes, dtype=torch.long)).to(logp.device)
    sequence_logp = logp.new_zeros(len(sizes)).index_add(0, index, logp)
    ref_logp = sequence_logp.new_tensor([value for prompt in prompts for value in prompt.reference_logp])
    return functional.dpo_scores(sequence_logp, ref_logp, beta)


@torch.no_grad()
def completion_logps(model: Any, prompts: Sequence[RankedPrompt]) -> Tensor:
    """Return the log-probability of every completion in nats, (N,) on the CPU."""
    model.eval()
    examples = [example for prompt in prompts for example in prompt.examples]
    lengths = torch.tensor([len(example.completion_ids) for example in examples])
    mask = torch.arange(int(lengths.max()))[None, :] < lengths[:, None]
    with PHASE_TIMER("reference", sum(map(len, examples))):
        logp = per_token_values(model, examples, mask, partial(completion_logp, model))
    return logp.nan_to_num(0.0).sum(1)


def add_reference_logps(model: Any, prompts: Sequence[RankedPrompt]) -> list[RankedPrompt]:
    """Return the prompts with the log-probabilities of the reference: the model before its first step."""
    logps = iter(completion_logps(model, prompts).tolist())
    return [replace(prompt, reference_logp=tuple(next(logps) for _ in prompt.examples)) for prompt in prompts]


def evaluate_implied_scores(model: Any, prompts: Sequence[RankedPrompt], beta: float) -> dict[str, float]:
    """Return the accuracy of the implied scores, and how far the best- and the worst-ranked completions moved (nats).

    Both can fall: DPO only widens their distance.
    """
    logp = completion_logps(model, prompts)
    ref_logp = torch.tensor([value for prompt in prompts for value in prompt.reference_logp])
    metrics = measure_pair_accuracy(functional.dpo_scores(logp, ref_logp, beta), prompts)
    changes = torch.split(logp - ref_logp, [len(prompt.examples) for prompt in prompts])
    for name, choose in (("best", min), ("worst", max)):
        metrics[f"validation/logp_change_{name}"] = _mean_change(prompts, changes, choose)
    return metrics


def _mean_change(
    prompts: Sequence[RankedPrompt], changes: Sequence[Tensor], choose: Callable[[Sequence[int]], int]
) -> float:
    """Return the mean change of the completions that each prompt's first labeler ranked best, or worst."""
    chosen = [
        float(change)
        for prompt, prompt_changes in zip(prompts, changes, strict=True)
        for change, rank in zip(prompt_changes, prompt.labeler_ranks[0].ranks, strict=True)
        if rank == choose(prompt.labeler_ranks[0].ranks)
    ]
    return sum(chosen) / len(chosen)
