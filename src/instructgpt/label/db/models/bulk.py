"""Changes of many rows at once, with what each row was before."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from instructgpt.label.db.models.base import Base, choices_constraint, current_time_ms, new_id

BULK_SUBJECTS = ("task", "submission", "person")


class BulkChange(Base):
    """One action on many rows. `before_counts` and `after_counts` are the rows by state."""

    __tablename__ = "bulk_change"
    __table_args__ = (choices_constraint("subject", BULK_SUBJECTS),)
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    subject: Mapped[str]
    action: Mapped[str]
    filter: Mapped[str] = mapped_column(default="")  # the list's URL behind the question mark; empty: selected rows
    parameters: Mapped[dict[str, Any]]
    created_by: Mapped[str] = mapped_column(ForeignKey("person.id"))
    created_at: Mapped[int] = mapped_column(default=current_time_ms)
    before_counts: Mapped[dict[str, Any]]
    after_counts: Mapped[dict[str, Any] | None]  # None while it runs, and after an interruption
    undone_at: Mapped[int | None]
    undone_by: Mapped[str | None] = mapped_column(ForeignKey("person.id"))


class BulkItem(Base):
    """One row of a change. `outcome`: `changed`, why it stayed as it was, or None before its turn."""

    __tablename__ = "bulk_item"
    __table_args__ = (Index("ix_bulk_item_outcome", "change_id", "outcome"),)
    change_id: Mapped[str] = mapped_column(ForeignKey("bulk_change.id"), primary_key=True)
    object_id: Mapped[str] = mapped_column(primary_key=True)
    outcome: Mapped[str | None]
    previous: Mapped[dict[str, Any] | None]
    undo_outcome: Mapped[str | None]
