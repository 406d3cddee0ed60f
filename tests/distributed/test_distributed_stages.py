"""Stages divided among ranks: one, two and four compute the same, and a checkpoint of two goes on with one and with four.

pytest tests/distributed/test_distributed_stages.py
"""

from __future__ import annotations

import itertools
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.commands import make_kit

from instructgpt import cli
from instructgpt.config import StageConfig
from instructgpt.data import packing
from instructgpt.distributed.comm import DistInfo, shard_by_length
from instructgpt.distributed.launch import launch
from instructgpt.models import sharding
from instructgpt.run import directory as run_module
from instructgpt.run.directory import RunDirectory, read_jsonl_log
from instructgpt.run.lock import release_directory_lock
from instructgpt.train import ppo, reward, sft

STAGES = {"sft": sft.train, "reward": reward.train, "ppo": ppo.train}
COUNTS = (1, 2, 4)
STOPS = {1: 3, 2: 2}
"""After how many steps the run that changes its number of ranks is stopped under one and under two of them."""


def stage_configs(kit, folder: Path) -> dict[str, StageConfig]:
    """A few steps of every stage with all that ranks divide: two losses, several microbatches and epochs, sampling, shares of nothing."""
    rate = ("--lr", 3e-3)
    commands = {
        "sft": kit.sft(
            folder / "sft",
            "--batch",
            7,
            *rate,
            "--epochs",
            2,
            "--pretraining",
            kit.corpus,
            "--mix",
            0.3,
            "--reward",
            kit.reward,
            "--max-tokens",
            5,
        ),
        "reward": kit.train_reward(folder / "reward", *rate, "--folds", 0),
        "ppo": kit.ppo(
            folder / "ppo",
            "--lr",
            1e-3,
            "--value-lr",
            1e-2,
            "--epochs",
            2,
            "--minibatch",
            2,
            "--kl-coef",
            0.2,
            "--ema",
            0.5,
            "--pretraining",
            kit.corpus,
            "--ptx-ratio",
            1.5,
        ),
    }
    return {name: cli.parse(command)[1] for name, command in commands.items()}


def work(kit, root: Path, count: int, _: StageConfig) -> None:
    """What each of `count` ranks does: all stages from start to end; those that stop and go on; those that change their number."""
    packing.MICROBATCH_TOKENS["cpu"] = 60
    sharding.MIN_FSDP_GROUP_PARAMETERS = 0 if count == 4 else 10_000_000  # layer by layer, or all at once
    run_module.CHECKPOINT_SECONDS = 0.0
    log = RunDirectory.log
    plans = [(f"whole-{count}", None), ("changing", STOPS.get(count))]
    if count == 2:
        plans += [("stopped-2", 2), ("stopped-2", None), ("copies-2", None)]
    for folder, stop in plans:
        sharding.MIN_SHARDED_PARAMETERS = 1_000_000 if folder == "copies-2" else 0
        for name, config in stage_configs(kit, root / folder).items():
            RunDirectory.log = lambda *given, stop=stop, **options: stopping(log, stop, *given, **options)
            try:
                STAGES[name](config)
            except KeyboardInterrupt:
                assert stop is not None
                release_directory_lock(
                    config.out
                )  # as the end of a process would: with one rank it is this one, which lives on
            finally:
                RunDirectory.log = log


def stopping(log, stop, run, step, *rest, **options) -> None:
    """Ctrl-C after a step was logged, before it is kept."""
    log(run, step, *rest, **options)
    if stop is not None and step > stop:
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    kit = make_kit(folder, "--layers", 2)
    with pytest.MonkeyPatch.context() as patch:  # one rank works in this process, and what it sets is put back
        patch.setitem(packing.MICROBATCH_TOKENS, "cpu", 60)
        for module, name in (
            (sharding, "GATHERED_TOGETHER"),
            (sharding, "HELD_WHOLE"),
            (run_module, "CHECKPOINT_SECONDS"),
        ):
            patch.setattr(module, name, 0)
        for count in (2, 1, 4):
            launch(partial(work, kit, folder, count), stage_configs(kit, folder)["sft"], count)
    return folder


def metrics_of(folder: Path) -> list[dict[str, float]]:
    return [
        {name: number for name, number in row.items() if name != "seconds"}
        for row in read_jsonl_log(folder / "metrics.jsonl")
    ]


def assert_close(one: Path, other: Path) -> None:
    """Weights and metrics agree to 1e-5 of rounding, and the weights are not those of the start."""
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(
            first[name], second[name], atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    rows, others = metrics_of(one), metrics_of(other)
    assert len(rows) == len(others) >= 4
    for row, same in zip(rows, others, strict=True):
        assert row == pytest.approx(same, abs=1e-5, rel=1e-5)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("count", COUNTS[1:])
def test_ranks_compute_what_one_does(count, stage, root):
    assert_close(root / f"whole-{count}" / stage, root / "whole-1" / stage)


@pytest.mark.parametrize("stage", STAGES)
def test_ranks_that_hold_small_models_whole_do_too(stage, root):
    assert_close(root / "copies-2" / stage, root / "whole-1" / stage)


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_of_two_ranks_goes_on_with_one_and_then_four(stage, root):
    assert_close(root / "changing" / stage, root / "whole-1" / stage)


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_that_stop_end_with_the_same_bytes(stage, root):
    stopped, whole = root / "stopped-2" / stage, root / "whole-2" / stage
    assert (stopped / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert metrics_of(stopped) == metrics_of(whole)


@pytest.mark.parametrize("stage", STAGES)
def test_training_moved_the_weights(stage, root):
    """Else the comparisons above would compare nothing."""
    start = load_file(root / "base" / "model.safetensors")
    end = load_file(root / "whole-4" / stage / "model.safetensors")
    alike = [name for name in start if name in end and start[name].shape == end[name].shape]
    assert max(float((end[name] - start[name]).abs().max()) for name in alike) > 1e-3


def test_what_ranks_save_is_what_one_saves(root):
    one, four = (root / f"whole-{count}" / "ppo" for count in (1, 4))
    assert {file.name for file in one.iterdir()} == {file.name for file in four.iterdir()}
    assert (one / "config.json").read_text() == (four / "config.json").read_text()
    samples = [
        [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()] for folder in (one, four)
    ]
    assert [row["completion"] for row in samples[0]] == [row["completion"] for row in samples[1]]


def test_shares_are_all_rows_once_and_alike():
    lengths = [7, 1, 30, 4, 4, 12, 9, 30, 2, 2, 11]
    for total in (1, 2, 3, 4, 12):
        shares = [shard_by_length(lengths, DistInfo(own, total)) for own in range(total)]
        assert sorted(itertools.chain(*shares)) == list(range(len(lengths)))
        loads = [sum(lengths[row] for row in rows) for rows in shares]
        if total < 4:
            assert max(loads) - min(loads) <= 2
