"""Interrupted, killed, corrupt and out-of-disk runs end cleanly, and the same command resumes to the same weights.

pytest tests/core/test_interrupts.py
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.commands import EAGER, SMALL_RUN, CommandProcess, Kit, logged, snapshot, wait_for, write

from instructgpt.run import checkpoints
from instructgpt.run import directory as run_module
from instructgpt.run.directory import RunDirectory
from instructgpt.train import pretrain, startup

MANY = ("--tokens", 64 * 120)
UPDATES = ("--episodes", 4 * 20)


@pytest.fixture
def eager(monkeypatch):
    monkeypatch.setattr(run_module, "CHECKPOINT_INTERVAL_S", 0.0)


def same_weights(one: Path, other: Path) -> bool:
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def leftovers(folder: Path) -> list[str]:
    """Return temporary files, and checkpoints other than the final state of each stage."""
    earlier = [path for place in folder.rglob("checkpoints") for path in sorted(place.glob("step-*"))[:-1]]
    return [str(path) for path in [*folder.rglob("*.part"), *earlier]]


def steps_logged(folder: Path) -> list[int]:
    return [row["step"] for row in run_module.read_jsonl_log(folder / "metrics.jsonl")]


def tokens_by_phase(folder: Path) -> dict[str, int]:
    phases = json.loads((folder / "run.json").read_text())["phases"]
    return {name: phase["tokens"] for name, phase in phases.items()}


# --- signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "steps"), [("pretrain", 120), ("ppo", 20)])
def test_interrupted_stage_resumes_to_the_same_weights(stage, steps, kit, command, tmp_path):
    make = {"pretrain": lambda out: kit.pretrain(out, *MANY), "ppo": lambda out: kit.ppo(out, *UPDATES)}[stage]
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    ended = CommandProcess(make(stopped)).wait_until(logged(stopped, 3)).send(signal.SIGINT).end()
    assert ended.error_line(1) == "interrupted; run the same command to resume from the last checkpoint"
    assert list((stopped / "checkpoints").glob("step-*"))
    assert not (stopped / "model.safetensors").exists()
    assert not list(stopped.rglob("*.part"))
    went_on = command(*make(stopped))
    assert went_on.code == 0
    assert "resuming after step" in went_on.out
    assert command(*make(whole)).code == 0
    assert same_weights(stopped, whole)
    assert steps_logged(stopped) == steps_logged(whole) == list(range(1, steps + 1))
    assert tokens_by_phase(stopped) == tokens_by_phase(whole)
    assert not leftovers(stopped)


def test_interrupted_sampling_can_be_resumed(kit, tmp_path):
    ended = CommandProcess(
        "sample",
        "--model",
        kit.base,
        "--prompts",
        kit.prompts,
        "--n",
        4000,
        "--max-tokens",
        40,
        "--out",
        tmp_path / "c",
    )
    wait_for(lambda: Path(f"/proc/{ended.process.pid}/maps").read_text().count("libtorch_cpu") > 0)
    assert ended.send(signal.SIGTERM).end().error_line(1) == "interrupted; run the same command to resume"
    assert {path.name for path in tmp_path.iterdir()} <= {"c.part"}


def test_module_has_the_same_exit_codes(kit, tmp_path):
    argv = kit.sft(tmp_path / "out", "--base", tmp_path / "gone")
    assert (
        CommandProcess(argv, program=("-m", "instructgpt")).end().error_line(2)
        == f"{tmp_path / 'gone'}: no such directory"
    )


def test_a_run_without_a_checkpoint_says_that_it_starts_again(kit, command, tmp_path, monkeypatch):
    monkeypatch.setattr(RunDirectory, "save_checkpoint", lambda *_, **__: None)
    log = RunDirectory.log

    def killed_at_step_2(self, step, *arguments, **options):
        log(self, step, *arguments, **options)
        if step == 2:
            raise OSError("killed")

    monkeypatch.setattr(RunDirectory, "log", killed_at_step_2)
    assert command(*kit.pretrain(tmp_path / "out")).code == 1
    monkeypatch.setattr(RunDirectory, "log", log)
    again = command(*kit.pretrain(tmp_path / "out"))
    assert again.code == 0
    assert "no checkpoint was written before the run stopped after step 2; starting again from step 0" in again.out


# --- two processes ---------------------------------------------------------------------------------------------------


def test_worker_error_is_reported(kit, command, tmp_path):
    tied = write(
        tmp_path / "r.jsonl", [{"prompt": f"p{i}", "completions": ["a", "b"], "ranks": [1, 1]} for i in range(9)]
    )
    argv = kit.train_reward(tmp_path / "out", "--data", tied, "--processes", 2)
    assert "0 prompts with a decided pair to train on" in command(*argv).error_line(2)
    assert not multiprocessing.active_children()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("number", "group"), [(signal.SIGINT, True), pytest.param(signal.SIGTERM, False, marks=pytest.mark.slow)]
)
def test_interrupting_two_processes_leaves_no_orphan(number, group, kit, tmp_path):
    out = tmp_path / "out"
    started = CommandProcess(kit.pretrain(out, *MANY, "--tokens", 64 * 4000, "--processes", 2)).wait_until(
        logged(out, 3)
    )
    ended = started.send(number, group=group).end()
    assert ended.error_line(1) == "interrupted; run the same command to resume from the last checkpoint"
    wait_for(lambda: started.group_has_ended, patience=10)


@pytest.mark.slow
def test_workers_end_with_their_parent(kit, command, tmp_path):
    out = tmp_path / "out"
    argv = [*kit.pretrain(out, *MANY), "--processes", "2"]
    started = CommandProcess(argv, program=("-c", EAGER)).wait_until(logged(out, 3)).send(signal.SIGKILL)
    assert started.end().code == -signal.SIGKILL
    wait_for(lambda: started.group_has_ended, patience=10)
    assert command(*argv[:-1], 1).code == 0
    assert steps_logged(out) == list(range(1, 121))


@pytest.mark.slow
def test_killed_worker_is_one_line(kit, tmp_path):
    out = tmp_path / "out"
    started = CommandProcess(kit.pretrain(out, "--tokens", 64 * 4000, "--processes", 2)).wait_until(logged(out, 3))
    children = Path(f"/proc/{started.process.pid}/task/{started.process.pid}/children").read_text().split()
    helpers = [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    os.kill(int(helpers[0]), signal.SIGKILL)
    assert "a worker process died, probably out of memory" in started.end().error_line(1)
    wait_for(lambda: started.group_has_ended, patience=10)


# --- out of disk -----------------------------------------------------------------------------------------------------


def fill(link: Path) -> Path:
    """Link a path to a device that is always full."""
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to("/dev/full")
    return link


def stop_after(kit: Kit, out: Path, step: int, monkeypatch, command) -> None:
    """Interrupt a pretraining run after a step, with its checkpoint."""
    with monkeypatch.context() as patched:
        patched.setattr(run_module, "CHECKPOINT_INTERVAL_S", 0.0)
        patched.setattr(pretrain, "optimizer_step", interrupted(pretrain.optimizer_step, step))
        command(*kit.pretrain(out)).error_line(1)


def interrupted(function, calls: int):
    """Wrap a function so that it raises KeyboardInterrupt after `calls` calls."""
    left = [calls]

    def call(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return function(*arguments)

    return call


@pytest.mark.parametrize("place", ["checkpoints/half.part/rank-0.safetensors", ".run.json.{pid}.part", "metrics.jsonl"])
@pytest.mark.usefixtures("eager")
def test_full_disk_stops_a_stage_and_it_resumes(place, kit, command, monkeypatch, tmp_path):
    out = tmp_path / "out"
    stop_after(kit, out, 4, monkeypatch, command)
    if place == "metrics.jsonl":  # rewritten on resume, so the disk is full only after that
        restore = RunDirectory.restore

        def restore_and_fill(run):
            state = restore(run)
            (out / place).unlink()
            fill(out / place)
            return state

        monkeypatch.setattr(RunDirectory, "restore", restore_and_fill)
    else:
        monkeypatch.setattr(checkpoints.shutil, "rmtree", lambda *_, **__: None)  # keep the partial file
        fill(out / place.format(pid=os.getpid()))
    told = command(*kit.pretrain(out)).error_line(1)
    assert "no space left on the disk; free some and run the same command again" in told
    assert str(out) in told
    monkeypatch.undo()
    if (out / place).is_symlink() and place == "metrics.jsonl":
        (out / place).unlink()
    assert command(*kit.pretrain(out)).code == 0
    assert same_weights(out, kit.base)
    assert not leftovers(out)


@pytest.mark.parametrize("save_folder", [".trial", ".part"])
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_full_disk_at_the_first_and_at_the_final_save(file, save_folder, kit, command, monkeypatch, tmp_path):
    out, save = tmp_path / "out", startup.save_policy

    def save_to_full_disk(model, tokenizer, folder):
        save(model, tokenizer, fill(folder / file).parent if folder.name == save_folder else folder)

    with monkeypatch.context() as patched:
        patched.setattr(startup, "save_policy", save_to_full_disk)
        told = command(*kit.pretrain(out)).error_line(1)
    assert told == f"{out}: no space left on the disk; free some and run the same command again"
    assert not (out / "model.safetensors").exists()
    assert not list(out.rglob("*.part"))
    assert not (out / ".trial").exists()
    assert command(*kit.pretrain(out)).code == 0
    assert same_weights(out, kit.base)


def test_full_disk_while_completions_are_written(kit, command, tmp_path):
    out = tmp_path / "c.jsonl"
    argv = ["sample", "--model", kit.base, "--prompts", kit.prompts, "--max-tokens", 4, "--out", out]
    fill(tmp_path / f".c.jsonl.{os.getpid()}.part")
    assert f"{out}: no space left on the disk" in command(*argv).error_line(1)
    assert not out.exists()
    assert command(*argv).code == 0


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 KB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True, check=False
    ).returncode:
        pytest.skip("only root can mount a small disk; the tests with /dev/full say the same")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.usefixtures("eager")
def test_full_disk_at_any_point(kit, command, small_disk):
    out, ballast = small_disk / "out", small_disk / "ballast"
    complaints = []
    for free in range(0, 160, 20):
        ballast.write_bytes(bytes((256 - 16 - free) * 1024))
        ended = command(*kit.pretrain(out))
        if ended.code == 0:
            break
        told = ended.error_line(1)
        assert "no space left on the disk; free some and run the same command again" in told
        complaints.append(told.removeprefix(str(small_disk)).partition(":")[0])
        shutil.rmtree(out, ignore_errors=True) if len(complaints) % 2 else None  # half of them resume, half start again
    assert len(set(complaints)) > 1
    ballast.unlink()
    assert command(*kit.pretrain(out)).code == 0
    assert same_weights(out, kit.base)


# --- corrupt ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 100, -200])
@pytest.mark.parametrize("both", [False, True])
def test_corrupt_checkpoint_falls_back_to_the_previous_one(size, both, kit, command, monkeypatch, tmp_path):
    out = tmp_path / "out"
    stop_after(kit, out, 4, monkeypatch, command)
    first, last = sorted((out / "checkpoints").glob("step-*"))
    for folder in (first, last) if both else (last,):
        weights = folder / "rank-0.safetensors"
        weights.write_bytes(weights.read_bytes()[:size])
    done = command(*kit.pretrain(out))
    assert (done.code, done.err) == (0, "")
    said = " ".join(done.out.split())
    assert "step-00000004 is corrupt (rank-0.safetensors is corrupt); using the previous one" in said
    assert ("restarting from the beginning" if both else "resuming after step 3") in said
    assert same_weights(out, kit.base)
    assert steps_logged(out) == steps_logged(kit.base)


def test_truncated_log_line_is_removed(kit, command, monkeypatch, tmp_path):
    out = tmp_path / "out"
    stop_after(kit, out, 4, monkeypatch, command)
    with (out / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 5, "los')
    assert command(*kit.pretrain(out)).code == 0
    assert steps_logged(out) == list(range(1, 13))


# --- whole run -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_run_is_finished_by_the_same_command(command, tmp_path):
    out = tmp_path / "run"
    argv = ["run", "--preset", "smoke", "--config", write(tmp_path / "small.yaml", [SMALL_RUN]), "--out", out]
    started = CommandProcess(argv).wait_until((out / "start" / "model.safetensors").exists)
    wait_for(lambda: (out / "reward" / "run.json").exists() or started.process.poll() is not None)
    assert started.send(signal.SIGKILL).end().code == -signal.SIGKILL
    base = snapshot(out / "base")
    assert command(*argv).code == 0
    assert snapshot(out / "base") == base
    assert not leftovers(out)
    report, before = (out / "report.html").read_bytes(), snapshot(out)
    again = command(*argv)
    assert again.code == 0
    assert "already finished" in again.out
    after = snapshot(out)
    assert {file for file in before if before[file] != after[file]} == {str(out / "report.html")}
    assert (out / "report.html").read_bytes() == report
