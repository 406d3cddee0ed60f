"""Accounts, invites, sessions, API keys, consent, instructions, surveys and the audit log."""

from __future__ import annotations

import unicodedata
from typing import Any, Literal

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, validates

from instructgpt.label.db.models.base import Base, choices_constraint, current_time_ms, new_id
from instructgpt.records import Cohort

PersonRole = Literal["labeler", "researcher", "owner"]
PERSON_ROLES: tuple[PersonRole, ...] = ("labeler", "researcher", "owner")
"""Labelers do tasks; researchers create batches, grade and adjudicate; owners also manage people, keys and data."""

PersonStatus = Literal["screening", "active", "paused", "declined", "withdrawn", "erased"]
PERSON_STATUSES: tuple[PersonStatus, ...] = ("screening", "active", "paused", "declined", "withdrawn", "erased")
"""Only active labelers get tasks; `screening` gets the screening test; held-out labelers skip it (paper, B.1)."""

PURPOSES = ("training", "evaluation")
"""Helpfulness comes first in training, truth and harmlessness in evaluation (paper, 3.4)."""


def normalize_name(name: str) -> str:
    """Return a name as sign-in compares it: NFKC and case folded, whitespace collapsed (Unicode 3.13, D147)."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return " ".join(folded.casefold().split())


class Person(Base):
    """An account. Exports hold the `pseudonym` as `labeler`, never the name."""

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
    created_at: Mapped[int] = mapped_column(default=current_time_ms)
    name_key: Mapped[str] = mapped_column(unique=True)
    """The name as sign-in compares it, see `normalize_name`; set with the name."""
    totp_secret: Mapped[str | None]  # of the second factor
    totp_step: Mapped[int | None]  # the last step whose code was used: a code is valid once
    recovery_hashes: Mapped[list[str]] = mapped_column(default=list)

    @validates("name")
    def _set_name_key(self, _: str, name: str) -> str:
        self.name_key = normalize_name(name)
        return name


class SignInChallenge(Base):
    """A sign-in whose password was right and whose second factor is awaited; only the token's SHA-256 is stored."""

    __tablename__ = "challenge"
    token_hash: Mapped[str] = mapped_column(primary_key=True)
    person_id: Mapped[str] = mapped_column(ForeignKey("person.id"), index=True)
    attempts: Mapped[int] = mapped_column(default=0)
    expires_at: Mapped[int]


class UserSession(Base):
    """A signed-in browser; only the SHA-256 of the cookie's token is stored."""

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
    """A link that creates accounts, the owner's set-up link, or a password reset link of `person_id`."""

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
    """A key for programs, `igl_<id>_<secret>`; only the SHA-256 of the secret is stored."""

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
    """The token bucket of one rate limit and subject."""

    __tablename__ = "rate_bucket"
    key: Mapped[str] = mapped_column(primary_key=True)
    tokens: Mapped[float]
    updated_at: Mapped[int]


class Consent(Base):
    """A person's consent to one version of the consent text."""

    __tablename__ = "consent"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    person_id: Mapped[str] = mapped_column(ForeignKey("person.id"), index=True)
    version: Mapped[str]
    at: Mapped[int] = mapped_column(default=current_time_ms)
    withdrawn_at: Mapped[int | None]


class ConsentText(Base):
    """One version of the consent text; `bodies` is Markdown by language."""

    __tablename__ = "consent_text"
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    bodies: Mapped[dict[str, Any]]
    created_by: Mapped[str | None] = mapped_column(ForeignKey("person.id"))
    created_at: Mapped[int] = mapped_column(default=current_time_ms)


class Instructions(Base):
    """One immutable version of the instructions for a purpose: Markdown and a quiz.

    `body` and `quiz` are binding; `translations` is `{language: {"body", "quiz"}}`.
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
    """A person has read a version of the instructions and passed its quiz."""

    __tablename__ = "reading"
    __table_args__ = (UniqueConstraint("person_id", "instructions_id"),)
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    person_id: Mapped[str] = mapped_column(ForeignKey("person.id"))
    instructions_id: Mapped[str] = mapped_column(ForeignKey("instructions.id"))
    attempts: Mapped[int] = mapped_column(default=1)
    at: Mapped[int] = mapped_column(default=current_time_ms)


class SurveyReply(Base):
    """An anonymous survey reply (paper, B.3): no account, no exact time, no order of arrival."""

    __tablename__ = "survey_reply"
    __table_args__ = {"sqlite_with_rowid": False}  # a rowid would give the order of arrival away
    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str]
    month: Mapped[str]
    answers: Mapped[dict[str, Any]]


class SurveyParticipation(Base):
    """A person has replied to a survey; nothing links to the reply."""

    __tablename__ = "survey_done"
    __table_args__ = {"sqlite_with_rowid": False}
    person_id: Mapped[str] = mapped_column(ForeignKey("person.id"), primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)


class LabelerGroup(Base):
    """One group of the owner's list, which labelers may declare."""

    __tablename__ = "labeler_group"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(unique=True)
    position: Mapped[int]
    retired_at: Mapped[int | None]


class GroupDeclaration(Base):
    """What a labeler declared; among pages, only the labeler's own shows it."""

    __tablename__ = "group_declaration"
    person_id: Mapped[str] = mapped_column(ForeignKey("person.id"), primary_key=True)
    group_id: Mapped[str] = mapped_column(ForeignKey("labeler_group.id"))


class AuditLogEntry(Base):
    """One row of the audit log, with the hash of the previous row."""

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
