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


def test_a_stage_that_is_killed_ends_as_one_that_is_not():
    said = bench("kills.py", "--only", "sft", "--kills", "1")
    row = next(line for line in said.splitlines() if line.startswith("| `sft`")).split("|")
    assert int(row[3]) >= 1  # kills
    assert [word.strip() for word in row[-4:-1]] == ["the same"] * 3


def test_evaluations_are_timed_once(save, tmp_path):
    """One evaluation of a folder that has the data of one; what was timed before is said again."""
    (tmp_path / "crows_pairs.csv").write_text("sent_more,sent_less,bias_type\nThe sea is wide.,The sky is wide.,age\n")
    words = (
        str(tmp_path),
        "--model",
        str(save("gpt2")),
        "--out",
        str(tmp_path / "out"),
        "--only",
        "crows_pairs",
        "rte",
        "--processes",
        "1",
    )
    first = bench("evaluations.py", *words)
    row = next(line for line in first.splitlines() if line.startswith("| together")).split("|")
    assert int(row[2]) == 3  # one pair under three prompts
    assert float(row[4]) > 0
    assert bench("evaluations.py", *words) == first
