"""`export`: a checkpoint as the model directory that the run would save at that step.

pytest tests/train/test_export.py
"""

import json
from functools import partial

import pytest
import torch
import transformers
from conftest import DEMONSTRATIONS, assert_same_tensors, weights_of
from safetensors.torch import load_file
from support.commands import run_in_process
from support.stages import STAGES, build_stage
from test_resume import stop_at_step

from instructgpt.config import make_config
from instructgpt.errors import InputError
from instructgpt.run import directory as run_module
from instructgpt.run.directory import RunDirectory
from instructgpt.train import export
from instructgpt.train.configs import ExportConfig

RUN_FILES = {"README.md", "run.json", "metrics.jsonl", "samples.jsonl", "log.jsonl"}


@pytest.fixture
def stage(write, save, save_reward, tmp_path):
    return partial(build_stage, write, save, save_reward, tmp_path)


def export_checkpoint(checkpoint, out, **options):
    return export.main(make_config(ExportConfig, {"checkpoint": checkpoint, "out": out}, options))


def model_files(folder):
    """Return the bytes of a model's files by name, those of a run left out."""
    paths = [path for path in folder.rglob("*") if path.is_file() and "checkpoints" not in path.parts]
    names = {path: str(path.relative_to(folder)) for path in paths}
    return {name: path.read_bytes() for path, name in names.items() if name not in RUN_FILES}


def end_before_saving(main, config, monkeypatch):
    """Run a stage to its last checkpoint, and no further."""

    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "CHECKPOINT_INTERVAL_S", 0.0)
        patch.setattr(RunDirectory, "finish", stopped)
        with pytest.raises(KeyboardInterrupt):
            main(config)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pretrain", {"keep": "best"}),
        ("sft", {}),
        ("sft", {"lora": 3, "keep": "last"}),
        ("reward", {"save_dtype": "bfloat16"}),
        ("reward", {"lora": 3, "demonstrations": ("data.jsonl",)}),
        ("ppo", {}),
        ("ppo", {"lora": 3}),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value) or "plain",
)
def test_last_checkpoint_is_exported_as_the_finished_run_saves_it(stage, write, name, options, tmp_path, monkeypatch):
    if "demonstrations" in options:
        options = options | {"demonstrations": (write("centering.jsonl", DEMONSTRATIONS[:3]),)}
    main, config = stage(name, "whole", **options)
    expected = model_files(main(config))
    main, config = stage(name, "stopped", **options)
    end_before_saving(main, config, monkeypatch)
    folder = export_checkpoint(config.out, tmp_path / "exported")
    assert model_files(folder) == expected
    assert not list(tmp_path.glob(".*")), "no temporary directory is left"
    card = (folder / "README.md").read_text()
    assert '"checkpoint"' in card
    classes = transformers.AutoModelForSequenceClassification, transformers.AutoModelForCausalLM
    _, info = classes[name != "reward"].from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert main(config) == config.out, "the run goes on as if nothing had been exported"


def test_checkpoint_in_mid_run_holds_average_and_latest_weights(stage, tmp_path, monkeypatch):
    """Compare with the weights of the checkpoint's own file, read by safetensors."""
    main, config = stage("ppo", "stopped")
    stop_at_step(4, main, config, monkeypatch)
    checkpoint = config.out / "checkpoints" / "step-00000002"
    tensors = load_file(checkpoint / "rank-0.safetensors")
    for options, part in (({}, "average"), ({"latest": True}, "policy")):
        prefix = f"models/{part}/"
        weights = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        exported = weights_of(export_checkpoint(checkpoint, tmp_path / part, **options))
        assert_same_tensors(exported, {name: weights[name] for name in exported}, tolerance=0)
    assert '"step": 2' in (tmp_path / "policy" / "README.md").read_text()
    average, latest = (weights_of(tmp_path / part) for part in ("average", "policy"))
    assert any((average[name] != latest[name]).any() for name in average)


def test_corrupt_checkpoint_is_reported_and_the_one_before_it_exported(stage, tmp_path, monkeypatch, capsys):
    main, config = stage("sft", "stopped")
    stop_at_step(4, main, config, monkeypatch)
    first, last = sorted((config.out / "checkpoints").iterdir())
    content = bytearray((last / "rank-0.safetensors").read_bytes())
    content[-3] ^= 1
    (last / "rank-0.safetensors").write_bytes(content)
    folder = export_checkpoint(config.out, tmp_path / "exported")
    assert "step-00000003 is corrupt (rank-0.safetensors is corrupt)" in capsys.readouterr().out.replace("\n", "")
    assert_same_tensors(weights_of(folder), weights_of(export_checkpoint(first, tmp_path / "first")), tolerance=0)
    with pytest.raises(InputError, match=r"step-00000003: rank-0.safetensors is corrupt"):
        export_checkpoint(last, tmp_path / "last")
    assert not (tmp_path / "last").exists()


def test_moved_base_is_named_and_another_model_refused(stage, save, tmp_path, monkeypatch):
    main, config = stage("sft", "stopped", lora=3)
    stop_at_step(3, main, config, monkeypatch)
    record_path = config.out / "run.json"
    record = json.loads(record_path.read_text())
    record["config"]["base"] = record["parents"]["base"]["path"] = "gone/base"
    record_path.write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"gone/base: is not the model that the run started from .--base., or has"):
        export_checkpoint(config.out, tmp_path / "exported")
    with pytest.raises(InputError, match="is not the model that the run started from"):
        export_checkpoint(config.out, tmp_path / "exported", base=str(save("llama")))
    folder = export_checkpoint(config.out, tmp_path / "exported", base=config.base)
    assert (folder / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("name", STAGES)
def test_what_holds_no_checkpoint_is_refused_in_one_line(stage, name, save, tmp_path, capsys):
    command = run_in_process(capsys)
    main, config = stage(name, "whole")
    main(config)
    for source, reason in (
        (tmp_path / "nothing", "no such directory; give a run directory"),
        (save(), "it is a plain model directory already"),
        (tmp_path, "neither a run directory nor a folder in its checkpoints"),
    ):
        assert reason in command("export", source, "--out", tmp_path / "exported").error_line(2)
    line = command("export", config.out, "--out", save()).error_line(2)
    assert "is not empty" in line
    assert not (tmp_path / "exported").exists()


def test_options_without_effect_are_refused(stage, write, save, tmp_path, monkeypatch):
    main, config = stage("pretrain", "stopped")
    stop_at_step(3, main, config, monkeypatch)
    with pytest.raises(InputError, match="--base has no effect"):
        export_checkpoint(config.out, tmp_path / "exported", base=str(save()))
    with pytest.raises(InputError, match="--demonstrations has no effect"):
        export_checkpoint(config.out, tmp_path / "exported", demonstrations=(write("d.jsonl", DEMONSTRATIONS),))


def test_offset_of_an_exported_reward_model_centers_the_demonstrations(stage, write, tmp_path, monkeypatch):
    """The mean of stock scores is the offset that config.json holds."""
    main, config = stage("reward", "stopped")
    stop_at_step(3, main, config, monkeypatch)
    file = write("centering.jsonl", DEMONSTRATIONS[:3])
    folder = export_checkpoint(config.out, tmp_path / "exported", demonstrations=(file,))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    scores = []
    for row in DEMONSTRATIONS[:3]:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}], tokenize=False, add_generation_prompt=True
        )
        ids = [*tokenizer(text, add_special_tokens=False)["input_ids"]]
        ids += [*tokenizer(row["completion"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            scores.append(float(model(torch.tensor([ids])).logits))
    offset = json.loads((folder / "config.json").read_text())["score_offset"]
    assert offset == pytest.approx(sum(scores) / 3, abs=1e-4)
