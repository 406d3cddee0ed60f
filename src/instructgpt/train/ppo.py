"""Stage 3: PPO against the reward model, and PPO-ptx (section 3.5, equation 2, appendix C.3 to C.4).

    instructgpt ppo --policy runs/start --reward runs/reward --prompts prompts.jsonl --out runs/ppo
    instructgpt ppo … --pretraining corpus.jsonl --ptx-coef 27.8 --out runs/ppo_ptx

An episode is a prompt and one completion; the environment is a bandit. The KL penalty's reference is a frozen copy of
the initial policy. The value model is a separate network that starts from the reward model.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from torch import Tensor

from instructgpt import functional
from instructgpt.data.packing import (
    TokenizedExample,
    collate,
    epoch_permutation,
    microbatches,
    stream_indices,
    token_budget,
)
from instructgpt.data.pretraining_text import Corpus, build_corpus, iter_documents
from instructgpt.distributed.comm import (
    DistInfo,
    gather_in_order,
    get_model_dist_info,
    pad_steps,
    shard_by_length,
    tokens_per_rank,
)
from instructgpt.distributed.launch import launch
from instructgpt.errors import InputError, RunError
from instructgpt.models.flops import get_model_shape, ppo_update_flops, pretraining_flops
from instructgpt.models.lora import BaseModelView, add_lora, get_trainable_module, has_adapters
from instructgpt.models.policy import (
    context_length,
    count_parameters,
    load_policy,
    per_token_outputs,
    pretraining_sequence_length,
)
from instructgpt.models.precision import apply_memory_options, compute_device
from instructgpt.models.reward_model import (
    ScalarModel,
    center_scores,
    load_reward_model,
    new_reward_model,
    new_value_model,
    value_model_from_adapter,
)
from instructgpt.models.sharding import full_model_on_rank0, shard
from instructgpt.records import Prompt, SkippedLines, read_all_records
from instructgpt.run.directory import RunDirectory
from instructgpt.run.lineage import named_inputs
from instructgpt.run.timing import PHASE_TIMER
from instructgpt.train.configs import PPOConfig
from instructgpt.train.optim import (
    build_optimizer,
    get_stage_device,
    get_training_state,
    lm_loss,
    load_training_state,
    optimizer_step,
)
from instructgpt.train.ppo_metrics import (
    MAX_LOG_RATIO_METRIC,
    DivergenceGuard,
    build_sample_records,
    compute_update_metrics,
    print_samples,
)
from instructgpt.train.rollout import (
    PARITY_TOLERANCE,
    PARITY_TOLERANCE_BF16,
    PPOModels,
    Rollout,
    check_logp_parity,
    collect_rollout,
    token_values,
)
from instructgpt.train.startup import announce_tokenizer, save_and_verify_policy, try_saving

ADAM_EPS = 1e-5
"""Larger than usual, since PyTorch's Adam takes larger early steps than the paper's (Huang et al. 2023, detail 20)."""
_MAX_LOGGED_SAMPLES = 128  # episodes per PPO step in samples.jsonl
_PARITY_INTERVAL = 50
_PRINTED_METRICS = ("objective/scores", "objective/kl", "policy/entropy_avg", "completion/length")


def main(config: PPOConfig) -> Path:
    """Train the policy in `config.processes` processes and return the run directory."""
    launch(train, config, config.processes, config.patience)
    return config.out


def train(config: PPOConfig) -> None:
    """Run the stage in one rank."""
    parents: dict[str, Path | str] = {"policy": config.policy, "reward": config.reward}
    run = RunDirectory.open(config, parents | named_inputs(prompts=config.prompts, pretraining=config.pretraining))
    if run.is_finished:
        return
    models = load_models(config, run)
    prompts, corpus = load_data(config, models, run)
    shard_models(models, config)
    trained_models = {"policy": models.policy, "value": models.value.model}
    optimizers = {name: build_optimizer(m, eps=ADAM_EPS, memory=config.memory) for name, m in trained_models.items()}
    trainable = {name: get_trainable_module(model) for name, model in trained_models.items()} | {"average": models.ema}
    guard = DivergenceGuard()
    state = run.restore()
    if state:
        load_training_state(state, trainable, optimizers)
        guard = DivergenceGuard(**state["alarms"])
    else:
        full_policy = full_model_on_rank0(models.policy)
        try_saving(run, lambda folder: save_and_verify_policy(full_policy, models.tokenizer, folder))

    for update in range(state["step"] if state else 0, config.updates):
        rows = stream_indices(update * config.batch, config.batch, len(prompts), config.seed)
        rollout, metrics = ppo_step(models, optimizers, corpus, [prompts[row] for row in rows], update, config)
        metrics["episode"] = float((update + 1) * config.batch)
        run.log(update + 1, config.updates, metrics, show=_PRINTED_METRICS)
        samples = build_sample_records(rollout, models.tokenizer, update + 1, config.kl_coef, _MAX_LOGGED_SAMPLES)
        run.log_samples(samples)
        print_samples(run, samples)
        guard.check(metrics)
        run.save_checkpoint(update + 1, lambda: get_training_state(trainable, optimizers, alarms=guard.state_dict()))
    if corpus is not None:
        seconds = {name: sums["seconds"] for name, sums in PHASE_TIMER.summary().items()}
        share = seconds.get("pretraining text", 0) / max(1e-9, sum(seconds.values()))
        run.info(f"pretraining text took {share:.0%} of the time")
    summary = {
        "episodes": config.updates * config.batch,
        "parameters": count_parameters(models.policy),
        "trained": count_parameters(models.ema),
    }
    ema_model = load_ema_weights(models)
    run.finish(lambda folder: save_and_verify_policy(ema_model, models.tokenizer, folder), **summary)


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
    check_parity = update % _PARITY_INTERVAL == 0
    parity = {"val/parity": check_logp_parity(models, rollout, config.bf16)} if check_parity else {}
    # 2. Assign credit.
    rewards = functional.kl_shaped_rewards(rollout.scores, rollout.logp, rollout.ref_logp, rollout.mask, config.kl_coef)
    advantages, returns = functional.gae(rewards, rollout.values, rollout.mask, config.lam)
    advantages[rollout.mask] = functional.whiten(advantages[rollout.mask])
    # 3. Improve. PPO and ptx gradients add up before the one optimizer step (appendix C.4).
    step_stats: list[dict[str, float]] = []
    lr_factor = functional.linear_warmup(update, config.warmup)
    for rows in iter_minibatches(config, seed):
        step = update * config.optimizer_steps_per_update + len(step_stats)
        stats = minibatch_backward(models, rollout, advantages, returns, rows, config.clip)
        step_stats.append(stats)
        check_minibatch_stats(step_stats, config.bf16)
        if corpus is not None:
            stats["loss/ptx_avg"] = ptx_backward(models, corpus, step, config)
        stats["gradient_norm/policy"] = optimizer_step(optimizers["policy"], config.lr * lr_factor)
        stats["gradient_norm/value"] = optimizer_step(optimizers["value"], config.value_lr * lr_factor)
        with PHASE_TIMER("optimizer"):
            update_ema(models.ema, get_trainable_module(models.policy), config.ema)
    metrics = compute_update_metrics(rollout, returns, step_stats, config.kl_coef)
    return rollout, metrics | parity | {"lr": config.lr * lr_factor}


def load_models(config: PPOConfig, run: RunDirectory) -> PPOModels:
    """Load the four models without dropout, so that sampling and training see the same policy.

    With LoRA they share two trunks: reference and reward model are policy and value model with their adapters off.
    """
    device = get_stage_device(run)
    policy, tokenizer = load_policy(config.policy, device)
    announce_tokenizer(tokenizer, run)
    reward = load_reward_model(config.reward, device)
    if message := center_scores(reward, escape(str(config.reward)), []):
        run.info(message)
    for model in (policy, reward.model):
        apply_memory_options(model, config.memory)
    reward.model.requires_grad_(False)
    same_tokenizer = reward.tokenizer.is_compatible(tokenizer)
    value, reward = load_value_and_reward_models(config, reward, run, same_tokenizer=same_tokenizer)
    if config.lora:
        policy = add_lora(policy, config.lora, config.seed)
        reference: Any = BaseModelView(policy)
    else:
        reference = copy.deepcopy(policy).requires_grad_(False)
    ema = copy.deepcopy(get_trainable_module(policy)).requires_grad_(False)
    return PPOModels(policy, reference, value, reward, ema, tokenizer)


def load_value_and_reward_models(
    config: PPOConfig, reward: ScalarModel, run: RunDirectory, *, same_tokenizer: bool
) -> tuple[ScalarModel, ScalarModel]:
    """Return the value model, started from the reward model if its tokenizer is the policy's, and the reward model."""
    if same_tokenizer:
        run.info("the value model starts from the reward model")
        if config.lora:
            return value_model_from_adapter(reward, config.lora, config.seed)
        value = new_value_model(reward)
        value.model.requires_grad_(True)
        return value, reward
    value = new_reward_model(config.policy, reward.model.device, config.seed)
    torch.nn.init.zeros_(value.model.score.weight)
    apply_memory_options(value.model, config.memory)
    value.model = add_lora(value.model, config.lora, config.seed)
    run.info("the reward model has its own tokenizer and reads text; the value model starts from the policy, head at 0")
    return value, reward


def shard_models(models: PPOModels, config: PPOConfig) -> None:
    """Shard all weights among the ranks, shared ones once."""
    modules = (models.policy, models.reference, models.value.model, models.reward.model)
    shard(*(model for model in modules if isinstance(model, torch.nn.Module)), memory=config.memory)
    if has_adapters(models.policy):  # its adapters are sharded by now, and so is a copy of them
        models.ema = copy.deepcopy(get_trainable_module(models.policy)).requires_grad_(False)
    else:
        shard(models.ema, memory=config.memory)


def load_data(config: PPOConfig, models: PPOModels, run: RunDirectory) -> tuple[list[Prompt], Corpus | None]:
    """Read the prompts that leave room for a completion, and the pretraining text of PPO-ptx."""
    skipped = SkippedLines(config.skip_bad)

    def check(prompt: Prompt) -> None:
        models.tokenizer.check_prompt(prompt)
        models.reward.tokenizer.check_prompt(prompt)

    prompts = read_all_records(Prompt, config.prompts, skipped, check)
    policy_context = min(context_length(models.policy), context_length(models.value.model))
    reward_context = context_length(models.reward.model)
    fitting = [
        prompt
        for prompt in prompts
        if len(models.tokenizer.encode_prompt(prompt)) <= policy_context - config.max_tokens
        and len(models.reward.tokenizer.encode_prompt(prompt)) <= reward_context - config.max_tokens
    ]
    left_out = {"prompts too long": len(prompts) - len(fitting), "bad lines": len(skipped.reasons)}
    run.summary["left_out"] = left_out
    if not fitting:
        raise InputError(
            f"none of the {len(prompts)} prompts leaves room for --max-tokens {config.max_tokens} in a context of "
            f"{min(policy_context, reward_context)} tokens"
        )
    run.info(f"{len(fitting)} prompts; left out: {left_out}; {config.updates} updates of {config.batch} episodes")
    if not config.pretraining:
        return fitting, None
    num_rows = config.optimizer_steps_per_update * config.ptx_rows_per_step
    length = pretraining_sequence_length(models.policy)
    _report_ptx_share(config, models, fitting, num_rows, length, run)
    documents = iter_documents(config.pretraining)
    return fitting, build_corpus(documents, models.tokenizer, length, config.seed, config.updates * num_rows)


def _report_ptx_share(
    config: PPOConfig, models: PPOModels, prompts: list[Prompt], num_rows: int, length: int, run: RunDirectory
) -> None:
    """Print a lower bound on the pretraining text's share of FLOPs; it assumes that all completions are longest."""
    shapes = [get_model_shape(model) for model in (models.policy, models.value.model, models.reward.model)]
    tokenizer, completion = models.tokenizer, [0] * config.max_tokens
    longest = [TokenizedExample(tokenizer.encode_prompt(prompt), completion) for prompt in prompts[: config.batch]]
    flops = ppo_update_flops(shapes[0], shapes[1], shapes[2], longest, config.epochs)
    ppo_flops = sum(flops.values()) * config.batch / len(longest)
    share = 1 / (1 + ppo_flops / pretraining_flops(shapes[0], num_rows, length))
    run.info(
        f"pretraining text: {config.ptx_ratio:g} rows of {length} tokens an episode, at least {share:.0%} of all FLOPs"
    )


def iter_minibatches(config: PPOConfig, seed: int) -> Iterator[Tensor]:
    """Yield the rollout rows of each optimizer step, (minibatch,), reshuffled in every epoch."""
    for epoch in range(config.epochs):
        order = epoch_permutation(config.batch, seed, epoch)
        for start in range(0, config.batch, config.minibatch):
            yield torch.tensor(order[start : start + config.minibatch])


def minibatch_backward(
    models: PPOModels, rollout: Rollout, advantages: Tensor, returns: Tensor, rows: Tensor, clip: float
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
            value_losses = functional.clipped_value_losses(values, old_values, token_returns, clip)
            (value_losses.sum() / token_count).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            log_ratio = logp - old_logp
            stats = {
                "loss/policy_avg": policy_losses,
                "loss/value_avg": value_losses,
                "policy/approxkl_avg": 0.5 * log_ratio**2,
                "policy/clipfrac_avg": ((log_ratio.exp() - 1).abs() > clip).float(),
                "policy/entropy_avg": entropies,
                "val/clipfrac_avg": ((values - old_values).abs() > clip).float(),
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


def check_minibatch_stats(step_stats: list[dict[str, float]], bf16: bool = False) -> None:
    """Raise RunError if the last minibatch's loss is not finite, or the first ratio after sampling is not 1."""
    latest = step_stats[-1]
    for name in ("loss/policy_avg", "loss/value_avg"):
        if not abs(latest[name]) < float("inf"):
            cause = "a learning rate is likely too high, or the reward model's scores are not finite"
            raise RunError(f"{name} is {latest[name]}: {cause}")
    deviation, tolerance = latest[MAX_LOG_RATIO_METRIC], PARITY_TOLERANCE
    if bf16:  # approxkl is half the mean square of the log ratio: this is its root mean square
        deviation, tolerance = sqrt(2 * latest["policy/approxkl_avg"]), PARITY_TOLERANCE_BF16
    if len(step_stats) == 1 and deviation > tolerance:
        raise RunError(
            f"before any step the ratio is off 1 by exp({deviation:.2g}), more than rounding: old log-probabilities "
            "are not this policy's; likely dropout left on, or weights changed between sampling and training"
        )


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


def load_ema_weights(models: PPOModels) -> Any:
    """Load the averaged weights into the policy and return it, unsharded on rank 0. All ranks call it."""
    get_trainable_module(models.policy).load_state_dict(models.ema.state_dict())
    return full_model_on_rank0(models.policy)
