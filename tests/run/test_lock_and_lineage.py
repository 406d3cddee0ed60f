"""One command at a time per run directory; inputs are recorded by distinct names and hashes.

pytest tests/run/test_lock_and_lineage.py
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from support.commands import CommandProcess, Kit, logged, make_kit, run_in_process, write

from instructgpt.run import lock

MANY = ("--tokens", 64 * 120)


@pytest.fixture(scope="module")
def kit(tmp_path_factory) -> Kit:
    return make_kit(tmp_path_factory.mktemp("kit"))


@pytest.fixture
def command(capsys, monkeypatch):
    monkeypatch.setattr(lock, "LOCK_TIMEOUT_S", 0.3)
    return run_in_process(capsys)


def lock_as_another_process(folder: Path) -> int:
    """Lock a folder through a separate file descriptor, as another process would. Return the descriptor."""
    place = os.open(folder, os.O_RDONLY)
    fcntl.flock(place, fcntl.LOCK_EX)
    return place


def test_second_command_is_refused_and_the_first_continues(kit, command, tmp_path):
    out = tmp_path / "base"
    first = CommandProcess(*kit.pretrain(out, *MANY)).wait_until(logged(out, 5))
    first.send(signal.SIGSTOP)  # a fast machine would end it before the second command has started
    told = command(*kit.pretrain(out, *MANY)).error_line(2)
    assert told == f"--out {out}: in use by another command; wait for it to end, or choose another --out"
    assert "in use by another command" in command(*kit.pretrain(out, *MANY, "--no-resume")).error_line(2)
    first.send(signal.SIGCONT)
    assert first.end().code == 0
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert steps == sorted(set(steps))
    assert command(*kit.pretrain(out, *MANY)).code == 0, "a finished directory is not locked"


def test_second_command_on_a_new_directory_writes_nothing(kit, command, tmp_path):
    out = tmp_path / "base"
    out.mkdir()
    place = lock_as_another_process(out)
    assert "in use by another command" in command(*kit.pretrain(out)).error_line(2)
    assert list(out.iterdir()) == []
    os.close(place)
    assert command(*kit.pretrain(out)).code == 0


def test_lock_is_released_after_a_failure(kit, command, tmp_path):
    """In a notebook the process stays alive after the failure."""
    out = tmp_path / "base"
    assert command(*kit.pretrain(out, "--lr", "1e30")).code == 1
    os.close(lock_as_another_process(out))
    assert "--lr was 1e+30 when the run started" in command(*kit.pretrain(out)).error_line(2)


def test_file_system_without_locks_is_accepted(kit, command, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    assert command(*kit.pretrain(tmp_path / "base")).code == 0


def test_no_resume_empties_the_directory_behind_a_link(kit, command, tmp_path):
    base = tmp_path / "elsewhere"
    shutil.copytree(kit.base, base)
    (base / "samples").mkdir()
    write(base / "samples" / "old.txt", ["x"])
    (tmp_path / "link").symlink_to(base)
    assert command(*kit.pretrain(tmp_path / "link", "--no-resume")).code == 0
    assert (tmp_path / "link").is_symlink()
    assert {path.name for path in base.rglob("*")} == {path.name for path in kit.base.rglob("*")}


def test_inputs_of_the_same_name_are_distinguished(kit, command, tmp_path):
    """Each parent is recorded, and a change in any of them is detected."""
    rows = [json.loads(line) for line in kit.demonstrations.read_text(encoding="utf-8").splitlines()]
    for number, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "data.jsonl", rows[number::2])
    first, second, out = tmp_path / "a" / "data.jsonl", tmp_path / "b" / "data.jsonl", tmp_path / "sft"
    argv = kit.sft(out, "--data", first, second, "--validation", kit.demonstrations)
    assert command(*argv).code == 0
    parents = json.loads((out / "run.json").read_text(encoding="utf-8"))["parents"]
    assert list(parents) == ["base", f"data {first}", f"data {second}", "validation demonstrations.jsonl"]
    assert len({parent["sha256"] for parent in parents.values()}) == 4
    write(first, rows)
    assert f"'data {first}' ({first}) has changed since the run started" in command(*argv).error_line(2)
