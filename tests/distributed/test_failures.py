"""What becomes of ranks when one of them fails: its error is the one line that is shown, and the same command goes on.

pytest tests/distributed/test_failures.py
"""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from support.commands import Started, here, logged, wait_for

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
"""The command as torchrun starts it, but something goes wrong in rank 1 after three steps."""
GO_ON = "the same command goes on from the last checkpoint"
SAYS = {
    "nan": r"the loss is nan \(on rank 1\): the learning rate is likely too high",
    "error": r"failed unexpectedly, ValueError: something nobody thought of",
    "gone": r".*gone\.jsonl.*no such file",
    "SIGKILL": rf"rank 1 died or hangs, .*; {GO_ON}",
    "SIGSTOP": rf"rank 1 died or hangs, after 8 s without an answer or a lost connection; {GO_ON}",
}


def torchrun(*arguments: object, folder: Path, fault: str = "", ranks: int = 2) -> Started:
    """The command under torchrun, on this machine."""
    script = folder / "faulty.py"
    script.write_text(FAULTY)
    os.environ["FAULT"] = fault
    start = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), script)
    return Started(*arguments, program=start)


def said(err: str) -> list[str]:
    """The lines of the command itself; torchrun adds a report of its own."""
    return [line for line in err.splitlines() if line.startswith("instructgpt: ")]


@pytest.mark.parametrize(
    "fault", [name if name == "nan" else pytest.param(name, marks=pytest.mark.slow) for name in SAYS]
)
def test_the_rank_that_failed_is_the_one_that_is_shown(fault, kit, tmp_path, capsys):
    out = tmp_path / "out"
    argv = kit.pretrain(out, "--tokens", 64 * STEPS)
    ended = torchrun(argv, "--patience", 8, folder=tmp_path, fault=fault).end()
    assert ended.code == 1, ended
    (line,) = said(ended.err)
    assert re.match("instructgpt: " + SAYS[fault], line), line
    assert fault == "gone" or len(list((out / "checkpoints").glob("step-*"))) == 2
    assert not (fault == "gone" and out.exists())
    assert here(capsys)(*argv).code == 0
    assert [row["step"] for row in read_jsonl_log(out / "metrics.jsonl")] == list(range(1, STEPS + 1))


@pytest.mark.parametrize(
    ("number", "group"), [(signal.SIGTERM, False), pytest.param(signal.SIGINT, True, marks=pytest.mark.slow)]
)
def test_ranks_that_are_asked_to_end_keep_what_they_have(number, group, kit, tmp_path):
    out = tmp_path / "out"
    argv = kit.pretrain(out, "--tokens", 64 * 4000)
    started = torchrun(argv, folder=tmp_path).when(logged(out, 3)).send(number, group=group)
    ended = started.end()
    assert ended.code != 0
    assert said(ended.err) == ["instructgpt: stopped; the same command goes on from the last checkpoint"]
    last = max(int(folder.name[-8:]) for folder in (out / "checkpoints").glob("step-*"))
    assert last == read_jsonl_log(out / "metrics.jsonl")[-1]["step"]
    wait_for(lambda: started.nobody_left, patience=10)


def test_a_command_that_cannot_be_divided_and_one_that_is_wrong(kit, tmp_path, capsys, monkeypatch):
    """As each of two ranks would, told apart by torchrun's environment."""
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    told = here(capsys)("report", tmp_path).complaint(2)
    assert told == "report: torchrun starts pretrain, sft, reward, ppo; start this command by itself"
    wrong = kit.pretrain(tmp_path / "out", "--lr", -1)
    assert "--lr -1" in here(capsys)(*wrong).complaint(2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    silent = here(capsys)(*wrong)
    assert (silent.code, silent.err) == (2, "")


def test_dividing_twice_is_refused(kit, tmp_path):
    ended = torchrun(kit.pretrain(tmp_path / "out"), "--processes", 2, folder=tmp_path, ranks=1).end()
    assert said(ended.err) == [
        "instructgpt: --processes 2: torchrun has started the ranks already; leave --processes out"
    ]


NARROW = """
import resource
from pathlib import Path
from instructgpt import cli
from instructgpt.data import packing as batches
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
"""The command, but when training begins the process may have only 160 MB more than it has: too little for 65,536 tokens at once."""


@pytest.mark.slow
def test_when_memory_runs_out_fewer_tokens_are_computed_at_once(kit, tmp_path, capsys):
    out, alone = tmp_path / "out", tmp_path / "alone"
    size = ("--batch", 4096, "--tokens", 16 * 4096 * 3)
    ended = Started(kit.pretrain(out, *size), program=("-c", NARROW)).end()
    assert ended.code == 0, ended
    assert "out of memory: goes on with" in " ".join(ended.out.split())
    assert here(capsys)(*kit.pretrain(alone, *size)).code == 0
    rows, others = (read_jsonl_log(folder / "metrics.jsonl") for folder in (out, alone))
    assert [row["loss/train"] for row in rows] == pytest.approx([row["loss/train"] for row in others], abs=1e-5)


TIGHT = """
import json, os, resource, sys
from pathlib import Path
from instructgpt import cli
from instructgpt.data import packing as batches
from instructgpt.run.directory import RunDirectory as Run
from instructgpt.train import optim as loop, pretrain
batches.MICROBATCH_TOKENS["cpu"] = 1 << 16
restore, descend, logp = Run.restore, pretrain.optimizer_step, loop.completion_logp
noted_here = Path(f"{sys.argv[0]}.{os.environ['RANK']}")
noted_here.write_text("")  # who begins anew notes anew: memory may have lasted for a step or two before

def narrowed(run):
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    loop.completion_logp = lambda *given: within(used + (300 << 20), *given)
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
"""The command as torchrun starts it, but in forward passes rank 1 may have only 300 MB more than it has when training begins. What ranks
say to each other has all the memory there is: a thread of the library that gets none ends its process."""


@pytest.mark.slow
def test_when_memory_runs_out_in_one_rank_all_begin_anew_with_less(kit, tmp_path, capsys):
    out, alone, script = tmp_path / "out", tmp_path / "alone", tmp_path / "tight.py"
    script.write_text(TIGHT)
    size = ("--batch", 8192, "--tokens", 16 * 8192 * 3)
    start = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script)
    ended = Started(kit.pretrain(out, *size), program=start).end()
    assert ended.code == 0, ended
    assert "out of memory: goes on with" in " ".join(ended.out.split())
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
    assert here(capsys)(*kit.pretrain(alone, *size)).code == 0
    rows, others = (read_jsonl_log(folder / "metrics.jsonl") for folder in (out, alone))
    assert [row["loss/train"] for row in rows] == pytest.approx([row["loss/train"] for row in others], abs=1e-5)
