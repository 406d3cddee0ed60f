"""People and how they come in: accounts, invitations, sign-ins, keys, consent, instructions, the journal."""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from instructgpt.label.db.models.base import Base, choices_constraint, current_time_ms, new_id
from instructgpt.records import Cohort

PersonRole = Literal["labeler", "researcher", "owner"]
PERSON_ROLES: tuple[PersonRole, ...] = ("labeler", "researcher", "owner")
"""A labeler works; a researcher also makes batches, grades, adjudicates and sees quality; an owner also governs people, keys and data."""

PersonStatus = Literal["screening", "active", "paused", "declined", "withdrawn", "erased"]
PERSON_STATUSES: tuple[PersonStatus, ...] = ("screening", "active", "paused", "declined", "withdrawn", "erased")
"""Only an active labeler gets work; one in screening gets the screening test; held-out labelers are active at once (paper, B.1)."""

PURPOSES = ("training", "evaluation")
"""What work is for; instructions and exports follow it: helpfulness leads in training, truth and harmlessness in evaluation (3.4)."""


class Person(Base):
    """An account. `pseudonym` is what leaves the site as `labeler`; the name never does."""

    __tablename__ = "person"
    __table_args__ = (
        choices_constraint("role", PERSON_ROLES),
        choices_constraint("status", PERSON_STATUSES),
        choices_constraint("cohort", ("training", "heldout")),
        CheckConstraint("fold BETWEEN 0 AND 4", name="fold"),
    )

    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(unique=True)
    email: Mapped[str | None]
    password_hash: Mapped[str | None]
    role: Mapped[PersonRole]
    status: Mapped[PersonStatus] = mapped_column(default="screening")
    cohort: Mapped[Cohort | None]
    fold: Mapped[int | None]
    pseudonym: Mapped[str] = mapped_column(unique=True)
    language: Mapped[str] = mapped_column(default="en")
    theme: Mapped[str] = mapped_column(default="auto")
    sees_sensitive: Mapped[bool] = mapped_column(default=True)
    invite_id: Mapped[str | None]
    """The invitation they came by."""
    created_at: Mapped[int] = mapped_column(default=current_time_ms)


class UserSession(Base):
    """One sign-in, kept on the server; only the SHA-256 of the cookie's token is stored."""

    __tablename__ = "login"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    token_hash: Mapped[str] = mapped_column(unique=True)
    csrf: Mapped[str]
    person_id: Mapped[str] = mapped_column(ForeignKey("person.id"), index=True)
    agent: Mapped[str] = mapped_column(default="")
    created_at: Mapped[int] = mapped_column(default=current_time_ms)
    seen_at: Mapped[int] = mapped_column(default=current_time_ms)
    revoked_at: Mapped[int | None]


class Invite(Base):
    """A link that makes accounts; also the one-time set-up link and a password reset (`person_id` names whose)."""

    __tablename__ = "invite"
    __table_args__ = (choices_constraint("role", PERSON_ROLES), choices_constraint("cohort", ("training", "heldout")))
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    token_hash: Mapped[str] = mapped_column(unique=True)
    role: Mapped[PersonRole]
    cohort: Mapped[Cohort | None]
    note: Mapped[str] = mapped_column(default="")
    person_id: Mapped[str | None] = mapped_column(ForeignKey("person.id"))
    max_uses: Mapped[int] = mapped_column(default=1)
    uses: Mapped[int] = mapped_column(default=0)
    expires_at: Mapped[int]
    created_by: Mapped[str | None] = mapped_column(ForeignKey("person.id"))
    created_at: Mapped[int] = mapped_column(default=current_time_ms)
    revoked_at: Mapped[int | None]


class ApiKey(Base):
    """A key for programs: `igl_<id>_<secret>`, shown once; only its SHA-256 is stored."""

    __tablename__ = "api_key"
    id: Mapped[str] = mapped_column(primary_key=True)
    secret_hash: Mapped[str]
    name: Mapped[str]
    scopes: Mapped[list[str]]
    created_by: Mapped[str | None] = mapped_column(ForeignKey("person.id"))
    created_at: Mapped[int] = mapped_column(default=current_time_ms)
    expires_at: Mapped[int | None]
    last_used_at: Mapped[int | None]
    revoked_at: Mapped[int | None]


class RateBucket(Base):
    """A token bucket: who may do what how often."""

    __tablename__ = "rate_bucket"
    key: Mapped[str] = mapped_column(primary_key=True)
    tokens: Mapped[float]
    updated_at: Mapped[int]


class Consent(Base):
    """Somebody agreed to a version of a text."""

    __tablename__ = "consent"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    person_id: Mapped[str] = mapped_column(ForeignKey("person.id"), index=True)
    version: Mapped[str]
    at: Mapped[int] = mapped_column(default=current_time_ms)
    withdrawn_at: Mapped[int | None]


class ConsentText(Base):
    """One version of what people agree to before they work. `bodies` is Markdown by language."""

    __tablename__ = "consent_text"
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    bodies: Mapped[dict[str, Any]]
    created_by: Mapped[str | None] = mapped_column(ForeignKey("person.id"))
    created_at: Mapped[int] = mapped_column(default=current_time_ms)


class Instructions(Base):
    """One version of the instructions for a purpose: Markdown and a short quiz. Versions are never changed, only followed.

    `body` and `quiz` are the text that binds; `translations` is `{language: {"body", "quiz"}}` for those who read another language.
    """

    __tablename__ = "instructions"
    __table_args__ = (UniqueConstraint("purpose", "version"), choices_constraint("purpose", PURPOSES))
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    purpose: Mapped[str]
    version: Mapped[int]
    body: Mapped[str]
    quiz: Mapped[dict[str, Any]]
    language: Mapped[str] = mapped_column(default="en")
    translations: Mapped[dict[str, Any]] = mapped_column(default=dict)
    changes: Mapped[str] = mapped_column(default="")
    created_by: Mapped[str | None] = mapped_column(ForeignKey("person.id"))
    created_at: Mapped[int] = mapped_column(default=current_time_ms)


class InstructionsRead(Base):
    """Somebody read a version of the instructions and passed its quiz."""

    __tablename__ = "reading"
    __table_args__ = (UniqueConstraint("person_id", "instructions_id"),)
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    person_id: Mapped[str] = mapped_column(ForeignKey("person.id"))
    instructions_id: Mapped[str] = mapped_column(ForeignKey("instructions.id"))
    attempts: Mapped[int] = mapped_column(default=1)
    at: Mapped[int] = mapped_column(default=current_time_ms)


class SurveyReply(Base):
    """An anonymous reply to a survey (paper, B.3). It knows no account, no exact time, and not even the order in which it came."""

    __tablename__ = "survey_reply"
    __table_args__ = {"sqlite_with_rowid": False}
    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    month: Mapped[str]
    answers: Mapped[dict[str, Any]]


class SurveyParticipation(Base):
    """Somebody has replied to a survey; which reply is theirs is known nowhere."""

    __tablename__ = "survey_done"
    __table_args__ = {"sqlite_with_rowid": False}
    person_id: Mapped[str] = mapped_column(ForeignKey("person.id"), primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)


class AuditLogEntry(Base):
    """Who did what to what. Each row holds the hash of the one before it, so that a changed or missing row shows."""

    __tablename__ = "journal"
    __table_args__ = (Index("ix_journal_object", "object"),)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[int]
    by: Mapped[str]
    action: Mapped[str]
    object: Mapped[str]
    detail: Mapped[dict[str, Any]]
    previous: Mapped[str]
    hash: Mapped[str] = mapped_column(unique=True)
