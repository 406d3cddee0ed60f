"""The journal: who did what to what, each row with the hash of the one before it, so that a changed, moved or missing row shows.

Rows name people by id and never hold names, texts or passwords, so that a person can be erased while the chain stays whole.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from instructgpt.label.db.models import AuditLogEntry, current_time_ms

_GENESIS_HASH = "0" * 64
_ADVISORY_LOCK_ID = 7_203_155
"""PostgreSQL: one writer of the journal at a time. Any fixed number does."""


def append_entry(db: Session, caller_id: str, action: str, object_id: str = "", **detail: Any) -> None:
    """Append a row to the journal, in the transaction of what it tells of.

    Args:
        by: the id of a person, `key:<id>` of a program, or `cli`.
        action: what was done, as `part.verb`.
        object: the id of what it was done to.
        detail: what else there is to know, as JSON; no names.
    """
    if db.get_bind().dialect.name == "postgresql":
        db.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _ADVISORY_LOCK_ID})
    last = db.scalars(select(AuditLogEntry).order_by(AuditLogEntry.seq.desc()).limit(1)).first()
    row = AuditLogEntry(
        seq=last.seq + 1 if last else 1,
        at=current_time_ms(),
        by=caller_id,
        action=action,
        object=object_id,
        detail=json.loads(json.dumps(detail)),
        previous=last.hash if last else _GENESIS_HASH,
    )
    row.hash = compute_row_hash(row)
    db.add(row)
    db.flush()


def compute_row_hash(row: AuditLogEntry) -> str:
    """SHA-256 of everything a row says, the hash before it included."""
    fields = [row.seq, row.at, row.by, row.action, row.object, row.detail, row.previous]
    return hashlib.sha256(
        json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
    ).hexdigest()


def verify_chain(db: Session) -> str | None:
    """The first row that does not follow from the one before it, in words; None when the chain is whole.

    Rows cut off at the end cannot show in the chain itself: compare the last hash with one that was written down.
    """
    invalid = find_first_invalid_row(db)
    return f"row {invalid[1]} {invalid[0].replace('_', ' ')}" if invalid else None


def find_first_invalid_row(db: Session) -> tuple[str, int] | None:
    """What is wrong (`is_missing`, `does_not_follow`, `was_changed`) with the first broken row, and its number."""
    seq, previous = 0, _GENESIS_HASH
    for row in db.scalars(select(AuditLogEntry).order_by(AuditLogEntry.seq)).yield_per(1_000):
        if row.seq != seq + 1:
            return "is_missing", seq + 1
        if row.hash != compute_row_hash(row):
            return "was_changed", row.seq
        if row.previous != previous:
            return "does_not_follow", row.seq
        seq, previous = row.seq, row.hash
    return None
