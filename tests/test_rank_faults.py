"""What becomes of ranks when one of them fails: its error is the one line that is shown, and the same command goes on.

pytest tests/test_rank_faults.py
"""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from faults_support import Kit, Started, here, logged, make_kit, wait_for

from instructgpt.run import read_rows

STEPS = 40
FAULTY = """
import os, signal, sys
import instructgpt.run as run
from instructgpt import cli
from instructgpt.train import loop, pretrain, signs
run.CHECKPOINT_SECONDS, signs.LAST_WORDS = 0.0, 4.0
fault = os.environ["FAULT"] if os.environ["RANK"] == "1" else ""
steps, descend, logp = [], pretrain.descend, loop.completion_logp

def faulty(*given):
    steps.append(1)
    if len(steps) == 4 and fault in ("SIGKILL", "SIGSTOP"):
        os.kill(os.getpid(), signal.Signals[fault])
    if len(steps) == 4 and fault == "error":
        raise ValueError("something nobody thought of")
    return descend(*given)

pretrain.descend = faulty
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


@pytest.fixture(scope="module")
def kit(tmp_path_factory) -> Kit:
    return make_kit(tmp_path_factory.mktemp("kit"))


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


@pytest.mark.parametrize("fault", [name if name == "nan" else pytest.param(name, marks=pytest.mark.slow) for name in SAYS])
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
    assert [row["step"] for row in read_rows(out / "metrics.jsonl")] == list(range(1, STEPS + 1))


@pytest.mark.parametrize(("number", "group"), [(signal.SIGTERM, False), pytest.param(signal.SIGINT, True, marks=pytest.mark.slow)])
def test_ranks_that_are_asked_to_end_keep_what_they_have(number, group, kit, tmp_path):
    out = tmp_path / "out"
    argv = kit.pretrain(out, "--tokens", 64 * 4000)
    started = torchrun(argv, folder=tmp_path).when(logged(out, 3)).send(number, group=group)
    ended = started.end()
    assert ended.code != 0
    assert said(ended.err) == ["instructgpt: stopped; the same command goes on from the last checkpoint"]
    last = max(int(folder.name[-8:]) for folder in (out / "checkpoints").glob("step-*"))
    assert last == read_rows(out / "metrics.jsonl")[-1]["step"]
    wait_for(lambda: started.nobody_left, patience=10)


def test_dividing_twice_is_refused(kit, tmp_path):
    ended = torchrun(kit.pretrain(tmp_path / "out"), "--processes", 2, folder=tmp_path, ranks=1).end()
    assert said(ended.err) == ["instructgpt: --processes 2: torchrun has started the ranks already; leave --processes out"]
