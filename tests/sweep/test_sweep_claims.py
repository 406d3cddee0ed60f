"""Claims and the scheduler: items are made once, whoever dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from random import Random

import pytest

from instructgpt.sweep.claims import ClaimFolder
from instructgpt.sweep.scheduler import Item, Scheduler

TESTS = Path(__file__).parents[1]
LONG = pytest.mark.skipif("INSTRUCTGPT_TEST_LONG" not in os.environ, reason="takes minutes; run by 'make test-long'")


def start_worker(folder, items, seconds, jobs=1):
    """Start a machine of the sweep in a session of its own, so that it can be killed with its processes."""
    command = [sys.executable, "-m", "support.sweep_worker", str(folder), str(items), str(seconds), str(jobs)]
    environment = os.environ | {"PYTHONPATH": f"{os.environ.get('PYTHONPATH', '')}:{TESTS}"}
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen(command, start_new_session=True, stdout=log, stderr=log, env=environment)


def run_with_kills(folder, workers, items, seconds, kills, pause):
    """Kill a random worker with its processes again and again; start another in its place. Return the kills."""
    random, running = Random(0), [start_worker(folder, items, seconds) for _ in range(workers)]
    killed = 0
    deadline = time.monotonic() + 600
    while any(worker.poll() is None for worker in running):
        assert time.monotonic() < deadline
        time.sleep(pause * random.random())
        place = random.randrange(workers)
        if killed < kills and running[place].poll() is None:
            if random.random() < 0.5:
                os.killpg(running[place].pid, signal.SIGKILL)
            else:
                running[place].kill()  # its processes find out for themselves
            running[place].wait()
            killed += 1
            running[place] = start_worker(folder, items, seconds)
    assert all(worker.returncode == 0 for worker in running)
    return killed


def check_items(folder, items):
    """Assert that every item has one result and one outcome, and that no two processes met."""
    names = [f"item-{number:03d}" for number in range(items)]
    assert sorted(file.name for file in folder.glob("*.result")) == [f"{name}.result" for name in names]
    outcomes = {
        name: sorted(file.parent.name for file in (folder / "claims" / name).glob("*/done.json")) for name in names
    }
    assert all(len(numbers) == 1 for numbers in outcomes.values()), outcomes
    assert not (folder / "faults.txt").exists(), (folder / "faults.txt").read_text()


def read_lines(file):
    return file.read_text().split() if file.exists() else []


@pytest.mark.parametrize(
    ("workers", "items", "seconds", "kills", "pause"),
    [
        (5, 40, 0.5, 12, 0.5),
        pytest.param(20, 200, 3.0, 150, 0.5, marks=LONG),
    ],
)
def test_no_item_is_lost_or_made_twice_when_workers_are_killed(tmp_path, workers, items, seconds, kills, pause):
    killed = run_with_kills(tmp_path, workers, items, seconds, kills, pause)
    check_items(tmp_path, items)
    starts, repeats = read_lines(tmp_path / "starts.txt"), read_lines(tmp_path / "repeats.txt")
    assert killed > 0
    # A kill between the result and the outcome repeats an item, at most once a kill.
    assert len(repeats) <= killed
    assert len(starts) - items <= killed
    print(f"{killed} kills, {len(starts) - items} items begun again, {len(repeats)} of them after their result")


def fail_with(message):
    raise RuntimeError(message)


def append_line(file, line):
    with file.open("a") as stream:
        stream.write(f"{line}\n")


def statuses(folder, names, **options):
    claims = ClaimFolder(folder, **options)
    return [claims.status(name).state for name in names]


def test_failed_items_stay_failed_and_block_what_needs_them(tmp_path):
    ran = tmp_path / "ran.txt"
    items = [
        Item("good", partial(append_line, ran, "good")),
        Item("bad", partial(fail_with, "no such thing")),
        Item("after-bad", partial(append_line, ran, "after-bad"), ("bad",)),
        Item("after-good", partial(append_line, ran, "after-good"), ("good",)),
    ]
    messages = []
    for _ in range(2):  # the same command again
        Scheduler(items, ClaimFolder(tmp_path / "claims"), report=messages.append).run()
    assert ran.read_text().split() == ["good", "after-good"]
    assert statuses(tmp_path / "claims", [item.name for item in items]) == ["done", "failed", "open", "done"]
    failures = [message for message in messages if "no such thing" in message]
    assert len(failures) == 1
    assert list((tmp_path / "claims" / "bad").iterdir()) == [tmp_path / "claims" / "bad" / "1"]
    mended = [Item("bad", partial(append_line, ran, "bad")) if item.name == "bad" else item for item in items]
    Scheduler(mended, ClaimFolder(tmp_path / "claims"), retry=True).run()
    assert ran.read_text().split() == ["good", "after-good", "bad", "after-bad"]


def test_an_item_in_which_processes_die_counts_as_failed(tmp_path):
    items = [Item("deadly", partial(os._exit, 1)), Item("good", partial(append_line, tmp_path / "ran.txt", "good"))]
    Scheduler(items, ClaimFolder(tmp_path / "claims", attempts=3), report=lambda _: None).run()
    claims = ClaimFolder(tmp_path / "claims", attempts=3)
    assert [claims.status(item.name).state for item in items] == ["failed", "done"]
    assert claims.status("deadly").deaths == 3
    assert "3 processes died" in claims.status("deadly").outcome["error"]


def test_a_claim_of_another_machine_is_taken_over_when_it_is_old(tmp_path):
    claims = ClaimFolder(tmp_path, stale_s=60)
    claim = claims.claim("x")
    owner = claim.folder / "owner.json"
    owner.write_text(json.dumps(json.loads(owner.read_text()) | {"machine": "another"}))
    assert claims.status("x").state == "running"
    assert claims.claim("x") is None
    old = time.time() - 61
    os.utime(claim.folder / "heartbeat", (old, old))
    successor = claims.claim("x")
    assert successor is not None
    assert claim.is_superseded
    claim.complete({"by": "the process that was suspended"})
    assert claims.status("x").state == "running"
    successor.complete({"by": "its successor"})
    assert claims.status("x").outcome == {"by": "its successor"}
    assert claims.claim("x", retry=True) is None  # done is done


def test_a_living_process_of_this_machine_keeps_its_claim_however_old(tmp_path):
    claims = ClaimFolder(tmp_path, stale_s=0.0)
    claim = claims.claim("x")
    os.utime(claim.folder / "heartbeat", (0, 0))
    assert claims.status("x").state == "running"


def test_one_of_many_claims_wins(tmp_path):
    claims = ClaimFolder(tmp_path)
    children = []
    for _ in range(20):
        if (pid := os.fork()) == 0:
            os._exit(0 if claims.claim("x") is not None else 7)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert len(list((tmp_path / "x").glob("[0-9]*"))) == codes.count(0)
    # Processes that came after the winner had ended took over from it, one after the other.
    assert codes.count(0) >= 1
    assert set(codes) <= {0, 7}
    assert not list((tmp_path / "x").glob(".claim-*"))
