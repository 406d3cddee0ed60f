"""The audit log: who did what to which object, in a hash chain that shows changed, moved and missing rows.

Rows name people by id and never hold names, texts or passwords, so that erasing a person leaves the chain valid.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from instructgpt.label.db.models import AuditLogEntry, current_time_ms

_GENESIS_HASH = "0" * 64
# PostgreSQL: serializes the writers of the log, whose rows need consecutive numbers. The value is arbitrary.
_ADVISORY_LOCK_ID = 7_203_155


def append_entry(db: Session, caller_id: str, action: str, object_id: str = "", **detail: Any) -> None:
    """Append a row in the transaction of the change that it records.

    Args:
        caller_id: id of a person, `key:<id>` of an API key, or `cli`.
        action: `part.verb`.
        object_id: id of the changed object.
        detail: further JSON values; no names.
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
        detail=json.loads(json.dumps(detail)),  # the values that a later read returns, so that the hash stays the same
        previous=last.hash if last else _GENESIS_HASH,
    )
    row.hash = compute_row_hash(row)
    db.add(row)
    db.flush()


def compute_row_hash(row: AuditLogEntry) -> str:
    """Return the SHA-256 of all columns of a row, the previous row's hash included."""
    fields = [row.seq, row.at, row.by, row.action, row.object, row.detail, row.previous]
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def verify_chain(db: Session) -> str | None:
    """Describe the first invalid row; None for a valid chain, even if rows are missing at its end."""
    invalid = find_first_invalid_row(db)
    return f"row {invalid[1]} {invalid[0].replace('_', ' ')}" if invalid else None


def find_first_invalid_row(db: Session) -> tuple[str, int] | None:
    """Return (`is_missing`, `does_not_follow` or `was_changed`, row number) of the first invalid row."""
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
