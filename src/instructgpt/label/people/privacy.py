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
    CalibrationRemark,
    CalibrationVote,
    Consent,
    Decision,
    Draft,
    Grade,
    Instructions,
    InstructionsRead,
    Invite,
    MessageRow,
    Person,
    PromptRow,
    Skip,
    Submission,
    SurveyParticipation,
    UserSession,
)
from instructgpt.label.errors import SiteError
from instructgpt.label.tasks.batches import withdraw_prompt
from instructgpt.label.tasks.submission_contents import read_submission_form

WITHDRAWN_BY_LABELER = "withdrawn by the labeler"


def export_personal_data(db: Session, person: Person) -> dict[str, Any]:
    """Everything the site knows about somebody, as JSON. Replies to surveys are not linked to anybody and so not among it."""
    assignment_ids = select(Assignment.id).where(Assignment.person_id == person.id)
    submission_ids = select(Submission.id).where(Submission.assignment_id.in_(assignment_ids))
    submissions = db.scalars(
        select(Submission).where(Submission.assignment_id.in_(assignment_ids)).order_by(Submission.id)
    ).all()
    readings = db.execute(
        select(Instructions.purpose, Instructions.version, InstructionsRead.attempts, InstructionsRead.at)
        .join(Instructions, Instructions.id == InstructionsRead.instructions_id)
        .where(InstructionsRead.person_id == person.id)
        .order_by(InstructionsRead.at)
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
        "consents": _select_columns(db, Consent, Consent.person_id == person.id, "version", "at", "withdrawn_at"),
        "sign_ins": _select_columns(
            db, UserSession, UserSession.person_id == person.id, "agent", "created_at", "seen_at", "revoked_at"
        ),
        "instructions_read": [
            {"purpose": row[0], "version": row[1], "attempts": row[2], "at": row[3]} for row in readings
        ],
        "decisions": _select_columns(
            db, Decision, Decision.person_id == person.id, "verdict", "reason", "measured", "at"
        ),
        "submissions": [
            {
                "id": submission.id,
                "version": submission.version,
                "at": submission.created_at,
                "replaced_at": submission.replaced_at,
                "wall_ms": submission.wall_ms,
            }
            | read_submission_form(db, submission).model_dump(mode="json")
            for submission in submissions
        ],
        "drafts": _select_columns(
            db, Draft, Draft.assignment_id.in_(assignment_ids), "assignment_id", "rev", "payload", "updated_at"
        ),
        "grades": _select_columns(db, Grade, Grade.submission_id.in_(submission_ids), "submission_id", "score", "at"),
        "prompts": _select_columns(
            db, PromptRow, PromptRow.author_id == person.id, "text", "created_at", "withdrawn_at"
        ),
        "skips": _select_columns(db, Skip, Skip.assignment_id.in_(assignment_ids), "reason", "note", "at", "undone_at"),
        "messages": _select_columns(db, MessageRow, MessageRow.author_id == person.id, "body", "reported", "at"),
        "rooms": {
            "votes": _select_columns(
                db, CalibrationVote, CalibrationVote.person_id == person.id, "room_id", "round", "ranks", "at"
            ),
            "said": _select_columns(
                db, CalibrationRemark, CalibrationRemark.author_id == person.id, "room_id", "body", "at"
            ),
        },
    }


def withdraw_consent(db: Session, person: Person, *, labels: bool, now_ms: int, initiated_by: str) -> None:
    """Take back somebody's consent: no more work, the prompts they wrote withdrawn, and with `labels` all their submissions too.

    What is in their hands goes back to the others; drafts stay theirs.

    Raises:
        Problem: they are no labeler; others work here by another agreement.
    """
    if person.role != "labeler" or person.status == "erased":
        raise SiteError(409, "only_labelers")
    person.status = "withdrawn"
    db.execute(
        update(Consent)
        .where(Consent.person_id == person.id, Consent.withdrawn_at.is_(None))
        .values(withdrawn_at=now_ms)
    )
    _withdraw_work(db, person, labels, now_ms)
    audit_log.append_entry(db, initiated_by, "privacy.withdraw", person.id, labels=labels)


def erase_account(db: Session, person: Person, *, labels: bool, now_ms: int, initiated_by: str) -> None:
    """Make an account nobody's: name, email, sign-ins, messages and drafts go; the pseudonym keeps the labels together.

    Raises:
        Problem: the last owner would be gone.
    """
    accounts.check_not_last_owner(db, person)
    _withdraw_work(db, person, labels, now_ms)
    if person.invite_id is not None:
        db.execute(update(Invite).where(Invite.id == person.invite_id, Invite.max_uses == 1).values(note=""))
    db.execute(
        update(Invite).where(Invite.person_id == person.id, Invite.revoked_at.is_(None)).values(revoked_at=now_ms)
    )
    db.execute(
        update(ApiKey).where(ApiKey.created_by == person.id, ApiKey.revoked_at.is_(None)).values(revoked_at=now_ms)
    )
    db.execute(
        update(Consent)
        .where(Consent.person_id == person.id, Consent.withdrawn_at.is_(None))
        .values(withdrawn_at=now_ms)
    )
    accounts.revoke_user_sessions(db, person)
    db.execute(update(UserSession).where(UserSession.person_id == person.id).values(agent=""))
    for table in (MessageRow, CalibrationRemark):
        db.execute(update(table).where(table.author_id == person.id).values(body=""))
    db.execute(
        delete(Draft).where(Draft.assignment_id.in_(select(Assignment.id).where(Assignment.person_id == person.id)))
    )
    db.execute(delete(SurveyParticipation).where(SurveyParticipation.person_id == person.id))
    person.name, person.email, person.password_hash = f"erased-{secrets.token_hex(5)}", None, None
    person.status = "erased"
    db.flush()
    audit_log.append_entry(db, initiated_by, "privacy.erase", person.id, labels=labels)


def withdraw_user_prompts(db: Session, user: str, *, now_ms: int, initiated_by: str) -> int:
    """Take back all prompts of a user of a model. Returns how many there were.

    Raises:
        Problem: there is none.
    """
    prompts = (
        db.scalars(select(PromptRow).where(PromptRow.user == user, PromptRow.withdrawn_at.is_(None))).all()
        if user
        else []
    )
    if not prompts:
        raise SiteError(404, "no_prompts")
    for prompt in prompts:
        withdraw_prompt(db, prompt, now_ms)
    audit_log.append_entry(db, initiated_by, "privacy.withdraw_user", "", prompts=len(prompts))
    return len(prompts)


def _withdraw_work(db: Session, person: Person, labels: bool, now_ms: int) -> None:
    """End what is in somebody's hands and withdraw the prompts they wrote; with `labels`, mark their submissions as withdrawn."""
    open_assignments = update(Assignment).where(
        Assignment.person_id == person.id, Assignment.state == "open", Assignment.lease_until > now_ms
    )
    db.execute(open_assignments.values(lease_until=now_ms))
    for prompt in db.scalars(
        select(PromptRow).where(PromptRow.author_id == person.id, PromptRow.withdrawn_at.is_(None))
    ).all():
        withdraw_prompt(db, prompt, now_ms)
    if labels:
        assignment_ids = select(Assignment.id).where(Assignment.person_id == person.id)
        valid_submissions = update(Submission).where(
            Submission.assignment_id.in_(assignment_ids), Submission.invalid_reason.is_(None)
        )
        db.execute(valid_submissions.values(invalid_reason=WITHDRAWN_BY_LABELER))
    db.flush()


def _select_columns(db: Session, table: Any, condition: Any, *columns: str) -> list[dict[str, Any]]:
    """Some columns of some rows."""
    return [
        {column: getattr(row, column) for column in columns}
        for row in db.scalars(select(table).where(condition).order_by(*table.__table__.primary_key))
    ]
