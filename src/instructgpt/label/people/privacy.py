"""Privacy requests: export personal data, withdraw consent, erase an account, withdraw a user's prompts.

Labels are not deleted. They stay under the pseudonym or, on request, are marked as withdrawn and left out of exports.
"""

from __future__ import annotations

import secrets
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from instructgpt.label.auth import accounts, second_factor
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import (
    ApiKey,
    Assignment,
    CalibrationRemark,
    CalibrationVote,
    Consent,
    Decision,
    Delivery,
    Draft,
    Grade,
    GroupDeclaration,
    Instructions,
    InstructionsRead,
    Invite,
    MessageRow,
    Person,
    PromptRow,
    ProviderIdentity,
    RedTeamAttempt,
    Skip,
    Submission,
    SurveyParticipation,
    UserSession,
)
from instructgpt.label.errors import SiteError
from instructgpt.label.people.groups import get_declared_group
from instructgpt.label.tasks.batches import withdraw_prompt
from instructgpt.label.tasks.red_team import withdraw_attempts
from instructgpt.label.tasks.submission_contents import read_submission_forms

WITHDRAWN_BY_LABELER = "withdrawn by the labeler"
_STATUS_COLUMNS = ("role", "status", "cohort", "fold", "pseudonym")
_READING_FIELDS = ("purpose", "version", "attempts", "at")
_ATTEMPT_COLUMNS = ("failure", "prompt", "completion", "success", "created_at", "withdrawn_at")
_ACCOUNT_COLUMNS = ("name", "email", *_STATUS_COLUMNS, "language", "theme", "sees_sensitive", "created_at")


def export_personal_data(db: Session, person: Person) -> dict[str, Any]:
    """Return everything the site stores about a person as JSON; survey replies are not linked to anybody."""
    assignment_ids = select(Assignment.id).where(Assignment.person_id == person.id)
    submission_ids = select(Submission.id).where(Submission.assignment_id.in_(assignment_ids))
    own_submissions = select(Submission).where(Submission.assignment_id.in_(assignment_ids))
    submissions = db.scalars(own_submissions.order_by(Submission.id)).all()
    readings = db.execute(
        select(Instructions.purpose, Instructions.version, InstructionsRead.attempts, InstructionsRead.at)
        .join(Instructions, Instructions.id == InstructionsRead.instructions_id)
        .where(InstructionsRead.person_id == person.id)
        .order_by(InstructionsRead.at)
    )
    forms = read_submission_forms(db, submissions)
    group = get_declared_group(db, person)
    return {
        "account": {name: getattr(person, name) for name in _ACCOUNT_COLUMNS},
        "group": group and group.name,
        "consents": _select_columns(db, Consent, Consent.person_id == person.id, "version", "at", "withdrawn_at"),
        "sign_ins": _select_columns(
            db, UserSession, UserSession.person_id == person.id, "agent", "created_at", "seen_at", "revoked_at"
        ),
        "identities": _select_columns(
            db, ProviderIdentity, ProviderIdentity.person_id == person.id, "issuer", "subject", "created_at"
        ),
        "instructions_read": [dict(zip(_READING_FIELDS, row, strict=True)) for row in readings],
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
            | forms[submission.id].model_dump(mode="json")
            for submission in submissions
        ],
        "red_team_attempts": _select_columns(
            db, RedTeamAttempt, RedTeamAttempt.assignment_id.in_(assignment_ids), *_ATTEMPT_COLUMNS
        ),
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
    """Withdraw a labeler's consent: no more tasks, their prompts withdrawn, with `labels` also all submissions.

    Their active tasks are released to others; drafts stay.

    Raises:
        SiteError: the person is not a labeler.
    """
    if person.role != "labeler" or person.status == "erased":
        raise SiteError(409, "only_labelers")
    person.status = "withdrawn"
    _withdraw_consents(db, person, now_ms)
    _withdraw_work(db, person, labels, now_ms)
    audit_log.append_entry(db, initiated_by, "privacy.withdraw", person.id, labels=labels)


def erase_account(db: Session, person: Person, *, labels: bool, now_ms: int, initiated_by: str) -> None:
    """Erase name, email, password, sessions, messages and drafts of a person; raise SiteError for the last owner."""
    accounts.check_not_last_owner(db, person)
    _withdraw_work(db, person, labels, now_ms)
    if person.invite_id is not None:
        db.execute(update(Invite).where(Invite.id == person.invite_id, Invite.max_uses == 1).values(note=""))
    own_invites = update(Invite).where(Invite.person_id == person.id, Invite.revoked_at.is_(None))
    # E-mails that invited the person or brought a reset link
    own_links = select(Invite.id).where((Invite.person_id == person.id) | (Invite.id == person.invite_id))
    db.execute(update(Delivery).where(Delivery.invite_id.in_(own_links)).values(recipient=None))
    own_keys = update(ApiKey).where(ApiKey.created_by == person.id, ApiKey.revoked_at.is_(None))
    for statement in (own_invites, own_keys):
        db.execute(statement.values(revoked_at=now_ms))
    _withdraw_consents(db, person, now_ms)
    accounts.revoke_user_sessions(db, person)
    db.execute(update(UserSession).where(UserSession.person_id == person.id).values(agent=""))
    for table in (MessageRow, CalibrationRemark):
        db.execute(update(table).where(table.author_id == person.id).values(body=""))
    assignment_ids = select(Assignment.id).where(Assignment.person_id == person.id)
    db.execute(delete(Draft).where(Draft.assignment_id.in_(assignment_ids)))
    db.execute(delete(GroupDeclaration).where(GroupDeclaration.person_id == person.id))
    db.execute(delete(SurveyParticipation).where(SurveyParticipation.person_id == person.id))
    person.name, person.email, person.password_hash = f"erased-{secrets.token_hex(5)}", None, None
    second_factor.disable_second_factor(person)
    db.execute(delete(ProviderIdentity).where(ProviderIdentity.person_id == person.id))
    person.status = "erased"
    db.flush()
    audit_log.append_entry(db, initiated_by, "privacy.erase", person.id, labels=labels)


def withdraw_user_prompts(db: Session, user: str, *, now_ms: int, initiated_by: str) -> int:
    """Withdraw all prompts of a model's user and return their number; raise SiteError if there are none."""
    statement = select(PromptRow).where(PromptRow.user == user, PromptRow.withdrawn_at.is_(None))
    prompts = db.scalars(statement).all() if user else []
    if not prompts:
        raise SiteError(404, "no_prompts")
    for prompt in prompts:
        withdraw_prompt(db, prompt, now_ms)
    audit_log.append_entry(db, initiated_by, "privacy.withdraw_user", "", prompts=len(prompts))
    return len(prompts)


def _withdraw_consents(db: Session, person: Person, now_ms: int) -> None:
    statement = update(Consent).where(Consent.person_id == person.id, Consent.withdrawn_at.is_(None))
    db.execute(statement.values(withdrawn_at=now_ms))


def _withdraw_work(db: Session, person: Person, labels: bool, now_ms: int) -> None:
    """End a person's leases and withdraw their prompts; with `labels`, invalidate their submissions."""
    open_assignments = update(Assignment).where(
        Assignment.person_id == person.id, Assignment.state == "open", Assignment.lease_until > now_ms
    )
    db.execute(open_assignments.values(lease_until=now_ms))
    own_prompts = select(PromptRow).where(PromptRow.author_id == person.id, PromptRow.withdrawn_at.is_(None))
    for prompt in db.scalars(own_prompts).all():
        withdraw_prompt(db, prompt, now_ms)
    if labels:
        assignment_ids = select(Assignment.id).where(Assignment.person_id == person.id)
        own_submissions = update(Submission).where(Submission.assignment_id.in_(assignment_ids))
        valid = own_submissions.where(Submission.invalid_reason.is_(None))
        db.execute(valid.values(invalid_reason=WITHDRAWN_BY_LABELER))
        withdraw_attempts(db, db.scalars(assignment_ids).all(), now_ms)
    db.flush()


def _select_columns(db: Session, table: Any, condition: Any, *columns: str) -> list[dict[str, Any]]:
    rows = db.scalars(select(table).where(condition).order_by(*table.__table__.primary_key))
    return [{column: getattr(row, column) for column in columns} for row in rows]
