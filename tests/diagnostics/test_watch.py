"""`watch` on example runs: finished, running, silent, and with control characters in samples."""

from __future__ import annotations

import io
import json
import os
import time

import pytest
from rich.console import Console
from support import example_run

from instructgpt import watch
from instructgpt.cli import run_command
from instructgpt.run.directory import content_hash
from instructgpt.run.lock import acquire_directory_lock, release_directory_lock


def shown(folder, width=120):
    console = Console(width=width, record=True, file=io.StringIO(), force_terminal=False)
    console.print(watch.render_run(folder))

    return console.export_text()


def unfinished(folder, quiet=0.0):
    """Mark a stage as unfinished and silent for some seconds."""
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(info | {"finished": False}))
    (folder / "log.jsonl").write_text(json.dumps({"time": "", "said": "", "step": 10, "steps": 40, "left": 60}) + "\n")
    for file in folder.iterdir():
        os.utime(file, (time.time() - quiet,) * 2)


def test_finished_stages_are_a_line_each(tmp_path):
    text = shown(example_run.make(tmp_path / "run"))
    for name in ("base", "sft", "start", "reward", "ppo", "ppo_ptx"):
        assert any(line.split()[:2] == [name, "done"] for line in text.splitlines())


def test_running_stage_shows_curves_samples_and_time_left(tmp_path):
    folder = example_run.make(tmp_path / "run")
    unfinished(folder / "ppo")
    rows = [json.loads(line) for line in (folder / "ppo" / "metrics.jsonl").read_text().splitlines()]
    last = rows[-1]
    text = shown(folder)
    (line,) = [line for line in text.splitlines() if line.split()[:2] == ["ppo", "running"]]
    assert f"{last['step']}/40" in line
    assert line.endswith(f"{60 * (40 - last['step']) / 30:.0f} s")  # 60 s were left with 30 steps to go
    (scores,) = [line for line in text.splitlines() if line.startswith("objective/scores")]
    values = [row["objective/scores"] for row in rows]
    assert scores.split()[2:] == [f"{number:.4g}" for number in (values[0], min(values), max(values), values[-1])]
    assert len(scores.split()[1]) == min(watch.CURVE_WIDTH, len(values))


def test_a_slow_stage_is_told_from_a_dead_one(tmp_path, monkeypatch):
    folder = example_run.make(tmp_path / "run")
    unfinished(folder / "ppo", quiet=500)
    text = " ".join(shown(folder, width=300).split())
    assert "stopped 8.3" in text
    assert "the same command resumes it" in text
    acquire_directory_lock(folder / "ppo")  # as the process that trains does
    try:
        assert "quiet for 8.3" in shown(folder, width=300)
        assert "its process lives" in shown(folder, width=300)
        unfinished(folder / "ppo")
        assert "running" in shown(folder, width=300)
    finally:
        release_directory_lock(folder / "ppo")
    monkeypatch.setattr(watch, "is_directory_locked", lambda _: None)  # a file system without locks
    unfinished(folder / "ppo", quiet=500)
    assert "on another machine, or stopped" in shown(folder, width=300)


@pytest.mark.parametrize(
    ("values", "curve"),
    [([0, 7], "▁█"), ([3, 3, 3], "▁▁▁"), (range(8), "▁▂▃▄▅▆▇█"), ([float("nan"), 1], "▁▁")],
)
def test_sparkline_by_hand(values, curve):
    assert watch.sparkline(values) == curve


def test_long_sparkline_shows_means_of_parts():
    assert watch.sparkline([0, 0, 2, 4, 9, 7], width=3) == "▁▄█"  # 0, 3, 8


def test_control_characters_are_not_printed(tmp_path):
    folder = example_run.make(tmp_path / "run")
    unfinished(folder / "ppo")
    row = {
        "step": 99,
        "prompt": "a\x1b[2Jb [red]",
        "completion": "c\x07\u202ed\nnext",
        "score": 1.0,
        "kl": 0.5,
        "total": 0.9,
    }
    with (folder / "ppo" / "samples.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    text = shown(folder)
    assert "a·[2Jb [red] → c··d next  score +1.00  kl +0.50  total +0.90" in text
    assert "\x1b" not in text


def test_watch_ends_when_the_run_has_finished(tmp_path, capsys):
    folder = example_run.make(tmp_path / "run")
    assert run_command(["watch", str(folder / "ppo"), "--every", "0.1"]) == 0
    assert "done" in capsys.readouterr().out


def test_separate_stages_are_watched_until_all_have_finished(tmp_path):
    folder = example_run.make(tmp_path / "run")
    (folder / "run.json").unlink(missing_ok=True)
    assert watch.is_run_finished(folder)
    unfinished(folder / "ppo")
    assert not watch.is_run_finished(folder)


def test_content_hash_is_cached_until_the_file_changes(tmp_path, monkeypatch):
    file, read = tmp_path / "corpus.txt", []
    file.write_text("one")
    monkeypatch.setattr(watch, "content_hash", lambda path: read.append(path) or content_hash(path))
    assert watch.cached_content_hash(file) == watch.cached_content_hash(file) == content_hash(file)
    assert len(read) == 1
    file.write_text("another")
    assert watch.cached_content_hash(file) == content_hash(file)
    assert len(read) == 2


def test_directory_without_a_run_is_one_line(tmp_path, capsys):
    assert run_command(["watch", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"instructgpt: {tmp_path}: no stage in it")
