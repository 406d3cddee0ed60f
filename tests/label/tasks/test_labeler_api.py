"""A labeler's work over the API, from the claim to the history, and what the API never returns."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import select
from support.site import add_person, client_of, make_site
from support.tasks import everything, prompt_batch, rank_batch

from instructgpt.label.db.models import GoldAnswer, PromptRow
from instructgpt.label.tasks.batches import OverlapPolicy, create_batch_with_tasks, mark_batch_open, withdraw_prompt
from instructgpt.records import LABELS, Completion

HERE = "/api/v1/assignments"


@pytest.fixture
def ada(site):
    """A labeler's client, with two rank tasks to do."""
    with site.database.write() as db:
        rank_batch(db, tasks=2, k=3)
    with client_of(site, add_person(site)) as client:
        yield client


def test_a_ranking_from_claim_to_history(ada):
    task = ada.post("/api/v1/tasks/claim", json={"kind": "rank"}).json()
    assert [each["letter"] for each in task["completions"]] == ["A", "B", "C"]
    assert ada.post("/api/v1/tasks/claim").json() == task
    here = f"{HERE}/{task['assignment']}"
    assert ada.put(f"{here}/draft", json={"tiers": []}, headers={"If-Match": '"0"'}).json() == {"rev": 1}
    assert ada.get(here).json()["draft"] == {"rev": 1, "payload": {"tiers": []}}
    assert ada.post(f"{here}/heartbeat").json()["lease_until"] >= task["lease_until"]
    ids = [each["id"] for each in task["completions"]]
    form = {"ratings": [], "tiers": [[ids[2], ids[0]], [], [ids[1]]]}
    done = ada.post(f"{here}/submit", json=form, headers={"Idempotency-Key": "k"}).json()
    assert done["ranks"] == {ids[0]: 1, ids[1]: 2, ids[2]: 1}
    assert ada.post(f"{here}/submit", json=form, headers={"Idempotency-Key": "k"}).json() == done
    form["tiers"] = [ids]
    edited = ada.post(f"{here}/edit", json=form, headers={"Idempotency-Key": "e"}).json()
    assert (edited["version"], set(edited["ranks"].values())) == (2, {1})
    assert ada.get("/api/v1/me/history").json()["entries"][0]["version"] == 2
    other = ada.post("/api/v1/tasks/claim").json()
    assert other["assignment"] != task["assignment"]
    there = f"{HERE}/{other['assignment']}"
    ada.post(f"{there}/skip", json={"reason": "unclear"})
    assert ada.post("/api/v1/tasks/claim").status_code == 204
    assert ada.post(f"{there}/undo").json()["state"] == "open"
    seen = ada.get(here).json()
    assert (seen["submission"]["tiers"], seen["version"], seen["draft"]) == ([ids], 2, None)
    back = ada.post(f"{here}/undo").json()
    assert (back["state"], back["submission"], back["draft"]["payload"]["tiers"]) == ("open", None, [ids])


def test_form_fields_are_stored_as_the_json_they_stand_for(ada):
    """The site's pages post the fields of their form, programs post JSON: both give the same draft and submission."""
    task = ada.post("/api/v1/tasks/claim", json={"kind": "rank"}).json()
    here, ids = f"{HERE}/{task['assignment']}", [each["id"] for each in task["completions"]]
    fields = [["key", "x"], ["active_ms", "7"], *([f"tier:{name}", "1"] for name in ids[:2]), [f"tier:{ids[2]}", "3"]]
    fields += [
        [f"rating:{ids[0]}", "6"],
        [f"label:{ids[0]}:hallucination", "na"],
        ["note", "a\r\nb"],
        ["confidence", ""],
    ]
    rating = {"completion": ids[0], "rating": 6, "labels": {"hallucination": None}, "note": ""}
    payload = {"kind": "rank", "note": "a\nb", "active_ms": 7, "ratings": [rating], "confidence": None}
    payload |= {"tiers": [ids[:2], [], ids[2:]], "answers": {}, "none_acceptable": False}
    assert ada.put(f"{here}/draft", json={"fields": fields}, headers={"If-Match": "0"}).json() == {"rev": 1}
    assert ada.get(here).json()["draft"] == {"rev": 1, "payload": payload}
    done = ada.post(f"{here}/submit", json={"fields": fields}, headers={"Idempotency-Key": "k"}).json()
    assert done["ranks"] == {ids[0]: 1, ids[1]: 1, ids[2]: 2}
    stored = ada.get(here).json()["submission"]
    assert {name: stored[name] for name in payload} == payload | {"ratings": stored["ratings"]}
    assert [(each["completion"], each["rating"]) for each in stored["ratings"]] == [(ids[0], 6)]
    fields[4][1] = "1"
    edited = ada.post(f"{here}/edit", json={"fields": fields}, headers={"Idempotency-Key": "e"}).json()
    assert (edited["version"], set(edited["ranks"].values())) == (2, {1})


@pytest.mark.parametrize("fields", [None, "text", {"a": "b"}, [["text"]], [["text", 1]], [["a", "b", "c"]], [None]])
def test_malformed_form_fields_are_refused(site, ada, fields):
    here = f"{HERE}/{ada.post('/api/v1/tasks/claim').json()['assignment']}"
    before = everything(site)
    answers = [
        ada.put(f"{here}/draft", json={"fields": fields}, headers={"If-Match": "0"}),
        ada.post(f"{here}/submit", json={"fields": fields}, headers={"Idempotency-Key": "k"}),
    ]
    assert [(answer.status_code, answer.json()["error"]) for answer in answers] == [(422, "bad_form")] * 2
    assert everything(site) == before


def test_labelers_see_their_thread(ada):
    task = ada.post("/api/v1/tasks/claim").json()
    here = f"{HERE}/{task['assignment']}/thread"
    assert ada.get(here).json() == []
    assert [line["body"] for line in ada.post(here, json={"body": "Why?"}).json()] == ["Why?"]
    assert ada.post(here, json={"body": " "}).json()["error"] == "empty_message"


def test_labels_depend_on_the_kind_of_task(site, ada):
    task = ada.post("/api/v1/tasks/claim").json()
    assert [each["name"] for each in task["labels"]] == ["has_constraint", *LABELS]
    assert [each["name"] for each in task["labels"] if each["conditional"]] == [
        "inappropriate",
        "hallucination",
        "satisfies_constraint",
    ]
    with site.database.write() as db:
        prompt_batch(db, "review", name="r")
        prompt_batch(db, "write", name="w")
    review, write = (ada.post("/api/v1/tasks/claim", json={"kind": kind}).json() for kind in ("review", "write"))
    assert len(review["labels"]) == 11
    assert not any(each["conditional"] for each in review["labels"])
    assert (write["prompt"], write["brief"], write["labels"]) == (None, {"form": "plain"}, [])


def calls(here):
    """Every call about a task, with what it needs."""
    key = {"Idempotency-Key": "k"}
    return [
        ("GET", here, {}),
        ("POST", f"{here}/heartbeat", {}),
        ("PUT", f"{here}/draft", {"json": {}, "headers": {"If-Match": "0"}}),
        ("POST", f"{here}/submit", {"json": {"ratings": [], "tiers": []}, "headers": key}),
        ("POST", f"{here}/edit", {"json": {"ratings": [], "tiers": []}, "headers": key}),
        ("POST", f"{here}/skip", {"json": {"reason": "other"}}),
        ("POST", f"{here}/undo", {}),
        ("GET", f"{here}/thread", {}),
        ("POST", f"{here}/thread", {"json": {"body": "?"}}),
    ]


def test_other_labelers_assignments_do_not_exist(site, ada):
    task = ada.post("/api/v1/tasks/claim").json()
    add_person(site, "unused")
    with client_of(site, add_person(site, "bob")) as bob, client_of(site, add_person(site, "eve", role="owner")) as eve:
        before = everything(site)
        for name in (task["assignment"], "nothing", "%00", "0" * 36):
            for method, path, more in calls(f"{HERE}/{name}"):
                assert bob.request(method, path, **more).status_code == 404, (method, path)
                assert eve.request(method, path, **more).status_code in (403, 404), (method, path)
        assert everything(site) == before


BAD = [
    ("submit", {"json": {"ratings": [], "tiers": []}, "headers": {"Idempotency-Key": "k"}}, "bad_form"),
    ("submit", {"json": {"text": "a demonstration"}, "headers": {"Idempotency-Key": "k"}}, "bad_form"),
    ("submit", {"json": {"ratings": [], "tiers": [["\x00"]]}, "headers": {"Idempotency-Key": "k"}}, "bad_form"),
    ("submit", {"json": {"ratings": [], "tiers": []}, "headers": {"Idempotency-Key": " "}}, "no_key"),
    ("submit", {"json": {"ratings": [], "tiers": []}}, None),
    ("submit", {"json": [], "headers": {"Idempotency-Key": "k"}}, None),
    ("submit", {"content": b"{", "headers": {"Idempotency-Key": "k"}}, None),
    ("edit", {"json": {"ratings": [], "tiers": []}, "headers": {"Idempotency-Key": "k"}}, "bad_form"),
    ("skip", {"json": {"reason": "bored"}}, "bad_reason"),
    ("skip", {"json": {"reason": "other", "note": "\x00"}}, None),
    ("skip", {"json": {}}, None),
    ("thread", {"json": {"body": "\x00"}}, "bad_text"),
    ("thread", {"json": {"body": "x", "author": "eve"}}, None),
]


@pytest.mark.parametrize(("path", "more", "code"), BAD)
def test_bad_requests_change_nothing(site, ada, path, more, code):
    task = ada.post("/api/v1/tasks/claim").json()
    before = everything(site)
    answer = ada.post(f"{HERE}/{task['assignment']}/{path}", **more)
    assert answer.status_code == 422
    assert code is None or (answer.json()["error"], bool(answer.json()["message"])) == (code, True)
    assert everything(site) == before


@pytest.mark.parametrize("rev", ["", "x", "-1", "1" * 30, "²"])
def test_draft_revisions_must_be_numbers(site, ada, rev):
    task = ada.post("/api/v1/tasks/claim").json()
    answer = ada.put(f"{HERE}/{task['assignment']}/draft", json={}, headers={"If-Match": rev.encode("latin-1")})
    assert answer.status_code == 422
    with site.database.read() as db:
        assert not db.scalars(select(GoldAnswer)).all()


def test_stale_drafts_get_the_newer_one(ada):
    here = f"{HERE}/{ada.post('/api/v1/tasks/claim').json()['assignment']}/draft"
    ada.put(here, json={"by": "one tab"}, headers={"If-Match": "0"})
    answer = ada.put(here, json={"by": "another"}, headers={"If-Match": "0"})
    assert (answer.status_code, answer.json()["error"]) == (409, "draft_conflict")
    assert answer.json()["detail"] == {"rev": 1, "payload": {"by": "one tab"}}


def test_withdrawn_prompts_are_not_shown(site, ada):
    task = ada.post("/api/v1/tasks/claim").json()
    with site.database.write() as db:
        withdraw_prompt(db, db.scalars(select(PromptRow).where(PromptRow.text == task["prompt"])).one(), 5)
    assert ada.get(f"{HERE}/{task['assignment']}").status_code == 410
    assert task["prompt"] not in ada.get("/api/v1/me/history").text


def test_labelers_never_see_model_names(tmp_path):
    site = make_site(tmp_path)
    secrets = (
        "sft_secret_a",
        "ppo_secret_b",
        "secret batch",
        "secret_temperature",
        "0.987654",
        "secret source",
        "secret user",
        "gold",
        "repeat",
    )
    offered = [
        Completion(
            prompt=f"prompt {number}",
            completion=f"text {number} {model}",
            model=secrets[model],
            score=0.987654,
            sampling={"secret_temperature": 1},
            finish="length",
        )
        for number in range(4)
        for model in range(2)
    ]
    gold = {"prompt 0": {"text 0 0": 1, "text 0 1": 2}}
    policy = OverlapPolicy(gold_share=0.5, repeat_share=1, repeat_gap=1, cohort_share=0)
    with site.database.write() as db:
        mark_batch_open(
            db,
            create_batch_with_tasks(
                db, "secret batch", "rank", "evaluation", [], offered, policy, gold=gold, baseline="sft_secret_a"
            ),
        )
        for prompt in db.scalars(select(PromptRow)):
            prompt.source, prompt.user = "secret source", "secret user"
    client, said, number = client_of(site, add_person(site)), [], 0
    while (answer := client.post("/api/v1/tasks/claim")).status_code == 200:
        number += 1
        task, here = answer.json(), f"{HERE}/{answer.json()['assignment']}"
        tiers = [[each["id"]] for each in task["completions"]]
        form, key = {"ratings": [], "tiers": tiers}, {"Idempotency-Key": f"{number}"}
        said += [answer, client.get(here), client.put(f"{here}/draft", json=form, headers={"If-Match": "0"})]
        said += [
            client.post(f"{here}/heartbeat"),
            client.post(f"{here}/submit", json=form, headers=key),
            client.get(here),
        ]
        said += [
            client.post(f"{here}/thread", json={"body": "?"}),
            client.post(f"{here}/submit", json={}, headers={"Idempotency-Key": "x"}),
        ]
    said.append(client.get("/api/v1/me/history"))
    assert number in (6, 7), "three ordinary tasks, each of them again except perhaps the last, one of gold"
    for answer in said:
        whole = answer.text + json.dumps(dict(answer.headers))
        assert not [secret for secret in secrets if secret in whole]
