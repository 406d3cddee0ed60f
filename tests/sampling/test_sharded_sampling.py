"""Sampling with sharded weights, and offloaded weights: the same completions, the same training.

pytest tests/sampling/test_sharded_sampling.py
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import CPU, DEMONSTRATIONS, assert_same_tensors, weights_of
from support.commands import make_kit, run_in_process

from instructgpt import cli
from instructgpt.config import RANK_TIMEOUT_S, StageConfig, make_config
from instructgpt.data import packing
from instructgpt.data.packing import TokenizedExample, collate
from instructgpt.distributed.comm import get_dist_info
from instructgpt.distributed.launch import _start_ranks, launch
from instructgpt.errors import InputError
from instructgpt.models import sharding
from instructgpt.models.lora import BaseModelView, add_lora, get_backbone
from instructgpt.models.policy import completion_logp, load_policy
from instructgpt.models.precision import apply_memory_options, compute_device
from instructgpt.run import directory as run_module
from instructgpt.run.directory import RunDirectory, read_jsonl_log
from instructgpt.sampling import engine
from instructgpt.sampling.distributed import sample_on_ranks
from instructgpt.sampling.kv_cache import StaticKVCache
from instructgpt.train import ppo, sft
from instructgpt.train.configs import SFTConfig
from instructgpt.train.optim import build_optimizer

PROMPTS = [[5, 9, 2], [7], [5, 9, 2], [4, 4, 8, 1, 30, 12], [11, 3], [60, 61], [7]]
WAYS = {
    "likeliest": (len(PROMPTS), {"temperature": 0.0, "seed": 1}),
    "drawn in turns": (len(PROMPTS), {"seed": 4, "max_rows": 1, "top_p": 0.9}),
    "for one rank": (1, {"seed": 5}),
}
"""Number of prompts, and sampling options."""
KINDS = {
    "gpt2": "gpt2",
    "llama": "llama",
    "bf16": "llama",
    "adapters": "llama",
    "offload": "llama",
    "checkpointing": "llama",
    "computed anew": "llama",  # the last: it replaces a method of the cache
}


# --- sampling ------------------------------------------------------------------------------------------------------


def sample_both_ways(folders: dict[str, Path], out: Path, _: StageConfig) -> None:
    """Run on each of two ranks: sample with gathered and with sharded weights, then a backward pass."""
    sharding.MIN_SHARDED_PARAMETERS = 0
    sharding.layer_groups = group_per_layer
    samples_by_case = {}
    for name, folder in folders.items():
        model, _ = load_policy(folder, CPU)
        apply_memory_options(model, (name,) if name in ("bf16", "checkpointing") else ())
        model = add_lora(model, 2 if name == "adapters" else 0, seed=0)
        sharding.shard(model, memory=("offload",) if name == "offload" else ())
        if name == "computed anew":
            StaticKVCache.update = fails_in_the_second_layer
        likeliest = sample_on_ranks(model, PROMPTS, stop_tokens=(), max_tokens=9, temperature=0.0, seed=0)
        for way, (count, options) in WAYS.items():
            for share in (0.5, 0.0):
                sharding.MAX_UNSHARDED_MEMORY_SHARE = share
                assert sharding.fits_unsharded(model) == bool(share)
                samples = sample_on_ranks(
                    model, PROMPTS[:count], stop_tokens=(likeliest[3].tokens[2],), max_tokens=9, **options
                )
                samples_by_case[f"{name}, {way}, {share}"] = [[one.tokens, one.logp, one.finished] for one in samples]
        assert (name == "computed anew") == (engine._CACHE_PROBES[model][1] is None)
        batch = collate([TokenizedExample([5, 9], [2, 8])])
        (-completion_logp(model, batch).sum()).backward()
        gradients = [parameter.grad.full_tensor() for parameter in model.parameters() if parameter.grad is not None]
        samples_by_case[f"{name}, gradient"] = sum(gradient.abs().sum().item() for gradient in gradients)
    (out / f"{get_dist_info().rank}.json").write_text(json.dumps(samples_by_case))


def fails_in_the_second_layer(_self, keys, values, layer, *_, **__):
    if layer == 1:
        raise NotImplementedError("a family that keeps nothing")
    return keys, values


def group_per_layer(model):
    """Gather every layer on its own, as in a large model."""
    names = set(model._no_split_modules or ())
    return [[module] for module in model.modules() if type(module).__name__ in names]


@pytest.fixture(scope="module")
def sampled(save, tmp_path_factory):
    """Completions of both ranks by model, way, and memory share of gathered weights."""
    out = tmp_path_factory.mktemp("sampled")
    folders = {name: save(family) for name, family in KINDS.items()}
    config = make_config(SFTConfig, {"base": "none", "data": (out,), "out": out})
    launch(partial(sample_both_ways, folders, out), config, 2)
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", KINDS)
def test_sharded_and_gathered_weights_sample_the_same(name, way, sampled):
    gathered, sharded = (sampled[0][f"{name}, {way}, {share}"] for share in (0.5, 0.0))
    near = 0.05 if name == "bf16" else 1e-5
    assert len(gathered) == len(sharded) == WAYS[way][0]
    for (tokens, logp, finished), (same, also, ended) in zip(gathered, sharded, strict=True):
        assert tokens == same
        assert finished == ended
        assert logp == pytest.approx(also, abs=near)


def test_sharded_layers_can_be_checkpointed(sampled):
    assert sampled[0]["checkpointing, gradient"] == pytest.approx(sampled[0]["llama, gradient"], rel=1e-5)


def test_both_ranks_get_all_completions(sampled):
    assert sampled[0] == sampled[1]
    drawn, likeliest = (sampled[0][f"llama, {way}, 0.0"] for way in ("drawn in turns", "likeliest"))
    assert drawn[0][0] != drawn[2][0], "one prompt, another index"
    assert len({len(tokens) for tokens, *_ in likeliest}) > 1, "else no rank waits for another"


# --- weights that wait on the CPU ----------------------------------------------------------------------------------


def train_all(kit, root: Path, plans: list[tuple[str, int | None]], _: StageConfig) -> None:
    """Run on each rank: SFT and PPO for each plan, several microbatches a step, to the end or stopped after a step."""
    for name, stop in plans:
        train_both(kit, root, name, stop)


def train_both(kit, root: Path, name: str, stop: int | None) -> None:
    memory = () if name == "without" else ("offload",)
    packing.MICROBATCH_TOKENS["cpu"] = 60
    sharding.MIN_SHARDED_PARAMETERS = sharding.MIN_FSDP_GROUP_PARAMETERS = 0
    sharding.MAX_UNSHARDED_MEMORY_SHARE = 0.0 if name == "offload" else 0.5
    run_module.CHECKPOINT_INTERVAL_S = 0.0
    log = RunDirectory.log

    def logged(run, step, *rest, **options) -> None:
        log(run, step, *rest, **options)
        if step == stop:
            raise KeyboardInterrupt

    sizes = ("--epochs", 2, "--batch", 7, "--lr", 3e-3, "--reward", kit.reward, "--max-tokens", 5)
    commands = {
        sft.train: kit.sft(root / name / "sft", *sizes),
        ppo.train: kit.ppo(root / name / "ppo", "--lr", 1e-3, "--value-lr", 1e-2, "--ema", 0.5, "--minibatch", 2),
    }
    for train, command in commands.items():
        RunDirectory.log = logged
        try:
            train(cli.parse(command)[1].model_copy(update={"memory": memory}))
        except KeyboardInterrupt:
            assert stop is not None
        finally:
            RunDirectory.log = log


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder of runs: two ranks with and without offload, one rank with it; those with it are stopped and resumed."""
    root = tmp_path_factory.mktemp("trained")
    kit = make_kit(root, "--layers", 2)
    config = cli.parse(kit.sft(root / "sft"))[1]
    with pytest.MonkeyPatch.context() as patch:  # one rank works in this process, and what it sets is put back
        patch.setitem(packing.MICROBATCH_TOKENS, "cpu", 60)
        for module, name in (
            (sharding, "MIN_FSDP_GROUP_PARAMETERS"),
            (sharding, "MIN_SHARDED_PARAMETERS"),
            (run_module, "CHECKPOINT_INTERVAL_S"),
        ):
            patch.setattr(module, name, 0)
        patch.setattr(sharding, "MAX_UNSHARDED_MEMORY_SHARE", 0.5)
        launch(partial(train_all, kit, root, [("without", None), ("offload", 2), ("offload", None)]), config, 2)
        _start_ranks(partial(train_all, kit, root, [("alone", 2), ("alone", None)]), config, 1, RANK_TIMEOUT_S)
    return root


@pytest.mark.parametrize("stage", ["sft", "ppo"])
@pytest.mark.parametrize("name", ["offload", "alone"])
def test_offloaded_weights_train_the_same(name, stage, trained):
    one, other = (trained / folder / stage for folder in (name, "without"))
    assert_same_tensors(weights_of(one), weights_of(other), tolerance=1e-5)
    rows, others = read_jsonl_log(one / "metrics.jsonl"), read_jsonl_log(other / "metrics.jsonl")
    assert [row["step"] for row in rows] == [row["step"] for row in others]
    for row, same in zip(rows, others, strict=True):
        row["seconds"] = same["seconds"]
        assert row == pytest.approx(same, abs=1e-5, rel=1e-5)


def test_compute_device_of_offloaded_models(save):
    for rank in (0, 2):
        model = add_lora(load_policy(save(), CPU)[0], rank, seed=0)
        sharding._set_compute_device(model, torch.device("meta"))
        for module in (model, get_backbone(model), BaseModelView(model) if rank else model):
            assert compute_device(module).type == "meta"
        assert model.device == next(model.parameters()).device == CPU


def test_offload_is_refused_without_effect(save, tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in DEMONSTRATIONS))
    command = (
        "sft",
        "--base",
        save(),
        "--data",
        data,
        "--out",
        tmp_path / "out",
        "--device",
        "cpu",
        "--memory",
        "offload",
    )
    assert "--memory offload has no effect on a CPU" in run_in_process(capsys)(*command).error_line(2)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="adam8bit does not work with offload"):
        build_optimizer(load_policy(save(), CPU)[0], memory=("adam8bit", "offload"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_offload_on_one_gpu_trains_the_same(save, tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in DEMONSTRATIONS))
    for folder, word in (("plain", ()), ("offload", ("--memory", "offload"))):
        command = (
            "sft",
            "--base",
            save(),
            "--data",
            data,
            "--out",
            tmp_path / folder,
            "--device",
            "cuda",
            "--epochs",
            2,
            "--lr",
            1e-3,
        )
        assert run_in_process(capsys)(*command, *word).code == 0
    assert_same_tensors(weights_of(tmp_path / "offload"), weights_of(tmp_path / "plain"), tolerance=1e-4)
