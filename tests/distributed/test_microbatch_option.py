"""Tokens per microbatch: the option, and what an interrupted run found when it was out of memory.

pytest tests/distributed/test_microbatch_option.py
"""

import json

import pytest
from conftest import DEMONSTRATIONS, assert_same_tensors, weights_of

from instructgpt.config import make_config
from instructgpt.data.packing import MICROBATCH_TOKENS
from instructgpt.distributed import launch
from instructgpt.train import sft
from instructgpt.train.configs import SFTConfig


@pytest.fixture
def small_sft(save, write, tmp_path):
    def config(**options):
        required = {"base": str(save()), "data": (write("d.jsonl", DEMONSTRATIONS),), "out": tmp_path / "sft"}
        return make_config(SFTConfig, required | {"epochs": 2, "batch": 4, "lr": 1e-3}, options)

    return config


def run_watched(config, monkeypatch, fail_at=None):
    """Run the stage; return the CPU's tokens per microbatch at each step. The step `fail_at` is out of memory."""
    seen, step = [], sft.optimizer_step

    def watched(*given):
        seen.append(MICROBATCH_TOKENS["cpu"])
        if len(seen) == fail_at:
            raise MemoryError
        return step(*given)

    with monkeypatch.context() as patch:
        patch.setattr(sft, "optimizer_step", watched)
        sft.main(config)
    return seen


def test_the_option_sets_the_size_of_this_run_only(small_sft, monkeypatch, tmp_path):
    assert set(run_watched(small_sft(microbatch_tokens=40), monkeypatch)) == {40}
    assert MICROBATCH_TOKENS["cpu"] == 2048
    whole = small_sft(out=tmp_path / "whole")
    assert set(run_watched(whole, monkeypatch)) == {2048}
    assert_same_tensors(weights_of(tmp_path / "sft"), weights_of(whole.out), 1e-5)


def test_a_later_command_goes_on_with_the_size_found_by_halving(small_sft, monkeypatch):
    """Out of memory at the third step, then killed: the next command does not run out again."""
    config = small_sft(microbatch_tokens=1024)
    original = launch.halve_token_budget
    with monkeypatch.context() as patch:

        def halve_and_die():
            assert original()
            launch._report_smaller_microbatch(config)
            raise SystemExit(137)

        patch.setattr(launch, "halve_token_budget", halve_and_die)
        with pytest.raises(SystemExit):
            run_watched(config, monkeypatch, fail_at=3)
    assert json.loads((config.out / "run.json").read_text())["microbatch_tokens"]["cpu"] == 512
    assert set(run_watched(config, monkeypatch)) == {512}
    assert json.loads((config.out / "run.json").read_text())["microbatch_tokens"]["cpu"] == 512
    assert MICROBATCH_TOKENS == {"cpu": 2048, "cuda": 65536}


def test_another_option_wins_over_what_was_found(small_sft, monkeypatch):
    config = small_sft(microbatch_tokens=1024)
    with monkeypatch.context() as patch:
        patch.setattr(launch, "halve_token_budget", lambda: False)
        with pytest.raises(MemoryError):
            run_watched(config, monkeypatch, fail_at=2)
    record = json.loads((config.out / "run.json").read_text())
    (config.out / "run.json").write_text(json.dumps(record | {"microbatch_tokens": {"cpu": 256, "cuda": 256}}))
    assert set(run_watched(small_sft(microbatch_tokens=700), monkeypatch)) == {700}
