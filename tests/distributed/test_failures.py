"""Failures of ranks: the failed rank's error is the one line printed, and the same command resumes.

pytest tests/distributed/test_failures.py
"""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from support.commands import CommandProcess, logged, run_in_process, wait_for

from instructgpt.distributed import restart
from instructgpt.run.directory import read_jsonl_log

STEPS = 40
FAULTY = """
import os, signal, sys
import instructgpt.run.directory as run
from instructgpt import cli
from instructgpt.distributed import failures as signs
from instructgpt.train import optim as loop, pretrain
run.CHECKPOINT_INTERVAL_S, signs.ERROR_GRACE_S = 0.0, 4.0
fault = os.environ["FAULT"] if os.environ["RANK"] == "1" else ""
steps, descend, logp = [], pretrain.optimizer_step, loop.completion_logp

def faulty(*given):
    steps.append(1)
    if len(steps) == 4 and fault in ("SIGKILL", "SIGSTOP"):
        os.kill(os.getpid(), signal.Signals[fault])
    if len(steps) == 4 and fault == "error":
        raise ValueError("something nobody thought of")
    return descend(*given)

pretrain.optimizer_step = faulty
if fault == "nan":
    loop.completion_logp = lambda *given: logp(*given) * (float("nan") if len(steps) == 3 else 1.0)
if fault == "gone":
    sys.argv = [word.replace("corpus.jsonl", "gone.jsonl") for word in sys.argv]
cli.main()
"""
"""The command with a fault in rank 1 after three steps."""
RESUME_HINT = "run the same command to resume from the last checkpoint"
SAYS = {
    "nan": r"the loss is nan \(on rank 1\): the learning rate is likely too high",
    "error": r"failed unexpectedly, ValueError: something nobody thought of",
    "gone": r".*gone\.jsonl.*no such file",
    "SIGKILL": rf"rank 1 died or hangs: .*; {RESUME_HINT}",
    "SIGSTOP": rf"rank 1 died or hangs: no answer for 8 s, or a lost connection; {RESUME_HINT}",
}


def torchrun(
    *arguments: object, folder: Path, fault: str = "", ranks: int = 2, program: str = FAULTY
) -> CommandProcess:
    script = folder / "faulty.py"
    script.write_text(program)
    os.environ["FAULT"] = fault
    start = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), script)
    return CommandProcess(*arguments, program=start)


def error_lines(err: str) -> list[str]:
    """Return the command's own lines; torchrun adds a report."""
    return [line for line in err.splitlines() if line.startswith("instructgpt: ")]


@pytest.mark.parametrize(
    "fault", [name if name == "nan" else pytest.param(name, marks=pytest.mark.slow) for name in SAYS]
)
def test_error_of_the_failed_rank_is_printed(fault, kit, tmp_path, capsys):
    out = tmp_path / "out"
    argv = kit.pretrain(out, "--tokens", 64 * STEPS)
    ended = torchrun(argv, "--patience", 8, folder=tmp_path, fault=fault).end()
    assert ended.code == 1, ended
    (line,) = error_lines(ended.err)
    assert re.match("instructgpt: " + SAYS[fault], line), line
    assert fault == "gone" or len(list((out / "checkpoints").glob("step-*"))) == 2
    assert not (fault == "gone" and out.exists())
    assert run_in_process(capsys)(*argv).code == 0
    assert [row["step"] for row in read_jsonl_log(out / "metrics.jsonl")] == list(range(1, STEPS + 1))


@pytest.mark.parametrize(
    ("number", "group"), [(signal.SIGTERM, False), pytest.param(signal.SIGINT, True, marks=pytest.mark.slow)]
)
def test_stop_signal_saves_a_checkpoint_on_ranks(number, group, kit, tmp_path):
    out = tmp_path / "out"
    argv = kit.pretrain(out, "--tokens", 64 * 4000)
    started = torchrun(argv, folder=tmp_path).wait_until(logged(out, 3)).send(number, group=group)
    ended = started.end()
    assert ended.code != 0
    assert error_lines(ended.err) == [
        "instructgpt: interrupted; run the same command to resume from the last checkpoint"
        " (torchrun prints a traceback of its own)"
    ]
    last = max(int(folder.name[-8:]) for folder in (out / "checkpoints").glob("step-*"))
    assert last == read_jsonl_log(out / "metrics.jsonl")[-1]["step"]
    wait_for(lambda: started.group_has_ended, patience=10)


def test_torchrun_refuses_other_commands_and_prints_errors_once(kit, tmp_path, capsys, monkeypatch):
    """As each of two ranks, by torchrun's environment variables."""
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    told = run_in_process(capsys)("report", tmp_path).error_line(2)
    assert told == "report: run without torchrun, which is for pretrain, sft, reward, ppo, dpo"
    wrong = kit.pretrain(tmp_path / "out", "--lr", -1)
    assert "--lr -1" in run_in_process(capsys)(*wrong).error_line(2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    silent = run_in_process(capsys)(*wrong)
    assert (silent.code, silent.err) == (2, "")


def test_processes_under_torchrun_is_refused(kit, tmp_path):
    ended = torchrun(kit.pretrain(tmp_path / "out"), "--processes", 2, folder=tmp_path, ranks=1).end()
    assert error_lines(ended.err) == [
        "instructgpt: --processes 2: torchrun has already started the ranks; drop --processes"
    ]


def test_restart_closes_descriptors_with_the_exec_and_not_before(monkeypatch):
    """A descriptor closed earlier would abort the process: gloo's threads still poll it."""
    descriptor = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(descriptor, True)
    at_exec = []
    monkeypatch.setattr(os, "execve", lambda *_: at_exec.append([os.get_inheritable(fd) for fd in (1, 2, descriptor)]))
    restart.restart_program("{}")
    os.close(descriptor)
    assert at_exec == [[True, True, False]]


def test_restart_can_be_switched_off(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert restart.can_restart()
    monkeypatch.setenv(restart.RESTART_SWITCH, "0")
    assert not restart.can_restart()


SLOW = """
import time
from instructgpt import cli
from instructgpt.train import startup
save = startup.save_policy

def slowly(model, tokenizer, folder):
    time.sleep(15)
    save(model, tokenizer, folder)

startup.save_policy = slowly
cli.main()
"""
"""The command with a save that takes longer than the patience of the test."""


@pytest.mark.slow
def test_ranks_wait_for_one_that_saves_for_longer_than_the_patience(kit, tmp_path):
    ended = torchrun(kit.pretrain(tmp_path / "out"), "--patience", 6, folder=tmp_path, ranks=3, program=SLOW).end()
    assert ended.code == 0, ended
    assert (tmp_path / "out" / "model.safetensors").exists()


NARROW = """
import resource
from pathlib import Path
from instructgpt import cli
from instructgpt.data import packing as batches
from instructgpt.distributed import launch
from instructgpt.run.directory import RunDirectory as Run
batches.MICROBATCH_TOKENS["cpu"] = 1 << 17
restore, calls = Run.restore, []

def narrowed(run):
    calls.append(1)
    if len(calls) == 1:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (160 << 20), -1))
    return restore(run)

Run.restore = narrowed
cli.main()
"""
"""The command with 160 MB of memory left when training starts: too little for a microbatch of 65,536 tokens."""


@pytest.mark.slow
def test_out_of_memory_halves_microbatches(kit, tmp_path, capsys):
    out, alone = tmp_path / "out", tmp_path / "alone"
    size = ("--batch", 4096, "--tokens", 16 * 4096 * 3)
    ended = CommandProcess(kit.pretrain(out, *size), program=("-c", NARROW)).end()
    assert ended.code == 0, ended
    assert "out of memory: resuming with" in " ".join(ended.out.split())
    assert run_in_process(capsys)(*kit.pretrain(alone, *size)).code == 0
    rows, others = (read_jsonl_log(folder / "metrics.jsonl") for folder in (out, alone))
    assert [row["loss/train"] for row in rows] == pytest.approx([row["loss/train"] for row in others], abs=1e-5)


TIGHT = """
import json, os, resource, sys
from pathlib import Path
from instructgpt import cli
from instructgpt.data import packing as batches
from instructgpt.distributed import launch
from instructgpt.run.directory import RunDirectory as Run
from instructgpt.train import optim as loop, pretrain
batches.MICROBATCH_TOKENS["cpu"] = 1 << 16
restore, descend, logp = Run.restore, pretrain.optimizer_step, loop.completion_logp
noted_here = Path(f"{sys.argv[0]}.{os.environ['RANK']}")
noted_here.write_text("")  # emptied by a restart: a step or two may have fit in memory before

def narrowed(run):
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    loop.completion_logp = lambda *given: within(used + (150 << 20), *given)
    return restore(run)

def within(most, *given):
    resource.setrlimit(resource.RLIMIT_AS, (most, -1))
    try:
        return logp(*given)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))

def noted(*given):
    with noted_here.open("a") as file:
        print(os.getpid(), batches.MICROBATCH_TOKENS["cpu"], file=file)
    return descend(*given)

if os.environ["RANK"] == "1":
    Run.restore = narrowed
pretrain.optimizer_step = noted
cli.main()
"""
"""The command with 150 MB of memory left for forward passes in rank 1. Communication is not limited: a gloo thread that
cannot allocate would end its process."""


@pytest.mark.slow
def test_out_of_memory_on_one_rank_restarts_all(kit, tmp_path, capsys):
    out, alone, script = tmp_path / "out", tmp_path / "alone", tmp_path / "tight.py"
    script.write_text(TIGHT)
    size = ("--batch", 8192, "--tokens", 16 * 8192 * 3)
    start = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script)
    ended = CommandProcess(kit.pretrain(out, *size), program=start).end()
    assert ended.code == 0, ended
    assert "out of memory: resuming with" in " ".join(ended.out.split())
    steps = [
        [tuple(map(int, line.split())) for line in Path(f"{script}.{rank}").read_text().splitlines()]
        for rank in range(2)
    ]
    for rank in steps:
        assert len(rank) == 3
        assert len(set(rank)) == 1, "one process, one budget"
    budgets = {rank[0][1] for rank in steps}
    assert len(budgets) == 1
    assert budgets < {1 << power for power in range(8, 16)}
    assert run_in_process(capsys)(*kit.pretrain(alone, *size)).code == 0
    rows, others = (read_jsonl_log(folder / "metrics.jsonl") for folder in (out, alone))
    assert [row["loss/train"] for row in rows] == pytest.approx([row["loss/train"] for row in others], abs=1e-5)
