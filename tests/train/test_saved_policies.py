"""`--save-every`: policies saved while a run trains, as plain model directories.

pytest tests/train/test_saved_policies.py
"""

import json
import shutil
from collections import namedtuple
from functools import partial

import pytest
import torch
import transformers
from conftest import assert_same_tensors, weights_of
from support.stages import build_stage
from test_resume import outcome, stop_at_step

from instructgpt.config import make_config
from instructgpt.errors import InputError
from instructgpt.models.policy import load_policy
from instructgpt.train import saved_policies
from instructgpt.train.configs import PPOConfig, SFTConfig

USAGE = namedtuple("USAGE", "total used free")


@pytest.fixture
def stage(write, save, save_reward, tmp_path):
    return partial(build_stage, write, save, save_reward, tmp_path)


def policies_of(folder):
    return sorted(path.name for path in (folder / "policies").iterdir())


def listed(folder):
    return json.loads((folder / "run.json").read_text())["policies"]


@pytest.mark.parametrize("lora", [0, 3])
def test_ppo_saves_the_model_of_a_run_that_ends_there(stage, rows_of, lora):
    """Compare with a run of 24 episodes without warm-up, which is what 3 PPO steps are; saving changes nothing."""
    plain = {"lora": lora, "pretraining": (), "ptx_ratio": 8.0}
    main, config = stage("ppo", "short", episodes=24, lora=lora)
    short = main(config.model_copy(update=plain))
    main, config = stage("ppo", "quiet", episodes=32, lora=lora)
    quiet = outcome(main(config.model_copy(update=plain)), rows_of)
    main, config = stage("ppo", "saving", episodes=32, lora=lora, save_every=3)
    folder = main(config.model_copy(update=plain))
    assert policies_of(folder) == ["step-00000003"]
    assert listed(folder) == [{"path": "policies/step-00000003", "step": 3}]
    saved = folder / "policies" / "step-00000003"
    for name in ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json"):
        assert (saved / name).read_bytes() == (short / name).read_bytes(), name
    assert '"step": 3' in (saved / "README.md").read_text()
    assert (saved / "adapter").is_dir() == bool(lora)
    saving = outcome(folder, rows_of)
    for record in (quiet["run.json"], saving["run.json"]):
        record["config"].pop("save_every")
        record.pop("policies", None)
    assert saving == quiet


def test_sft_saves_every_epoch_and_keeps_the_latest(stage):
    main, config = stage("sft", "sft", save_every=1, save_limit=2, keep="last")
    folder = main(config)
    assert policies_of(folder) == ["epoch-00000003", "epoch-00000004"]
    assert [entry["epoch"] for entry in listed(folder)] == [3, 4]
    third, fourth = (folder / "policies" / name for name in policies_of(folder))
    assert_same_tensors(weights_of(fourth), weights_of(folder), tolerance=0)
    different = weights_of(third)
    assert any((different[name] != tensor).any() for name, tensor in weights_of(folder).items())
    model, tokenizer = load_policy(third, torch.device("cpu"))
    assert model.config.resid_pdrop == 0
    assert tokenizer.stop_tokens
    stock = transformers.AutoModelForCausalLM.from_pretrained(fourth, output_loading_info=True)[1]
    assert not stock["missing_keys"]


def test_policies_after_the_checkpoint_are_saved_again(stage, monkeypatch):
    main, config = stage("ppo", "whole", save_every=1)
    folder = main(config) / "policies"
    whole = {name: weights_of(folder / name) for name in policies_of(config.out)}
    main, config = stage("ppo", "stopped", save_every=1)
    stop_at_step(4, main, config, monkeypatch)
    assert policies_of(config.out) == [f"step-{step:08d}" for step in (1, 2, 3)]
    shutil.rmtree(config.out / "checkpoints" / "step-00000003")
    (config.out / "policies" / ".step-00000004.part").mkdir()  # left by a kill
    kept = config.out / "policies" / "step-00000002" / "kept"
    kept.touch()
    later = config.out / "policies" / "step-00000003" / "later"
    later.touch()
    main(config)
    assert kept.exists()
    assert not later.exists()
    assert policies_of(config.out) == [f"step-{step:08d}" for step in range(1, 6)]
    for name, weights in whole.items():
        assert_same_tensors(weights_of(config.out / "policies" / name), weights, tolerance=0)


@pytest.mark.parametrize(("limit", "count"), [(0, 5), (2, 3)])
def test_room_on_the_disk_is_checked_before_the_first_step(stage, monkeypatch, limit, count):
    """Five policies, or as many as are kept and one more while the oldest is replaced; and the run's own model."""
    main, config = stage("ppo", "ppo", save_every=1, save_limit=limit)
    weights = sum(t.numel() * 4 for t in load_policy(config.policy, torch.device("cpu"))[0].parameters())
    with monkeypatch.context() as patch:
        for free, fits in (((count + 1) * weights - 1, False), ((count + 1) * weights, True)):
            patch.setattr(saved_policies.shutil, "disk_usage", lambda _, free=free: USAGE(0, 0, free))
            if fits:
                main(config)
            else:
                with pytest.raises(
                    InputError, match=rf"--save-every 1: {count} policies and the model .* --save-limit"
                ):
                    main(config)
                assert not (config.out / "metrics.jsonl").exists()
    assert len(policies_of(config.out)) == (limit or 5)


def test_options_without_effect_are_refused(tmp_path):
    sft = {"base": "b", "data": ("d.jsonl",), "out": tmp_path}
    with pytest.raises(InputError, match="--save-limit has no effect without --save-every"):
        make_config(SFTConfig, sft, {"save_limit": 2})
    with pytest.raises(InputError, match="--save-every 17 has no effect: it is more than --epochs 16"):
        make_config(SFTConfig, sft, {"save_every": 17})
    ppo = {"policy": "p", "reward": ("r",), "prompts": ("p.jsonl",), "out": tmp_path}
    with pytest.raises(InputError, match=r"--save-every 3 has no effect: .* PPO steps, 2"):
        make_config(PPOConfig, ppo, {"episodes": 8, "batch": 4, "minibatch": 4, "save_every": 3})
