"""What is known about the work itself: gold answers, grades, decisions about people, adjudicated rankings."""

from __future__ import annotations

from typing import Any

from sqlalchemy import CheckConstraint, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from instructgpt.label.tables.base import Base, new_id, now


class Gold(Base):
    """The answer a task should get. Rank: `{completion id: rank}`; review: `{"sensitive": true}`."""

    __tablename__ = "gold"
    task_id: Mapped[str] = mapped_column(ForeignKey("task.id"), primary_key=True)
    answer: Mapped[dict[str, Any]]
    source: Mapped[str] = mapped_column(default="")
    created_by: Mapped[str | None] = mapped_column(ForeignKey("person.id"))
    created_at: Mapped[int] = mapped_column(default=now)


class Grade(Base):
    """A researcher's 1–7 for a demonstration (screening, part 3; paper, B.1)."""

    __tablename__ = "grade"
    __table_args__ = (CheckConstraint("score BETWEEN 1 AND 7", name="score"),)
    submission_id: Mapped[str] = mapped_column(ForeignKey("submission.id"), primary_key=True)
    grader_id: Mapped[str] = mapped_column(ForeignKey("person.id"), primary_key=True)
    score: Mapped[int]
    at: Mapped[int] = mapped_column(default=now)


class Decision(Base):
    """A person decided about a person: admitted, declined, paused …, with the reason and the numbers that lay on the table."""

    __tablename__ = "decision"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    person_id: Mapped[str] = mapped_column(ForeignKey("person.id"), index=True)
    by_id: Mapped[str] = mapped_column(ForeignKey("person.id"))
    verdict: Mapped[str]
    reason: Mapped[str]
    measured: Mapped[dict[str, Any]]
    at: Mapped[int] = mapped_column(default=now)


class Adjudication(Base):
    """A ranking on which a researcher settled after labelers disagreed. The labelers' own rankings stay as they are."""

    __tablename__ = "adjudication"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    task_id: Mapped[str] = mapped_column(ForeignKey("task.id"), index=True)
    by_id: Mapped[str] = mapped_column(ForeignKey("person.id"))
    ranks: Mapped[dict[str, Any]]
    errors: Mapped[list[str]]
    reason: Mapped[str] = mapped_column(default="")
    at: Mapped[int] = mapped_column(default=now)
