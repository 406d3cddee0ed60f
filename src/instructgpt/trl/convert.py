"""`from-trl`: a configuration of a TRL trainer as a configuration of a stage.

instructgpt from-trl sft.yaml --trainer sft --out sft-here.yaml
instructgpt sft --config sft-here.yaml
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from instructgpt.config import did_you_mean
from instructgpt.errors import InputError, one_line
from instructgpt.io import write_text_atomic
from instructgpt.trl import options as table
from instructgpt.trl.configs import FromTRLConfig

_MODEL_OPTION = {"sft": "base", "reward": "base", "dpo": "policy", "ppo": "policy"}
_DATA_OPTION = {"sft": "data", "reward": "data", "dpo": "data", "ppo": "prompts"}
_TRACKERS = ("tensorboard", "trackio", "wandb")
_ADAM = ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused")


@dataclass
class Conversion:
    """A configuration of TRL with its defaults, and what became of it."""

    trainer: str
    gpus: int
    settings: dict[str, Any]
    """The options of the file."""
    options: dict[str, Any] = field(default_factory=dict)
    """Ours, by name."""
    lines: list[tuple[str, str]] = field(default_factory=list)
    """TRL's options of the file, or TRL's defaults, each with what became of it."""
    commands: list[str] = field(default_factory=list)
    """Commands that come before the stage."""

    def get(self, name: str) -> Any:
        """Return an option's value, by default TRL's."""
        return self.settings[name] if name in self.settings else self.defaults.get(name)

    @property
    def defaults(self) -> dict[str, Any]:
        """TRL's defaults that are not ours."""
        adapter = table.ADAPTER_DEFAULTS if self.settings.get("use_peft") else {}
        return table.COMMON_DEFAULTS | adapter | table.DEFAULTS[self.trainer]

    def number(self, name: str) -> float:
        """Return a number, by default TRL's; YAML reads `1e-5` as text."""
        value = self.get(name)
        try:
            if isinstance(value, bool):
                raise TypeError
            return float(value)
        except (TypeError, ValueError):
            raise InputError(f"{name} {value}: not a number") from None

    def note(self, name: str, text: str) -> None:
        self.lines.append((f"{name}: {self.get(name)}", text))

    def convert(self, name: str, ours: str, value: Any, because: str = "") -> None:
        """Set one of our options and say from which of TRL's."""
        self.options[ours] = value
        source = "" if name in self.settings else " (TRL's default)"
        self.lines.append((f"{name}: {self.get(name)}{source}", f"→ {ours}: {value}{because}"))


def main(config: FromTRLConfig) -> Path:
    """Write the configuration, and print what became of each option.

    Raises:
        InputError: the file cannot be read, or holds an option that this trainer does not have.
    """
    settings = read_trl_config(config.trl_config)
    conversion = convert_options(config.trainer, settings, config.gpus, str(config.trl_config))
    write_text_atomic(config.out, format_yaml(conversion, config.trl_config))
    for before, after in conversion.lines:
        print(f"{before:44} {after}")
    print(f"{config.out}: written. Next:")
    for command in (*conversion.commands, f"instructgpt {config.trainer} --config {config.out}"):
        print(f"  {command}")
    return config.out


def read_trl_config(path: Path) -> dict[str, Any]:
    """Return the options of a YAML or JSON file; flags' hyphens become underscores.

    Raises:
        InputError: the file cannot be read or is no list of options.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)})") from error
    try:
        values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: neither YAML nor JSON ({one_line(error)})") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise InputError(f"{path}: expected 'option: value' lines, as `trl sft --config` reads them")
    return {name.removeprefix("--").replace("-", "_"): value for name, value in values.items()}


def convert_options(trainer: str, settings: dict[str, Any], gpus: int = 1, source: str = "configuration") -> Conversion:
    """Return our options for a trainer's, and a line about each.

    Raises:
        InputError: an option that this trainer does not have, or a value that makes no sense.
    """
    conversion = Conversion(trainer, gpus, settings)
    renamed = table.COMMON_RENAMED | table.RENAMED[trainer]
    for name in settings:
        computed = name in table.COMPUTED and (trainer == "ppo" or name != "num_mini_batches")
        if name not in renamed and not computed and table.fixed_option(name) is None:
            hint = did_you_mean(name, table.option_names(trainer))
            raise InputError(f"{source}: TRL has no option '{name}' for {trainer}{hint}")
    try:
        for convert in (_model, _data, _sizes, _rates, _memory, _bookkeeping, _fixed, _unset):
            convert(conversion)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    return conversion


def _model(conversion: Conversion) -> None:
    ours, settings = _MODEL_OPTION[conversion.trainer], conversion.settings
    if conversion.trainer == "ppo":
        for name, option in (("sft_model_path", "policy"), ("reward_model_path", "reward")):
            if name in settings:
                conversion.convert(name, option, settings[name])
    if "model_name_or_path" in settings and ours not in conversion.options:
        revision = settings.get("model_revision") or "main"
        name = settings["model_name_or_path"]
        is_pinned = revision != "main" and not Path(str(name)).exists()
        conversion.convert("model_name_or_path", ours, f"{name}@{revision}" if is_pinned else name)
    if "model_revision" in settings:
        conversion.note("model_revision", f"part of {ours}: NAME@REVISION")


def _data(conversion: Conversion) -> None:
    settings, trainer = conversion.settings, conversion.trainer
    if "dataset_name" not in settings:
        return
    name, split = str(settings["dataset_name"]), settings.get("dataset_train_split", "train")
    if trainer in ("sft", "ppo") and split == "train" and not settings.get("dataset_config"):
        conversion.convert("dataset_name", _DATA_OPTION[trainer], name)
        return
    kind = {"sft": "demonstrations", "ppo": "prompts"}.get(trainer, "rankings")
    command = f"instructgpt data import --data {name} --to {kind} --out {kind}.jsonl"
    conversion.commands.append(command if split == "train" else f"{command} --split {split}")
    conversion.convert("dataset_name", _DATA_OPTION[trainer], f"{kind}.jsonl", ", by `data import`")
    if settings.get("dataset_config"):
        conversion.note("dataset_config", "download this part of the data set and name its folder")
    for option in ("dataset_train_split", "dataset_test_split"):
        if option in settings:
            conversion.note(
                option, "data import --split NAME; validation data are --validation, else a tenth is held out"
            )


def _sizes(conversion: Conversion) -> None:
    """Batches of all devices together, epochs, episodes."""
    per_device, accumulated = (
        conversion.number(name) for name in ("per_device_train_batch_size", "gradient_accumulation_steps")
    )
    batch = _positive_integer("per_device_train_batch_size times gradient_accumulation_steps", per_device * accumulated)
    batch *= conversion.gpus
    conversion.convert(
        "per_device_train_batch_size",
        "batch",
        batch,
        f": {per_device:g} a device, accumulated {accumulated:g} times, {conversion.gpus} devices",
    )
    if "gradient_accumulation_steps" in conversion.settings:
        conversion.note("gradient_accumulation_steps", "part of batch; microbatches fit into memory by themselves")
    if conversion.trainer == "ppo":
        parts = _positive_integer("num_mini_batches", conversion.number("num_mini_batches"))
        if batch % parts:
            raise InputError(f"num_mini_batches {parts} does not divide the batch of {batch}")
        conversion.convert("num_mini_batches", "minibatch", batch // parts)
        _episodes(conversion, batch)
        return
    epochs = conversion.number("num_train_epochs")
    conversion.convert("num_train_epochs", "epochs", max(1, math.ceil(epochs)), _rounded(epochs))
    if float(conversion.settings.get("max_steps") or -1) > 0:
        conversion.note("max_steps", "DIFFERS: the length is --epochs here; set it to steps · batch / records")


def _episodes(conversion: Conversion, batch: int) -> None:
    if conversion.settings.get("total_episodes") is None:
        conversion.lines.append(
            ("total_episodes: not set", "DIFFERS: set episodes in the file; TRL takes num_train_epochs of the prompts")
        )
        return
    episodes = _positive_integer("total_episodes", conversion.number("total_episodes"))
    rounded = math.ceil(episodes / batch) * batch
    because = "" if rounded == episodes else f", the next multiple of the batch of {batch}"
    conversion.convert("total_episodes", "episodes", rounded, because)


def _positive_integer(name: str, value: float) -> int:
    if value != int(value) or value < 1:
        raise InputError(f"{name} {value:g}: expected a whole number of at least 1")
    return int(value)


def _rounded(epochs: float) -> str:
    return "" if epochs == int(epochs) else ", rounded up: passes are whole"


def _rates(conversion: Conversion) -> None:
    renamed = table.COMMON_RENAMED | table.RENAMED[conversion.trainer]
    handled = {"output_dir", "total_episodes", "sft_model_path", "reward_model_path"}
    for name, ours in renamed.items():
        if name in handled or (conversion.get(name) is None and name != "missing_eos_penalty"):
            continue
        if name == "missing_eos_penalty":
            penalty = 0.0 if conversion.get(name) is None else conversion.number(name)
            conversion.convert(name, ours, penalty)
            continue
        value = conversion.number(name)
        conversion.convert(name, ours, int(value) if ours in ("seed", "epochs", "max_tokens") else value)
    if "output_dir" in conversion.settings:
        conversion.convert("output_dir", "out", conversion.settings["output_dir"])
    _warmup(conversion)
    if conversion.trainer == "sft":
        conversion.options["dropout"] = 0.0
        conversion.lines.append(("dropout of the model's own configuration", "→ dropout: 0.0; the paper's is 0.2"))
    if conversion.trainer != "ppo":
        conversion.lines.append(("data", "DIFFERS: without --validation a tenth of the prompts is held out"))
    if conversion.trainer == "ppo":
        conversion.options["value_lr"], conversion.options["ema"] = conversion.options["lr"], 0.0
        conversion.lines.append(("one optimizer for policy and value model", "→ value_lr: the same rate"))
        conversion.lines.append(("the last weights are saved", "→ ema: 0.0; the paper's average has 0.992"))


def _warmup(conversion: Conversion) -> None:
    """TRL's warm-up; `warmup_steps` below 1 is a share of all steps."""
    for name in ("warmup_ratio", "warmup_steps"):
        if name not in conversion.settings:
            continue
        value = conversion.number(name)
        if conversion.trainer == "dpo" and value < 1:
            conversion.convert(name, "warmup", value)
        else:
            is_same = value == 0 and conversion.trainer != "ppo"
            schedule = table.FIXED["lr_scheduler_type"].text
            conversion.note(name, "the same" if is_same else f"DIFFERS: {schedule}")
    if conversion.trainer == "dpo" and "warmup" not in conversion.options:
        conversion.convert("warmup_steps", "warmup", 0.0)


def _memory(conversion: Conversion) -> None:
    settings, memory = conversion.settings, []
    if settings.get("use_peft"):
        rank = _positive_integer("lora_r", conversion.number("lora_r"))
        conversion.convert("lora_r", "lora", rank)
        alpha = conversion.number("lora_alpha")
        text = "the same" if alpha == 2 * rank else f"DIFFERS: alpha is twice the rank, {2 * rank}"
        conversion.lines.append((f"lora_alpha: {alpha:g}", text))
        conversion.note("use_peft", "lora: a rank above 0")
    else:
        unused = [name for name in ("lora_r", "lora_alpha") if name in settings]
        conversion.lines += [(f"{name}: {settings[name]}", "no effect without use_peft") for name in unused]
    if settings.get("bf16") or settings.get("fp16"):
        memory.append("bf16")
        conversion.note("bf16" if settings.get("bf16") else "fp16", "→ memory: bf16")
    elif "bf16" not in settings and "fp16" not in settings:
        conversion.lines.append(("bf16 (TRL's default on a GPU)", "float32 here; add bf16 to memory on a GPU"))
    name = "activation_checkpointing" if "activation_checkpointing" in settings else "gradient_checkpointing"
    if conversion.get(name):
        memory.append("checkpointing")
        source = "" if name in settings else " (TRL's default)"
        conversion.lines.append((f"{name}: True{source}", "→ memory: checkpointing"))
    if settings.get("load_in_4bit"):
        memory.append("4bit")
        conversion.note("load_in_4bit", "→ memory: 4bit")
    optimizer = str(settings.get("optim", _ADAM[0]))
    if "8bit" in optimizer:
        memory.append("adam8bit")
    if "optim" in settings:
        counterpart = "→ memory: adam8bit" if "8bit" in optimizer else "the same" if optimizer in _ADAM else ""
        conversion.note("optim", counterpart or "DIFFERS: the optimizer is Adam")
    if memory:
        conversion.options["memory"] = memory


def _bookkeeping(conversion: Conversion) -> None:
    settings, trainer = conversion.settings, conversion.trainer
    trackers = settings.get("report_to") or []
    trackers = [trackers] if isinstance(trackers, str) else trackers
    if "report_to" in settings:
        supported = [name for name in trackers if name in _TRACKERS]
        if supported:
            conversion.convert("report_to", "track", supported)
        elif set(trackers) <= {"none"}:
            conversion.note("report_to", "the same")
        unsupported = [name for name in trackers if name not in (*_TRACKERS, "none")]
        if unsupported:
            conversion.note(
                "report_to", f"DIFFERS: no tracker {', '.join(unsupported)}; there are {', '.join(_TRACKERS)}"
            )
    if settings.get("save_total_limit"):
        conversion.convert("save_total_limit", "checkpoints", int(settings["save_total_limit"]))
    if trainer != "ppo":
        best = bool(settings.get("load_best_model_at_end", False))
        conversion.convert("load_best_model_at_end", "keep", "best" if best else "last")
    elif "load_best_model_at_end" in settings:
        conversion.note("load_best_model_at_end", "DIFFERS: PPO saves the last weights, or their average with ema")
    if trainer == "sft" and settings.get("assistant_only_loss"):
        conversion.note("assistant_only_loss", "the same; `learn: last` learns the last assistant turn alone")
    elif trainer == "sft":
        source = "" if "assistant_only_loss" in settings else " (TRL's default)"
        text = "DIFFERS for `messages`: TRL learns every token of them; here the assistant's turns alone"
        conversion.lines.append((f"assistant_only_loss: False{source}", text))


def _fixed(conversion: Conversion) -> None:
    handled = {name for before, _ in conversion.lines for name in [before.partition(":")[0]]}
    renamed = table.COMMON_RENAMED | table.RENAMED[conversion.trainer]
    names = [
        *conversion.settings,
        *(name for name in conversion.defaults if name not in conversion.settings),
    ]
    for name in names:
        fixed = table.fixed_option(name)
        if name in handled or name in renamed or fixed is None:
            continue
        value = conversion.get(name)
        is_same = fixed.same == table.ANY or value in fixed.same
        if name in conversion.settings or not is_same:
            source = "" if name in conversion.settings else " (TRL's default)"
            text = f"not needed: {fixed.text}" if fixed.same == table.ANY else "the same"
            conversion.lines.append((f"{name}: {value}{source}", text if is_same else f"DIFFERS: {fixed.text}"))


def _unset(conversion: Conversion) -> None:
    """Answer the options of the file that nothing was made of: those that are off, or that another one replaces."""
    handled = {before.partition(":")[0] for before, _ in conversion.lines}
    for name in conversion.settings:
        if name in handled:
            continue
        is_length = name == "num_train_epochs"
        conversion.note(name, "the length of PPO is episodes" if is_length else "the same without an option")


def format_yaml(conversion: Conversion, source: Path) -> str:
    """Return the file: our options, and as comments what differs or has to be added."""
    differences = [f"{before}: {after.removeprefix('DIFFERS: ')}" for before, after in _differences(conversion)]
    head = [f"Made from {source.name} of TRL's trainer '{conversion.trainer}' by `instructgpt from-trl`."]
    head += ["Differs from TRL:", *(f"- {line}" for line in differences)] if differences else []
    head += [f"First: {command}" for command in conversion.commands]
    missing = _missing(conversion)
    head += [f"Add: {', '.join(missing)}"] if missing else []
    comments = "".join(f"# {line}\n" for line in head)
    return comments + yaml.safe_dump(conversion.options, sort_keys=False, allow_unicode=True)


def _differences(conversion: Conversion) -> Iterator[tuple[str, str]]:
    yield from (line for line in conversion.lines if line[1].startswith("DIFFERS"))


def _missing(conversion: Conversion) -> list[str]:
    """Return our required options that the file did not say."""
    required = {_MODEL_OPTION[conversion.trainer], _DATA_OPTION[conversion.trainer], "out"}
    required |= {"reward", "episodes"} if conversion.trainer == "ppo" else set()
    return sorted(required - conversion.options.keys())
