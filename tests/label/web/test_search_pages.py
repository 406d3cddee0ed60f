"""The pages of the lists of tasks, submissions and people, and their CSV files.

pytest tests/label/web/test_search_pages.py
"""

from __future__ import annotations

import csv
import io
import re
from html import unescape

import pytest
from sqlalchemy import select, update
from support.owner import fill, people
from support.site import add_person, client_of

from instructgpt.label.db.models import Assignment, Person, PromptRow, Submission
from instructgpt.label.exchange import export_jobs
from instructgpt.label.exchange.export_rows import iter_export_rows
from instructgpt.label.exchange.selection import ExportFilter, ExportTally
from instructgpt.label.listing import tasks
from instructgpt.label.listing.filters import TaskFilter

DATABASES = ("sqlite", "postgresql")


def table_links(page):
    return re.findall(r'<a href="/batches/tasks/([^"]+)"', page)


def test_pages_show_what_the_url_asks_for(site, full):
    olga = add_person(site, "olga", role="owner")
    owner, other = client_of(site, olga), client_of(site, add_person(site, "rita", role="researcher"))
    with site.database.read() as db:
        matches = sorted(db.scalars(tasks.select_task_ids(db, TaskFilter(text="überall", kind="rank"))))
    for client in (owner, other):
        page = client.get("/search/tasks?text=%C3%BCberall&kind=rank&state=&page=")
        assert sorted(set(table_links(page.text))) == matches
        assert matches
        assert f"{len(matches)} tasks match" in page.text
    ada = client_of(site, full[0])
    for path in ("/search/tasks", "/search/submissions", f"/people/{full[0].id}/work", "/people.csv"):
        assert ada.get(path).status_code == 403
    for path in (
        "/search/tasks?kind=x",
        "/search/tasks?page=0",
        "/search/submissions?since=yesterday",
        "/people?sort=x",
    ):
        answer = owner.get(path)
        assert answer.status_code == 422
        assert "Traceback" not in answer.text
    assert owner.get("/people/nobody/work").status_code == 404
    page = owner.get(f"/people/{full[0].id}/work?labeler={full[1].id}").text
    with site.database.read() as db:
        statement = select(Assignment.task_id).join(Submission, Submission.assignment_id == Assignment.id)
        is_current = Submission.replaced_at.is_(None)
        tasks_of = [
            sorted(db.scalars(statement.where(Assignment.person_id == labeler.id, is_current))) for labeler in full[:2]
        ]
    assert sorted(set(table_links(page))) == tasks_of[0] != tasks_of[1], "another labeler in the URL changes nothing"


@pytest.mark.usefixtures("full")
def test_sort_links_turn_around(site):
    page = client_of(site, add_person(site, "olga", role="owner")).get("/search/tasks?sort=-submissions").text
    link = unescape(re.search(r'aria-sort="descending"><a href="([^"]+)"', page)[1])
    assert link == "/search/tasks?sort=submissions"


def test_csv_is_read_by_spreadsheets(site, full):
    with site.database.write() as db:
        texts = ["=1+1", " =cmd|' /C calc'!A0", "-2", "@SUM(A1)", "\uff1d1", "\n=1", "nul\0byte", '날씨, "quoted"']
        if site.database.engine.dialect.name == "postgresql":
            texts.remove("nul\0byte")  # which it stores in no text
        for text, row in zip(texts, db.scalars(select(Submission).order_by(Submission.id)), strict=False):
            row.note = text
    client = client_of(site, add_person(site, "olga", role="owner"))
    raw = client.get("/search/submissions.csv?sort=time").content
    assert raw.startswith(b"\xef\xbb\xbf")
    assert b"\r\n" in raw
    rows = list(csv.DictReader(io.StringIO(raw.decode("utf-8-sig"), newline="")))
    with site.database.read() as db:
        stored = {row.id: row for row in db.scalars(select(Submission))}
        names = set(db.scalars(select(Person.name)))
    assert {row["submission"] for row in rows} == set(stored)
    for row in rows:
        note = stored[row["submission"]].note
        guarded = note.lstrip(" ").startswith(("=", "-", "@", "\uff1d", "\n"))
        assert row["note"] == ("'" if guarded else "") + note.replace("\0", "")
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", row["handed_in_utc"])
        assert row["labeler"] not in names
    of_ada = list(csv.DictReader(io.StringIO(client.get(f"/search/submissions.csv?labeler={full[0].id}").text[1:])))
    assert {row["labeler"] for row in of_ada} == {full[0].pseudonym}
    assert len(client.get("/search/tasks.csv?kind=demonstrate").text.splitlines()) == 1 + 3
    people_rows = list(csv.DictReader(io.StringIO(client.get("/people.csv?role=labeler").text[1:])))
    assert {row["labeler"] for row in people_rows} == {person.pseudonym for person in full}


def test_hidden_model_names_stay_hidden_in_lists(site):
    crew = people(site, "ada")
    filled = fill(site, tasks=2, name="blind", models=("secret-ppo", "secret-sft"), purpose="evaluation")
    filled.rank(0, crew[0], [1, 2], ratings=[2, 3])
    filled.save()
    with site.database.write() as db:
        db.execute(update(PromptRow).values(text="x" * 150 + " secret-ppo said so"))
    client = client_of(site, add_person(site, "olga", role="owner"))
    for path in ("tasks", "tasks.csv", "submissions", "submissions.csv"):
        assert "secret-p" not in client.get(f"/search/{path}").text


def test_export_of_one_labeler(site, full):
    client = client_of(site, add_person(site, "olga", role="owner"))
    page = client.get(f"/people/{full[1].id}/work").text
    assert f'name="labeler" value="{full[1].pseudonym}"' in page
    rows = {}
    for person in full:
        answer = client.post("/api/v1/exports", json={"filter": {"labelers": [person.pseudonym]}})
        assert answer.status_code == 202
        export_jobs.wait_for_export_job(answer.json()["id"])
    with site.database.read() as db:
        for person in [None, *full]:
            labelers = (person.pseudonym,) if person else ()
            rows[person and person.name] = [
                row["labeler"]
                for row in iter_export_rows(db, "rankings", ExportFilter(labelers=labelers), ExportTally())
            ]
    assert sorted(rows[None]) == sorted(rows["ada"] + rows["Ben"] + rows["Çelik"])
    assert all(set(rows[person.name]) == {person.pseudonym} for person in full)
