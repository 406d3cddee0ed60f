"""Drafts on the server. A save names the revision that it follows, so that two tabs cannot overwrite each other."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.label.db.models import Assignment, Draft
from instructgpt.label.errors import SiteError
from instructgpt.label.tasks.assignments import lock_assignment
from instructgpt.label.tasks.forms import validate_storable

_MAX_DRAFT_BYTES = 2_000_000  # as JSON; fits the longest demonstration in any script


def store_draft(db: Session, assignment: Assignment, rev: int, payload: dict[str, Any], now_ms: int) -> int:
    """Store a draft and return its new revision.

    Args:
        rev: the revision that this one follows; 0 for the first.

    Raises:
        SiteError: `bad_text` (422); `draft_conflict` (409, with stored `rev` and `payload`) after another tab's save;
            `draft_too_long` (413); `already_skipped` (409).
    """
    try:
        size = len(validate_storable(json.dumps(payload, ensure_ascii=False)).encode())
    except ValueError as error:
        raise SiteError(422, "bad_text", reason=str(error)) from error
    if size > _MAX_DRAFT_BYTES:
        raise SiteError(413, "draft_too_long", most=_MAX_DRAFT_BYTES)
    locked, _ = lock_assignment(db, assignment)
    if locked.state == "skipped":
        raise SiteError(409, "already_skipped")
    draft = get_draft(db, locked)
    if (draft.rev if draft else 0) != rev:
        raise SiteError(409, "draft_conflict", rev=draft.rev if draft else 0, payload=draft.payload if draft else None)
    if draft is None:
        db.add(Draft(assignment_id=locked.id, rev=1, payload=payload, updated_at=now_ms))
    else:
        draft.rev, draft.payload, draft.updated_at = rev + 1, payload, now_ms
    db.flush()
    return rev + 1


def get_draft(db: Session, assignment: Assignment) -> Draft | None:
    statement = select(Draft).where(Draft.assignment_id == assignment.id)
    return db.execute(statement.execution_options(populate_existing=True)).scalar_one_or_none()
