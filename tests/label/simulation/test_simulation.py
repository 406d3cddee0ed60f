"""Simulated labelers over HTTP, with a server that is killed while they work."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from support.commands import SMALL_RUN, run_in_process, wait_for

from instructgpt.label.client import OwnerClient
from instructgpt.label.simulation.labelers import (
    SimulatedLabelerLog,
    SubmittedForm,
    compare_logs_with_site,
    forms_match,
    quantiles,
    ranking_to_form,
)
from instructgpt.records import Demonstration, Ranking, read_records

sys.path.append(str(Path(__file__).parents[3] / "bench"))
import site_load

PARENT_PROGRAM = """
import os, sys
from pathlib import Path
from instructgpt.label.simulation.server import SiteServer
server = SiteServer(Path(sys.argv[1]))
print(server.process.pid, flush=True)
os.kill(os.getpid(), 9)
"""
PATH = {"PYTHONPATH": str(Path(__file__).parents[3] / "src"), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def command(capsys):
    return run_in_process(capsys)


def test_killed_server_loses_no_submission(tmp_path, database_url):
    url = None if database_url.startswith("sqlite") else database_url
    found = site_load.run(tmp_path / "site", url, labelers=8, tasks=60, kills=2)
    assert found["kills"] == 2
    assert found["broken calls"] > 0
    assert {
        name: found[name] for name in ("lost", "changed", "duplicate", "over-assigned", "unfinished")
    } == dict.fromkeys(("lost", "changed", "duplicate", "over-assigned", "unfinished"), 0)
    assert found["submitted"] == 60 + 2 * 7  # 12 % of the tasks, rounded, have three labelers
    assert f"| {found['submitted']:,.0f} | 2 |" in site_load.table({"here": found})


def test_server_exits_with_its_parent_process(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PARENT_PROGRAM, tmp_path / "site"], capture_output=True, text=True, env=os.environ | PATH
    )
    process = int(done.stdout)
    wait_for(lambda: not is_running(process))


def is_running(process):
    try:
        return "(zombie)" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


@pytest.mark.slow
def test_run_through_the_site_uses_its_exports(tmp_path, command):
    small = tmp_path / "small.yaml"
    small.write_text(SMALL_RUN)
    out = tmp_path / "run"
    assert command("run", "--preset", "smoke", "--config", small, "--through-site", "--out", out).code == 0
    rankings = read_records(Ranking, out / "world" / "rankings.jsonl")
    assert {ranking.source for ranking in rankings} == {"site"}
    assert {ranking.cohort for ranking in rankings} == {"training"}
    measured = read_records(Ranking, out / "world" / "heldout_rankings.jsonl")
    assert {ranking.cohort for ranking in measured} == {"training", "heldout"}
    shown = read_records(Demonstration, out / "world" / "demonstrations.jsonl")
    assert {demonstration.source for demonstration in shown} == {"site"}
    with closing(sqlite3.connect(out / "site" / "site.db")) as site:
        (submissions,) = site.execute("SELECT count(*) FROM submission").fetchone()
        (texts,) = site.execute("SELECT count(*) FROM demonstration").fetchone()
    assert submissions == len(rankings) + len(measured) + len(shown)
    assert texts == len(shown)
    rows = json.loads((out / "results.json").read_text())
    assert {row["condition"] for row in rows if row["metric"] == "pair_accuracy"} >= {"training", "heldout"}


def ranking_form(order=("a", "b")):
    return {
        "kind": "rank",
        "tiers": [[each] for each in order],
        "ratings": [{"completion": "a", "rating": 3, "labels": {}}],
    }


class FakeOwnerClient(OwnerClient):
    def __init__(self, submissions, tasks):
        self.stored_submissions, self.stored_tasks = submissions, tasks

    def iter_submissions(self, since=None):  # noqa: ARG002
        return iter(self.stored_submissions)

    def list_batches(self):
        return [{"id": "b"}]

    def iter_tasks(self, batch_id):  # noqa: ARG002
        return iter(self.stored_tasks)


def stored(name, assignment="x", task="t", **more):
    return {
        "id": name,
        "assignment": assignment,
        "task": task,
        "replaced_at": None,
        "surplus": False,
        "round": 0,
        "form": ranking_form(),
    } | more


@pytest.mark.parametrize(
    ("submissions", "tasks", "expected"),
    [
        ([stored("1")], [(1, 0, 1)], {}),
        ([], [(1, 0, 0)], {"lost": 1}),
        ([stored("1", form=ranking_form(("b", "a")))], [(1, 0, 1)], {"changed": 1}),
        ([stored("1"), stored("2")], [(2, 0, 1)], {"duplicate": 1}),
        ([stored("1", replaced_at=5), stored("2")], [(1, 0, 1)], {}),
        ([stored("1"), stored("2", assignment="y")], [(1, 0, 1)], {"over-assigned": 1}),
        ([stored("1"), stored("2", assignment="y", surplus=True)], [(1, 0, 1)], {}),
        ([stored("1")], [(1, 1, 1)], {"over-assigned": 1}),
    ],
)
def test_log_comparison_counts_lost_changed_duplicate_and_over_assigned(submissions, tasks, expected):
    form = SubmittedForm(labeler="l", assignment="x", kind="rank", submission="1", surplus=False, form=ranking_form())
    rows = [{"id": "t", "overlap": overlap, "n_open": held, "n_done": done} for overlap, held, done in tasks]
    log = SimulatedLabelerLog(submitted_forms=[form])
    assert (
        compare_logs_with_site(FakeOwnerClient(submissions, rows), [log])
        == {"submitted": 1, "lost": 0, "changed": 0, "duplicate": 0, "over-assigned": 0} | expected
    )


def test_form_comparison_ignores_empty_tiers_and_order_within_a_tier():
    ranking = Ranking(
        prompt="p",
        completions=("x", "y", "z"),
        ranks=(2, 1, 1),
        models=("a", "b", "c"),
        ratings=(1, 7, 7),
        labels=({"opinion": None, "hallucination": None}, {"opinion": True}, {}),
    )
    form = ranking_to_form(ranking)
    assert form["tiers"] == [["b", "c"], ["a"]]
    assert form["ratings"][0]["labels"] == {"hallucination": None}
    there = form | {
        "tiers": [[], ["c", "b"], ["a"], []],
        "note": "",
        "ratings": [{**each, "note": ""} for each in form["ratings"][::-1]],
    }
    assert forms_match(form, there)
    assert not forms_match(form, there | {"tiers": [["c"], ["b"], ["a"]]})


def test_quantiles_by_hand():
    assert list(quantiles(range(1, 101))) == [50, 95, 99]
    assert list(quantiles([3, 1, 2], (0.5, 1))) == [2, 3]
    assert list(quantiles([])) == []
