"""Simulated labelers over real HTTP: nothing is lost or doubled though the server is killed, and what comes out trains a reward model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from instructgpt.label.client import Service
from instructgpt.label.simulate import Diary, Handed, check, form_of_ranking, quantiles, same_form
from instructgpt.records import Ranking

sys.path.append(str(Path(__file__).parent.parent / "bench"))
import site_load


def test_a_killed_server_loses_nothing(tmp_path, database_url):
    url = None if database_url.startswith("sqlite") else database_url
    found = site_load.run(tmp_path / "site", url, labelers=8, tasks=60, kills=2)
    assert found["kills"] == 2
    assert found["broken calls"] > 0
    assert {name: found[name] for name in ("lost", "changed", "duplicate", "over-assigned", "unfinished")} == dict.fromkeys(
        ("lost", "changed", "duplicate", "over-assigned", "unfinished"), 0
    )
    assert found["handed in"] == 60 + 2 * 7  # 12 % of the tasks, rounded, have three labelers
    assert f"| {found['handed in']:,.0f} | 2 |" in site_load.table({"here": found})


def ranking_form(order=("a", "b")):
    return {"kind": "rank", "tiers": [[each] for each in order], "ratings": [{"completion": "a", "rating": 3, "labels": {}}]}


class Told(Service):
    """A site that says what a test wants."""

    def __init__(self, submissions, tasks):
        self.said = {"submissions": submissions, "tasks": tasks}

    def submissions(self, since=None):
        return iter(self.said["submissions"])

    def batches(self):
        return [{"id": "b"}]

    def tasks(self, batch):
        return iter(self.said["tasks"])


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
def test_the_check_sees_what_it_is_for(submissions, tasks, expected):
    diary = Diary(handed=[Handed(labeler="l", assignment="x", kind="rank", submission="1", surplus=False, form=ranking_form())])
    told = [{"id": "t", "overlap": overlap, "n_open": held, "n_done": done} for overlap, held, done in tasks]
    found = check(Told(submissions, told), [diary])
    assert found == {"handed in": 1, "lost": 0, "changed": 0, "duplicate": 0, "over-assigned": 0} | expected


def test_forms_are_the_same_but_for_what_says_nothing():
    ranking = Ranking(
        prompt="p", completions=("x", "y", "z"), ranks=(2, 1, 1), models=("a", "b", "c"), ratings=(1, 7, 7),
        labels=({"opinion": None, "hallucination": None}, {"opinion": True}, {}),
    )  # fmt: skip
    form = form_of_ranking(ranking)
    assert form["tiers"] == [["b", "c"], ["a"]]
    assert form["ratings"][0]["labels"] == {"hallucination": None}
    there = form | {"tiers": [[], ["c", "b"], ["a"], []], "note": "", "ratings": [{**each, "note": ""} for each in form["ratings"][::-1]]}
    assert same_form(form, there)
    assert not same_form(form, there | {"tiers": [["c"], ["b"], ["a"]]})


def test_quantiles_by_hand():
    assert list(quantiles(range(1, 101))) == [50, 95, 99]
    assert list(quantiles([3, 1, 2], (0.5, 1))) == [2, 3]
    assert list(quantiles([])) == []
