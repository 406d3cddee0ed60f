"""Changes of many rows: what changes, what stays and why, counts, undo, interruption, permissions.

pytest tests/label/web/test_bulk_changes.py
"""

from __future__ import annotations

import re
from html import unescape

import pytest
from sqlalchemy import func, select, update
from support.owner import fill, people
from support.site import add_person, client_of
from support.tasks import hand_in, make, prompt_batch, rank_batch, sound, take

from instructgpt.label.bulk import actions, changes
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import (
    Assignment,
    AuditLogEntry,
    Batch,
    BulkChange,
    BulkItem,
    MessageRow,
    Person,
    PromptRow,
    Submission,
    Task,
)
from instructgpt.label.exchange.export_rows import iter_export_rows
from instructgpt.label.exchange.selection import ExportFilter, ExportTally
from instructgpt.label.people.privacy import withdraw_consent
from instructgpt.label.tasks.batches import OverlapPolicy, withdraw_prompt

DATABASES = ("sqlite", "postgresql")
TWO = OverlapPolicy(overlap=2, cohort_share=0, gold_share=0, repeat_share=0)


@pytest.fixture
def owner(site):
    return client_of(site, add_person(site, "olga", role="owner"))


def rows(site, table, *columns):
    with site.database.read() as db:
        return {row[0]: row[1] if len(columns) == 1 else row[1:] for row in db.execute(select(table.id, *columns))}


def snapshot_work(site):
    """Everything that an undo must bring back."""
    return (
        rows(site, Task, Task.state, Task.overlap, Task.n_open, Task.n_done),
        rows(site, Submission, Submission.invalid_reason, Submission.surplus),
        rows(site, Assignment, Assignment.state),
        rows(site, Person, Person.status),
    )


def post(client, path, action, *, ids=(), everything=None, **fields):
    """Confirm a change as a person does: the form, the page with the count, the form of that page. -> the answer."""
    data = {"action": action, "id": list(ids), **fields}
    if everything is not None:
        data |= {"everything": "1", "filter": everything}
    page = client.post(path, data=data)
    if page.status_code != 200:
        return page
    hidden = {}
    for name, value in re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page.text):
        hidden.setdefault(name, []).append(unescape(value))
    return client.post(path, data=hidden | fields)


def change_of(site, answer):
    assert answer.status_code == 303, answer.text
    with site.database.read() as db:
        change = db.get_one(BulkChange, answer.headers["location"].rsplit("/", 1)[1])
        return change, changes.count_outcomes(db, change.id)


def undo(client, change):
    assert client.post(f"/search/changes/{change.id}/undo").status_code == 303


def exported(site):
    with site.database.read() as db:
        tally = ExportTally()
        return len(list(iter_export_rows(db, "rankings", ExportFilter(), tally))), dict(tally.left_out)


def test_more_labelers_for_everything_that_matches(site, owner):
    ada, ben = people(site, "ada", "ben")
    make(site, rank_batch, tasks=7, name="first")
    make(site, rank_batch, tasks=3, name="second")
    with site.database.read() as db:
        first = db.scalar(select(Batch.id).where(Batch.name == "first"))
        withdrawn = db.scalars(select(PromptRow).join(Task, Task.prompt_id == PromptRow.id).limit(1)).one()
    make(site, lambda db: withdraw_prompt(db, db.get_one(PromptRow, withdrawn.id), 1))
    hand_in(site, take(site, ada))
    before = snapshot_work(site)
    answer = post(owner, "/search/tasks/change", "add_labelers", everything=f"batch={first}", number="2")
    change, outcomes = change_of(site, answer)
    assert sum(outcomes.values()) == 7
    assert outcomes in ({"changed": 6, "withdrawn": 1}, {"changed": 7})
    overlaps = rows(site, Task, Task.overlap, Task.batch_id, Task.state)
    assert {overlap for overlap, batch, state in overlaps.values() if batch == first and state != "withdrawn"} == {3}
    assert {overlap for overlap, batch, _ in overlaps.values() if batch != first} == {1}
    assert change.before_counts["overlap"] + 2 * outcomes["changed"] == change.after_counts["overlap"]
    assert change.before_counts["done"] == 1
    assert "done" not in change.after_counts
    page = owner.get(f"/search/changes/{change.id}").text
    assert f"changed: {outcomes['changed']}" in page
    undo(owner, change)
    assert snapshot_work(site) == before
    assert "as before again" in owner.get(f"/search/changes/{change.id}").text
    assert owner.post(f"/search/changes/{change.id}/undo").status_code == 409
    sound(site)
    change, _ = change_of(site, post(owner, "/search/tasks/change", "add_labelers", everything="", number="1"))
    hand_in(site, take(site, ben))
    undo(owner, change)  # ben's place cannot be taken back where two have worked
    with site.database.read() as db:
        assert all(task.n_done <= task.overlap for task in db.scalars(select(Task)))
        assert audit_log.verify_chain(db) is None
        entries = [row.action for row in db.scalars(select(AuditLogEntry).order_by(AuditLogEntry.seq))]
    assert entries.count("bulk.task.add_labelers") == entries.count("bulk.done") == entries.count("bulk.undone") == 2
    sound(site)


def test_a_code_without_words_is_shown_as_it_is(site, owner):
    fill(site, tasks=2).save()
    change, _ = change_of(site, post(owner, "/search/tasks/change", "add_labelers", everything="", number="1"))
    undo(owner, change)
    with site.database.write() as db:
        first, second = db.scalars(select(BulkItem).where(BulkItem.change_id == change.id))
        first.outcome, second.undo_outcome = "code_from_later", "other_code"
    page = owner.get(f"/search/changes/{change.id}")
    assert page.status_code == 200
    assert "code_from_later: 1" in page.text
    assert "other_code: 1" in page.text


def test_tasks_are_taken_back_and_go_to_a_labeler_first(site, owner):
    ada, ben, held = *people(site, "ada", "ben"), add_person(site, "held", cohort="heldout")
    make(site, rank_batch, tasks=6)
    first_task = take(site, ada)
    change, outcomes = change_of(site, post(owner, "/search/tasks/change", "reassign", everything=""))
    assert outcomes == {"changed": 1, "not_in_progress": 5}
    sound(site)
    undo(owner, change)  # the place is free, so ada has it again
    with site.database.read() as db:
        assert db.get_one(Assignment, first_task.id).state == "open"
    sound(site)
    change, _ = change_of(site, post(owner, "/search/tasks/change", "reassign", everything=""))
    assert take(site, ben).task_id == first_task.task_id
    undo(owner, change)  # the place is taken
    with site.database.read() as db:
        assert db.get_one(Assignment, first_task.id).state == "expired"
        assert changes.count_outcomes(db, change.id, undo=True) == {"no_place": 1}
    sound(site)
    with site.database.read() as db:
        last = db.scalars(select(Task.id).order_by(Task.position.desc()).limit(2)).all()
    ben_task = take(site, ben)
    hand_in(site, ben_task)
    answer = post(owner, "/search/tasks/change", "reassign", ids=last, labeler=ben.id)
    change, outcomes = change_of(site, answer)
    assert outcomes == {"changed": 2}
    assert take(site, ben).task_id in last  # before tasks with a lower position
    undo(owner, change)
    with site.database.read() as db:
        left = db.scalars(select(Assignment).where(Assignment.person_id == ben.id, Assignment.task_id.in_(last))).all()
    assert [row.state for row in left] == ["open"]  # what ben began stays; the other reservation is gone
    sound(site)
    _, outcomes = change_of(site, post(owner, "/search/tasks/change", "reassign", ids=last, labeler=held.id))
    assert set(outcomes) == {"not_eligible"}
    answer = post(owner, "/search/tasks/change", "reassign", ids=last, labeler="nobody")
    assert answer.status_code == 422


def test_excluded_tasks_are_in_no_queue_and_no_export(site, owner):
    ada, ben = people(site, "ada", "ben")
    filled = fill(site, tasks=4)
    for task in range(3):
        filled.rank(task, ada, [1, 2, 3])
    filled.save()
    before = snapshot_work(site)
    assert exported(site) == (3, {})
    change, outcomes = change_of(site, post(owner, "/search/tasks/change", "exclude", ids=filled.tasks[1:]))
    assert outcomes == {"changed": 3}
    assert exported(site) == (1, {"excluded_task": 2})
    assert take(site, ben) is None
    undo(owner, change)
    assert snapshot_work(site) == before
    assert exported(site) == (3, {})
    _, outcomes = change_of(site, post(owner, "/search/tasks/change", "include", everything=""))
    assert outcomes == {"not_excluded": 4}
    make(site, lambda db: withdraw_prompt(db, db.scalars(select(PromptRow).limit(1)).one(), 1))
    _, outcomes = change_of(site, post(owner, "/search/tasks/change", "include", everything="state=withdrawn"))
    assert outcomes == {"prompt_withdrawn": 1}
    sound(site)


def test_submissions_are_excluded_reassigned_and_taken_in_again(site, owner):
    ada, ben, cleo = people(site, "ada", "ben", "cleo")
    make(site, rank_batch, tasks=3, policy=TWO)
    for person in (ada, ben):
        for number in range(3):
            hand_in(site, take(site, person), key=f"{person.name} {number}")
    before = snapshot_work(site)
    assert exported(site)[0] == 6
    everything = f"labeler={ada.id}"
    answer = post(owner, "/search/submissions/change", "exclude", everything=everything, reason="too fast")
    change, outcomes = change_of(site, answer)
    assert (outcomes, change.before_counts, change.after_counts) == ({"changed": 3}, {"counted": 3}, {"excluded": 3})
    assert exported(site) == (3, {"invalid": 3})
    assert take(site, cleo) is None  # nobody else is asked
    again = post(owner, "/search/submissions/change", "exclude", everything=everything, reason="again")
    assert change_of(site, again)[1] == {"already_excluded": 3}
    sound(site)
    undo(owner, change)
    assert snapshot_work(site) == before
    change, _ = change_of(
        site, post(owner, "/search/submissions/change", "reassign", everything=everything, reason="too fast")
    )
    hand_in(site, take(site, cleo))
    undo(owner, change)  # cleo's work stays; ada's is beyond the overlap where cleo took her place
    with site.database.read() as db:
        assert db.scalar(select(func.count()).where(Submission.surplus.is_(True))) == 1
        assert db.scalar(select(func.count()).where(Submission.invalid_reason.is_not(None))) == 0
    assert exported(site)[0] == 7
    sound(site)


def test_consent_that_was_withdrawn_is_not_overruled(site, owner):
    (ada,) = people(site, "ada")
    make(site, rank_batch, tasks=2)
    for number in range(2):
        hand_in(site, take(site, ada), key=str(number))
    answer = post(owner, "/search/submissions/change", "exclude", everything="", reason="wrong")
    change, _ = change_of(site, answer)
    with site.database.write() as db:
        db.execute(update(Submission).where(Submission.key == "1").values(invalid_reason=None))
        person = db.get_one(Person, ada.id)
        withdraw_consent(db, person, labels=True, now_ms=5, initiated_by=ada.id)
    _, outcomes = change_of(site, post(owner, "/search/submissions/change", "include", everything=""))
    assert outcomes["withdrawn_by_labeler"] >= 1
    undo(owner, change)
    with site.database.read() as db:
        assert "withdrawn by the labeler" in set(db.scalars(select(Submission.invalid_reason)))


def test_returned_work_comes_with_its_reason(site, owner):
    ada, ben = people(site, "ada", "ben")
    make(site, prompt_batch, tasks=3)
    first_task = [take(site, ada)]
    hand_in(site, first_task[0])
    hand_in(site, take(site, ben))
    before = snapshot_work(site)
    answer = post(owner, "/search/submissions/change", "return", everything="", reason="look at the units")
    change, outcomes = change_of(site, answer)
    assert outcomes == {"changed": 2}
    page = client_of(site, ada).get(f"/tasks/{first_task[0].id}")
    assert "look at the units" in page.text
    with site.database.read() as db:
        assert db.scalar(select(func.count()).select_from(MessageRow)) == 2
    undo(owner, change)
    assert snapshot_work(site) == before
    for reason in ("", "   ", "x" * 2_001, "surrogate \ud800"):
        data = {"action": "return", "everything": "1", "filter": "", "confirmed": "2", "reason": reason}
        try:
            answer = owner.post("/search/submissions/change", data=data)
        except UnicodeEncodeError:  # the client cannot even send it
            continue
        assert answer.status_code == 422
    assert snapshot_work(site) == before


def test_people_are_paused_and_all_their_work_left_out(site, owner):
    ada, ben = people(site, "ada", "ben")
    make(site, rank_batch, tasks=5)
    hand_in(site, take(site, ada))
    hand_in(site, take(site, ben))
    take(site, ada)
    before = snapshot_work(site)
    change, outcomes = change_of(site, post(owner, "/people/change", "pause", ids=[ada.id], reason="holiday"))
    assert (outcomes, change.before_counts, change.after_counts) == ({"changed": 1}, {"active": 1}, {"paused": 1})
    assert rows(site, Person, Person.status)[ada.id] == "paused"
    undo(owner, change)
    assert snapshot_work(site) == before
    change, outcomes = change_of(site, post(owner, "/people/change", "release", everything="text=ada"))
    assert outcomes == {"changed": 1}
    assert "open" not in rows(site, Assignment, Assignment.state).values()
    undo(owner, change)
    assert snapshot_work(site) == before
    answer = post(owner, "/people/change", "exclude_work", ids=[ada.id], reason="a program wrote it")
    change, outcomes = change_of(site, answer)
    assert (change.subject, outcomes) == ("submission", {"changed": 1})
    assert exported(site)[0] == 1
    undo(owner, change)
    assert snapshot_work(site) == before
    sound(site)


def test_a_count_that_has_changed_is_confirmed_again(site, owner):
    make(site, rank_batch, tasks=3)
    fields = {"action": "exclude", "everything": "1", "filter": "state=open"}
    assert "3 tasks" in owner.post("/search/tasks/change", data=fields).text
    answer = owner.post("/search/tasks/change", data=fields | {"confirmed": "2"})
    assert answer.status_code == 200
    assert "not the same any more" in answer.text
    assert set(rows(site, Task, Task.state).values()) == {"open"}
    for ids in ([], ["unknown"], ["' OR 1=1 --"]):
        assert owner.post("/search/tasks/change", data={"action": "exclude", "id": ids}).status_code == 422
    assert owner.post("/search/tasks/change", data=fields | {"action": "drop"}).status_code == 404
    assert owner.post("/search/tasks/change", data=fields | {"filter": "state=nothing"}).status_code == 422


def test_only_owners_change_people(site, owner):
    ada = people(site, "ada")[0]
    researcher = client_of(site, add_person(site, "rita", role="researcher"))
    make(site, rank_batch, tasks=2)
    assert researcher.post("/people/change", data={"action": "pause", "id": ada.id}).status_code == 403
    assert 'action="/people/change"' not in researcher.get("/people").text
    change, _ = change_of(site, post(owner, "/people/change", "pause", ids=[ada.id], reason="holiday"))
    for step in ("undo", "resume"):
        assert researcher.post(f"/search/changes/{change.id}/{step}").status_code == 403
    assert change_of(site, post(researcher, "/search/tasks/change", "exclude", everything=""))[1] == {"changed": 2}
    assert client_of(site, ada).post("/search/tasks/change", data={"action": "exclude"}).status_code == 403


def test_an_interrupted_change_goes_on(site, owner, monkeypatch):
    make(site, rank_batch, tasks=120)
    calls = []

    def break_off(context, task_id):
        calls.append(task_id)
        if len(calls) == 70:
            raise KeyboardInterrupt
        return original.apply(context, task_id)

    original = actions.BULK_ACTIONS["task"]["exclude"]
    monkeypatch.setitem(actions.BULK_ACTIONS["task"], "exclude", actions.BulkAction(break_off, original.revert))
    with site.database.read() as db:
        targets, person = list(db.scalars(select(Task.id))), db.scalars(select(Person)).one()
    with pytest.raises(KeyboardInterrupt):
        changes.start_change(site, person, "task", "exclude", targets, {})
    monkeypatch.undo()
    with site.database.read() as db:
        change = db.scalars(select(BulkChange)).one()
        done = db.scalar(select(func.count()).where(BulkItem.outcome == "changed"))
        assert db.scalar(select(func.count()).where(Task.state == "withdrawn")) == done == 50
    assert change.after_counts is None
    assert "still to come: 70" in owner.get(f"/search/changes/{change.id}").text
    assert owner.post(f"/search/changes/{change.id}/resume").status_code == 303
    assert set(rows(site, Task, Task.state).values()) == {"withdrawn"}
    assert owner.get("/search/changes").status_code == 200
