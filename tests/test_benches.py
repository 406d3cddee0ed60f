"""The scripts of bench/ run at toy size: those that need a GPU on the CPU, those that need a peer with our own side alone."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def bench(name, *words):
    """What a script prints."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, str(ROOT / "bench" / name), *words], capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_gpu_checks_run_on_a_cpu():
    said = bench("gpu.py", "--device", "cpu", "--shape", "toy", "--critic", "toy", "--rows", "4", "--length", "8")
    assert [line.split("|")[2].strip() for line in said.splitlines() if line.startswith("| toy")] == ["sampling", "forward", "update"]
    seconds, hours = map(float, re.search(r": ([\d.]+) s; 264,292 samples: ([\d.]+) h", said).groups())
    assert abs(hours - seconds / 4 * 264_292 / 3600) < 0.5  # seconds are rounded


def test_our_side_of_ppo_says_its_share_of_the_ideal():
    said = bench("ppo.py", "--size", "toy", "--rounds", "1", "--alone", "--phases")
    assert "episodes/s of CPU time" in said
    assert {"sampling", "score", "reference", "values", "policy update", "value update"} <= {
        line.split("|")[2].strip() for line in said.splitlines() if line.startswith("| toy")
    }


def test_two_ranks_beside_one_process():
    said = bench("ranks.py", "pretrain", "--rounds", "1")
    one, two, ratio, of_work = next(line for line in said.splitlines() if line.startswith("| `pretrain` |")).split("|")[2:6]
    assert abs(float(ratio) - float(one) / float(two)) < 0.05  # milliseconds are rounded
    assert float(of_work) > 0
    assert "| `pretrain`: forward |" in said


def test_a_stage_that_is_killed_ends_as_one_that_is_not():
    said = bench("kills.py", "--only", "sft", "--kills", "1")
    row = next(line for line in said.splitlines() if line.startswith("| `sft`")).split("|")
    assert int(row[3]) >= 1  # kills
    assert [word.strip() for word in row[-4:-1]] == ["the same"] * 3
