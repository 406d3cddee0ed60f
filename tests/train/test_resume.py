"""A resumed run ends with the same bytes and metrics as an uninterrupted one.

pytest tests/train/test_resume.py
"""

import json
import os
import signal
from functools import partial

import pytest
from conftest import CORPUS
from support.signals import stop_at
from support.stages import STAGES, build_stage

from instructgpt.errors import InputError
from instructgpt.run import directory as run_module
from instructgpt.run import signals
from instructgpt.run.directory import RunDirectory
from instructgpt.train import ppo, pretrain, reward, sft


@pytest.fixture
def stage(write, save, save_reward, tmp_path):
    return partial(build_stage, write, save, save_reward, tmp_path)


def stop_at_step(steps, main, config, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, steps)
        with pytest.raises(KeyboardInterrupt):
            main(config)


def outcome(folder, rows_of):
    """Return a run's files and records without times."""
    timed = {"README.md", "run.json", "metrics.jsonl", "samples.jsonl", "log.jsonl"}
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file() and file.name not in timed}
    for name in ("metrics.jsonl", "samples.jsonl"):
        if (folder / name).exists():
            files[name] = [
                {key: value for key, value in row.items() if key != "seconds"} for row in rows_of(folder / name)
            ]
    record = json.loads((folder / "run.json").read_text())
    assert record.pop("finished")
    assert record.pop("seconds") >= 0
    assert all(phase["seconds"] >= 0 for phase in record.pop("phases").values())  # repeated steps included
    assert record["config"].pop("out") == str(folder)
    return files | {"run.json": record}


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in STAGES), *((name, {"optimizer": "muon"}) for name in ("pretrain", "reward"))],
)
def test_resumed_run_equals_uninterrupted_run(stage, name, options, monkeypatch, rows_of):
    main, config = stage(name, "whole", **options)
    whole = outcome(main(config), rows_of)
    main, config = stage(name, "stopped", **options)
    for steps in (2, 4):  # in the middle of an epoch, and again later
        stop_at_step(steps, main, config, monkeypatch)
        kept = sorted(folder.name for folder in (config.out / "checkpoints").iterdir())
        assert kept == [f"step-{step:08d}" for step in (steps - 2, steps - 1) if step], (
            "the last, and the one before it"
        )
        assert not list(config.out.glob("*.safetensors"))
        assert len(rows_of(config.out / "metrics.jsonl")) == steps, "one row more than the checkpoint knows"
    stopped = outcome(main(config), rows_of)
    assert stopped.keys() == whole.keys()
    for file in whole:
        assert stopped[file] == whole[file], file


@pytest.mark.parametrize("name", STAGES)
def test_run_stopped_before_first_checkpoint_starts_over(stage, name, monkeypatch, rows_of):
    main, config = stage(name, "whole")
    whole = outcome(main(config), rows_of)
    main, config = stage(name, "stopped")
    stop_at_step(1, main, config, monkeypatch)
    assert outcome(main(config), rows_of) == whole


def test_resume_keeps_guard_state(stage, monkeypatch, rows_of):
    main, config = stage("ppo", "stopped")
    stop_at_step(3, main, config, monkeypatch)
    began, check = [], ppo.PPOAlarms.check
    monkeypatch.setattr(
        ppo.PPOAlarms,
        "check",
        lambda alarms, metrics: began.append(alarms.first_entropy) or check(alarms, metrics),
    )
    main(config)
    assert began == [rows_of(config.out / "metrics.jsonl")[0]["policy/entropy_avg"]] * 3


def test_run_stopped_during_save_resumes(stage, monkeypatch, rows_of):
    main, config = stage("sft", "whole")
    whole = outcome(main(config), rows_of)
    main, config = stage("sft", "stopped")
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "CHECKPOINT_INTERVAL_S", 0.0)
        save = sft.save_and_verify_policy

        def fail_at_the_end(model, tokenizer, folder):
            if folder.name == ".trial":
                return save(model, tokenizer, folder)
            return (folder / "config.json").write_text("half") and 1 / 0

        patch.setattr(sft, "save_and_verify_policy", fail_at_the_end)
        with pytest.raises(ZeroDivisionError):
            main(config)
    assert not (config.out / "config.json").exists(), "nothing half written is in its place"
    assert not json.loads((config.out / "run.json").read_text())["finished"]
    assert outcome(main(config), rows_of) == whole


def test_leftovers_of_killed_process_are_removed(stage, monkeypatch):
    main, config = stage("pretrain", "killed")
    stop_at_step(3, main, config, monkeypatch)
    (config.out / ".run.json.1.part").write_text("{")
    main(config)
    whole = set(config.out.rglob("*"))
    assert not [path for path in whole if path.name.endswith(".part")]
    (config.out / "checkpoints" / "step-00000008").mkdir()  # killed after it finished, before the cleanup
    (config.out / "checkpoints" / "half.part").mkdir()
    (config.out / ".metrics.jsonl.1.part").write_text("{")
    main(config)
    assert set(config.out.rglob("*")) == whole


def test_partial_checkpoint_is_ignored(stage, monkeypatch):
    main, config = stage("reward", "stopped")
    stop_at_step(3, main, config, monkeypatch)
    (config.out / "checkpoints" / "half.part").mkdir()
    (config.out / "checkpoints" / "half.part" / "rank-0.safetensors").write_bytes(b"cut short")
    assert RunDirectory.open(config).restore()["step"] == 2


def test_resume_refuses_changed_config_or_parent(stage, monkeypatch, write):
    main, config = stage("sft", "stopped")
    stop_at_step(2, main, config, monkeypatch)
    with pytest.raises(InputError, match=r"--lr was 0\.05 when the run started and is 0\.01 now"):
        main(config.model_copy(update={"lr": 0.01}))
    with pytest.raises(InputError, match="holds a run of stage 'sft', not of 'reward'"):
        reward.main(stage("reward", "stopped")[1])
    write("corpus.jsonl", CORPUS[:20])
    with pytest.raises(InputError, match=r"'pretraining corpus\.jsonl' \(.*\) has changed"):
        main(config)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_signal_finishes_and_saves_the_step(stage, monkeypatch, number):
    """A signal in the third step, before a checkpoint is due, saves that step; the signal handlers are restored."""
    main, config = stage("pretrain", "stopped")
    descend, steps = pretrain.optimizer_step, []

    def interrupted_step(*arguments):
        steps.append(1)
        if len(steps) == 3:
            os.kill(os.getpid(), number)
        return descend(*arguments)

    monkeypatch.setattr(pretrain, "optimizer_step", interrupted_step)
    before = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            main(config)
        assert [folder.name for folder in (config.out / "checkpoints").iterdir()] == ["step-00000003"]
        assert signal.getsignal(number) is signal.default_int_handler
        signal.signal(number, signal.SIG_IGN)  # as under nohup
        steps.clear()
        main(config)
        assert len(steps) == 6
    finally:
        signal.signal(number, before)


def test_second_stop_signal_ends_at_once(stage, monkeypatch):
    main, config = stage("pretrain", "stopped")
    descend = pretrain.optimizer_step
    monkeypatch.setattr(signals, "SAME_REQUEST_S", 0.0)

    def interrupted_step(*arguments):
        for _ in range(2):
            signal.raise_signal(signal.SIGTERM)
        return descend(*arguments)

    monkeypatch.setattr(pretrain, "optimizer_step", interrupted_step)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            main(config)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not (config.out / "checkpoints").exists()
