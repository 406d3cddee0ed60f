"""Models and data of a PPO run: loaded, sharded, and reported before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape

from instructgpt.data.corpus_cache import load_corpus
from instructgpt.data.packing import TokenizedExample
from instructgpt.data.pretraining_text import Corpus
from instructgpt.data.tokenization import PromptTokenizer
from instructgpt.errors import InputError
from instructgpt.models.flops import get_model_shape, ppo_update_flops, pretraining_flops
from instructgpt.models.lora import BaseModelView, add_lora, get_trainable_module
from instructgpt.models.policy import context_length, load_policy, pretraining_sequence_length
from instructgpt.models.precision import apply_memory_options, hold_frozen_in_bf16
from instructgpt.models.rank0 import load_on_rank0
from instructgpt.models.reward_model import (
    ScalarModel,
    center_scores,
    new_reward_model,
    value_model_from_adapter,
    value_model_from_copy,
)
from instructgpt.models.sharding import copy_model, copy_weights, shard
from instructgpt.records import Demonstration, Prompt, SkippedLines, read_all_records
from instructgpt.run.directory import RunDirectory
from instructgpt.run.lineage import named_inputs
from instructgpt.train.configs import PPOConfig
from instructgpt.train.optim import get_stage_device, report_models
from instructgpt.train.reward_functions import ModelReward, PythonReward, Reward, load_reward, reward_inputs
from instructgpt.train.rollout import PPOModels
from instructgpt.train.startup import announce_tokenizer


def run_inputs(config: PPOConfig) -> dict[str, Path | str]:
    """Return what the run is made from, by name; the files of reward functions too."""
    models = {"policy": config.policy} | reward_inputs(config.reward)
    if config.reference is not None:
        models["reference"] = config.reference
    return models | named_inputs(
        prompts=config.prompts,
        validation=config.validation,
        demonstrations=config.demonstrations,
        pretraining=config.pretraining,
    )


def load_models(config: PPOConfig, run: RunDirectory) -> PPOModels:
    """Load the models without dropout, so that sampling and training see the same policy.

    Of several ranks only the first reads weights, and each model is sharded before the next is read: no process ever
    holds more than one whole model. With LoRA they share two trunks: reference and reward model are policy and value
    model with their adapters off.
    """
    device = get_stage_device(run)
    policy, tokenizer = load_on_rank0(load_policy, config.policy, device)
    announce_tokenizer(tokenizer, run)
    apply_memory_options(policy, config.memory)
    policy = add_lora(policy, config.lora, config.seed)
    hold_frozen_in_bf16(policy)
    shard(policy, memory=config.memory)
    reference = load_reference(config, policy, tokenizer, device)
    reward, value = load_reward_and_value(config, tokenizer, device, run)
    rewards = {f"reward {part.name}": part.scorer.model for part in reward.models()}
    report_models(run, policy=policy, value=value.model, **rewards)
    return PPOModels(policy, reference, value, reward, copy_weights(get_trainable_module(policy)), tokenizer)


def load_reference(config: PPOConfig, policy: Any, tokenizer: PromptTokenizer, device: torch.device) -> Any:
    """Return the frozen reference: the initial policy, with LoRA as a view of it, or the model of --reference.

    Raises:
        InputError: its tokens are not the policy's.
    """
    if config.reference is None:
        return BaseModelView(policy) if config.lora else copy_model(policy, trainable=False, memory=config.memory)
    reference, reference_tokenizer = load_on_rank0(load_policy, config.reference, device)
    if not reference_tokenizer.is_compatible(tokenizer):
        raise InputError(
            f"--reference {config.reference}: its tokenizer or chat template is not that of --policy {config.policy}, "
            "so the KL penalty per token has no meaning"
        )
    apply_memory_options(reference, config.memory)
    reference.requires_grad_(False)
    hold_frozen_in_bf16(reference)
    shard(reference, memory=config.memory)
    return reference


def load_reward_and_value(
    config: PPOConfig, tokenizer: PromptTokenizer, device: torch.device, run: RunDirectory
) -> tuple[Reward, ScalarModel]:
    """Load the reward, and the value model: from a reward model that reads the policy's tokens, else from the policy.

    With LoRA the reward model it starts from shares its weights.
    """
    value: ScalarModel | None = None

    def prepare(part: ModelReward) -> None:
        nonlocal value
        apply_memory_options(part.scorer.model, config.memory)
        can_start = part.reads_tokens and part.scorer.has_token_outputs
        if value is not None or not can_start or config.value_init != "reward":
            part.scorer.model.requires_grad_(False)
            hold_frozen_in_bf16(part.scorer.model)
            shard(part.scorer.model, memory=config.memory)
            return
        run.info(f"the value model starts from the reward model {escape(part.name)}")
        if config.lora:
            value, part.scorer = value_model_from_adapter(part.scorer, config.lora, config.seed)
            hold_frozen_in_bf16(value.model)
            shard(value.model, memory=config.memory)
        else:
            shard(part.scorer.model, memory=config.memory)
            value, part.scorer = value_model_from_copy(part.scorer, memory=config.memory)

    reward = load_reward(config, tokenizer, device, prepare)
    return reward, value or _value_model_from_policy(config, reward, device, run)


def _value_model_from_policy(config: PPOConfig, reward: Reward, device: torch.device, run: RunDirectory) -> ScalarModel:
    """Return a value model with the policy's trunk, its head at 0."""
    if config.value_init == "policy":
        reason = "as --value-init says"
    elif any(True for _ in reward.models()):
        reason = "since no reward model reads the policy's tokens one by one; completions reach it as text"
    else:
        reason = "since there is no reward model"
    value = load_on_rank0(new_reward_model, config.policy, device, config.seed)
    torch.nn.init.zeros_(value.model.score.weight)
    apply_memory_options(value.model, config.memory)
    value.model = add_lora(value.model, config.lora, config.seed)
    hold_frozen_in_bf16(value.model)
    shard(value.model, memory=config.memory)
    run.info(f"the value model starts from the policy, head at 0, {reason}")
    return value


def center_rewards(models: PPOModels, demonstrations: list[Demonstration], run: RunDirectory) -> None:
    """Measure the offsets that reward models do not record, after sharding, and report them."""
    for index, part in enumerate(models.reward.models()):
        is_value_offset = index == 0 and models.value.offset == part.scorer.offset
        if message := center_scores(part.scorer, part.name, demonstrations):
            run.info(escape(message))
        if is_value_offset:
            models.value.offset = part.scorer.offset


@dataclass(frozen=True, slots=True, kw_only=True)
class PPOData:
    """What a PPO run reads."""

    prompts: list[Prompt]
    heldout_prompts: list[Prompt]
    demonstrations: list[Demonstration]
    corpus: Corpus | None  # pretraining text of PPO-ptx


def load_data(config: PPOConfig, models: PPOModels, run: RunDirectory) -> PPOData:
    """Read the prompts that leave room for a completion, demonstrations, and the pretraining text of PPO-ptx.

    A prompt of --validation never trains. Every reward function is called once.
    """
    skipped = SkippedLines(config.skip_bad)

    def check(record: Prompt | Demonstration) -> None:
        for part in models.reward.models():
            part.scorer.tokenizer.check_prompt(record)

    def read_prompts(paths: Sequence[Path]) -> tuple[int, list[Prompt]]:
        """Return the number of prompts, and those that fit."""
        lengths: list[int] = []

        def measure(prompt: Prompt) -> None:
            check(prompt)
            lengths.append(len(models.tokenizer.encode_prompt(prompt)))

        read = read_all_records(Prompt, paths, skipped, measure)
        return len(read), [prompt for prompt, n in zip(read, lengths, strict=True) if n <= max_prompt_tokens]

    max_prompt_tokens = get_max_prompt_tokens(config, models)
    num_prompts, fitting = read_prompts(config.prompts)
    num_heldout, fitting_heldout = read_prompts(config.validation)
    demonstrations = read_all_records(Demonstration, config.demonstrations, skipped, check)
    watched_prompts = {prompt.bare_prompt for prompt in fitting_heldout}
    training = [prompt for prompt in fitting if prompt.bare_prompt not in watched_prompts]
    left_out = {
        "prompts too long": num_prompts + num_heldout - len(fitting) - len(fitting_heldout),
        "bad lines": len(skipped.reasons),
    }
    if config.validation:
        left_out["prompts of --validation"] = len(fitting) - len(training)
    run.summary["left_out"] = left_out
    if fitting and not training:
        raise InputError("--prompts: every prompt is also in --validation, whose prompts never train; give other ones")
    for group, flag in ((fitting, "--prompts"), (fitting_heldout, "--validation" if config.validation else "")):
        if flag and not group:
            raise InputError(
                f"{flag}: none of the {num_prompts if flag == '--prompts' else num_heldout} prompts leaves room for "
                f"--max-tokens {config.max_tokens}: a prompt may have {max(0, max_prompt_tokens)} tokens here "
                f"(--max-prompt-tokens {config.max_prompt_tokens}, and the models' contexts)"
            )
    run.info(f"{len(training)} prompts; left out: {left_out}; {config.updates} updates of {config.batch} episodes")
    for function in models.reward.functions:
        if isinstance(function, PythonReward):
            function.check(training)
    corpus = _load_corpus(config, models, training, run) if config.pretraining else None
    return PPOData(prompts=training, heldout_prompts=fitting_heldout, demonstrations=demonstrations, corpus=corpus)


def get_max_prompt_tokens(config: PPOConfig, models: PPOModels) -> int:
    """Return the longest prompt that leaves room for a completion in every model that reads the policy's tokens."""
    contexts = [context_length(model) for model in (models.policy, models.reference, models.value.model)]
    contexts += [part.scorer.context for part in models.reward.models() if part.reads_tokens]
    return min(config.max_prompt_tokens, min(contexts) - config.max_tokens)


def _load_corpus(config: PPOConfig, models: PPOModels, prompts: list[Prompt], run: RunDirectory) -> Corpus:
    num_rows = config.optimizer_steps_per_update * config.ptx_rows_per_step
    length = pretraining_sequence_length(models.policy)
    _report_ptx_share(config, models, prompts, num_rows, length, run)
    return load_corpus(
        config.pretraining,
        models.tokenizer,
        length,
        config.seed,
        config.updates * num_rows,
        hashes=run.input_hashes,
        report=lambda text: run.info(escape(text)),
    )


def _report_ptx_share(
    config: PPOConfig, models: PPOModels, prompts: list[Prompt], num_rows: int, length: int, run: RunDirectory
) -> None:
    """Print a lower bound on the pretraining text's share of FLOPs; it assumes that all completions are longest."""
    policy, value = (get_model_shape(model) for model in (models.policy, models.value.model))
    rewards = [get_model_shape(part.scorer.model) for part in models.reward.models()]
    tokenizer, completion = models.tokenizer, [0] * config.max_tokens
    longest = [TokenizedExample(tokenizer.encode_prompt(prompt), completion) for prompt in prompts[: config.batch]]
    flops = [ppo_update_flops(policy, value, reward, longest, config.epochs) for reward in rewards or [value]]
    scoring = sum(part["score"] for part in flops[: len(rewards)])
    ppo_flops = (sum(flops[0].values()) - flops[0]["score"] + scoring) * config.batch / len(longest)
    share = 1 / (1 + ppo_flops / pretraining_flops(policy, num_rows, length))
    run.info(
        f"pretraining text: {config.ptx_ratio:g} rows of {length} tokens an episode, at least {share:.0%} of all FLOPs"
    )
