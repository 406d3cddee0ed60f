"""Stage 3: PPO against the reward model, and PPO-ptx (section 3.5, equation 2, appendix C.3 to C.4).

    instructgpt ppo --policy runs/start --reward runs/reward --prompts prompts.jsonl --out runs/ppo
    instructgpt ppo … --pretraining corpus.jsonl --ptx-coef 27.8 --out runs/ppo_ptx

An episode is a prompt and one completion; the environment is a bandit. The KL penalty's reference is a frozen copy of
the initial policy. The value model is a separate network that starts from the reward model. What is maximized is in
`reward_functions.py`, loading in `ppo_setup.py`, the alarms in `alarms.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from torch import Tensor

from instructgpt import functional
from instructgpt.data.packing import collate, epoch_permutation, microbatches, stream_indices, token_budget
from instructgpt.data.pretraining_text import Corpus
from instructgpt.distributed.comm import (
    DistInfo,
    gather_in_order,
    get_model_dist_info,
    pad_steps,
    shard_by_length,
    tokens_per_rank,
)
from instructgpt.distributed.launch import launch
from instructgpt.errors import RunError
from instructgpt.models.lora import get_trainable_module
from instructgpt.models.policy import count_parameters, per_token_outputs
from instructgpt.models.precision import compute_device
from instructgpt.models.sharding import full_model_on_rank0
from instructgpt.records import Prompt
from instructgpt.run.directory import RunDirectory
from instructgpt.run.timing import PHASE_TIMER
from instructgpt.train.alarms import Alarm, PPOAlarms, check_first_ratio, check_parity
from instructgpt.train.configs import PPOConfig
from instructgpt.train.optim import (
    build_optimizer,
    get_training_state,
    lm_loss,
    load_training_state,
    optimizer_step,
)
from instructgpt.train.ppo_metrics import (
    MAX_LOG_RATIO_METRIC,
    build_sample_records,
    compute_update_metrics,
    print_samples,
)
from instructgpt.train.ppo_setup import center_rewards, load_data, load_models, run_inputs
from instructgpt.train.ppo_validation import Measurement, measure_on_prompts
from instructgpt.train.rollout import PPOModels, Rollout, collect_rollout, measure_logp_parity, token_values
from instructgpt.train.saved_policies import SavedPolicies
from instructgpt.train.startup import save_and_verify_policy, try_saving

_MAX_LOGGED_SAMPLES = 128  # episodes per PPO step in samples.jsonl
_PARITY_INTERVAL = 50
_PRINTED_METRICS = ("objective/scores", "objective/kl", "policy/entropy_avg", "completion/length")


def main(config: PPOConfig) -> Path:
    """Train the policy in `config.processes` processes and return the run directory."""
    launch(train, config, config.processes, config.patience)
    return config.out


def train(config: PPOConfig) -> None:
    """Run the stage in one rank."""
    run = RunDirectory.open(config, run_inputs(config))
    if run.is_finished:
        return
    models = load_models(config, run)
    data = load_data(config, models, run)
    center_rewards(models, data.demonstrations, run)
    trained_models = {"policy": models.policy, "value": models.value.model}
    optimizers = {
        name: build_optimizer(model, eps=config.adam_eps, memory=config.memory)
        for name, model in trained_models.items()
    }
    trainable = {name: get_trainable_module(model) for name, model in trained_models.items()} | {"average": models.ema}
    state = run.restore()
    alarms = PPOAlarms(config, state and state["alarms"])
    if state:
        load_training_state(state, trainable, optimizers)
        models.reward.load_state_dict(state.get("reward", {}))
    else:
        full_policy = full_model_on_rank0(models.policy)
        try_saving(run, lambda folder: save_and_verify_policy(full_policy, models.tokenizer, folder))

    first_update = state["step"] if state else 0
    policies = SavedPolicies(run, config, models.policy, first_update, config.updates, "step")

    def get_state() -> dict[str, Any]:
        reward_state = models.reward.state_dict()
        return get_training_state(trainable, optimizers, alarms=alarms.state_dict(), reward=reward_state)

    for update in range(first_update, config.updates):
        rows = stream_indices(update * config.batch, config.batch, len(data.prompts), config.seed)
        prompts, heldout = [data.prompts[row] for row in rows], Measurement()
        if data.heldout_prompts and update % config.validation_interval == 0:  # of the policy before the step
            heldout = measure_on_prompts(models, data.heldout_prompts, config, update + 1)
        rollout, metrics = ppo_step(models, optimizers, data.corpus, prompts, update, config)
        metrics |= heldout.metrics | alarms.add_heldout(heldout.scores, float(rollout.raw_scores.mean()))
        metrics["episode"] = float((update + 1) * config.batch)
        run.log(update + 1, config.updates, metrics, show=_PRINTED_METRICS)
        samples = build_sample_records(rollout, models.tokenizer, update + 1, config.kl_coef, _MAX_LOGGED_SAMPLES)
        run.log_samples(samples + heldout.samples)
        print_samples(run, samples)
        save_average(policies, models, update + 1)
        stop_reason = report_alarms(run, alarms.check(metrics))
        run.save_checkpoint(update + 1, get_state, force=stop_reason is not None)
        if stop_reason is not None:
            raise RunError(stop_reason)
    report_ptx_time(run)
    summary: dict[str, Any] = {
        "episodes": config.updates * config.batch,
        "parameters": count_parameters(models.policy),
        "trained": count_parameters(models.ema),
    }
    use_ema_weights(models)
    if data.heldout_prompts:
        summary["validation"] = measure_on_prompts(models, data.heldout_prompts, config, config.updates).metrics
        run.info("  ".join(f"{name} {value:.4g}" for name, value in summary["validation"].items()))
    full_policy = full_model_on_rank0(models.policy)
    run.finish(lambda folder: save_and_verify_policy(full_policy, models.tokenizer, folder), **summary)


def ppo_step(
    models: PPOModels,
    optimizers: Mapping[str, torch.optim.Optimizer],
    corpus: Corpus | None,
    prompts: list[Prompt],
    update: int,
    config: PPOConfig,
) -> tuple[Rollout, dict[str, float]]:
    """Sample a batch of episodes, estimate advantages, and train the policy and value models on them."""
    # 1. Sample and score. The seed depends on the step only, so that a resumed run samples the same.
    seed = config.seed * 1_000_003 + update
    rollout = collect_rollout(models, prompts, max_tokens=config.max_tokens, eos_penalty=config.eos_penalty, seed=seed)
    parity = {}
    if update % _PARITY_INTERVAL == 0:
        parity["val/parity"], parity["val/parity_rms"] = measure_logp_parity(models, rollout)
        check_parity(parity["val/parity"], config)
    # 2. Assign credit.
    rewards = functional.kl_shaped_rewards(rollout.scores, rollout.logp, rollout.ref_logp, rollout.mask, config.kl_coef)
    advantages, returns = functional.gae(rewards, rollout.values, rollout.mask, config.lam)
    advantages[rollout.mask] = functional.whiten(advantages[rollout.mask])
    # 3. Improve. PPO and ptx gradients add up before the one optimizer step (appendix C.4).
    step_stats: list[dict[str, float]] = []
    lr_factor, max_norm = functional.linear_warmup(update, config.warmup), config.max_grad_norm
    value_clip = config.value_clip or float("inf")
    for rows in iter_minibatches(config, seed):
        step = update * config.optimizer_steps_per_update + len(step_stats)
        stats = minibatch_backward(models, rollout, advantages, returns, rows, config.clip, value_clip)
        check_losses(stats)
        if not step_stats:
            parity["val/first_ratio_rms"] = sqrt(2 * stats["policy/approxkl_avg"])  # half the mean square of log ratios
            check_first_ratio(stats[MAX_LOG_RATIO_METRIC], config)
        step_stats.append(stats)
        if corpus is not None:
            stats["loss/ptx_avg"] = ptx_backward(models, corpus, step, config)
        stats["gradient_norm/policy"] = optimizer_step(optimizers["policy"], lr_factor * config.lr, max_norm)
        stats["gradient_norm/value"] = optimizer_step(optimizers["value"], lr_factor * config.value_lr, max_norm)
        with PHASE_TIMER("optimizer"):
            update_ema(models.ema, get_trainable_module(models.policy), config.ema)
    metrics = compute_update_metrics(rollout, returns, step_stats, config.kl_coef)
    return rollout, metrics | parity | {"lr": config.lr * lr_factor}


def iter_minibatches(config: PPOConfig, seed: int) -> Iterator[Tensor]:
    """Yield the rollout rows of each optimizer step, (minibatch,), reshuffled in every epoch."""
    for epoch in range(config.epochs):
        order = epoch_permutation(config.batch, seed, epoch)
        for start in range(0, config.batch, config.minibatch):
            yield torch.tensor(order[start : start + config.minibatch])


def minibatch_backward(
    models: PPOModels,
    rollout: Rollout,
    advantages: Tensor,
    returns: Tensor,
    rows: Tensor,
    clip: float,
    value_clip: float,
) -> dict[str, float]:
    """Accumulate the PPO gradients of one minibatch, `rows` of the rollout, and return its statistics.

    Losses are means over the minibatch's real tokens; microbatches and ranks do not change them.
    """
    device, dist_info = compute_device(models.policy), get_model_dist_info(models.policy)
    token_count = int(rollout.mask[rows].sum())
    sums: dict[str, float] = {}
    rank_rows = rows[shard_by_length([len(rollout.examples[row]) for row in rows], dist_info)]
    groups = microbatches([len(rollout.examples[row]) for row in rank_rows], token_budget(device))
    for group in pad_steps(groups, dist_info):
        rows = rank_rows[group]
        mask, batch = rollout.mask[rows], collate([rollout.examples[row] for row in rows], device)
        # Select real tokens first, (B, R) -> (M,); after this no loss or statistic needs a mask.
        old_logp, old_values = rollout.logp[rows][mask].to(device), rollout.values[rows][mask].to(device)
        token_advantages, token_returns = advantages[rows][mask].to(device), returns[rows][mask].to(device)
        with PHASE_TIMER("policy update", len(batch.input_ids)):
            logp, entropies = per_token_outputs(models.policy, batch, functional.token_logp, entropy_no_grad)
            policy_losses = functional.clipped_policy_losses(logp, old_logp, token_advantages, clip)
            (policy_losses.sum() / token_count).backward()  # type: ignore[no-untyped-call]
        with PHASE_TIMER("value update", len(batch.input_ids)):
            values = token_values(models.value, batch)
            value_losses = functional.clipped_value_losses(values, old_values, token_returns, value_clip)
            (value_losses.sum() / token_count).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            log_ratio = logp - old_logp
            stats = {
                "loss/policy_avg": policy_losses,
                "loss/value_avg": value_losses,
                "policy/approxkl_avg": 0.5 * log_ratio**2,
                "policy/clipfrac_avg": ((log_ratio.exp() - 1).abs() > clip).float(),
                "policy/entropy_avg": entropies,
                "val/clipfrac_avg": ((values - old_values).abs() > value_clip).float(),
                "val/ratio": log_ratio.exp(),
                "val/ratio_var": (log_ratio.exp() - 1) ** 2,
            }
            for name, token_stats in stats.items():
                sums[name] = sums.get(name, 0.0) + float(token_stats.sum()) / token_count
            sums[MAX_LOG_RATIO_METRIC] = max(sums.get(MAX_LOG_RATIO_METRIC, 0.0), *log_ratio.abs().tolist(), 0.0)
    return _reduce_stats(sums, dist_info)


def _reduce_stats(sums: dict[str, float], dist_info: DistInfo) -> dict[str, float]:
    """Add up the ranks' shares of each mean, and take the largest ratio."""
    rank_sums = gather_in_order([dist_info.rank], [sums], dist_info.world_size, dist_info)
    return {name: (max if name == MAX_LOG_RATIO_METRIC else sum)(stats[name] for stats in rank_sums) for name in sums}


@torch.no_grad()
def entropy_no_grad(logits: Tensor, _: Tensor) -> Tensor:
    """Return the entropy of each next-token distribution, (M, V) -> (M,). It is a metric only, hence no gradient."""
    return functional.entropy(logits)


def check_losses(stats: Mapping[str, float]) -> None:
    """Raise RunError if a loss of the latest minibatch is not finite."""
    for name in ("loss/policy_avg", "loss/value_avg"):
        if not abs(stats[name]) < float("inf"):
            cause = "a learning rate is likely too high, or the reward model's scores are not finite"
            raise RunError(f"{name} is {stats[name]}: {cause}")


def report_alarms(run: RunDirectory, alarms: Sequence[Alarm]) -> str | None:
    """Print warnings, and return the reason to stop, if there is one."""
    for alarm in alarms:
        if alarm.stops:
            return alarm.message
        run.info(f"[yellow]{escape(alarm.message)}[/]")
    return None


def ptx_backward(models: PPOModels, corpus: Corpus, step: int, config: PPOConfig) -> float:
    """Accumulate gamma times the gradient of pretraining text (equation 2) and return its mean loss per token."""
    rows = corpus.examples(step * config.ptx_rows_per_step, config.ptx_rows_per_step)
    length = corpus.tokens.shape[1] - 1
    weight = config.ptx_coef * (1 if config.ptx_reduction == "token" else length)
    token_count = tokens_per_rank(len(rows) * length, get_model_dist_info(models.policy))
    with PHASE_TIMER("pretraining text", token_count):
        return lm_loss(models.policy, rows, weight=weight)


@torch.no_grad()
def update_ema(ema_model: Any, model: Any, decay: float) -> None:
    """Set each averaged parameter to decay * average + (1 - decay) * parameter (appendix C.4)."""
    for ema_parameter, parameter in zip(ema_model.parameters(), model.parameters(), strict=True):
        ema_parameter.lerp_(parameter, 1 - decay)


def report_ptx_time(run: RunDirectory) -> None:
    """Print the share of the time that pretraining text took, where there was any."""
    seconds = {name: sums["seconds"] for name, sums in PHASE_TIMER.summary().items()}
    if "pretraining text" in seconds:
        share = seconds["pretraining text"] / max(1e-9, sum(seconds.values()))
        run.info(f"pretraining text took {share:.0%} of the time")


def save_average(policies: SavedPolicies, models: PPOModels, update: int) -> None:
    """Save the policy with the averaged weights, as the run would at its end, if it is due. All ranks call it."""
    if policies.is_due(update):
        with averaged_weights(models):
            policies.save(models.policy, models.tokenizer, update)


@contextmanager
def averaged_weights(models: PPOModels) -> Iterator[None]:
    """Put the averaged weights into the policy, and the latest ones back afterwards. All ranks call it."""
    trainable = get_trainable_module(models.policy)
    latest = copy.deepcopy(trainable.state_dict())
    use_ema_weights(models)
    try:
        yield
    finally:
        trainable.load_state_dict(latest)


def use_ema_weights(models: PPOModels) -> None:
    """Load the averaged weights into the policy. All ranks call it."""
    get_trainable_module(models.policy).load_state_dict(models.ema.state_dict())
