"""The number of SQL statements of a page is constant in its rows; the site's background jobs.

pytest tests/label/web/test_page_cost.py
"""

from __future__ import annotations

import time

from sqlalchemy import event, select
from support.owner import fill, people
from support.site import add_person, client_of

from instructgpt.label.analysis import adjudication, calibration
from instructgpt.label.background import CounterCheckThread, check_counters
from instructgpt.label.db.models import Assignment, AuditLogEntry, Batch, Task
from instructgpt.label.tasks import threads
from instructgpt.label.tasks.batches import mark_batch_closed

DATABASES = ("sqlite",)

RANKS = ([1, 2, 3], [3, 2, 1], [2, 1, 3])


def grow(site, crowd, name, tasks, purpose="training", closed=False):
    """A batch that everybody ranked, each in another way, with a settled task, a room, and a question."""
    filled = fill(site, tasks=tasks, name=name, purpose=purpose, baseline="sft" if purpose == "evaluation" else None)
    for task in range(tasks):
        for number, person in enumerate(crowd):
            filled.rank(
                task,
                person,
                RANKS[(task + number) % 3],
                ratings=[4, 5, 3],
                labels=[{"opinion": True}, {}, {"opinion": False}],
            )
    filled.save()
    with site.database.write() as db:
        adjudication.adjudicate(
            db, filled.tasks[0], crowd[0], dict.fromkeys(filled.completions[0].values(), 1), [], "", 1
        )
        calibration.create_calibration_room(db, filled.tasks[0], name, crowd[0])
        assert db.query(Assignment).filter_by(task_id=filled.tasks[0]).count() == len(crowd)
        threads.post_answer(db, filled.tasks[0], crowd[0], crowd[1], f"look again at {name}", 2)
        if closed:
            mark_batch_closed(db, db.get(Batch, filled.batch))
    return filled


def statements(site, client, path):
    """How many statements a page sends to the database."""
    seen = []
    note = lambda *arguments: seen.append(arguments[2])  # noqa: E731
    event.listen(site.database.engine, "before_cursor_execute", note)
    assert client.get(path).status_code == 200, path
    event.remove(site.database.engine, "before_cursor_execute", note)
    return len(seen)


def test_statement_count_of_pages_is_constant_in_rows(site):
    crowd = people(site, "ada", "ben")
    olga = add_person(site, "olga", role="owner")
    work, judged = grow(site, crowd, "work", 2), grow(site, crowd, "judged", 2, "evaluation", closed=True)
    blind = grow(site, crowd, "blind", 2, "evaluation")
    of_owner = [
        "/overview",
        "/adjudication",
        f"/adjudication/{work.tasks[0]}",
        f"/batches/tasks/{work.tasks[0]}",
        f"/batches/{work.batch}",
        "/batches",
        "/calibration",
        "/people",
        "/search/tasks?text=prompt&label=opinion",
        "/search/submissions?text=prompt",
        f"/people/{crowd[0].id}/work",
        "/journal",
        "/results",
        f"/results/{judged.batch}",
        f"/results/{judged.batch}/results.json",
        f"/results/{blind.batch}",
        f"/quality/labelers/{crowd[0].id}",
        "/api/v1/submissions?limit=1000",
        "/api/v1/prompts?limit=1000",
        f"/api/v1/batches/{work.batch}/tasks?limit=1000",
    ]
    owner, labeler = client_of(site, olga), client_of(site, crowd[0])
    asked = [(owner, path) for path in of_owner] + [
        (labeler, "/home"),
        (labeler, "/history"),
        (labeler, "/account/data"),
    ]
    few = [statements(site, *each) for each in asked]
    more = people(site, *[f"more {number}" for number in range(6)])
    for number in range(3):
        grow(site, [*crowd, *more], f"work {number}", 12)
        grow(site, [*crowd, *more], f"judged {number}", 12, "evaluation", closed=True)
    for filled in (work, judged, blind):
        for person in more:
            for task in range(2):
                filled.rank(task, person, [1, 3, 2], ratings=[1, 2, 3], labels=[{"opinion": False}] * 3)
        filled.save()
    assert {
        path: count for (_, path), count in zip(asked, [statements(site, *each) for each in asked], strict=True)
    } == {path: count for (_, path), count in zip(asked, few, strict=True)}


def notes(site):
    with site.database.read() as db:
        return list(db.scalars(select(AuditLogEntry).where(AuditLogEntry.action == "counters.differ")))


def test_counter_mismatches_are_logged_once(site):
    crowd = people(site, "ada")
    filled = grow(site, [*crowd, *people(site, "ben")], "work", 2)
    assert check_counters(site) == frozenset()
    assert notes(site) == []
    with site.database.write() as db:
        db.get(Task, filled.tasks[1]).n_skipped = 3
    known = check_counters(site)
    assert [each for each in known if filled.tasks[1] in each and "n_skipped is 3, counted 0" in each]
    assert check_counters(site, known) == known
    (note,) = notes(site)
    assert note.detail["count"] == 1
    assert filled.tasks[1] in note.detail["differences"][0]


def test_background_jobs_run_at_start_repeat_and_survive_errors(site, monkeypatch):
    done = []

    def once_broken(_, known):
        done.append(known)
        if len(done) == 1:
            raise OSError("the disk was away")
        return frozenset({"seen"})

    monkeypatch.setattr("instructgpt.label.background.check_counters", once_broken)
    with CounterCheckThread(site, interval_s=0.01):
        until = time.monotonic() + 20
        while len(done) < 4:
            assert time.monotonic() < until
            time.sleep(0.01)
    assert done[:4] == [frozenset(), frozenset(), frozenset({"seen"}), frozenset({"seen"})]
    after = len(done)
    time.sleep(0.05)
    assert len(done) == after
