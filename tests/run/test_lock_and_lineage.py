"""One command at a time makes a directory, and what it is made from is told apart by name.

pytest tests/run/test_lock_and_lineage.py
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from pathlib import Path

import pytest
from support.commands import Kit, Started, here, logged, make_kit, write

from instructgpt.run import lock

MANY = ("--tokens", 64 * 120)


@pytest.fixture(scope="module")
def kit(tmp_path_factory) -> Kit:
    return make_kit(tmp_path_factory.mktemp("kit"))


@pytest.fixture
def command(capsys, monkeypatch):
    monkeypatch.setattr(lock, "LOCK_TIMEOUT_S", 0.3)
    return here(capsys)


def held_by_another(folder: Path) -> int:
    """A lock as another process would have it: of another opened file. Returns what `os.close` takes."""
    place = os.open(folder, os.O_RDONLY)
    fcntl.flock(place, fcntl.LOCK_EX)
    return place


def test_a_second_command_is_turned_away_and_the_first_goes_on(kit, command, tmp_path):
    out = tmp_path / "base"
    first = Started(*kit.pretrain(out, *MANY)).when(logged(out, 5))
    told = command(*kit.pretrain(out, *MANY)).complaint(2)
    assert told == f"--out {out}: another command is at work there; let it end, or choose another --out"
    assert "another command is at work" in command(*kit.pretrain(out, *MANY, "--no-resume")).complaint(2)
    assert first.end().code == 0
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert steps == sorted(set(steps))
    assert command(*kit.pretrain(out, *MANY)).code == 0, "a finished directory is anybody's"


def test_whoever_comes_second_to_a_new_directory_writes_nothing(kit, command, tmp_path):
    """Both have found nothing there; the other one has made the directory meanwhile."""
    out = tmp_path / "base"
    out.mkdir()
    place = held_by_another(out)
    assert "another command is at work there" in command(*kit.pretrain(out)).complaint(2)
    assert list(out.iterdir()) == []
    os.close(place)
    assert command(*kit.pretrain(out)).code == 0


def test_a_claim_ends_with_a_command_that_failed(kit, command, tmp_path):
    """In a notebook the process lives on: another one can have the directory all the same."""
    out = tmp_path / "base"
    assert command(*kit.pretrain(out, "--lr", "1e30")).code == 1
    os.close(held_by_another(out))
    assert "was begun with --lr" in command(*kit.pretrain(out)).complaint(2)


def test_a_disk_without_locks_stops_nobody(kit, command, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    assert command(*kit.pretrain(tmp_path / "base")).code == 0


def test_beginning_afresh_empties_the_directory_and_follows_a_link(kit, command, tmp_path):
    base = tmp_path / "elsewhere"
    shutil.copytree(kit.base, base)
    (base / "samples").mkdir()
    write(base / "samples" / "old.txt", ["x"])
    (tmp_path / "link").symlink_to(base)
    assert command(*kit.pretrain(tmp_path / "link", "--no-resume")).code == 0
    assert (tmp_path / "link").is_symlink()
    assert {path.name for path in base.rglob("*")} == {path.name for path in kit.base.rglob("*")}


def test_files_of_one_name_are_told_apart(kit, command, tmp_path):
    """Each parent is recorded; a change in any of them is noticed."""
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
    assert f"was made from another 'data {first}'" in command(*argv).complaint(2)
