"""Batches renamed, with another overlap or cohort, duplicated, deleted.

pytest tests/label/web/test_batch_settings.py
"""

from __future__ import annotations

import json

import pytest
from sqlalchemy import func, select
from support.owner import fill
from support.site import add_person, client_of
from support.tasks import hand_in, make, rank_batch, sound, take

from instructgpt.label.db.models import Batch, CompletionRow, GoldAnswer, PromptRow, Task, TaskCompletion
from instructgpt.label.tasks.batches import OverlapPolicy, mark_batch_open, withdraw_prompt

DATABASES = ("sqlite", "postgresql")
SHARED = OverlapPolicy(overlap=1, cohort_share=0.5, cohort_overlap=3, gold_share=0, repeat_share=0)


@pytest.fixture
def owner(site):
    return client_of(site, add_person(site, "olga", role="owner"))


def batch_named(site, name):
    with site.database.read() as db:
        return db.scalars(select(Batch).where(Batch.name == name)).one()


def overlaps(site, batch):
    with site.database.read() as db:
        return sorted(db.scalars(select(Task.overlap).where(Task.batch_id == batch.id)))


def set_batch(owner, batch, name=None, overlap=None, cohort=None):
    data = {"name": name or batch.name, "overlap": overlap or batch.policy["overlap"], "cohort": cohort or ""}
    return owner.post(f"/batches/{batch.id}/settings", data=data)


def test_overlap_changes_after_opening_without_losing_work(site, owner):
    ada, ben, cleo = (add_person(site, name) for name in ("ada", "ben", "cleo"))
    make(site, rank_batch, tasks=4, name="first", policy=SHARED)
    batch = batch_named(site, "first")
    assert overlaps(site, batch) == [1, 1, 3, 3]
    for number in range(4):
        hand_in(site, take(site, ada), key=str(number))
    assert set_batch(owner, batch, overlap=2).status_code == 303
    assert overlaps(site, batch) == [2, 2, 3, 3]
    hand_in(site, take(site, ben), key="b0")
    sound(site)
    assert set_batch(owner, batch_named(site, "first"), overlap=4).status_code == 303
    assert overlaps(site, batch) == [4, 4, 4, 4]
    sound(site)
    for number in range(4):
        hand_in(site, take(site, cleo), key=f"c{number}")
    assert set_batch(owner, batch_named(site, "first"), overlap=1).status_code == 303
    with site.database.read() as db:
        tasks = db.scalars(select(Task)).all()
    assert all(task.overlap == max(1, task.n_done + task.n_open) for task in tasks)
    assert {task.state for task in tasks} == {"done"}
    sound(site)


def test_names_and_cohorts(site, owner):
    held = add_person(site, "held", cohort="heldout")
    make(site, rank_batch, tasks=1, name="first")
    make(site, rank_batch, tasks=1, name="judged", purpose="evaluation", cohort="training")
    first, judged = batch_named(site, "first"), batch_named(site, "judged")
    assert set_batch(owner, first, name="<b>renamed</b>").status_code == 303
    assert "&lt;b&gt;renamed" in owner.get("/batches").text
    assert set_batch(owner, judged, name="<b>renamed</b>").status_code == 409
    assert set_batch(owner, judged, name="   ").status_code == 422
    assert set_batch(owner, first, name="first", cohort="heldout").status_code == 422
    assert batch_named(site, "<b>renamed</b>").cohort is None
    assert take(site, held) is None
    assert set_batch(owner, judged, cohort="heldout").status_code == 303
    assert take(site, held) is not None


def test_an_imported_batch_has_no_overlap_to_change(site, owner):
    record = {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2], "labeler": "elsewhere"}
    files = {"file": ("rankings.jsonl", json.dumps(record).encode() + b"\n")}
    assert owner.post("/data/imports", data={"name": "imported"}, files=files).status_code == 200
    batch = batch_named(site, "imported")
    page = owner.get(f"/batches/{batch.id}")
    assert (page.status_code, 'name="overlap"' in page.text) == (200, False)
    path = f"/batches/{batch.id}/settings"
    assert owner.post(path, data={"name": "renamed", "overlap": 2}).status_code == 422
    assert owner.post(path, data={"name": "renamed"}).status_code == 303
    assert (batch_named(site, "renamed").policy, overlaps(site, batch)) == ({}, [1])


def test_copies_have_the_tasks_and_no_work(site, owner):
    ada = add_person(site, "ada")
    gold = {"many prompt 0": {f"an answer of kind {k} to many prompt 0": k + 1 for k in range(3)}}
    filled = fill(site, tasks=5, name="many", gold=gold)
    hand_in(site, take(site, ada))
    with site.database.write() as db:
        withdraw_prompt(db, db.scalars(select(PromptRow).where(PromptRow.text == "many prompt 3")).one(), 1)
        counts = [db.scalar(select(func.count()).select_from(table)) for table in (PromptRow, CompletionRow)]
    answer = owner.post(f"/batches/{filled.batch}/duplicate", data={"name": "again"})
    assert answer.status_code == 303
    assert owner.get(answer.headers["location"]).status_code == 200
    copy = batch_named(site, "again")
    assert (copy.state, copy.policy) == ("draft", batch_named(site, "many").policy)
    with site.database.read() as db:
        tasks = db.scalars(select(Task).where(Task.batch_id == copy.id)).all()
        texts = {db.get_one(PromptRow, task.prompt_id).text for task in tasks}
        keys = [task.id for task in tasks]
        rows = db.scalar(select(func.count()).where(TaskCompletion.task_id.in_(keys)))
        assert [db.scalar(select(func.count()).select_from(table)) for table in (PromptRow, CompletionRow)] == counts
        assert db.scalar(select(func.count()).where(GoldAnswer.task_id.in_(keys))) == 1
    assert texts == {f"many prompt {number}" for number in (0, 1, 2, 4)}
    assert rows == 12
    assert {(task.n_done, task.n_open, task.state) for task in tasks} == {(0, 0, "open")}
    assert owner.post(f"/batches/{filled.batch}/duplicate", data={"name": "again"}).status_code == 409
    make(site, lambda db: mark_batch_open(db, db.get_one(Batch, copy.id)))
    sound(site)


def test_only_batches_without_work_are_deleted(site, owner):
    ada = add_person(site, "ada")
    make(site, rank_batch, tasks=2, name="first")
    batch = batch_named(site, "first")
    mine = take(site, ada)
    assert owner.post(f"/batches/{batch.id}/delete").status_code == 409
    answer = owner.post(f"/batches/{batch.id}/duplicate", data={"name": "again"})
    copy = batch_named(site, "again")
    assert "Delete the batch" in owner.get(answer.headers["location"]).text
    assert "Delete the batch" not in owner.get(f"/batches/{batch.id}").text
    assert owner.post(f"/batches/{copy.id}/delete").status_code == 303
    assert owner.get(f"/batches/{copy.id}").status_code == 404
    with site.database.read() as db:
        assert db.scalar(select(func.count()).select_from(Task)) == 2
        assert db.scalar(select(func.count()).select_from(PromptRow)) == 2
    hand_in(site, mine)
    sound(site)
