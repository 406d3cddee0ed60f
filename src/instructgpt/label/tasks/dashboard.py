"""What a labeler's home page shows: work in hand and waiting, their own numbers, news."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from instructgpt.label.db.models import Assignment, Message, Person, Prompt, Room, Skip, Submission, Task
from instructgpt.label.db.models.tasks import KINDS, Kind
from instructgpt.label.tasks import instructions, threads
from instructgpt.label.tasks.queue import batches_for, waiting_in

DAY = 24 * 3_600_000
MOST = 99
"""Waiting tasks are counted up to here; more is "more"."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A kind of task that this person may do, and how many wait, counted to MOST."""

    kind: Kind
    count: int


@dataclass(frozen=True, slots=True)
class InHand:
    """A task that was begun, or that came back."""

    assignment: str
    kind: Kind
    prompt: str | None
    lease_until: int
    sensitive: bool
    reason: str | None = None
    """Of work that came back: what the researcher wrote."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """A person's own last 24 hours; `week`: handed in within seven days."""

    done: int
    skipped: int
    active_ms: int
    sensitive: int
    week: int


def in_hand(db: Session, person: Person, state: str, at: int) -> list[InHand]:
    """A person's tasks in a state: `open` ones with a live lease, or `returned` ones."""
    chosen = (
        select(Assignment, Task.kind, Prompt)
        .join(Task, Task.id == Assignment.task_id)
        .outerjoin(Prompt, Prompt.id == Task.prompt_id)
        .where(Assignment.person_id == person.id, Assignment.state == state)
        .order_by(Assignment.id.desc())
        .limit(20)
    )
    rows = chosen.where(Assignment.lease_until > at) if state == "open" else chosen
    found = [row for row in db.execute(rows) if row[2] is None or row[2].withdrawn_at is None]
    reasons = threads.reasons(db, person, [mine for mine, _, _ in found if mine.state == "returned"])
    return [
        InHand(
            mine.id, kind, prompt.text if prompt else None, mine.lease_until, bool(prompt and prompt.sensitive), reasons.get(mine.id)
        )
        for mine, kind, prompt in found
    ]  # fmt: skip


def kinds_waiting(db: Session, person: Person) -> list[Waiting]:
    """The kinds of tasks there are for a person, in the usual order, gold among them. One statement a kind, whatever is open."""
    batches: dict[Kind, list[str]] = {}
    for batch in batches_for(db, person, None, None):
        batches.setdefault(batch.kind, []).append(batch.id)
    found = [
        Waiting(kind, db.scalar(select(func.count()).select_from(waiting_in(person, batches[kind], MOST + 1).subquery())) or 0)
        for kind in KINDS
        if kind in batches
    ]
    return [each for each in found if each.count]


def numbers(db: Session, person: Person, at: int) -> Numbers:
    """What somebody did lately. An edit is not one more, its time is."""
    mine = select(Submission).join(Assignment, Assignment.id == Submission.assignment_id).where(Assignment.person_id == person.id)
    today = mine.where(Submission.created_at > at - DAY)
    current = Submission.replaced_at.is_(None)
    seen = (
        select(func.count())
        .select_from(Assignment)
        .join(Task, Task.id == Assignment.task_id)
        .join(Prompt, Prompt.id == Task.prompt_id)
        .where(Assignment.person_id == person.id, Assignment.opened_at > at - DAY, Prompt.sensitive)
    )
    skips = select(func.count(Skip.id)).join(Assignment, Assignment.id == Skip.assignment_id).where(Assignment.person_id == person.id)
    return Numbers(
        done=db.scalar(today.where(current).with_only_columns(func.count(Submission.id))) or 0,
        skipped=db.scalar(skips.where(Skip.at > at - DAY, Skip.undone_at.is_(None))) or 0,
        active_ms=int(db.scalar(today.with_only_columns(func.sum(Submission.active_ms))) or 0),
        sensitive=db.scalar(seen) or 0,
        week=db.scalar(mine.where(current, Submission.created_at > at - 7 * DAY).with_only_columns(func.count(Submission.id))) or 0,
    )


def unread_instructions(db: Session, person: Person) -> list[tuple[str, bool]]:
    """Purposes of open work whose newest instructions this person has not read, and whether they have read an earlier version."""
    purposes = sorted({batch.purpose for batch in batches_for(db, person, None, None)})
    unread = [purpose for purpose in purposes if not instructions.has_read(db, person, purpose)]
    return [(purpose, any(instructions.reading(db, person, text) for text in instructions.versions(db, purpose))) for purpose in unread]


def open_rooms(db: Session) -> list[Room]:
    """The calibration rooms that are not closed, the newest five."""
    return list(db.scalars(select(Room).where(Room.stage != "closed").order_by(Room.created_at.desc()).limit(5)))


def answered(db: Session, person: Person, at: int) -> list[str]:
    """Assignments whose thread somebody else wrote in last, within seven days. Work that came back is shown with its reason instead."""
    last = (
        select(Message.task_id, func.max(Message.at).label("at"))
        .where(Message.about_id == person.id)
        .group_by(Message.task_id)
        .having(func.max(Message.at) > at - 7 * DAY)
        .subquery()
    )
    chosen = (
        select(Assignment.id)
        .join(Message, (Message.task_id == Assignment.task_id) & (Message.about_id == person.id))
        .join(last, (last.c.task_id == Message.task_id) & (last.c.at == Message.at))
        .where(Assignment.person_id == person.id, Message.author_id != person.id, Assignment.state != "returned")
        .order_by(Message.at.desc())
    )
    return list(dict.fromkeys(db.scalars(chosen)))
