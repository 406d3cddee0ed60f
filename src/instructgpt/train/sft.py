"""Stage 1: supervised fine-tuning on labelers' demonstrations (section 3.5, appendix C.1).

    instructgpt sft --base gpt2 --data demonstrations.jsonl --out runs/sft

With --pretraining and --mix it trains the initial policy of PPO (appendix C.3: 2 epochs, 10 % pretraining text).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape

from instructgpt import functional
from instructgpt.data.corpus_cache import load_corpus
from instructgpt.data.packing import TokenizedExample, step_indices, steps_per_epoch
from instructgpt.data.pretraining_text import Corpus
from instructgpt.data.splits import is_heldout
from instructgpt.data.tokenization import PromptTokenizer, split_assistant_turns, tokenize_demonstrations
from instructgpt.distributed.launch import launch
from instructgpt.errors import InputError
from instructgpt.models.lora import add_lora, get_trainable_module
from instructgpt.models.policy import (
    context_length,
    count_parameters,
    dropout_settings,
    load_policy,
    pretraining_sequence_length,
)
from instructgpt.models.precision import apply_memory_options, hold_frozen_in_bf16
from instructgpt.models.rank0 import load_on_rank0
from instructgpt.models.reward_model import ScalarModel, load_reward_model
from instructgpt.models.sharding import full_model_on_rank0, shard
from instructgpt.records import Demonstration, Prompt, SkippedLines, read_all_records
from instructgpt.run.directory import RunDirectory
from instructgpt.run.lineage import named_inputs
from instructgpt.sampling.completions import generate, retokenize_for
from instructgpt.train.alarms import LossAlarm
from instructgpt.train.configs import SFTConfig
from instructgpt.train.optim import (
    BestCheckpoint,
    build_stage_optimizers,
    get_stage_device,
    get_training_state,
    lm_loss,
    load_training_state,
    optimizer_step,
    report_models,
)
from instructgpt.train.saved_policies import SavedPolicies
from instructgpt.train.startup import announce_tokenizer, save_and_verify_policy, try_saving

_MAX_VALIDATION_PROMPTS = 128  # sampled and scored after each epoch, with --reward


def main(config: SFTConfig) -> Path:
    """Fine-tune in `config.processes` processes and return the run directory."""
    launch(train, config, config.processes, config.patience)
    return config.out


def train(config: SFTConfig) -> None:
    """Run the stage in one rank."""
    run = RunDirectory.open(config, sft_inputs(config))
    if run.is_finished:
        return
    device = get_stage_device(run)
    model, tokenizer = load_on_rank0(load_policy, config.base, device, config.dropout)
    announce_tokenizer(tokenizer, run)
    _check_dropout(config, model)
    training, validation, prompts = load_data(config, tokenizer, context_length(model), run)
    mix_corpus = load_mix_corpus(config, tokenizer, pretraining_sequence_length(model), len(training), run)
    apply_memory_options(model, config.memory)
    model = add_lora(model, config.lora, config.seed)
    hold_frozen_in_bf16(model)
    shard(model, memory=config.memory)
    report_models(run, policy=model)
    reward = _load_reward_model(config, device)
    trainable, optimizers = get_trainable_module(model), build_stage_optimizers(config, model)

    epoch_steps = steps_per_epoch(len(training), config.batch)
    steps = epoch_steps * config.epochs
    models = {"model": trainable}
    state = run.restore()
    if state:
        load_training_state(state, models, optimizers)
    else:
        full_model = full_model_on_rank0(model)
        try_saving(run, lambda folder: save_and_verify_policy(full_model, tokenizer, folder))
    best = BestCheckpoint(trainable, config.keep, state and state["best"])
    first_step = state["step"] if state else 0
    policies = SavedPolicies(run, config, model, first_step // epoch_steps, config.epochs, "epoch")
    loss_alarm = LossAlarm(model.get_input_embeddings().num_embeddings)
    for step in range(first_step, steps):
        rows = step_indices(step, len(training), config.batch, config.seed)
        model.train()
        metrics = {"epoch": (step + 1) / epoch_steps}
        metrics |= backward_step(model, [training[row] for row in rows], mix_corpus, step, config)
        loss_alarm.check(metrics["loss/train"], is_last=step + 1 == steps)
        metrics["lr"] = config.lr * functional.cosine_decay(step, steps)
        metrics["gradient_norm"] = optimizer_step(list(optimizers.values()), metrics["lr"], config.max_grad_norm)
        model.eval()
        if (step + 1) % epoch_steps == 0:
            metrics |= validate_policy(model, validation, prompts, reward, tokenizer, config)
            loss_alarm.check_validation(metrics["loss/validation"])
            best.update(metrics.get("validation/score", -metrics["loss/validation"]), (step + 1) // epoch_steps)
            policies.save(model, tokenizer, (step + 1) // epoch_steps)
        run.log(step + 1, steps, metrics, show=("epoch", "loss/train", "loss/validation", "validation/score"))
        run.save_checkpoint(step + 1, lambda: get_training_state(models, optimizers, best=best.state_dict()))
    best.restore()
    criterion = f"chosen by {'reward-model score' if reward else 'validation loss'}"
    run.info(f"keeps epoch {best.position} of {config.epochs}, {'the last' if config.keep == 'last' else criterion}")
    summary = {
        "vocab_size": loss_alarm.vocab_size,
        "tokens": config.epochs * sum(map(len, training)),
        "epoch": best.position,
        "parameters": count_parameters(model),
        "trained": count_parameters(trainable),
    }
    full_model = full_model_on_rank0(model)
    run.finish(lambda folder: save_and_verify_policy(full_model, tokenizer, folder), **summary)


def sft_inputs(config: SFTConfig) -> dict[str, Path | str]:
    """Return what the run is made from, by name."""
    models: dict[str, Path | str] = {"base": config.base} | ({"reward": config.reward} if config.reward else {})
    return models | named_inputs(data=config.data, validation=config.validation, pretraining=config.pretraining)


def _load_reward_model(config: SFTConfig, device: torch.device) -> ScalarModel | None:
    """Return the reward model that selects the epoch, if there is one."""
    if not config.reward:
        return None
    reward: ScalarModel = load_on_rank0(load_reward_model, config.reward, device)
    shard(reward.model, memory=config.memory)
    return reward


def backward_step(
    model: Any, examples: Sequence[TokenizedExample], mix_corpus: Corpus | None, step: int, config: SFTConfig
) -> dict[str, float]:
    """Accumulate the gradients of an optimizer step, and return the losses on demonstrations and pretraining text."""
    weight = 1.0 if mix_corpus is None else 1 - config.mix
    losses = {"loss/train": lm_loss(model, examples, weight=weight, seed=step)}
    if mix_corpus is not None:
        mix_rows = mix_rows_per_step(config)
        mix_examples = mix_corpus.examples(step * mix_rows, mix_rows)
        losses["loss/pretraining"] = lm_loss(model, mix_examples, weight=config.mix, seed=step + 1)
    return losses


def _check_dropout(config: SFTConfig, model: Any) -> None:
    """Raise InputError where the user asks for a dropout that the family lacks; the default applies where it can."""
    dropout = config.dropout if "dropout" in config.model_fields_set else 0
    if dropout and not any(dropout_settings(model.config, dropout).values()):
        family = model.config.model_type
        raise InputError(f"sft: --dropout has no effect: the model family '{family}' has no residual dropout")


def load_data(
    config: SFTConfig, tokenizer: PromptTokenizer, context: int, run: RunDirectory
) -> tuple[list[TokenizedExample], list[TokenizedExample], list[Prompt]]:
    """Return training examples, validation examples, and validation prompts that leave room for a completion."""
    skipped = SkippedLines(config.skip_bad)
    records = read_all_records(Demonstration, config.data, skipped, tokenizer.check_prompt)
    if config.validation:
        validation_records = read_all_records(Demonstration, config.validation, skipped, tokenizer.check_prompt)
    else:
        validation_records = [record for record in records if is_heldout(record.prompt)]
        records = [record for record in records if not is_heldout(record.prompt)]
    if not validation_records or not records:
        counts = f"{len(records)} demonstrations to train on, {len(validation_records)} to validate on"
        raise InputError(f"{counts}; add demonstrations, or give --validation")
    learned = [select_turns(part, config.learn) for part in (records, validation_records)]
    if len(learned[0]) > len(records):
        run.info(f"{len(records)} demonstrations hold {len(learned[0])} assistant turns, each learned; see --learn")
    training, too_long = tokenize_demonstrations(learned[0], tokenizer, context)
    validation, validation_too_long = tokenize_demonstrations(learned[1], tokenizer, context)
    left_out = {"longer than the context": too_long + validation_too_long, "bad lines": len(skipped.reasons)}
    run.summary["left_out"] = left_out
    run.info(f"{len(training)} demonstrations, {len(validation)} for validation; left out: {left_out}")
    max_prompt_tokens = context - config.max_tokens
    prompts = [
        Prompt.model_validate(r.prompt_columns())
        for r in validation_records
        if len(tokenizer.encode_prompt(r)) <= max_prompt_tokens
    ]
    if config.reward and not prompts:
        room = f"room for --max-tokens {config.max_tokens} in a context of {context} tokens"
        raise InputError(f"no validation prompt leaves {room}")
    return training, validation, prompts[:_MAX_VALIDATION_PROMPTS]


def select_turns(records: Sequence[Demonstration], learn: str) -> list[Demonstration]:
    """Return the demonstrations to learn: every assistant turn as one, or the records as they are."""
    if learn == "last":
        return list(records)
    return [turn for record in records for turn in split_assistant_turns(record)]


def mix_rows_per_step(config: SFTConfig) -> int:
    """Return the rows of pretraining text per optimizer step, a share `mix` of its rows and demonstrations."""
    return max(1, round(config.batch * config.mix / (1 - config.mix)))


def load_mix_corpus(
    config: SFTConfig, tokenizer: PromptTokenizer, length: int, demonstrations: int, run: RunDirectory
) -> Corpus | None:
    """Read as many rows of `length` tokens of pretraining text as the run needs."""
    if not config.pretraining:
        return None
    num_rows = steps_per_epoch(demonstrations, config.batch) * config.epochs * mix_rows_per_step(config)
    return load_corpus(
        config.pretraining,
        tokenizer,
        length,
        config.seed,
        num_rows,
        hashes=run.input_hashes,
        report=lambda text: run.info(escape(text)),
    )


def validate_policy(
    model: Any,
    validation: Sequence[TokenizedExample],
    prompts: Sequence[Prompt],
    reward: ScalarModel | None,
    tokenizer: PromptTokenizer,
    config: SFTConfig,
) -> dict[str, float]:
    """Return the validation loss and, given a reward model, the mean score of completions sampled for `prompts`."""
    metrics = {"loss/validation": lm_loss(model, validation, backward=False)}
    if reward is not None:
        completions = generate(model, tokenizer, prompts, max_tokens=config.max_tokens, seed=config.seed)
        examples, _ = reward.truncate(retokenize_for(reward.tokenizer, tokenizer, completions))
        metrics["validation/score"] = float(reward.score(examples).mean())
    return metrics
