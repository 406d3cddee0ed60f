"""Work in progress, kept on the server. A save names the revision it follows, so that two tabs never overwrite each other silently."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.label.db.models import Assignment, Draft
from instructgpt.label.errors import Problem
from instructgpt.label.tasks.assignments import lock
from instructgpt.label.tasks.forms import storable

MOST_BYTES = 2_000_000
"""A draft as JSON: room for the longest demonstration in any script, not for a disk full."""


def save(db: Session, assignment: Assignment, rev: int, payload: dict[str, Any], at: int) -> int:
    """Keep what somebody has so far. -> the new revision.

    Args:
        rev: the revision that this one follows; 0 where there was none.

    Raises:
        Problem: `bad_text` (422) for text that cannot be kept; `draft_conflict` (409, with `rev` and `payload` of what is there)
            when another tab saved since; `draft_too_long` (413); `already_skipped` (409).
    """
    try:
        size = len(storable(json.dumps(payload, ensure_ascii=False)).encode())
    except ValueError as error:
        raise Problem(422, "bad_text", reason=str(error)) from error
    if size > MOST_BYTES:
        raise Problem(413, "draft_too_long", most=MOST_BYTES)
    mine, _ = lock(db, assignment)
    if mine.state == "skipped":
        raise Problem(409, "already_skipped")
    there = draft_of(db, mine)
    if (there.rev if there else 0) != rev:
        raise Problem(409, "draft_conflict", rev=there.rev if there else 0, payload=there.payload if there else None)
    if there is None:
        db.add(Draft(assignment_id=mine.id, rev=1, payload=payload, updated_at=at))
    else:
        there.rev, there.payload, there.updated_at = rev + 1, payload, at
    db.flush()
    return rev + 1


def draft_of(db: Session, assignment: Assignment) -> Draft | None:
    """What is kept for an assignment."""
    chosen = select(Draft).where(Draft.assignment_id == assignment.id)
    return db.execute(chosen.execution_options(populate_existing=True)).scalar_one_or_none()
