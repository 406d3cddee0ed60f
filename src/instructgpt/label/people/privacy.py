"""What people can ask about their data: read it, withdraw their consent, be erased; and what users of a model can: take prompts back.

Labels are never deleted. They stay under the pseudonym, or, if that is asked for, are marked as withdrawn and leave no export.
"""

from __future__ import annotations

import secrets
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from instructgpt.label.auth import accounts
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import (
    ApiKey,
    Assignment,
    Consent,
    Decision,
    Draft,
    Grade,
    Instructions,
    Invite,
    Login,
    Message,
    Person,
    Prompt,
    Reading,
    Remark,
    Skip,
    Submission,
    SurveyDone,
    Vote,
)
from instructgpt.label.errors import Problem
from instructgpt.label.tasks.batches import withdraw_prompt
from instructgpt.label.tasks.submission_contents import form_of

WITHDRAWN = "withdrawn by the labeler"


def about(db: Session, person: Person) -> dict[str, Any]:
    """Everything the site knows about somebody, as JSON. Replies to surveys are not linked to anybody and so not among it."""
    mine = select(Assignment.id).where(Assignment.person_id == person.id)
    handed_in = select(Submission.id).where(Submission.assignment_id.in_(mine))
    submissions = db.scalars(select(Submission).where(Submission.assignment_id.in_(mine)).order_by(Submission.id)).all()
    readings = db.execute(
        select(Instructions.purpose, Instructions.version, Reading.attempts, Reading.at)
        .join(Instructions, Instructions.id == Reading.instructions_id)
        .where(Reading.person_id == person.id)
        .order_by(Reading.at)
    )
    return {
        "account": {
            name: getattr(person, name)
            for name in (
                "name",
                "email",
                "role",
                "status",
                "cohort",
                "fold",
                "pseudonym",
                "language",
                "theme",
                "sees_sensitive",
                "created_at",
            )
        },
        "consents": _rows(db, Consent, Consent.person_id == person.id, "version", "at", "withdrawn_at"),
        "sign_ins": _rows(db, Login, Login.person_id == person.id, "agent", "created_at", "seen_at", "revoked_at"),
        "instructions_read": [{"purpose": row[0], "version": row[1], "attempts": row[2], "at": row[3]} for row in readings],
        "decisions": _rows(db, Decision, Decision.person_id == person.id, "verdict", "reason", "measured", "at"),
        "submissions": [
            {"id": each.id, "version": each.version, "at": each.created_at, "replaced_at": each.replaced_at, "wall_ms": each.wall_ms}
            | form_of(db, each).model_dump(mode="json")
            for each in submissions
        ],
        "drafts": _rows(db, Draft, Draft.assignment_id.in_(mine), "assignment_id", "rev", "payload", "updated_at"),
        "grades": _rows(db, Grade, Grade.submission_id.in_(handed_in), "submission_id", "score", "at"),
        "prompts": _rows(db, Prompt, Prompt.author_id == person.id, "text", "created_at", "withdrawn_at"),
        "skips": _rows(db, Skip, Skip.assignment_id.in_(mine), "reason", "note", "at", "undone_at"),
        "messages": _rows(db, Message, Message.author_id == person.id, "body", "reported", "at"),
        "rooms": {
            "votes": _rows(db, Vote, Vote.person_id == person.id, "room_id", "round", "ranks", "at"),
            "said": _rows(db, Remark, Remark.author_id == person.id, "room_id", "body", "at"),
        },
    }


def withdraw(db: Session, person: Person, *, labels: bool, at: int, by: str) -> None:
    """Take back somebody's consent: no more work, the prompts they wrote withdrawn, and with `labels` all their submissions too.

    What is in their hands goes back to the others; drafts stay theirs.

    Raises:
        Problem: they are no labeler; others work here by another agreement.
    """
    if person.role != "labeler" or person.status == "erased":
        raise Problem(409, "only_labelers")
    person.status = "withdrawn"
    db.execute(update(Consent).where(Consent.person_id == person.id, Consent.withdrawn_at.is_(None)).values(withdrawn_at=at))
    _take_back(db, person, labels, at)
    audit_log.note(db, by, "privacy.withdraw", person.id, labels=labels)


def erase(db: Session, person: Person, *, labels: bool, at: int, by: str) -> None:
    """Make an account nobody's: name, email, sign-ins, messages and drafts go; the pseudonym keeps the labels together.

    Raises:
        Problem: the last owner would be gone.
    """
    accounts.refuse_last_owner(db, person)
    _take_back(db, person, labels, at)
    if person.invite_id is not None:
        db.execute(update(Invite).where(Invite.id == person.invite_id, Invite.max_uses == 1).values(note=""))
    db.execute(update(Invite).where(Invite.person_id == person.id, Invite.revoked_at.is_(None)).values(revoked_at=at))
    db.execute(update(ApiKey).where(ApiKey.created_by == person.id, ApiKey.revoked_at.is_(None)).values(revoked_at=at))
    db.execute(update(Consent).where(Consent.person_id == person.id, Consent.withdrawn_at.is_(None)).values(withdrawn_at=at))
    accounts.end_logins(db, person)
    db.execute(update(Login).where(Login.person_id == person.id).values(agent=""))
    for said in (Message, Remark):
        db.execute(update(said).where(said.author_id == person.id).values(body=""))
    db.execute(delete(Draft).where(Draft.assignment_id.in_(select(Assignment.id).where(Assignment.person_id == person.id))))
    db.execute(delete(SurveyDone).where(SurveyDone.person_id == person.id))
    person.name, person.email, person.password_hash = f"erased-{secrets.token_hex(5)}", None, None
    person.status = "erased"
    db.flush()
    audit_log.note(db, by, "privacy.erase", person.id, labels=labels)


def withdraw_user(db: Session, user: str, *, at: int, by: str) -> int:
    """Take back all prompts of a user of a model. Returns how many there were.

    Raises:
        Problem: there is none.
    """
    prompts = db.scalars(select(Prompt).where(Prompt.user == user, Prompt.withdrawn_at.is_(None))).all() if user else []
    if not prompts:
        raise Problem(404, "no_prompts")
    for prompt in prompts:
        withdraw_prompt(db, prompt, at)
    audit_log.note(db, by, "privacy.withdraw_user", "", prompts=len(prompts))
    return len(prompts)


def _take_back(db: Session, person: Person, labels: bool, at: int) -> None:
    """End what is in somebody's hands and withdraw the prompts they wrote; with `labels`, mark their submissions as withdrawn."""
    held = update(Assignment).where(Assignment.person_id == person.id, Assignment.state == "open", Assignment.lease_until > at)
    db.execute(held.values(lease_until=at))
    for prompt in db.scalars(select(Prompt).where(Prompt.author_id == person.id, Prompt.withdrawn_at.is_(None))).all():
        withdraw_prompt(db, prompt, at)
    if labels:
        mine = select(Assignment.id).where(Assignment.person_id == person.id)
        kept = update(Submission).where(Submission.assignment_id.in_(mine), Submission.invalid_reason.is_(None))
        db.execute(kept.values(invalid_reason=WITHDRAWN))
    db.flush()


def _rows(db: Session, table: Any, which: Any, *columns: str) -> list[dict[str, Any]]:
    """Some columns of some rows."""
    return [
        {column: getattr(row, column) for column in columns}
        for row in db.scalars(select(table).where(which).order_by(*table.__table__.primary_key))
    ]
