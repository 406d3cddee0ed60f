"""Events of labelers' work for webhooks: a submission was stored, a batch has no work left."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.label.db.models import Assignment, Batch, Person, Submission, Task
from instructgpt.label.integrations.events import is_subscribed, record_event
from instructgpt.label.vocabulary import UNLIMITED_OVERLAP

_MAX_CONCURRENT_TRANSACTIONS = 200  # more than the connections of a site


def record_submission(db: Session, assignment: Assignment, task: Task, submission: Submission) -> None:
    """Record the event of a stored version. Labelers are named by their pseudonym."""

    def build_data() -> dict[str, object]:
        batch = db.get_one(Batch, task.batch_id)
        return {
            "submission": submission.id,
            "version": submission.version,
            "kind": submission.kind,
            "task": task.id,
            "batch": batch.id,
            "batch_name": batch.name,
            "labeler": db.get_one(Person, assignment.person_id).pseudonym,
            "surplus": submission.surplus,
        }

    record_event(db, "submission.created", build_data)


def record_batch_completion(db: Session, batch_id: str) -> None:
    """Record the event of a batch whose last task just left the states `open` and `review`.

    Two labelers may finish the last two tasks at the same time (PostgreSQL), each not seeing the other's change. Near
    its end the batch is therefore locked, and what others committed meanwhile is read after the lock.
    """
    if not is_subscribed(db, "batch.completed"):
        return
    db.flush()
    unfinished = select(Task.id).where(
        Task.batch_id == batch_id, Task.state.in_(("open", "review")), Task.overlap < UNLIMITED_OVERLAP
    )
    if len(db.scalars(unfinished.limit(_MAX_CONCURRENT_TRANSACTIONS)).all()) == _MAX_CONCURRENT_TRANSACTIONS:
        return
    batch = db.scalars(select(Batch).where(Batch.id == batch_id).with_for_update(key_share=True)).one()
    if db.scalar(unfinished.limit(1)) is None:
        record_event(db, "batch.completed", lambda: {"batch": batch.id, "batch_name": batch.name, "kind": batch.kind})
