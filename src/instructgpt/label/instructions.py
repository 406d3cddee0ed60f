"""Which instructions apply to a purpose, and who has read them."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.label.tables import Instructions, Person, Reading


def latest(db: Session, purpose: str) -> Instructions | None:
    """The newest version of the instructions for a purpose; None while there are none."""
    return db.scalar(select(Instructions).where(Instructions.purpose == purpose).order_by(Instructions.version.desc()).limit(1))


def has_read(db: Session, person: Person, purpose: str) -> bool:
    """Whether somebody has read the newest version; true where there is nothing to read."""
    newest = latest(db, purpose)
    if newest is None:
        return True
    read = select(Reading.id).where(Reading.person_id == person.id, Reading.instructions_id == newest.id)
    return db.scalar(read) is not None
