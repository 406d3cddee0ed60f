"""Gold answers, grades, decisions about people, adjudicated rankings, calibration rooms."""

from __future__ import annotations

from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from instructgpt.label.db.models.base import Base, choices_constraint, current_time_ms, new_id

ROOM_STAGES = ("vote", "talk", "again", "closed")


class GoldAnswer(Base):
    """The known answer of a task. Rank: `{completion id: rank}`; review: `{"sensitive": true}`."""

    __tablename__ = "gold"
    task_id: Mapped[str] = mapped_column(ForeignKey("task.id"), primary_key=True)
    answer: Mapped[dict[str, Any]]
    source: Mapped[str] = mapped_column(default="")
    created_by: Mapped[str | None] = mapped_column(ForeignKey("person.id"))
    created_at: Mapped[int] = mapped_column(default=current_time_ms)


class Grade(Base):
    """A researcher's 1–7 for a demonstration of the screening test (paper, B.1)."""

    __tablename__ = "grade"
    __table_args__ = (CheckConstraint("score BETWEEN 1 AND 7", name="score"),)
    submission_id: Mapped[str] = mapped_column(ForeignKey("submission.id"), primary_key=True)
    grader_id: Mapped[str] = mapped_column(ForeignKey("person.id"), primary_key=True)
    score: Mapped[int]
    at: Mapped[int] = mapped_column(default=current_time_ms)


class Decision(Base):
    """A researcher's or owner's decision about a labeler, with the reason and the screening metrics at that time."""

    __tablename__ = "decision"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    person_id: Mapped[str] = mapped_column(ForeignKey("person.id"), index=True)
    by_id: Mapped[str] = mapped_column(ForeignKey("person.id"))
    verdict: Mapped[str]
    reason: Mapped[str]
    measured: Mapped[dict[str, Any]]
    at: Mapped[int] = mapped_column(default=current_time_ms)


class Adjudication(Base):
    """A researcher's final ranking of a disputed task; the labelers' rankings stay unchanged."""

    __tablename__ = "adjudication"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    task_id: Mapped[str] = mapped_column(ForeignKey("task.id"), index=True)
    by_id: Mapped[str] = mapped_column(ForeignKey("person.id"))
    ranks: Mapped[dict[str, Any]]
    errors: Mapped[list[str]]
    reason: Mapped[str] = mapped_column(default="")
    at: Mapped[int] = mapped_column(default=current_time_ms)


class CalibrationVote(Base):
    """A ranking in a calibration room before (round 0) or after the discussion (round 1). Never training data."""

    __tablename__ = "vote"
    __table_args__ = (CheckConstraint("round IN (0, 1)", name="round"),)
    room_id: Mapped[str] = mapped_column(ForeignKey("room.id"), primary_key=True)
    person_id: Mapped[str] = mapped_column(ForeignKey("person.id"), primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True)
    ranks: Mapped[dict[str, Any]]
    at: Mapped[int] = mapped_column(default=current_time_ms)


class CalibrationRoom(Base):
    """A task that several people rank blind, discuss, and rank again."""

    __tablename__ = "room"
    __table_args__ = (choices_constraint("stage", ROOM_STAGES),)
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    task_id: Mapped[str] = mapped_column(ForeignKey("task.id"), index=True)
    title: Mapped[str]
    stage: Mapped[str] = mapped_column(default="vote")
    created_by: Mapped[str] = mapped_column(ForeignKey("person.id"))
    created_at: Mapped[int] = mapped_column(default=current_time_ms)
    closed_at: Mapped[int | None]


class CalibrationRemark(Base):
    """One message of a calibration room's discussion."""

    __tablename__ = "remark"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    room_id: Mapped[str] = mapped_column(ForeignKey("room.id"), index=True)
    author_id: Mapped[str] = mapped_column(ForeignKey("person.id"))
    body: Mapped[str]
    at: Mapped[int] = mapped_column(default=current_time_ms)
