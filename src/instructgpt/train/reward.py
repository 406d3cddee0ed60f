"""Stage 2: the reward model, trained on K-wise rankings (section 3.5, equation 1, appendix C.2).

    instructgpt reward --base runs/sft --data rankings.jsonl --demonstrations demonstrations.jsonl --out runs/reward
    instructgpt reward … --groups                              a head for each group of labelers, too

All pairs of a prompt are one batch element. Afterwards scores are shifted so that demonstrations average 0. Rankings of
held-out labelers only validate.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape

from instructgpt import functional
from instructgpt.data.packing import TokenizedExample, step_indices, steps_per_epoch
from instructgpt.data.rankings import (
    LabelerRanks,
    RankedPrompt,
    balanced_labeler_folds,
    count_labels,
    count_ranking_tokens,
    subsample_rankings,
)
from instructgpt.data.tokenization import tokenize_demonstrations
from instructgpt.distributed.launch import launch
from instructgpt.errors import InputError, RunError
from instructgpt.models.classifier import is_one_label_classifier
from instructgpt.models.group_heads import write_group_heads
from instructgpt.models.loading import round_to_saved_dtype, saved_dtype
from instructgpt.models.lora import add_lora, get_trainable_module, has_adapters
from instructgpt.models.policy import count_parameters
from instructgpt.models.precision import apply_memory_options, compute_device, disable_bf16, hold_frozen_in_bf16
from instructgpt.models.rank0 import load_on_rank0
from instructgpt.models.reward_model import ScalarModel, load_reward_model, new_reward_model, save_reward_model
from instructgpt.models.sharding import full_model_on_rank0, shard
from instructgpt.records import Demonstration, SkippedLines, read_all_records, write_text_atomic
from instructgpt.run.directory import RunDirectory
from instructgpt.run.lineage import named_inputs
from instructgpt.run.timing import PHASE_TIMER
from instructgpt.train.configs import RewardConfig
from instructgpt.train.group_heads import FittedGroup, check_head, fit_groups, is_scored_by_groups, require_groups
from instructgpt.train.optim import (
    BestCheckpoint,
    build_stage_optimizers,
    get_stage_device,
    get_training_state,
    load_training_state,
    optimizer_step,
    report_models,
)
from instructgpt.train.rankings import backward_ranking_losses, load_rankings, measure_pair_accuracy
from instructgpt.train.startup import announce_tokenizer, try_saving

_VALIDATIONS_PER_RUN = 5
_SELECTION_METRICS = ("validation/accuracy", "validation/accuracy_heldout")
"""`--keep best` uses the first of these that was measured."""


def main(config: RewardConfig) -> Path:
    """Train in `config.processes` processes and return the run directory."""
    launch(train, config, config.processes, config.patience)
    return config.out


def train(config: RewardConfig) -> None:
    """Run the stage in one rank."""
    inputs = named_inputs(data=config.data, validation=config.validation, demonstrations=config.demonstrations)
    run = RunDirectory.open(config, {"base": config.base} | inputs)
    if run.is_finished:
        return
    device = get_stage_device(run)
    reward = _prepare_reward_model(config, device, config.seed)
    if is_one_label_classifier(config.base):
        run.info(f"goes on from the reward model {escape(config.base)} and its head, instead of a new head")
    announce_tokenizer(reward.tokenizer, run)
    training, validation, centering_examples = load_data(config, reward, run)
    if config.groups:
        check_head(reward)
        require_groups(training, lambda text: run.info(escape(text)))
    shard(reward.model, memory=config.memory, gather_in_bf16=False)
    report_models(run, reward=reward.model)
    state = run.restore()
    if state is None:
        full_reward = replace(reward, model=full_model_on_rank0(reward.model))
        try_saving(run, lambda folder: save_and_verify(full_reward, [], folder, {}))
    train_loop(reward, training, validation, config, run, state)
    disable_bf16(reward.model)  # measure the offset in float32, as the saved model will compute
    round_to_saved_dtype(reward.model)
    reward.offset = float(reward.score(centering_examples).mean())
    metrics = evaluate_pair_accuracy(reward, validation) | {"offset": reward.offset}
    printed = {name: value for name, value in metrics.items() if "accuracy" in name or "baseline" in name}
    run.info("  ".join(f"{name} {value:.3f}" for name, value in printed.items()))
    summary: dict[str, Any] = {
        "tokens": config.epochs * count_ranking_tokens(training),
        "parameters": count_parameters(reward.model),
        "trained": count_parameters(get_trainable_module(reward.model)),
        "labels": count_labels(training),
        "validation": metrics,
    }
    if config.folds:
        summary["cross_validation"] = cross_validate(training, config, device, run)
    groups: list[FittedGroup] = []
    if config.groups:
        groups = fit_groups(
            reward, training, validation, centering_examples, config.group_shrinkage, lambda t: run.info(escape(t))
        )
        summary["groups"] = {group.name: group.summary() for group in groups}
    full_reward = replace(reward, model=full_model_on_rank0(reward.model))
    run.finish(lambda folder: save_and_verify(full_reward, centering_examples[:8], folder, summary, groups), **summary)


def _prepare_reward_model(config: RewardConfig, device: torch.device, seed: int) -> ScalarModel:
    reward = load_on_rank0(new_reward_model, config.base, device, seed)
    if config.lora and not reward.has_token_outputs:
        raise InputError(f"--lora: {config.base} has no linear 'score' head to train beside adapters; leave --lora out")
    apply_memory_options(reward.model, config.memory)
    reward.model = add_lora(reward.model, config.lora, seed)
    hold_frozen_in_bf16(reward.model)
    return reward


def train_loop(
    reward: ScalarModel,
    training: Sequence[RankedPrompt],
    validation: Sequence[RankedPrompt],
    config: RewardConfig,
    run: RunDirectory | None,
    state: Any,
) -> None:
    """Train `reward` in place, each prompt with all its pairs; without `run` no validation, logs or checkpoints."""
    trainable, optimizers = get_trainable_module(reward.model), build_stage_optimizers(config, reward.model)
    steps = steps_per_epoch(len(training), config.batch) * config.epochs
    models = {"model": trainable}
    if state:
        load_training_state(state, models, optimizers)
    best = BestCheckpoint(trainable, config.keep, state and state["best"])
    for step in range(state["step"] if state else 0, steps):
        rows = step_indices(step, len(training), config.batch, config.seed)
        loss, accuracy = ranking_backward(reward, [training[row] for row in rows])
        lr = config.lr * functional.cosine_decay(step, steps)
        norm = optimizer_step(list(optimizers.values()), lr, config.max_grad_norm)
        if run is None:
            continue
        metrics = {"loss/train": loss, "accuracy/train": accuracy, "lr": lr, "gradient_norm": norm}
        if (step + 1) % max(1, steps // _VALIDATIONS_PER_RUN) == 0 or step + 1 == steps:
            metrics |= evaluate_pair_accuracy(reward, validation)
            best.update(next(metrics[name] for name in _SELECTION_METRICS if name in metrics), step + 1)
        run.log(step + 1, steps, metrics, show=("loss/train", "accuracy/train", *_SELECTION_METRICS))
        run.save_checkpoint(step + 1, lambda: get_training_state(models, optimizers, best=best.state_dict()))
    best.restore()
    if run is not None:
        run.summary["step"] = best.position
        if config.keep == "best":
            run.info(f"keeps step {best.position} of {steps}, chosen by accuracy on validation rankings")


def ranking_backward(reward: ScalarModel, prompts: Sequence[RankedPrompt]) -> tuple[float, float]:
    """Accumulate the gradient of equation 1 over a batch of prompts; return the loss and pair accuracy."""
    return backward_ranking_losses(
        reward.model, prompts, lambda batch, _: reward.sequence_scores(batch), functional.ranking_losses
    )


@torch.no_grad()
def evaluate_pair_accuracy(reward: ScalarModel, prompts: Sequence[RankedPrompt]) -> dict[str, float]:
    """Return pair accuracy, ranking loss and the accuracy of "the longer completion wins", by cohort and by source."""
    examples = [example for prompt in prompts for example in prompt.examples]
    with PHASE_TIMER("validation", sum(map(len, examples))):
        return measure_pair_accuracy(reward.score(examples), prompts)


def load_data(
    config: RewardConfig, reward: ScalarModel, run: RunDirectory
) -> tuple[list[RankedPrompt], list[RankedPrompt], list[TokenizedExample]]:
    """Return training prompts, validation prompts, and the examples whose average score becomes 0."""
    skipped = SkippedLines(config.skip_bad)
    demonstrations = read_all_records(Demonstration, config.demonstrations, skipped, reward.tokenizer.check_prompt)
    everything, validation = load_rankings(config, reward.tokenizer, reward.context, run, skipped)
    training = subsample_rankings(everything, config.max_prompts, config.max_completions, config.seed)
    if not training:
        raise InputError(f"--max-completions {config.max_completions}: no prompt keeps a decided pair; use more")
    if config.max_prompts > len(training):
        run.info(f"--max-prompts {config.max_prompts}: there are only {len(training)} prompts to train on")
    elif len(training) < len(everything):
        run.info(f"trains on {len(training)} of {len(everything)} ranked prompts")
    if demonstrations:
        return training, validation, tokenize_demonstrations(demonstrations, reward.tokenizer, reward.context)[0]
    return training, validation, [example for prompt in training for example in top_ranked_examples(prompt)]


def top_ranked_examples(prompt: RankedPrompt) -> list[TokenizedExample]:
    """Return the completions that a prompt's first labeler ranked best."""
    ranks = prompt.labeler_ranks[0].ranks
    return [example for example, rank in zip(prompt.examples, ranks, strict=True) if rank == min(ranks)]


def cross_validate(
    prompts: Sequence[RankedPrompt], config: RewardConfig, device: torch.device, run: RunDirectory
) -> list[dict[str, float]]:
    """Return accuracy on unseen labelers, fold by fold (appendix E.2: 69.6 % held out, 72.4 % in the group).

    Each fold trains on all groups of labelers but one. A tenth of the prompts trains in no fold; both accuracies are
    measured on it.
    """
    labelers = {order.labeler for prompt in prompts for order in prompt.labeler_ranks}
    if len(labelers) < config.folds:
        raise InputError(f"--folds {config.folds}: the rankings name only {len(labelers)} labelers; use fewer folds")
    training_prompts = [prompt for i, prompt in enumerate(prompts) if i % 10]
    validation_prompts = prompts[::10]
    labeler_folds = balanced_labeler_folds(prompts, config.folds)
    if not all(_split_by_labelers(validation_prompts, heldout)[0] for heldout in labeler_folds):
        raise InputError(
            f"--folds {config.folds}: a group of labelers ranked none of the {len(validation_prompts)} prompts "
            "held out from training; add rankings, or use fewer folds"
        )
    results: list[dict[str, float]] = []
    for fold, heldout in enumerate(labeler_folds):
        _, in_group_training = _split_by_labelers(training_prompts, heldout)
        heldout_validation, in_group_validation = _split_by_labelers(validation_prompts, heldout)
        reward = _prepare_reward_model(config, device, config.seed + fold)
        shard(reward.model, memory=config.memory, gather_in_bf16=False)
        train_loop(reward, in_group_training, [], config, None, None)
        result = {
            "held_out": evaluate_pair_accuracy(reward, heldout_validation)["validation/accuracy"],
            "in_group": evaluate_pair_accuracy(reward, in_group_validation)["validation/accuracy"],
        }
        accuracies = f"held-out labelers {result['held_out']:.3f}, in-group {result['in_group']:.3f}"
        run.info(f"fold {fold + 1}/{config.folds}: {accuracies}")
        results.append(result)
    return results


def _split_by_labelers(
    prompts: Sequence[RankedPrompt], labelers: Collection[str | None]
) -> tuple[list[RankedPrompt], list[RankedPrompt]]:
    """Return the prompts with the rankings of `labelers`, and with those of the others; a prompt can be in both."""
    return (
        filter_labelers(prompts, lambda ranks: ranks.labeler in labelers),
        filter_labelers(prompts, lambda ranks: ranks.labeler not in labelers),
    )


def filter_labelers(prompts: Sequence[RankedPrompt], predicate: Callable[[LabelerRanks], bool]) -> list[RankedPrompt]:
    """Return the prompts that have matching rankings, without their other rankings."""
    return [filtered for prompt in prompts if (filtered := prompt.filter(predicate))]


def save_and_verify(
    reward: ScalarModel,
    probe: list[TokenizedExample],
    folder: Path,
    summary: dict[str, Any],
    groups: Sequence[FittedGroup] = (),
) -> None:
    """Save the model, reload it, and raise RunError if it scores `probe` differently.

    Before training the probe is empty: a model that computes in bf16 differs from the saved one.
    """
    save_reward_model(reward, folder)
    reloaded = load_reward_model(folder, compute_device(reward.model))
    # Adapters are rounded only when they are merged, so their scores may move by the rounding of a base in bf16.
    tolerance = 1e-4 if saved_dtype(reward.model) == torch.float32 or not has_adapters(reward.model) else 0.1
    if probe and not torch.allclose(reloaded.score(probe), reward.score(probe), atol=tolerance):
        raise RunError(f"{folder}: the saved reward model scores differently from the trained one")
    if groups:
        write_group_heads(folder, {group.name: group.to_saved() for group in groups})
        if probe and not is_scored_by_groups(reward, groups, probe, folder, tolerance):
            raise RunError(f"{folder}: the saved heads of groups score differently from the fitted ones")
    if "cross_validation" in summary:
        write_text_atomic(folder / "cross_validation.json", json.dumps(summary["cross_validation"], indent=2))
