"""Batches on the owner's pages and the command line: creation, preview, opening, progress, forecast."""

from __future__ import annotations

import html
import json
import re
from statistics import NormalDist

import pytest
from sqlalchemy import event
from support.owner import fill, people
from support.pages import commands_in
from support.site import add_person, client_of
from support.tasks import prompt_batch

from instructgpt.cli import parse, run_command
from instructgpt.errors import InputError
from instructgpt.label.analysis import forecast
from instructgpt.label.db.models import (
    Assignment,
    AuditLogEntry,
    Batch,
    MessageRow,
    PromptRow,
    Submission,
    Task,
    current_time_ms,
)
from instructgpt.label.site_folder import open_site
from instructgpt.label.tasks import batch_requests, submissions
from instructgpt.label.tasks.assignments import claim_next_task, skip_assignment
from instructgpt.label.tasks.batch_requests import BatchSpec
from instructgpt.label.tasks.batches import OverlapPolicy
from instructgpt.label.tasks.forms import DemonstrationForm
from instructgpt.records import Completion, write_records

DATABASES = ("sqlite",)

DAY = forecast.DAY_MS


@pytest.fixture
def client(site):
    return client_of(site, add_person(site, "olga", role="researcher"))


def lines(*rows):
    return "\n".join(json.dumps(row) for row in rows).encode()


def completions(prompts=4, models=("sft", "ppo", "gpt")):
    rows = [
        {"prompt": f"prompt {n}", "completion": f"{model} says {n}", "model": model}
        for n in range(prompts)
        for model in models
    ]
    return ("completions.jsonl", lines(*rows))


def form(**fields):
    return {
        "name": "first",
        "kind": "rank",
        "purpose": "training",
        "cohort_share": "50",
        "gold_share": "0",
        "repeat_share": "25",
        **fields,
    }


def tiles(text):
    """Big numbers of a page by what stands below them."""
    found = re.findall(r'<div class="figure"><strong>(.*?)</strong><span>(.*?)</span>', text)
    return {html.unescape(name): value for value, name in found}


def test_preview_stores_nothing_and_creation_uses_the_uploaded_file(site, client):
    answer = client.post(
        "/batches/preview", data=form(hourly="30", currency="USD"), files={"completions": completions()}
    )
    assert answer.status_code == 200
    # 4 tasks: 2 for three labelers, 2 for one, one of the 4 repeated: 2 x 3 + 2 + (3 or 1) assignments
    shown = tiles(answer.text)
    assert shown["tasks"] == "4"
    assert int(shown["assignments"]) in (9, 11)
    hours = int(shown["assignments"]) * 3 * 60 / 3600  # three completions each, a minute apiece until it is measured
    assert shown["hours of work"] == f"{hours:.1f}"
    assert shown["cost"] == f"{hours * 30:.2f} USD"
    with site.database.read() as db:
        assert not db.query(Batch).count()
        assert not db.query(PromptRow).count()
    token = re.search(r'name="completions_token" value="([^"]+)"', answer.text)[1]
    answer = client.post("/batches", data=form(completions_token=token, completions_name="completions.jsonl"))
    assert answer.status_code == 303
    with site.database.read() as db:
        batch = db.query(Batch).one()
        assert (batch.state, batch.policy["cohort_share"], db.query(Task).count()) == ("draft", 0.5, 4)
        assert db.query(AuditLogEntry).filter_by(action="batch.made", object=batch.id).count() == 1
    assert not list((site.settings.folder / "uploads").iterdir())


@pytest.mark.parametrize(
    ("fields", "file", "said"),
    [
        ({}, b"{bad", "completions.jsonl:1"),
        ({}, b"", "completions.jsonl"),
        ({"name": " "}, None, "name"),
        ({"k_least": "5", "k_most": "3"}, None, "smallest K (5)"),
        ({"cohort_share": "much"}, None, "not a percentage"),
        ({"cohort_share": "101"}, None, "cohort_share"),
        ({"cohort": "heldout"}, None, "never get training tasks"),
        ({"purpose": "evaluation", "baseline": "nobody"}, None, "gpt, ppo, sft"),
        ({"baseline": "sft"}, None, "evaluation"),
        ({"kind": "demonstrate"}, None, "completions belong to rankings"),
        ({"overlap": "5"}, None, "cohort_overlap"),
        ({"written": "7"}, None, "write"),
        ({"completions_token": "../../../etc/passwd"}, "none", "choose it again"),
    ],
)
def test_bad_forms_are_refused_and_change_nothing(site, client, fields, file, said):
    sent = {} if file == "none" else {"completions": ("completions.jsonl", file) if file is not None else completions()}
    answer = client.post("/batches", data=form(**fields), files=sent)
    assert answer.status_code == 422
    assert said in html.unescape(answer.text)
    assert str(site.settings.folder / "uploads") not in answer.text
    with site.database.read() as db:
        assert not db.query(Batch).count()
        assert not db.query(AuditLogEntry).count()


def test_a_form_with_files_is_checked_like_any_other(site, client):
    files = {"completions": completions()}
    assert (
        client.post("/batches", data=form(), files=files, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    )
    uploads = site.settings.folder / "uploads"
    assert not uploads.exists() or not list(uploads.iterdir()), "a forged upload leaves no file"
    assert client.post("/batches", data=form(), files={"completions": completions()}).status_code == 303


def test_opening_and_closing_a_batch_is_logged(site, client):
    client.post("/batches", data=form(), files={"completions": completions()})
    with site.database.read() as db:
        batch = db.query(Batch).one().id
    for state in ("open", "closed", "open"):
        assert client.post(f"/batches/{batch}/state", data={"state": state}).status_code == 303
        with site.database.read() as db:
            assert db.get(Batch, batch).state == state
    assert client.post(f"/batches/{batch}/state", data={"state": "burnt"}).status_code == 422
    assert client.post(f"/batches/{batch}/priority", data={"priority": "7"}).status_code == 303
    with site.database.read() as db:
        assert [row.action for row in db.query(AuditLogEntry).order_by(AuditLogEntry.seq)][1:] == [
            "batch.opened",
            "batch.closed",
            "batch.opened",
            "batch.priority",
        ]
        assert db.get(Batch, batch).priority == 7


def test_gold_answers_come_from_a_rankings_file(tmp_path):
    file = tmp_path / "gold.jsonl"
    file.write_bytes(lines({"prompt": "p", "completions": ["a", "b"], "ranks": [2, 1]}))
    assert batch_requests.load_gold_answers("rank", [file]) == {"p": {"a": 2, "b": 1}}
    file.write_bytes(lines({"prompt": "p", "answer": {"sensitive": True}}))
    assert batch_requests.load_gold_answers("review", [file]) == {"p": {"sensitive": True}}
    file.write_bytes(lines({"prompt": "p", "answer": {"colour": "red"}}))
    with pytest.raises(InputError, match=r"gold.jsonl:1: expected"):
        batch_requests.load_gold_answers("review", [file])


def test_commands_on_the_page_parse(client):
    text = html.unescape(client.get("/batches/new").text)
    shown = re.findall(r'<pre tabindex="0" class="command">(.*?)</pre>', text)
    assert len(shown) == 2
    for command in shown:
        for arguments in commands_in(command):
            parse(arguments)


def test_models_are_sampled_in_a_subprocess(tmp_path, monkeypatch):
    said = []

    def instead(command, **_):
        said.append(command)
        out = command[command.index("--out") + 1]
        write_records(out, [Completion(prompt="p", completion="c", model=command[command.index("--model") + 1])])
        return type("Done", (), {"returncode": 0, "stderr": ""})

    monkeypatch.setattr(batch_requests.subprocess, "run", instead)
    files = batch_requests.sample_in_subprocess(
        [("sft", "runs/sft"), ("ppo", "runs/ppo")], [tmp_path / "p.jsonl"], ["--n", "2", "--seed", "5"], tmp_path
    )
    assert [json.loads(file.read_text())["model"] for file in files] == ["sft", "ppo"]
    for command in said:
        assert command[1:3] == ["-m", "instructgpt"]
        parse(command[3:])


def test_progress_and_forecast_are_counted(site):
    ada, ben = people(site, "ada", "ben")
    filled = fill(
        site, tasks=4, policy=OverlapPolicy(overlap=1, cohort_share=0.5, cohort_overlap=2, gold_share=0, repeat_share=0)
    )
    with site.database.read() as db:
        single = next(number for number, task in enumerate(filled.tasks) if db.get(Task, task).overlap == 1)
        double = next(number for number, task in enumerate(filled.tasks) if db.get(Task, task).overlap == 2)
    filled.rank(single, ada, [1, 2, 3], active=90_000)
    filled.rank(double, ben, [1, 2, 3], active=30_000)
    filled.save()
    with site.database.read() as db:
        (row,) = forecast.list_batch_statuses(db)
        speed = forecast.compute_speeds(db)["rank"]
    assert (row.tasks, row.finished, row.required, row.completed, row.remaining, row.remaining_units) == (
        4,
        1,
        6,
        2,
        4,
        12,
    )
    assert row.active_ms == 120_000
    assert (speed.seconds, speed.sample_count) == (forecast.DEFAULT_SECONDS_PER_UNIT["rank"], 2)
    for number in range(18):
        filled.rank(single, ada, [1, 2, 3], active=60_000, again=number + 2)
    filled.save()
    with site.database.read() as db:
        assert forecast.compute_speeds(db)["rank"] == forecast.Speed(20.0, 20)


def test_forecast_is_exact_without_noise_and_uses_fiellers_interval_otherwise():
    assert forecast.forecast_completion(40, [0, 0, 10, 10, 10, 10]) == forecast.Forecast(4.0, 4.0, 4.0, 10.0)
    assert forecast.forecast_completion(0, [5, 5, 5]).days == 0
    assert forecast.forecast_completion(5, [0, 0]).days is None
    past = [8.0, 12.0, 9.0, 11.0, 10.0, 10.0]
    seen = forecast.forecast_completion(100, past)
    variance, z = 2.0, 1.96
    for days in (seen.low, seen.high):  # at both ends what is left lies 1.96 standard deviations from what is expected
        assert abs(100 - 10 * days) == pytest.approx(z * (variance * (days + days**2 / 6)) ** 0.5)
    assert seen.low < 10 < seen.high
    assert forecast.forecast_completion(100, [40, 0, 1]).high is None  # a pace that could as well be nought


def test_forecast_intervals_have_their_coverage():
    """Days drawn from one distribution: the day on which the work is done lies in the interval about 19 times of 20."""
    from random import Random

    covered = 0
    for seed in range(400):
        rng = Random(seed)
        days = [max(0.0, rng.gauss(30, 8)) for _ in range(14)]
        seen = forecast.forecast_completion(300, days)
        done, day = 0.0, 0
        while done < 300:
            done, day = done + max(0.0, rng.gauss(30, 8)), day + 1
        covered += seen.low - 1 <= day <= seen.high + 1
    assert covered / 400 > 0.93
    assert NormalDist().inv_cdf(0.975) == pytest.approx(1.96, abs=1e-3)


def test_daily_submissions_include_empty_days(site):
    ada, ben = people(site, "ada", "ben")
    filled = fill(site, tasks=3)
    at = (current_time_ms() // DAY) * DAY + 5
    filled.rank(0, ada, [1, 2, 3], at=at, active=1000)
    filled.rank(1, ben, [1, 2, 3], at=at, active=500)
    filled.rank(2, ada, [1, 2, 3], at=at - 2 * DAY, active=250)
    filled.save()
    with site.database.read() as db:
        past = forecast.count_daily_submissions(db, at, 4)
    assert [(day.total, day.active_ms, day.people) for day in past] == [(0, 0, 0), (1, 250, 1), (0, 0, 0), (2, 1500, 2)]


def test_overview_statement_count_is_constant(site, client):
    def count():
        seen = []
        note = lambda *arguments: seen.append(arguments[2])  # noqa: E731
        event.listen(site.database.engine, "before_cursor_execute", note)
        assert client.get("/overview").status_code == 200
        event.remove(site.database.engine, "before_cursor_execute", note)
        return len(seen)

    (ada,) = people(site, "ada")
    fill(site, name="one")
    few = count()
    for number in range(5):
        filled = fill(site, name=f"more {number}", tasks=5)
        for task in range(5):
            filled.rank(task, ada, [1, 2, 3])
        filled.save()
    assert count() == few


def test_reviews_and_questions_are_listed_and_resolved(site, client):
    """A task is skipped and assigned again, a question answered, work returned with a reason, a prompt withdrawn."""
    crowd = people(site, "ada", "ben", "cy", "dee")
    with site.database.write() as db:
        batch = prompt_batch(db, tasks=1).id
    for person in crowd[:3]:
        with site.database.write() as db:
            skip_assignment(
                db,
                site.settings,
                claim_next_task(db, site.settings, person, None, current_time_ms()),
                "unclear",
                f"{person.name} cannot tell",
                current_time_ms(),
            )
    text = client.get(f"/batches/{batch}").text
    assert "ada cannot tell" in text
    with site.database.read() as db:
        task = db.query(Task).one().id
        assert claim_next_task(db, site.settings, crowd[3], None, current_time_ms()) is None
    assert client.post(f"/batches/tasks/{task}/release").status_code == 303
    assert client.post(f"/batches/tasks/{task}/release").status_code == 409
    with site.database.write() as db:
        mine = claim_next_task(db, site.settings, crowd[3], None, current_time_ms())
        submissions.submit_form(db, site.settings, mine, DemonstrationForm(text="an answer"), "key", current_time_ms())
        db.add(MessageRow(task_id=task, about_id=crowd[3].id, author_id=crowd[3].id, body="Was that right?"))
    assert "Was that right?" in client.get(f"/batches/{batch}").text
    assert (
        client.post(f"/batches/tasks/{task}/answer", data={"about": crowd[3].id, "body": "Nearly."}).status_code == 303
    )
    assert "Was that right?" not in client.get(f"/batches/{batch}").text
    address = f"/batches/tasks/{task}/return"
    assert client.post(address, data={"assignment_id": mine.id, "reason": "Please name the year."}).status_code == 303
    assert client.post(address, data={"assignment_id": mine.id, "reason": "Again."}).status_code == 409
    with site.database.read() as db:
        assert db.get(Assignment, mine.id).state == "returned"
        assert db.query(Submission).one().replaced_at is None  # it stays what it is until a new version comes
        assert [row.body for row in db.query(MessageRow).order_by(MessageRow.at)][-1] == "Please name the year."
    assert client.post(f"/batches/tasks/{task}/withdraw", data={"reason": "personal data"}).status_code == 303
    with site.database.read() as db:
        assert db.get(Task, task).state == "withdrawn"
        assert {row.action for row in db.query(AuditLogEntry)} >= {
            "task.released",
            "thread.answered",
            "assignment.returned",
            "prompt.withdrawn",
        }


def test_batch_spec_validates_its_numbers():
    with pytest.raises(ValueError, match="number of prompts"):
        BatchSpec(name="x", kind="write")
    assert BatchSpec(name="x", kind="write", written=3).policy.k is None
    assert BatchSpec(name="x", k_most=6).policy.k == (2, 6)


def test_batch_command_previews_creates_and_opens(tmp_path, capsys):
    assert run_command(["label", "init", "--site", str(tmp_path / "site")]) == 0
    file = tmp_path / "completions.jsonl"
    file.write_bytes(completions()[1])
    command = [
        "label",
        "batch",
        "--site",
        str(tmp_path / "site"),
        "--name",
        "one",
        "--completions",
        str(file),
        "--cohort-share",
        "0",
    ]
    capsys.readouterr()
    assert run_command([*command, "--dry-run", "--hourly", "30", "--currency", "USD"]) == 0
    assert (
        "would create batch 'one': 4 tasks, 4 assignments\n"
        "about 0.2 hours of work, cost 6 USD (60 s each, a rule of thumb)" in capsys.readouterr().out
    )
    assert run_command([*command, "--open"]) == 0
    assert run_command(command) == 2
    assert "already a batch 'one'" in capsys.readouterr().err
    site = open_site(tmp_path / "site")
    with site.database.read() as db:
        batch = db.query(Batch).one()
        assert (batch.state, db.query(Task).filter_by(batch_id=batch.id).count()) == ("open", 4)
    site.database.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--models", "runs/ppo", "--prompts", "p.jsonl"], "expected NAME=MODEL"),
        (["--models", "a=x", "a=y", "--prompts", "p.jsonl"], "same name"),
        (["--models", "a=x"], "needs --prompts"),
        (["--kind", "write"], "page of new batches"),
        (["--n", "2"], "no effect without --models"),
        ([], "needs a file of completions"),
        (["--models", "a=no-such-model", "--prompts", "none.jsonl"], "completions of no-such-model"),
    ],
)
def test_batch_command_errors_are_one_line(tmp_path, capsys, options, said):
    assert run_command(["label", "init", "--site", str(tmp_path / "site")]) == 0
    assert run_command(["label", "batch", "--site", str(tmp_path / "site"), "--name", "one", *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1
