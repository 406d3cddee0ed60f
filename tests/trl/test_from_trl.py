"""Configurations of TRL's trainers as configurations of the stages: names, numbers, what differs, what is refused.

`trl_fields.json` has the names of the configuration classes of TRL 1.16.0 (PPO: 0.24.0).

pytest tests/trl/test_from_trl.py
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from support.commands import write
from transformers import TrainingArguments

from instructgpt.cli import COMMANDS
from instructgpt.config import make_config, section_for
from instructgpt.errors import InputError
from instructgpt.trl.convert import convert_options
from instructgpt.trl.options import DEFAULTS, fixed_option

FIELDS = json.loads((Path(__file__).parent / "trl_fields.json").read_text(encoding="utf-8"))
TRAINERS = tuple(FIELDS)
INPUTS = {
    "sft": {"base": "b", "data": "d.jsonl", "out": "o"},
    "reward": {"base": "b", "data": "d.jsonl", "out": "o"},
    "dpo": {"policy": "b", "data": "d.jsonl", "out": "o"},
    "ppo": {"policy": "b", "reward": "r", "prompts": "d.jsonl", "episodes": 64, "out": "o"},
}


def line_of(conversion, name: str) -> str:
    """What became of one option."""
    (text,) = [after for before, after in conversion.lines if before.partition(":")[0] == name]
    return text


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_option_of_trl_is_answered_once(trainer):
    defaults = {
        item.name: item.default
        for item in dataclasses.fields(TrainingArguments)
        if item.default is not dataclasses.MISSING
    }
    names = [*defaults, *(name for name in FIELDS[trainer] if name not in defaults)]
    assert len(names) > 130
    for name in names:
        if name in {"output_dir", "model_name_or_path", "dataset_name", "sft_model_path", "reward_model_path"}:
            value = "somewhere"
        else:
            value = DEFAULTS[trainer].get(name, defaults.get(name))
        conversion = convert_options(trainer, {name: value})
        answers = [before for before, _ in conversion.lines if before.partition(":")[0] == name]
        assert len(answers) == 1, (name, conversion.lines)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_the_defaults_of_trl_are_written_and_the_stage_reads_them(trainer):
    conversion = convert_options(trainer, {})
    config_class = next(command for command in COMMANDS if command.name == trainer).config_class
    options = section_for(config_class, yaml.safe_dump(conversion.options), "f.yaml")
    config = make_config(config_class, INPUTS[trainer], options)
    expected = {"sft": 2e-5, "reward": 1e-4, "dpo": 1e-6, "ppo": 5e-5}
    assert (config.lr, config.seed, config.memory) == (expected[trainer], 42, ("checkpointing",))
    if trainer == "ppo":
        assert (config.batch, config.minibatch, config.epochs, config.kl_coef) == (8, 8, 4, 0.05)
        assert (config.max_tokens, config.eos_penalty, config.ema, config.value_lr) == (53, 0, 0, 5e-5)
        assert line_of(conversion, "temperature").startswith("DIFFERS") or "temperature" in dict(conversion.lines)
    else:
        assert (config.batch, config.epochs, config.keep) == (8, 3, "last")


def test_batches_count_all_devices():
    """2 a device, accumulated 8 times on 4 devices: 64; two minibatches of 32."""
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8, "num_mini_batches": 2}
    conversion = convert_options("ppo", settings | {"total_episodes": 1000}, gpus=4)
    assert [conversion.options[name] for name in ("batch", "minibatch", "episodes")] == [64, 32, 1024]
    assert "next multiple" in line_of(conversion, "total_episodes")


def test_what_differs_is_stated():
    settings = {
        "weight_decay": 0.01,
        "max_length": 512,
        "lr_scheduler_type": "linear",
        "packing": True,
        "lora_alpha": 16,
    }
    conversion = convert_options("sft", settings | {"use_peft": True, "lora_r": 32})
    for name in ("weight_decay", "max_length", "lr_scheduler_type", "lora_alpha"):
        assert line_of(conversion, name).startswith("DIFFERS"), name
    assert line_of(conversion, "packing").startswith("DIFFERS: a batch counts demonstrations")
    assert conversion.options["lora"] == 32
    assert line_of(convert_options("dpo", {"loss_type": "ipo"}), "loss_type").startswith("DIFFERS")
    assert line_of(convert_options("dpo", {"loss_type": ["sigmoid"]}), "loss_type") == "the same"


@pytest.mark.parametrize("trainer", TRAINERS)
def test_defaults_of_trl_that_no_option_gives_are_stated(trainer):
    """What an empty configuration trains with in TRL and not here, from the classes of TRL 1.16 and 0.24."""
    differing = {name for name, answer in _answers(trainer, {"use_peft": True}).items() if "DIFFERS" in answer}
    expected = {"lr_scheduler_type", "adam_beta2", "lora_dropout", "lora_target_modules"}
    expected |= {"vf_coef", "temperature"} if trainer == "ppo" else {"max_length"}
    expected |= {"assistant_only_loss"} if trainer == "sft" else set()
    assert expected <= differing
    assert not {"lora_dropout", "lora_target_modules"} & _answers(trainer, {}).keys()


def _answers(trainer, settings):
    return {before.partition(":")[0]: after for before, after in convert_options(trainer, settings).lines}


def test_names_of_checkpointing_and_of_mixtures():
    assert convert_options("sft", {"activation_checkpointing": False}).options.get("memory") is None
    assert convert_options("sft", {"activation_checkpointing": True}).options["memory"] == ["checkpointing"]
    mixture = convert_options("sft", {"datasets": [{"path": "org/data"}]})
    assert line_of(mixture, "datasets").startswith("DIFFERS: name the files")
    assert line_of(convert_options("sft", {"assistant_only_loss": True}), "assistant_only_loss").startswith("the same")


def test_values_that_yaml_reads_as_text_are_numbers():
    assert convert_options("sft", {"learning_rate": "1e-5"}).options["lr"] == 1e-5
    assert convert_options("dpo", {"warmup_ratio": 0.1}).options["warmup"] == 0.1
    assert convert_options("sft", {"num_train_epochs": 0.5}).options["epochs"] == 1


@pytest.mark.parametrize(
    ("trainer", "settings", "message"),
    [
        ("sft", {"learning_rat": 1}, "no option 'learning_rat' for sft, did you mean 'learning_rate'"),
        ("sft", {"learning_rate": "fast"}, "learning_rate fast: not a number"),
        ("sft", {"per_device_train_batch_size": 0}, "expected a whole number"),
        ("ppo", {"num_mini_batches": 3}, "num_mini_batches 3 does not divide the batch of 8"),
        ("ppo", {"num_train_epochs": "x", "total_episodes": True}, "total_episodes True: not a number"),
    ],
)
def test_mistakes_are_one_line(trainer, settings, message):
    with pytest.raises(InputError, match=message):
        convert_options(trainer, settings)


def test_the_command_writes_a_file_that_the_stage_takes(command, tmp_path):
    source = tmp_path / "dpo.yaml"
    source.write_text("model_name_or_path: org/model\nmodel_revision: v2\ndataset_name: org/pairs\nbeta: 0.3\n")
    done = command("from-trl", source, "--trainer", "dpo", "--out", tmp_path / "here.yaml")
    assert (done.code, done.err) == (0, "")
    assert "instructgpt data import --data org/pairs --to rankings --out rankings.jsonl" in done.out
    text = (tmp_path / "here.yaml").read_text(encoding="utf-8")
    assert "# Add: out" in text
    values = yaml.safe_load(text)
    assert (values["policy"], values["data"], values["beta"]) == ("org/model@v2", "rankings.jsonl", 0.3)


def test_files_that_are_no_configuration_are_one_line(command, tmp_path):
    rows = write(tmp_path / "rows.json", [{"a": 1}, {"a": 2}])
    lists = tmp_path / "list.yaml"
    lists.write_text("- a\n- b\n")
    for path in (rows, lists, tmp_path / "absent.yaml"):
        assert str(path) in command("from-trl", path, "--trainer", "sft", "--out", tmp_path / "o.yaml").error_line(2)
    assert not (tmp_path / "o.yaml").exists()


def test_no_name_is_accepted_by_accident():
    for name in ("learning_rates", "evaluate", "fsdpx ", "packings", "lora"):
        assert fixed_option(name) is None or name.startswith(("fsdp",)), name
