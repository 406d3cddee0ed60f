"""Privacy requests and the audit log: erase, withdraw, a hash chain that shows changes."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select
from support.site import add_person, client_of, make_site
from test_people import GOOD, screening_batch, submit_all, with_password

from instructgpt.label.auth import accounts, consent, rate_limits
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import (
    Assignment,
    AuditLogEntry,
    CalibrationRemark,
    CalibrationRoom,
    CalibrationVote,
    Draft,
    Grade,
    MessageRow,
    Person,
    PromptRow,
    RateBucket,
    Submission,
    current_time_ms,
)
from instructgpt.label.people import privacy
from instructgpt.label.tasks import assignments as work
from instructgpt.label.tasks.forms import DemonstrationForm

DATABASES = ("sqlite",)


@pytest.fixture
def owner(site):
    return add_person(site, "olga", role="owner")


def test_erasing_keeps_labels_and_audit_chain_but_no_name(site):
    person = with_password(site, "Ada Lovelace", status="screening", email="ada@example.org")
    screening_batch(site, "demonstration", 1)
    submit_all(site, person, "demonstration", lambda *_: DemonstrationForm(text="kept text"), 1)
    add_identifying_rows(site, person)
    client = client_of(site, person)
    held = client.get("/account/data")
    assert held.headers["content-disposition"].startswith("attachment")
    mine = json.loads(held.text)
    assert (mine["account"]["name"], mine["submissions"][0]["text"]) == ("Ada Lovelace", "kept text")
    assert mine["drafts"][0]["payload"] == {"text": "I, Lovelace, draft"}
    assert mine["messages"][0]["body"] == "I, Lovelace, ask"
    assert mine["rooms"]["said"][0]["body"] == "I, Lovelace, say"
    assert mine["rooms"]["votes"][0]["ranks"] == {"a": 1}
    assert mine["grades"][0]["score"] == 6
    assert mine["prompts"][0]["text"] == "by ada"
    assert client.post("/account/erase", data={"password": "wrong"}).status_code == 422
    gone = client.post("/account/erase", data={"password": GOOD})
    assert gone.status_code == 303
    assert "has been erased" in client.get(gone.headers["location"]).text
    assert client.get("/account").status_code == 401
    assert client.post("/sign-in", data={"name": "Ada Lovelace", "password": GOOD}).status_code == 401
    with site.database.read() as db:
        assert audit_log.verify_chain(db) is None
        row = db.get_one(Person, person.id)
        assert (row.status, row.email, row.password_hash, row.pseudonym) == ("erased", None, None, person.pseudonym)
        assert db.scalars(select(Submission)).one().invalid_reason is None
    site.database.engine.dispose()
    with site.database.engine.connect() as connection:
        tables = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").scalars().all()
        everything = str([connection.exec_driver_sql(f'SELECT * FROM "{table}"').all() for table in tables])
    assert "Lovelace" not in everything
    assert "ada@example.org" not in everything
    assert "kept text" in everything


def add_identifying_rows(site, person):
    """A draft, a message, a vote and a remark in a calibration room, a prompt, and a grade of a submission."""
    with site.database.write() as db:
        held, researcher = (
            db.scalars(select(Assignment)).one(),
            accounts.create_person(db, "rita", "researcher", password=GOOD),
        )
        submission = db.scalars(select(Submission)).one()
        room = CalibrationRoom(task_id=held.task_id, title="room", created_by=researcher.id)
        db.add(room)
        db.flush()
        db.add_all(
            [
                Draft(assignment_id=held.id, rev=1, payload={"text": "I, Lovelace, draft"}),
                MessageRow(task_id=held.task_id, about_id=person.id, author_id=person.id, body="I, Lovelace, ask"),
                CalibrationRemark(room_id=room.id, author_id=person.id, body="I, Lovelace, say"),
                CalibrationVote(room_id=room.id, person_id=person.id, round=0, ranks={"a": 1}),
                PromptRow(text="by ada", text_hash="x", author_id=person.id),
                Grade(submission_id=submission.id, grader_id=researcher.id, score=6),
            ]
        )


def test_withdrawing_consent_withdraws_prompts_and_optionally_labels(site):
    person = with_password(site, "ada", status="screening")
    screening_batch(site, "demonstration", 2)
    submit_all(site, person, "demonstration", lambda *_: DemonstrationForm(text="mine"), 1)
    with site.database.write() as db:
        consent.add_consent_version(db, {"en": "text"}, None)
        consent.record_consent(db, person, 1)
        work.claim_next_task(db, site.settings, person, "demonstrate", current_time_ms(), "demonstration")
        db.add(PromptRow(text="by ada", text_hash="x", author_id=person.id))
    client = client_of(site, person)
    assert client.post("/account/withdraw", data={"password": GOOD, "labels": "true"}).status_code == 303
    assert client.get("/account").status_code == 200, "the data stays to be seen"
    with site.database.write() as db:
        assert db.get_one(Person, person.id).status == "withdrawn"
        assert not consent.has_consented(db, person)
        assert db.scalars(select(Submission)).one().invalid_reason == privacy.WITHDRAWN_BY_LABELER
        assert db.scalars(select(PromptRow).where(PromptRow.text == "by ada")).one().withdrawn_at is not None
        assert work.expire_leases(db, current_time_ms() + 1) == 1, "what was in hand goes to others"
        consent.record_consent(db, person, 1)
        assert db.get_one(Person, person.id).status == "paused", "and an owner takes them back"


def test_prompts_of_a_user_are_withdrawn(site, owner):
    with site.database.write() as db:
        db.add_all([PromptRow(text="a", text_hash="a", user="u1"), PromptRow(text="b", text_hash="b", user="u2")])
    client = client_of(site, owner)
    assert "1 prompts were withdrawn" in client.post("/privacy/user", data={"user": "u1"}).text
    assert client.post("/privacy/user", data={"user": "u1"}).status_code == 404
    with site.database.read() as db:
        assert db.scalars(select(PromptRow.user).where(PromptRow.withdrawn_at.is_(None))).all() == ["u2"]


def test_the_audit_log_shows_a_broken_chain(site, owner):
    client = client_of(site, owner)
    for number in range(3):
        client.post("/people/invites", data={"role": "labeler", "note": str(number)})
    assert "form an unbroken chain" in client.get("/journal/check").text
    assert "invite.create" in client.get("/journal?action=invite").text
    with site.database.write() as db:
        db.get_one(AuditLogEntry, 2).detail = {"changed": True}
    assert "Row 2 was changed" in client.get("/journal/check").text
    with site.database.write() as db:
        db.delete(db.get_one(AuditLogEntry, 2))
        assert audit_log.verify_chain(db) == "row 2 is missing"


def test_an_inserted_row_with_a_valid_hash_is_found(site):
    with site.database.write() as db:
        for number in range(3):
            audit_log.append_entry(db, "cli", "test.note", str(number))
        row = db.get_one(AuditLogEntry, 2)
        row.detail = {"forged": True}
        row.hash = audit_log.compute_row_hash(row)
        db.flush()
        assert audit_log.verify_chain(db) == "row 3 does not follow"


def test_audit_log_and_consent_on_postgresql(postgres_url, tmp_path):
    site = make_site(tmp_path, postgres_url)
    with ThreadPoolExecutor(8) as pool:

        def write(number):
            with site.database.write() as db:
                rate_limits.consume_token(db, rate_limits.SIGN_IN_LIMIT, "one", current_time_ms())
                audit_log.append_entry(db, "cli", "test.note", str(number))

        list(pool.map(write, range(40)))
    with site.database.read() as db:
        assert audit_log.verify_chain(db) is None
        assert db.scalar(select(func.count()).select_from(AuditLogEntry)) == 40
        assert db.scalars(select(RateBucket.tokens)).one() < 1
    with site.database.write() as db:
        person = accounts.create_person(db, "ada", "labeler", password=GOOD, status="screening")
        consent.add_consent_version(db, {"en": "text"}, None)
        consent.record_consent(db, person, 1)
    accounts.sign_in_with_password(site, "ADA", GOOD, address="1.2.3.4")
    owner = add_person(site, "olga", role="owner")
    client = client_of(site, owner)
    assert client.post(f"/people/{person.id}/decision", data={"verdict": "admit", "reason": "fine"}).status_code == 303
    for path in (
        "/people",
        f"/people/{person.id}",
        "/journal",
        "/journal/check",
        "/privacy",
        "/surveys",
        "/screening/grade",
    ):
        assert client.get(path).status_code == 200, path
    mine = client_of(site, person)
    assert mine.post("/surveys/groups", data={"answer-groups": "age"}).status_code == 303
    assert mine.get("/account/data").status_code == 200
    assert mine.post("/account/erase", data={"password": GOOD}).status_code == 303
    site.database.close()
