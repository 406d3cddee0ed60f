"""What people do: assignments (what was shown to whom), drafts, submissions with their contents, skips, messages."""

from __future__ import annotations

from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from instructgpt.label.db.models.base import Base, choices_constraint, current_time_ms, new_id
from instructgpt.label.db.models.tasks import TASK_KINDS, TaskKind

_ASSIGNMENT_STATES = ("open", "submitted", "skipped", "expired", "returned")
"""Expired: the lease ran out, the task went back; a late submission is kept all the same. Returned: a researcher asked for it again."""

SKIP_REASONS = ("unclear", "other_language", "too_specialised", "personal_data", "sensitive", "broken", "other")


class Assignment(Base):
    """A task in somebody's hands, and exactly what was shown: the order of the completions, the version of the instructions."""

    __tablename__ = "assignment"
    __table_args__ = (
        UniqueConstraint("task_id", "person_id", "round"),
        choices_constraint("state", _ASSIGNMENT_STATES),
        Index("ix_assignment_person", "person_id", "state"),
        Index("ix_assignment_lease", "state", "lease_until"),
    )
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    task_id: Mapped[str] = mapped_column(ForeignKey("task.id"))
    person_id: Mapped[str] = mapped_column(ForeignKey("person.id"))
    round: Mapped[int] = mapped_column(default=0)
    """1 for a hidden repeat of the person's own assignment with round 0; repeats are not counted in the task's overlap."""
    state: Mapped[str] = mapped_column(default="open")
    lease_until: Mapped[int]
    shown: Mapped[list[str]]
    """Ids of the completions in the order in which this person saw them: the first is A."""
    instructions_id: Mapped[str | None] = mapped_column(ForeignKey("instructions.id"))
    opened_at: Mapped[int] = mapped_column(default=current_time_ms)
    closed_at: Mapped[int | None]


class Draft(Base):
    """Work in progress. A new version must name the revision it follows."""

    __tablename__ = "draft"
    assignment_id: Mapped[str] = mapped_column(ForeignKey("assignment.id"), primary_key=True)
    rev: Mapped[int]
    payload: Mapped[dict[str, Any]]
    updated_at: Mapped[int] = mapped_column(default=current_time_ms)


class Submission(Base):
    """What somebody handed in. Append-only: an edit is a further version, undo withdraws; the current one has no `replaced_at`."""

    __tablename__ = "submission"
    __table_args__ = (
        UniqueConstraint("assignment_id", "version"),
        UniqueConstraint("assignment_id", "key"),
        choices_constraint("kind", TASK_KINDS),
        Index("ix_submission_created", "created_at"),
    )
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    assignment_id: Mapped[str] = mapped_column(ForeignKey("assignment.id"))
    version: Mapped[int]
    key: Mapped[str]
    """Made when the form was rendered; a second submission with it returns the first."""
    kind: Mapped[TaskKind]
    note: Mapped[str] = mapped_column(default="")
    active_ms: Mapped[int] = mapped_column(default=0)
    wall_ms: Mapped[int] = mapped_column(default=0)
    pasted: Mapped[float | None]
    """The share of typed text that was pasted: evidence for people, never used automatically."""
    surplus: Mapped[bool] = mapped_column(default=False)
    """Handed in after the lease ran out and the task was full: kept as further overlap."""
    invalid_reason: Mapped[str | None]
    created_at: Mapped[int] = mapped_column(default=current_time_ms)
    replaced_at: Mapped[int | None]


class DemonstrationRow(Base):
    """The completion a labeler wrote. Whose it is, and for what, is written down once more, so that nobody is asked to rank their own."""

    __tablename__ = "demonstration"
    __table_args__ = (Index("ix_demonstration_person", "person_id", "prompt_id"),)
    submission_id: Mapped[str] = mapped_column(ForeignKey("submission.id"), primary_key=True)
    person_id: Mapped[str] = mapped_column(ForeignKey("person.id"))
    prompt_id: Mapped[str] = mapped_column(ForeignKey("prompt.id"))
    text: Mapped[str]
    text_hash: Mapped[str]
    """`intake.text_hash` of the text."""


class RankingRow(Base):
    """What a ranking says about all of its completions together."""

    __tablename__ = "ranking"
    __table_args__ = (CheckConstraint("confidence BETWEEN 1 AND 9", name="confidence"),)
    submission_id: Mapped[str] = mapped_column(ForeignKey("submission.id"), primary_key=True)
    none_acceptable: Mapped[bool] = mapped_column(default=False)
    confidence: Mapped[int | None]


class RankingItem(Base):
    """One completion's place in a ranking: the tier it was put into, and the dense rank (1..m, no gaps) that follows."""

    __tablename__ = "ranking_item"
    __table_args__ = (CheckConstraint("rank >= 1 AND rank <= tier", name="rank"),)
    submission_id: Mapped[str] = mapped_column(ForeignKey("submission.id"), primary_key=True)
    completion_id: Mapped[str] = mapped_column(ForeignKey("completion.id"), primary_key=True, index=True)
    tier: Mapped[int]
    rank: Mapped[int]
    shown: Mapped[int]
    """Where it stood on the page, from 0."""


class Rating(Base):
    """One completion's rating and labels. A label that was not answered is not among `labels`; not applicable is None."""

    __tablename__ = "rating"
    __table_args__ = (CheckConstraint("rating BETWEEN 1 AND 7", name="rating"),)
    submission_id: Mapped[str] = mapped_column(ForeignKey("submission.id"), primary_key=True)
    completion_id: Mapped[str] = mapped_column(ForeignKey("completion.id"), primary_key=True, index=True)
    rating: Mapped[int | None]
    labels: Mapped[dict[str, Any]]
    note: Mapped[str] = mapped_column(default="")


class PromptReview(Base):
    """How a labeler describes a prompt: use case, personal data, the paper's prompt labels (Table 7)."""

    __tablename__ = "prompt_review"
    submission_id: Mapped[str] = mapped_column(ForeignKey("submission.id"), primary_key=True)
    use_case: Mapped[str | None]
    personal_data: Mapped[bool | None]
    sensitive: Mapped[bool | None]
    labels: Mapped[dict[str, Any]]
    rejected: Mapped[str | None]
    """Why it should not be used; None: it may."""


class Skip(Base):
    """A task handed back, with the reason. An undone skip stays, with `undone_at`."""

    __tablename__ = "skip"
    __table_args__ = (choices_constraint("reason", SKIP_REASONS),)
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    assignment_id: Mapped[str] = mapped_column(ForeignKey("assignment.id"), index=True)
    reason: Mapped[str]
    note: Mapped[str] = mapped_column(default="")
    at: Mapped[int] = mapped_column(default=current_time_ms)
    undone_at: Mapped[int | None]


class MessageRow(Base):
    """One line of the talk about a task: a question, an answer, a report (`reported`)."""

    __tablename__ = "message"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    task_id: Mapped[str] = mapped_column(ForeignKey("task.id"), index=True)
    about_id: Mapped[str] = mapped_column(ForeignKey("person.id"))
    """Whose thread this is: a labeler sees their own, researchers see all."""
    author_id: Mapped[str] = mapped_column(ForeignKey("person.id"))
    body: Mapped[str]
    reported: Mapped[bool] = mapped_column(default=False)
    at: Mapped[int] = mapped_column(default=current_time_ms)
    settled_at: Mapped[int | None]
