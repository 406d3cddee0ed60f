"""A training checkpoint as a plain model directory: the model that the run would save if it ended there.

    instructgpt export runs/ppo --out policy-now                                   the latest checkpoint
    instructgpt export runs/sft/checkpoints/step-00000120 --out policy-120

A checkpoint holds what training changes: of adapters, nothing else. Configuration, tokenizer and frozen weights come
from the run's base model, or of `pretrain` from its corpus; their hashes must be those that the run recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from rich.markup import escape

from instructgpt.config import StageConfig
from instructgpt.data.tokenization import PromptTokenizer, tokenize_demonstrations
from instructgpt.errors import InputError, one_line
from instructgpt.io import atomic_directory, check_output_directory
from instructgpt.models.loading import round_to_saved_dtype, set_saved_dtype
from instructgpt.models.lora import add_lora, get_trainable_module
from instructgpt.models.policy import load_policy
from instructgpt.models.precision import apply_memory_options, disable_bf16, hold_frozen_in_bf16
from instructgpt.models.reward_model import ScalarModel, new_reward_model
from instructgpt.records import Demonstration, SkippedLines, read_all_records
from instructgpt.run.checkpoints import find_corruption, load_tensors, read_checkpoint
from instructgpt.run.directory import RunDirectory, console, read_run_record
from instructgpt.run.lineage import content_hash, is_unchanged
from instructgpt.run.model_card import format_model_card
from instructgpt.train import pretrain, reward
from instructgpt.train.configs import DPOConfig, ExportConfig, PPOConfig, PretrainConfig, RewardConfig, SFTConfig
from instructgpt.train.startup import save_and_verify_policy

_CPU = torch.device("cpu")
_STAGE_CONFIGS: dict[str, type[StageConfig]] = {
    config.stage: config for config in (PretrainConfig, SFTConfig, RewardConfig, DPOConfig, PPOConfig)
}
_BASE_OPTIONS = {"sft": "base", "reward": "base", "dpo": "policy", "ppo": "policy"}
"""The option that names the model which a stage's trained weights belong to; also its name among the parents."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint with the record of its run."""

    folder: Path
    record: dict[str, Any]
    config: Any  # of the run's stage
    state: dict[str, Any]

    @property
    def trained_weights(self) -> dict[str, Any]:
        """What the run would save at this step: the average of PPO, the best weights so far, or the latest ones."""
        models = self.state["models"]
        if self.config.stage == "ppo":
            return dict(models["average"])
        return self.state["best"]["weights"] or dict(models["model"])

    @property
    def latest_weights(self) -> dict[str, Any]:
        return dict(self.state["models"]["policy" if self.config.stage == "ppo" else "model"])


def main(config: ExportConfig) -> Path:
    """Write the model directory and return its path."""
    check_output_directory(config.out)
    checkpoint = open_checkpoint(config)
    console.print(f"[bold]export[/] {escape(str(checkpoint.folder))}, step {checkpoint.state['step']}", soft_wrap=True)
    weights = checkpoint.latest_weights if config.latest else checkpoint.trained_weights
    save, summary = _MODEL_LOADERS[checkpoint.config.stage](checkpoint, weights, config)
    with atomic_directory(config.out) as folder:
        save(folder)
        card = format_model_card(checkpoint.record | _describe(checkpoint, config) | summary)
        (folder / "README.md").write_text(card, encoding="utf-8")
    console.print(f"[green]done[/]: {escape(str(config.out))}", soft_wrap=True)
    return config.out


def _describe(checkpoint: Checkpoint, config: ExportConfig) -> dict[str, Any]:
    weights = "latest" if config.latest else "average" if checkpoint.config.stage == "ppo" else checkpoint.config.keep
    exported = {"step": checkpoint.state["step"], "weights": weights}
    return {"checkpoint": exported, "seconds": round(checkpoint.state["spent"], 1)}


# --- the checkpoint and its run ------------------------------------------------------------------------------------


def open_checkpoint(config: ExportConfig) -> Checkpoint:
    """Find and verify a checkpoint: the one that is named, or the latest valid one of a run directory.

    Raises:
        InputError: there is none, its files are corrupt, or the run's base model is missing or has changed.
    """
    source = config.checkpoint
    if not source.is_dir():
        raise InputError(f"{source}: no such directory; give a run directory, or a folder in its checkpoints/")
    directory = source if read_run_record(source) is not None else source.parent.parent
    record = read_run_record(directory)
    if record is None:
        model = "; it is a plain model directory already" if (source / "config.json").exists() else ""
        raise InputError(f"{source}: neither a run directory nor a folder in its checkpoints/{model}")
    stage_config = _parse_stage_config(directory, record)
    folder = _find_latest_checkpoint(directory, record) if directory == source else source
    if problem := find_corruption(folder):
        raise InputError(f"{folder}: {problem}; export another checkpoint")
    return Checkpoint(folder, record, _locate_base(stage_config, record, config), read_checkpoint(folder))


def _parse_stage_config(directory: Path, record: Mapping[str, Any]) -> StageConfig:
    stage = str(record.get("stage"))
    if stage not in _STAGE_CONFIGS:
        stages = ", ".join(_STAGE_CONFIGS)
        raise InputError(f"{directory}: a run of '{stage}' has no checkpoints of a model; {stages} have them")
    try:
        return _STAGE_CONFIGS[stage].model_validate(record["config"])
    except ValidationError as error:
        problem = one_line(error, 200)
        raise InputError(f"{directory / 'run.json'}: its options are not those of this version ({problem})") from error


def _find_latest_checkpoint(directory: Path, record: Mapping[str, Any]) -> Path:
    """Return the latest valid checkpoint of a run, and report corrupt ones."""
    for folder in sorted((directory / "checkpoints").glob("step-*"), reverse=True):
        problem = find_corruption(folder)
        if problem is None:
            return folder
        console.print(f"[yellow]{escape(str(folder))} is corrupt ({problem}); trying the one before it[/]")
    if record["finished"]:
        raise InputError(f"{directory}: the run has finished, so the directory itself is the plain model")
    raise InputError(f"{directory}: the run has written no checkpoint yet, or none is valid; let it go on")


def _locate_base(stage_config: StageConfig, record: Mapping[str, Any], config: ExportConfig) -> StageConfig:
    """Return the options with the present place of the base model, whose content must be what the run recorded."""
    option = _BASE_OPTIONS.get(stage_config.stage)
    if option is None:
        if config.base is not None:
            raise InputError("--base has no effect: a model of 'pretrain' starts from no other model")
        changed = [name for name, parent in record["parents"].items() if not _has_recorded_content(parent)]
        if changed:
            raise InputError(f"{changed[0]}: missing or changed since the run started, and its tokenizer comes from it")
        return stage_config
    base = config.base or getattr(stage_config, option)
    parent = record["parents"][option] | {"path": base}
    if not _has_recorded_content(parent):
        raise InputError(
            f"{base}: is not the model that the run started from (--{option}), or has changed since; "
            "name the place of the unchanged one with --base"
        )
    return stage_config.model_copy(update={option: base})


def _has_recorded_content(parent: Mapping[str, str]) -> bool:
    return is_unchanged({"path": parent["path"], "sha256": content_hash(Path(parent["path"]))}, parent["sha256"])


# --- the model of each stage ---------------------------------------------------------------------------------------

_Save = Callable[[Path], None]


def _load_policy(checkpoint: Checkpoint, weights: dict[str, Any], config: ExportConfig) -> tuple[_Save, dict[str, Any]]:
    stage_config = checkpoint.config
    if config.demonstrations:
        raise InputError("--demonstrations has no effect: only a reward model has an offset")
    if stage_config.stage == "pretrain":
        texts, _ = pretrain.read_texts(stage_config, SkippedLines(stage_config.skip_bad))
        tokenizer = pretrain.load_or_train_tokenizer(stage_config, texts)
        model: Any = pretrain.build_base_model(stage_config, tokenizer).eval()
    else:
        model, tokenizer = load_policy(getattr(stage_config, _BASE_OPTIONS[stage_config.stage]), _CPU)
    model = _load_weights(model, weights, stage_config)
    _pin_date(tokenizer, checkpoint)
    return (lambda folder: save_and_verify_policy(model, tokenizer, folder)), {}


def _load_reward_model(
    checkpoint: Checkpoint, weights: dict[str, Any], config: ExportConfig
) -> tuple[_Save, dict[str, Any]]:
    stage_config: RewardConfig = checkpoint.config
    reward_model = new_reward_model(stage_config.base, _CPU, stage_config.seed)
    reward_model.model = _load_weights(reward_model.model, weights, stage_config)
    _pin_date(reward_model.tokenizer, checkpoint)
    round_to_saved_dtype(reward_model.model)
    examples = _read_centering_examples(reward_model, stage_config, config)
    reward_model.offset = float(reward_model.score(examples).mean())
    console.print(f"offset {reward_model.offset:.4f}, the average score of {len(examples)} completions")
    summary = {"validation": {"offset": reward_model.offset}}
    return (lambda folder: reward.save_and_verify(reward_model, examples[:8], folder, {})), summary


def _read_centering_examples(reward_model: ScalarModel, stage_config: RewardConfig, config: ExportConfig) -> list[Any]:
    """Return the completions whose average score becomes 0: of --demonstrations, else those of the run."""
    if not config.demonstrations:
        return reward.load_data(stage_config, reward_model, RunDirectory(stage_config, {}))[2]
    tokenizer = reward_model.tokenizer
    records = read_all_records(Demonstration, config.demonstrations, SkippedLines(), tokenizer.check_prompt)
    examples = tokenize_demonstrations(records, tokenizer, reward_model.context)[0]
    if not examples:
        raise InputError(f"--demonstrations: none fits into the context of {reward_model.context} tokens")
    return examples


_MODEL_LOADERS = dict.fromkeys(("pretrain", "sft", "dpo", "ppo"), _load_policy) | {"reward": _load_reward_model}


def _load_weights(model: Any, weights: dict[str, Any], config: StageConfig) -> Any:
    """Put a checkpoint's weights into the model that training started from, with adapters where it trained them.

    Frozen weights are rounded as the run held them.
    """
    apply_memory_options(model, {"4bit", "bf16"}.intersection(config.memory))
    model = add_lora(model, config.lora, config.seed)
    hold_frozen_in_bf16(model)
    disable_bf16(model)
    if config.save_dtype != "base":
        set_saved_dtype(model, config.save_dtype)
    trainable = get_trainable_module(model)
    trainable.load_state_dict(load_tensors(weights, trainable.state_dict()))
    return model


def _pin_date(tokenizer: PromptTokenizer, checkpoint: Checkpoint) -> None:
    if "started" in checkpoint.record:
        tokenizer.pin_date(date.fromisoformat(checkpoint.record["started"]))
