"""Large imports beside running work: all or nothing, in short transactions, with everything where it belongs."""

from __future__ import annotations

import os
import sqlite3
import threading
import time

import pytest
from sqlalchemy import func, select, text
from support.site import add_person, make_site
from support.tasks import everything, rank_batch, sound, take

from instructgpt.errors import InputError
from instructgpt.label.db import audit_log, staging
from instructgpt.label.db.models import Batch, PromptRow, Task, TaskCompletion
from instructgpt.label.db.staging import try_out, write_in_portions
from instructgpt.label.exchange.external_submissions import ExternalSubmissionImporter
from instructgpt.label.exchange.imports import ImportReport
from instructgpt.records import Ranking

GRADES = [3, 1, 2]


def rankings(count):
    return [
        (
            f"f:{number}",
            Ranking.model_validate(
                {
                    "prompt": f"prompt {number}",
                    "completions": [f"answer {each} to {number}" for each in range(3)],
                    "ranks": GRADES,
                    "labeler": f"labeler {number % 4}",
                    "models": ["a", "b", "c"],
                    "ratings": [2, 7, 4],
                }
            ),
        )
        for number in range(count)
    ]


def import_rankings(count, name="external"):
    def operation(db):
        ExternalSubmissionImporter(db, name, "training", "training", ImportReport()).import_all(rankings(count))

    return operation


def counts(site):
    return {table: len(rows) for table, rows in everything(site).items() if rows}


def test_an_import_in_portions_equals_one_transaction(site, tmp_path):
    other = make_site(tmp_path / "other")
    with other.database.write() as db:
        import_rankings(60)(db)
    with site.database.write() as db:
        rank_batch(db)
    before = counts(site)
    write_in_portions(site.database, import_rankings(60))
    after = counts(site)
    assert {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name)} == counts(
        other
    )
    with site.database.read() as db:
        assert audit_log.verify_chain(db) is None
        if site.database.is_sqlite:
            assert db.execute(text("PRAGMA foreign_key_check")).all() == []
    sound(site)
    other.database.close()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".import-")]


def test_a_failure_leaves_nothing(site):
    def fail(db):
        import_rankings(5)(db)
        raise InputError("line 6: wrong")

    before = everything(site)
    with pytest.raises(InputError, match="line 6"):
        write_in_portions(site.database, fail)
    assert everything(site) == before


def test_trying_out_keeps_nothing_and_needs_no_lock_on_sqlite(site):
    before = everything(site)

    def count(db):
        return len(rank_batch(db, tasks=4).intake)

    if site.database.is_sqlite:
        with sqlite3.connect(site.settings.folder / "site.db") as other:
            other.execute("BEGIN IMMEDIATE")
            assert try_out(site.database, count) > 0
    assert try_out(site.database, count) > 0
    assert everything(site) == before


def test_prompts_change_their_metadata_and_nothing_else(site):
    with site.database.write() as db:
        prompt = PromptRow(text="Why?", text_hash="h")
        db.add(prompt)

    def operation(db):
        db.get(PromptRow, prompt.id).use_case = "brainstorming"
        with site.database.write() as live:  # somebody withdraws it while the import runs
            live.get(PromptRow, prompt.id).withdrawn_at = 5

    if not site.database.is_sqlite:
        pytest.skip("PostgreSQL has no copy")
    write_in_portions(site.database, operation)
    with site.database.read() as db:
        row = db.get(PromptRow, prompt.id)
        assert (row.use_case, row.withdrawn_at) == ("brainstorming", 5)


def test_a_conflict_takes_the_import_back(tmp_path):
    site = make_site(tmp_path)
    before = everything(site)

    def operation(db):
        rank_batch(db, tasks=30, name="taken meanwhile")
        with site.database.write() as live:
            live.add(Batch(name="taken meanwhile", kind="rank", purpose="training", policy={}, intake={}))

    with pytest.raises(InputError, match="changed during the import"):
        write_in_portions(site.database, operation)
    with site.database.write() as db:
        db.delete(db.scalars(select(Batch)).one())
    assert everything(site) == before
    site.database.close()


def test_the_next_import_removes_what_a_killed_one_left(tmp_path, monkeypatch):
    site = make_site(tmp_path)
    with site.database.write() as db:
        rank_batch(db, tasks=2, name="other")
    before = counts(site)
    pid = os.fork()
    if pid == 0:
        monkeypatch.setattr(staging._Transfer, "_finish", lambda *_: os._exit(9))
        write_in_portions(site.database, lambda db: rank_batch(db, tasks=200, name="big").id)
    os.waitpid(pid, 0)
    with site.database.read() as db:
        assert db.scalars(select(Batch.state).where(Batch.name == "big")).one() == "draft"
    write_in_portions(site.database, lambda db: rank_batch(db, tasks=3, name="next").id)
    with site.database.read() as db:
        assert set(db.scalars(select(Batch.name))) == {"other", "next"}
        assert db.scalars(select(func.count()).select_from(Task)).one() == 5
    assert counts(site)["task_completion"] == before["task_completion"] + 12
    site.database.close()


def test_labelers_get_no_task_of_an_unfinished_batch_and_never_wait_long(tmp_path, monkeypatch):
    """Another process claims while 3,000 tasks arrive: no claim waits for the import, and no task is incomplete."""
    site = make_site(tmp_path)
    ada = add_person(site)
    monkeypatch.setattr(staging, "_FIRST_PORTION", 20)
    waits, seen, done = [], [], threading.Event()

    def claim():
        while not done.is_set():
            started = time.monotonic()
            seen.append(take(site, ada))
            waits.append(time.monotonic() - started)
            time.sleep(0.005)

    thread = threading.Thread(target=claim)
    thread.start()
    write_in_portions(site.database, lambda db: rank_batch(db, tasks=800, k=3).id)
    done.set()
    thread.join()
    assert len(waits) > 20
    assert max(waits) < 5, "a lock held throughout the import would make them wait for its end"
    assigned = [assignment for assignment in seen if assignment is not None]
    assert all(len(assignment.shown) == 3 for assignment in assigned)
    with site.database.read() as db:
        assert db.scalars(select(Batch.state)).one() == "open"
        assert len(db.scalars(select(Task.id)).all()) == 800
        assert len(db.scalars(select(TaskCompletion.task_id)).all()) == 2400
    assert take(site, ada) is not None
    site.database.close()
