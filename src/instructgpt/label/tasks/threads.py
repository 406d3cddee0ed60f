"""Questions about a task with their answers, and reports. Labelers see their own thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.label.db.models import Assignment, MessageRow, Person
from instructgpt.label.errors import SiteError
from instructgpt.label.tasks.forms import validate_storable

_MAX_MESSAGE_LENGTH = 10_000  # characters


@dataclass(frozen=True, slots=True)
class ThreadMessage:
    """A message; `mine` means written by the thread's labeler, not by a researcher."""

    id: str
    body: str
    mine: bool
    reported: bool
    at: int
    settled: bool


def post_question(db: Session, assignment: Assignment, body: str, now_ms: int, *, reported: bool = False) -> MessageRow:
    """Post a labeler's question about a task, or a report; raise SiteError (422) for an invalid text."""
    return _add_message(db, assignment.task_id, assignment.person_id, assignment.person_id, body, now_ms, reported)


def post_answer(db: Session, task_id: str, labeler: Person, author: Person, body: str, now_ms: int) -> MessageRow:
    """Post a researcher's answer and resolve the questions before it; raise SiteError as `post_question`."""
    message = _add_message(db, task_id, labeler.id, author.id, body, now_ms, False)
    _resolve_thread(db, task_id, labeler, now_ms)
    return message


def _add_message(
    db: Session, task_id: str, labeler_id: str, author_id: str, body: str, now_ms: int, reported: bool
) -> MessageRow:
    try:
        validate_storable(body)
    except ValueError as error:
        raise SiteError(422, "bad_text", reason=str(error)) from error
    if not body.strip():
        raise SiteError(422, "empty_message")
    if len(body) > _MAX_MESSAGE_LENGTH:
        raise SiteError(422, "message_too_long", most=_MAX_MESSAGE_LENGTH)
    ids = {"task_id": task_id, "about_id": labeler_id, "author_id": author_id}
    message = MessageRow(**ids, body=body, reported=reported, at=now_ms)
    db.add(message)
    db.flush()
    return message


def _resolve_thread(db: Session, task_id: str, labeler: Person, now_ms: int) -> int:
    """Mark a labeler's open messages as answered and return their number."""
    statement = select(MessageRow).where(
        MessageRow.task_id == task_id,
        MessageRow.about_id == labeler.id,
        MessageRow.author_id == labeler.id,
        MessageRow.settled_at.is_(None),
    )
    messages = list(db.scalars(statement))
    for message in messages:
        message.settled_at = now_ms
    db.flush()
    return len(messages)


def list_thread_messages(db: Session, task_id: str, labeler_id: str) -> list[ThreadMessage]:
    """Return one labeler's thread about a task, in order."""
    statement = (
        select(MessageRow)
        .where(MessageRow.task_id == task_id, MessageRow.about_id == labeler_id)
        .order_by(MessageRow.at, MessageRow.id)
    )
    return [
        ThreadMessage(
            message.id,
            message.body,
            message.author_id == labeler_id,
            message.reported,
            message.at,
            message.settled_at is not None,
        )
        for message in db.scalars(statement)
    ]


def get_return_reasons(db: Session, person: Person, returned_assignments: Sequence[Assignment]) -> dict[str, str]:
    """Return by assignment a researcher's first message since its return, in one statement."""
    assignment_by_task = {row.task_id: row for row in returned_assignments if row.closed_at is not None}
    if not assignment_by_task:
        return {}
    statement = select(MessageRow).where(
        MessageRow.task_id.in_(assignment_by_task), MessageRow.about_id == person.id, MessageRow.author_id != person.id
    )
    reason_by_assignment: dict[str, str] = {}
    for message in db.scalars(statement.order_by(MessageRow.at, MessageRow.id)):
        assignment = assignment_by_task[message.task_id]
        if message.at >= (assignment.closed_at or 0):
            reason_by_assignment.setdefault(assignment.id, message.body)
    return reason_by_assignment


def list_unanswered_messages(db: Session) -> list[MessageRow]:
    """Return the questions and reports without an answer, the oldest first."""
    statement = select(MessageRow).where(MessageRow.author_id == MessageRow.about_id, MessageRow.settled_at.is_(None))
    return list(db.scalars(statement.order_by(MessageRow.at, MessageRow.id)))
