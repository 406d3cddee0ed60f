"""Assignments, drafts, submissions with their contents, skips, messages."""

from __future__ import annotations

from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from instructgpt.label.db.models.base import Base, choices_constraint, current_time_ms, new_id
from instructgpt.label.vocabulary import FAILURE_KINDS, MAX_RATING_POINTS, TASK_KINDS, FailureKind, TaskKind

_ASSIGNMENT_STATES = ("open", "submitted", "skipped", "expired", "returned")
"""`expired`: the lease ran out; a late submission is still stored. `returned`: a researcher asks for a new version."""

SKIP_REASONS = ("unclear", "other_language", "too_specialised", "personal_data", "sensitive", "broken", "other")


class Assignment(Base):
    """A task assigned to a person, with the order of its completions and the version of the instructions."""

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
    """1: the hidden repeat of the person's own assignment (round 0); repeats do not count in the task's overlap."""
    state: Mapped[str] = mapped_column(default="open")
    lease_until: Mapped[int]
    shown: Mapped[list[str]]  # ids of the completions in this person's order; the first is A
    instructions_id: Mapped[str | None] = mapped_column(ForeignKey("instructions.id"))
    opened_at: Mapped[int] = mapped_column(default=current_time_ms)
    closed_at: Mapped[int | None]


class Draft(Base):
    """Unfinished work. A save must name the revision that it follows."""

    __tablename__ = "draft"
    assignment_id: Mapped[str] = mapped_column(ForeignKey("assignment.id"), primary_key=True)
    rev: Mapped[int]
    payload: Mapped[dict[str, Any]]
    updated_at: Mapped[int] = mapped_column(default=current_time_ms)


class Submission(Base):
    """One version of submitted work. Append-only: edit and undo set `replaced_at` of the current version."""

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
    key: Mapped[str]  # idempotency key of the rendered form: a second submission with it returns the first
    kind: Mapped[TaskKind]
    note: Mapped[str] = mapped_column(default="")
    active_ms: Mapped[int] = mapped_column(default=0)
    wall_ms: Mapped[int] = mapped_column(default=0)
    pasted: Mapped[float | None]
    """Share of the text that was pasted: evidence for researchers, never used automatically."""
    surplus: Mapped[bool] = mapped_column(default=False)
    """Submitted after the lease ran out on a full task: extra overlap."""
    invalid_reason: Mapped[str | None]
    created_at: Mapped[int] = mapped_column(default=current_time_ms)
    replaced_at: Mapped[int | None]


class RedTeamAttempt(Base):
    """A prompt that a labeler sent to a model to make it fail, with the answer. `person` is the assignment's."""

    __tablename__ = "red_team_attempt"
    __table_args__ = (choices_constraint("failure", FAILURE_KINDS),)
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    assignment_id: Mapped[str] = mapped_column(ForeignKey("assignment.id"), index=True)
    failure: Mapped[FailureKind]
    model: Mapped[str]
    checkpoint: Mapped[str | None]
    prompt: Mapped[str]
    completion: Mapped[str]
    finish: Mapped[str]
    sampling: Mapped[dict[str, Any]]
    success: Mapped[bool | None]
    """Whether the model failed as stated; None: the labeler has not said yet."""
    created_at: Mapped[int] = mapped_column(default=current_time_ms)
    judged_at: Mapped[int | None]
    withdrawn_at: Mapped[int | None]


class DemonstrationRow(Base):
    """A written completion. The queue uses person and prompt to keep authors from ranking their own text."""

    __tablename__ = "demonstration"
    __table_args__ = (Index("ix_demonstration_person", "person_id", "prompt_id"),)
    submission_id: Mapped[str] = mapped_column(ForeignKey("submission.id"), primary_key=True)
    person_id: Mapped[str] = mapped_column(ForeignKey("person.id"))
    prompt_id: Mapped[str] = mapped_column(ForeignKey("prompt.id"))
    text: Mapped[str]
    text_hash: Mapped[str]  # `ingest.text_hash` of the text


class RankingRow(Base):
    """The fields of a ranking that concern all completions."""

    __tablename__ = "ranking"
    __table_args__ = (CheckConstraint("confidence BETWEEN 1 AND 9", name="confidence"),)
    submission_id: Mapped[str] = mapped_column(ForeignKey("submission.id"), primary_key=True)
    none_acceptable: Mapped[bool] = mapped_column(default=False)
    confidence: Mapped[int | None]
    answers: Mapped[dict[str, Any] | None]  # to the questions that are asked once a task


class RankingItem(Base):
    """One completion of a ranking: its tier on the board and its dense rank (1 is best, no gaps)."""

    __tablename__ = "ranking_item"
    __table_args__ = (CheckConstraint("rank >= 1 AND rank <= tier", name="rank"),)
    submission_id: Mapped[str] = mapped_column(ForeignKey("submission.id"), primary_key=True)
    completion_id: Mapped[str] = mapped_column(ForeignKey("completion.id"), primary_key=True, index=True)
    tier: Mapped[int]
    rank: Mapped[int]
    shown: Mapped[int]  # position on the page, from 0


class Rating(Base):
    """One completion's rating and labels. `labels` leaves unanswered labels out; None is not applicable."""

    __tablename__ = "rating"
    __table_args__ = (CheckConstraint(f"rating BETWEEN 1 AND {MAX_RATING_POINTS}", name="rating"),)
    submission_id: Mapped[str] = mapped_column(ForeignKey("submission.id"), primary_key=True)
    completion_id: Mapped[str] = mapped_column(ForeignKey("completion.id"), primary_key=True, index=True)
    rating: Mapped[int | None]
    labels: Mapped[dict[str, Any]]
    note: Mapped[str] = mapped_column(default="")


class PromptReview(Base):
    """A labeler's description of a prompt: use case, personal data, the prompt labels of the paper's Table 7."""

    __tablename__ = "prompt_review"
    submission_id: Mapped[str] = mapped_column(ForeignKey("submission.id"), primary_key=True)
    use_case: Mapped[str | None]
    personal_data: Mapped[bool | None]
    sensitive: Mapped[bool | None]
    labels: Mapped[dict[str, Any]]
    rejected: Mapped[str | None]  # why the prompt must not be used; None: usable


class Skip(Base):
    """A skipped assignment and its reason. An undone skip keeps its row."""

    __tablename__ = "skip"
    __table_args__ = (choices_constraint("reason", SKIP_REASONS),)
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    assignment_id: Mapped[str] = mapped_column(ForeignKey("assignment.id"), index=True)
    reason: Mapped[str]
    note: Mapped[str] = mapped_column(default="")
    at: Mapped[int] = mapped_column(default=current_time_ms)
    undone_at: Mapped[int | None]


class MessageRow(Base):
    """One message about a task: a question, an answer, or a report (`reported`)."""

    __tablename__ = "message"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    task_id: Mapped[str] = mapped_column(ForeignKey("task.id"), index=True)
    about_id: Mapped[str] = mapped_column(ForeignKey("person.id"))
    """The labeler whose thread this is; labelers see their own thread, researchers all."""
    author_id: Mapped[str] = mapped_column(ForeignKey("person.id"))
    body: Mapped[str]
    reported: Mapped[bool] = mapped_column(default=False)
    at: Mapped[int] = mapped_column(default=current_time_ms)
    settled_at: Mapped[int | None]
