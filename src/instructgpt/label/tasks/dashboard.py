"""What a labeler's home page shows: work in hand and waiting, their own numbers, news."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from instructgpt.label.db.models import (
    Assignment,
    CalibrationRoom,
    MessageRow,
    Person,
    PromptRow,
    Skip,
    Submission,
    Task,
)
from instructgpt.label.db.models.tasks import TASK_KINDS, TaskKind
from instructgpt.label.tasks import instructions, threads
from instructgpt.label.tasks.queue import list_eligible_batches, pending_task_ids_statement

_DAY_MS = 24 * 3_600_000
MAX_COUNTED_TASKS = 99
"""Waiting tasks are counted up to here; more is "more"."""


@dataclass(frozen=True, slots=True)
class TasksAvailable:
    """A kind of task that this person may do, and how many wait, counted to MOST."""

    kind: TaskKind
    count: int


@dataclass(frozen=True, slots=True)
class ActiveTask:
    """A task that was begun, or that came back."""

    assignment: str
    kind: TaskKind
    prompt: str | None
    lease_until: int
    sensitive: bool
    reason: str | None = None
    """Of work that came back: what the researcher wrote."""


@dataclass(frozen=True, slots=True)
class DayStats:
    """A person's own last 24 hours; `week`: handed in within seven days."""

    submitted: int
    skipped: int
    active_ms: int
    sensitive: int
    submitted_last_week: int


def list_active_tasks(db: Session, person: Person, state: str, now_ms: int) -> list[ActiveTask]:
    """A person's tasks in a state: `open` ones with a live lease, or `returned` ones."""
    statement = (
        select(Assignment, Task.kind, PromptRow)
        .join(Task, Task.id == Assignment.task_id)
        .outerjoin(PromptRow, PromptRow.id == Task.prompt_id)
        .where(Assignment.person_id == person.id, Assignment.state == state)
        .order_by(Assignment.id.desc())
        .limit(20)
    )
    filtered = statement.where(Assignment.lease_until > now_ms) if state == "open" else statement
    rows = [row for row in db.execute(filtered) if row[2] is None or row[2].withdrawn_at is None]
    reasons = threads.get_return_reasons(
        db, person, [assignment for assignment, _, _ in rows if assignment.state == "returned"]
    )
    return [
        ActiveTask(
            assignment.id,
            kind,
            prompt.text if prompt else None,
            assignment.lease_until,
            bool(prompt and prompt.sensitive),
            reasons.get(assignment.id),
        )
        for assignment, kind, prompt in rows
    ]


def count_available_tasks(db: Session, person: Person) -> list[TasksAvailable]:
    """The kinds of tasks there are for a person, in the usual order, gold among them. One statement a kind, whatever is open."""
    batches: dict[TaskKind, list[str]] = {}
    for batch in list_eligible_batches(db, person, None, None):
        batches.setdefault(batch.kind, []).append(batch.id)
    available = [
        TasksAvailable(
            kind,
            db.scalar(
                select(func.count()).select_from(
                    pending_task_ids_statement(person, batches[kind], MAX_COUNTED_TASKS + 1).subquery()
                )
            )
            or 0,
        )
        for kind in TASK_KINDS
        if kind in batches
    ]
    return [item for item in available if item.count]


def get_day_stats(db: Session, person: Person, now_ms: int) -> DayStats:
    """What somebody did lately. An edit is not one more, its time is."""
    own_submissions = (
        select(Submission)
        .join(Assignment, Assignment.id == Submission.assignment_id)
        .where(Assignment.person_id == person.id)
    )
    today = own_submissions.where(Submission.created_at > now_ms - _DAY_MS)
    current = Submission.replaced_at.is_(None)
    sensitive = (
        select(func.count())
        .select_from(Assignment)
        .join(Task, Task.id == Assignment.task_id)
        .join(PromptRow, PromptRow.id == Task.prompt_id)
        .where(Assignment.person_id == person.id, Assignment.opened_at > now_ms - _DAY_MS, PromptRow.sensitive)
    )
    skips = (
        select(func.count(Skip.id))
        .join(Assignment, Assignment.id == Skip.assignment_id)
        .where(Assignment.person_id == person.id)
    )
    return DayStats(
        submitted=db.scalar(today.where(current).with_only_columns(func.count(Submission.id))) or 0,
        skipped=db.scalar(skips.where(Skip.at > now_ms - _DAY_MS, Skip.undone_at.is_(None))) or 0,
        active_ms=int(db.scalar(today.with_only_columns(func.sum(Submission.active_ms))) or 0),
        sensitive=db.scalar(sensitive) or 0,
        submitted_last_week=db.scalar(
            own_submissions.where(current, Submission.created_at > now_ms - 7 * _DAY_MS).with_only_columns(
                func.count(Submission.id)
            )
        )
        or 0,
    )


def list_unread_instructions(db: Session, person: Person) -> list[tuple[str, bool]]:
    """Purposes of open work whose newest instructions this person has not read, and whether they have read an earlier version."""
    purposes = sorted({batch.purpose for batch in list_eligible_batches(db, person, None, None)})
    unread = [purpose for purpose in purposes if not instructions.has_read_instructions(db, person, purpose)]
    return [
        (
            purpose,
            any(
                instructions.get_instructions_read(db, person, text)
                for text in instructions.list_instructions_versions(db, purpose)
            ),
        )
        for purpose in unread
    ]


def list_open_rooms(db: Session) -> list[CalibrationRoom]:
    """The calibration rooms that are not closed, the newest five."""
    return list(
        db.scalars(
            select(CalibrationRoom)
            .where(CalibrationRoom.stage != "closed")
            .order_by(CalibrationRoom.created_at.desc())
            .limit(5)
        )
    )


def list_assignments_with_replies(db: Session, person: Person, now_ms: int) -> list[str]:
    """Assignments whose thread somebody else wrote in last, within seven days. Work that came back is shown with its reason instead."""
    last_message = (
        select(MessageRow.task_id, func.max(MessageRow.at).label("at"))
        .where(MessageRow.about_id == person.id)
        .group_by(MessageRow.task_id)
        .having(func.max(MessageRow.at) > now_ms - 7 * _DAY_MS)
        .subquery()
    )
    statement = (
        select(Assignment.id)
        .join(MessageRow, (MessageRow.task_id == Assignment.task_id) & (MessageRow.about_id == person.id))
        .join(last_message, (last_message.c.task_id == MessageRow.task_id) & (last_message.c.at == MessageRow.at))
        .where(Assignment.person_id == person.id, MessageRow.author_id != person.id, Assignment.state != "returned")
        .order_by(MessageRow.at.desc())
    )
    return list(dict.fromkeys(db.scalars(statement)))
