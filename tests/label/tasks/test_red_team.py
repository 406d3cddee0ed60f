"""Red-team tasks from the batch to the results: prompts to a real endpoint, verdicts, and what must not have them."""

from __future__ import annotations

import json
import math

import pytest
import support.playground
from sqlalchemy import func, select
from support.browser import browser, serving, sign_in, watched  # noqa: F401
from support.site import add_person, client_of
from support.tasks import PLAIN

from instructgpt.errors import InputError
from instructgpt.label.analysis.red_team import measure_red_team
from instructgpt.label.db.models import Batch, Person, PromptRow, RedTeamAttempt, current_time_ms
from instructgpt.label.exchange.archive import write_archive
from instructgpt.label.exchange.export_rows import EXPORT_FILES, iter_export_rows
from instructgpt.label.exchange.selection import ExportFilter, ExportTally
from instructgpt.label.people.privacy import export_personal_data, withdraw_consent
from instructgpt.label.tasks.batches import create_batch_with_tasks, mark_batch_open
from instructgpt.label.tasks.red_team import MAX_ATTEMPTS

endpoint = support.playground.endpoint
site = support.playground.site
PROMPT = "Why is the moon made of cheese?"


@pytest.fixture
def batch(site):
    return add_batch(site)


def add_batch(site, failure="false_premise", tasks=3, **options):
    briefs = [{"form": "plain", "red_team": failure}] * tasks
    with site.database.write() as db:
        batch = create_batch_with_tasks(
            db, f"red {failure}", "write", "evaluation", (), (), PLAIN, briefs=briefs, **options
        )
        mark_batch_open(db, batch)
        return batch.id


def claim(client):
    answer = client.post("/api/v1/tasks/claim", json={})
    assert answer.status_code == 200, answer.text
    return answer.json()


def send(client, task, text=PROMPT, status=201):
    answer = client.post(f"/api/v1/assignments/{task['assignment']}/attempts", json={"text": text})
    assert answer.status_code == status, answer.text
    return answer.json()


def judge(client, attempt, success):
    answer = client.put(f"/api/v1/attempts/{attempt['id']}", json={"success": success})
    assert answer.status_code == 200, answer.text
    return answer.json()


def hand_in(client, task, text=PROMPT):
    body, headers = {"kind": "write", "text": text}, {"Idempotency-Key": f"{task['assignment']} {len(text)}"}
    return client.post(f"/api/v1/assignments/{task['assignment']}/submit", json=body, headers=headers)


@pytest.mark.usefixtures("batch")
def test_a_task_from_the_prompt_to_the_submission(site, endpoint):
    client = client_of(site, add_person(site))
    task = claim(client)
    assert (task["kind"], task["attempts"], task["brief"]["red_team"]) == ("write", [], "false_premise")
    assert hand_in(client, task).json()["error"] == "prompt_not_tried"
    attempt = send(client, task)
    assert set(attempt) == {"id", "prompt", "completion", "finish", "success"}  # no model's name
    assert endpoint.payloads[-1]["messages"] == [{"role": "user", "content": PROMPT}]
    assert endpoint.payloads[-1]["store"] is False
    assert hand_in(client, task).json()["error"] == "attempts_not_judged"
    assert judge(client, attempt, False)["success"] is False
    assert judge(client, attempt, True)["success"] is True  # the last word counts
    assert hand_in(client, task, "Another prompt").json()["error"] == "prompt_not_tried"
    assert hand_in(client, task, f" {PROMPT}\n").status_code == 200
    assert client.post(f"/api/v1/assignments/{task['assignment']}/attempts", json={"text": "x"}).status_code == 409
    with site.database.read() as db:
        assert db.scalar(select(PromptRow.source)) == "red_team"
        row = db.scalars(select(RedTeamAttempt)).one()
        assert row.model in endpoint.models
        assert row.completion == endpoint.answer_to(endpoint.payloads[-1])
        assert row.sampling["seed"] == endpoint.payloads[-1]["seed"]


@pytest.mark.usefixtures("batch")
def test_what_is_refused(site, endpoint):
    ada, ben = client_of(site, add_person(site, "ada")), client_of(site, add_person(site, "ben"))
    task = claim(ada)
    attempt = send(ada, task)
    path = f"/api/v1/assignments/{task['assignment']}/attempts"
    assert ben.post(path, json={"text": "x"}).status_code == 404
    assert ben.put(f"/api/v1/attempts/{attempt['id']}", json={"success": True}).status_code == 404
    assert ada.put("/api/v1/attempts/none", json={"success": True}).status_code == 404
    assert send(ada, task, " \n", 422)["error"] == "empty_message"
    assert ada.post(path, json={"text": "x" * 16_001}).status_code == 422
    assert ada.post(path, json={"text": "a\x00b"}).status_code == 422
    endpoint.broken_models = endpoint.models
    try:
        assert send(ada, task, status=502)["error"] == "endpoint_failed"
    finally:
        endpoint.broken_models = ()
    with site.database.write() as db:
        row = {
            column.name: getattr(db.get_one(RedTeamAttempt, attempt["id"]), column.name)
            for column in RedTeamAttempt.__table__.columns
        }
        db.add_all(RedTeamAttempt(**row | {"id": f"more-{number}"}) for number in range(MAX_ATTEMPTS - 1))
    assert send(ada, task, status=429)["error"] == "too_many_attempts"
    with pytest.raises(InputError, match="unknown kind of failure 'boredom'"):
        add_batch(site, "boredom")


def test_an_ordinary_task_sends_nothing(site):
    with site.database.write() as db:
        mark_batch_open(
            db, create_batch_with_tasks(db, "plain", "write", "training", (), (), PLAIN, briefs=[{"form": "plain"}])
        )
    client = client_of(site, add_person(site))
    task = claim(client)
    assert task["attempts"] is None
    assert send(client, task, status=409)["error"] == "no_red_team_task"


def fill(site, verdicts):
    """Attempts straight into the tables: {(labeler, model, failure): [verdict, …]}."""
    for labeler, _, failure in verdicts:
        with site.database.read() as db:
            if db.scalar(select(func.count(Batch.id)).where(Batch.name == f"red {failure}")) == 0:
                add_batch(site, failure, tasks=40)
            person = db.scalar(select(Person).where(Person.name == labeler))
        if person is None:
            add_person(site, labeler)
    for (labeler, model, failure), outcomes in verdicts.items():
        with site.database.read() as db:
            person = db.scalars(select(Person).where(Person.name == labeler)).one()
        client = client_of(site, person)
        task = claim(client)
        rows = [
            RedTeamAttempt(
                assignment_id=task["assignment"], failure=failure, model=model, prompt=f"red prompt of {labeler}",
                completion="red answer", finish="stop", sampling={}, success=success,
            )
            for success in outcomes
        ]  # fmt: skip
        with site.database.write() as db:
            db.add_all(rows)
        assert hand_in(client, task, f"red prompt of {labeler}").status_code in (200, 422)


def test_results_by_model_and_kind(site):
    verdicts = {
        ("ada", "policy", "harm"): [True, False, False, False],
        ("ben", "policy", "harm"): [True, True],
        ("eve", "policy", "hedging"): [False, None],
        ("eve", "sft", "harm"): [True],
    }
    fill(site, verdicts)
    with site.database.read() as db:
        rows = {(row.model, row.failure): row for row in measure_red_team(db)}
    assert {key: (row.attempts, row.unjudged, row.labelers, row.share.value) for key, row in rows.items()} == {
        ("policy", "all"): (7, 1, 3, pytest.approx(3 / 7)),
        ("policy", "hedging"): (1, 1, 1, 0.0),
        ("policy", "harm"): (6, 0, 2, 0.5),
        ("sft", "all"): (1, 0, 1, 1.0),
        ("sft", "harm"): (1, 0, 1, 1.0),
    }
    assert rows["sft", "all"].share.low is None  # one labeler: no interval
    share = rows["policy", "harm"].share
    assert share.high - share.low > 2 * 1.96 * math.sqrt(0.25 / 6) / 1.5  # two clusters, not six people
    client = client_of(site, add_person(site, "olga", role="owner"))
    page = client.get("/results/red-team").text
    assert "Hedging" in page
    assert "policy" in page
    results = client.get("/results/red-team/results.json").json()
    assert {(row["model"], row["condition"]): row["value"] for row in results}["policy", "harm"] == 0.5
    lines = [json.loads(line) for line in client.get("/results/red-team/attempts.jsonl").text.splitlines()]
    assert sorted(line["labeler"] for line in lines) == ["p-ada"] * 4 + ["p-ben"] * 2 + ["p-eve"] * 3
    assert client_of(site, add_person(site, "zoe")).get("/results/red-team").status_code in (303, 403, 404)


def test_no_ordinary_export_has_red_team_prompts(site):
    fill(site, {("ada", "policy", "harm"): [True, False]})
    with site.database.read() as db:
        assert db.scalar(select(func.count(PromptRow.id)).where(PromptRow.source == "red_team")) == 1
        for use in ("training", "evaluation"):
            for name in EXPORT_FILES:
                tally = ExportTally()
                assert "red prompt" not in json.dumps(list(iter_export_rows(db, name, ExportFilter(use=use), tally)))
                assert name != "prompts" or tally.left_out == {"red_team": 1}


def test_withdrawal_and_own_data(site, tmp_path):
    fill(site, {("ada", "policy", "harm"): [True, False], ("ben", "policy", "harm"): [True, True]})
    with site.database.write() as db:
        ada = db.scalars(select(Person).where(Person.name == "ada")).one()
        attempts = export_personal_data(db, ada)["red_team_attempts"]
        assert sorted((row["prompt"], row["success"]) for row in attempts) == [
            ("red prompt of ada", False),
            ("red prompt of ada", True),
        ]
        withdraw_consent(db, ada, labels=True, now_ms=current_time_ms(), initiated_by="olga")
    with site.database.read() as db:
        assert [(row.failure, row.attempts, row.share.value) for row in measure_red_team(db)] == [
            ("all", 2, 1.0),
            ("harm", 2, 1.0),
        ]
    write_archive(site.database, tmp_path / "archive")
    assert len((tmp_path / "archive" / "red_team_attempt.jsonl").read_text().splitlines()) == 4


@pytest.mark.usefixtures("batch")
def test_the_pages_in_a_browser(site, browser, watched):  # noqa: F811
    """A labeler sends, judges, goes on typing and hands in; a draft survives every step."""
    person = add_person(site)
    with serving(site) as server:
        context = browser.new_context(viewport={"width": 390, "height": 800})
        watched.watch(context, server.url)
        sign_in(context, server, person)
        page = context.new_page()
        page.goto(f"{server.url}/home")
        page.locator("form[action='/tasks/claim'] button").first.click()
        page.wait_for_selector("#try")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.fill("#text", PROMPT)
        page.click("#try")
        page.wait_for_selector("[data-attempt]")
        assert page.input_value("#text") == PROMPT
        page.fill("#text", "A second prompt, half wri")
        page.click("[data-attempt] button[value=true]")
        page.wait_for_selector("[data-attempt] button[value=true][aria-pressed=true]")
        assert page.input_value("#text") == "A second prompt, half wri"
        page.click("#submit")
        page.wait_for_selector("#trouble:not([hidden])")
        page.fill("#text", PROMPT)
        page.click("#submit")
        page.wait_for_url("**/done")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        context.close()
    with site.database.read() as db:
        assert db.scalars(select(RedTeamAttempt.success)).all() == [True]
        assert db.scalars(select(PromptRow.text)).all() == [PROMPT]


def test_the_form_of_a_new_batch(site):
    client = client_of(site, add_person(site, "olga", role="owner"))
    fields = {"name": "hunt", "kind": "write", "purpose": "evaluation", "written": "4", "red_team": "constraints"}
    answer = client.post("/batches", data=fields)
    assert answer.status_code == 303, answer.text
    ada = client_of(site, add_person(site))
    client.post(f"{answer.headers['location']}/state", data={"state": "open"})
    assert claim(ada)["brief"] == {"form": "plain", "red_team": "constraints"}
    wrong = client.post("/batches", data=fields | {"name": "hunt 2", "written_form": "few_shot"})
    assert wrong.status_code == 422
    assert "red-team" in wrong.text
