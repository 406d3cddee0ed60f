"""Questions about a task and their answers, and reports of something wrong with it. A labeler sees their own thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.label.db.models import Assignment, Message, Person
from instructgpt.label.errors import Problem
from instructgpt.label.tasks.forms import storable

LONGEST = 10_000
"""Characters of one message."""


@dataclass(frozen=True, slots=True)
class Line:
    """One message as it is shown. `mine`: the labeler of the thread wrote it; otherwise a researcher did."""

    id: str
    body: str
    mine: bool
    reported: bool
    at: int
    settled: bool


def ask(db: Session, assignment: Assignment, body: str, at: int, *, reported: bool = False) -> Message:
    """A labeler asks about a task of theirs, or reports it.

    Raises:
        Problem: `bad_text`, `empty_message` or `message_too_long` (422).
    """
    return _add(db, assignment.task_id, assignment.person_id, assignment.person_id, body, at, reported)


def answer(db: Session, task_id: str, about: Person, author: Person, body: str, at: int) -> Message:
    """A researcher answers in somebody's thread; the questions before it are settled. Raises Problem as `ask`."""
    said = _add(db, task_id, about.id, author.id, body, at, False)
    settle(db, task_id, about, at)
    return said


def _add(db: Session, task_id: str, about: str, author: str, body: str, at: int, reported: bool) -> Message:
    try:
        storable(body)
    except ValueError as error:
        raise Problem(422, "bad_text", reason=str(error)) from error
    if not body.strip():
        raise Problem(422, "empty_message")
    if len(body) > LONGEST:
        raise Problem(422, "message_too_long", most=LONGEST)
    message = Message(task_id=task_id, about_id=about, author_id=author, body=body, reported=reported, at=at)
    db.add(message)
    db.flush()
    return message


def settle(db: Session, task_id: str, about: Person, at: int) -> int:
    """Nothing in this thread waits for an answer any more. -> how many messages did."""
    asked = select(Message).where(
        Message.task_id == task_id, Message.about_id == about.id, Message.author_id == about.id, Message.settled_at.is_(None)
    )
    messages = list(db.scalars(asked))
    for message in messages:
        message.settled_at = at
    db.flush()
    return len(messages)


def thread(db: Session, task_id: str, about_id: str) -> list[Line]:
    """The talk with one labeler about one task, in order."""
    chosen = select(Message).where(Message.task_id == task_id, Message.about_id == about_id).order_by(Message.at, Message.id)
    return [
        Line(each.id, each.body, each.author_id == about_id, each.reported, each.at, each.settled_at is not None)
        for each in db.scalars(chosen)
    ]


def reasons(db: Session, person: Person, returned: Sequence[Assignment]) -> dict[str, str]:
    """Why work came back to its labeler, by assignment: what a researcher wrote first in its thread from then on. One statement."""
    since = {each.task_id: each for each in returned if each.closed_at is not None}
    if not since:
        return {}
    chosen = select(Message).where(Message.task_id.in_(since), Message.about_id == person.id, Message.author_id != person.id)
    found: dict[str, str] = {}
    for message in db.scalars(chosen.order_by(Message.at, Message.id)):
        mine = since[message.task_id]
        if message.at >= (mine.closed_at or 0):
            found.setdefault(mine.id, message.body)
    return found


def unanswered(db: Session) -> list[Message]:
    """Questions and reports that wait for a researcher, the oldest first."""
    chosen = select(Message).where(Message.author_id == Message.about_id, Message.settled_at.is_(None))
    return list(db.scalars(chosen.order_by(Message.at, Message.id)))
