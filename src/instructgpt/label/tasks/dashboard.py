"""The contents of a labeler's home page: active and waiting tasks, their own counts, news."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from instructgpt.label.db.models import Assignment, MessageRow, Person, PromptRow, Skip, Submission, Task
from instructgpt.label.db.models.base import DAY_MS
from instructgpt.label.db.models.quality import CalibrationRoom
from instructgpt.label.tasks import instructions, threads
from instructgpt.label.tasks.queue import list_eligible_batches, pending_task_ids_statement
from instructgpt.label.tasks.task_view import newest_turn
from instructgpt.label.vocabulary import TASK_KINDS, TaskKind

MAX_COUNTED_TASKS = 99  # the page shows larger counts as "more"


@dataclass(frozen=True, slots=True)
class TasksAvailable:
    """A kind of task and how many wait, counted up to `MAX_COUNTED_TASKS` + 1."""

    kind: TaskKind
    count: int


@dataclass(frozen=True, slots=True)
class ActiveTask:
    """An open or returned assignment."""

    assignment: str
    kind: TaskKind
    prompt: str | None
    lease_until: int
    sensitive: bool
    reason: str | None = None  # of returned work: the researcher's message


@dataclass(frozen=True, slots=True)
class DayStats:
    """A labeler's counts of the last 24 hours, and submissions of the last seven days."""

    submitted: int
    skipped: int
    active_ms: int
    sensitive: int
    submitted_last_week: int


def list_active_tasks(db: Session, person: Person, state: str, now_ms: int) -> list[ActiveTask]:
    """Return a person's assignments in a state: `open` with a valid lease, or `returned`."""
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
    returned = [assignment for assignment, _, _ in rows if assignment.state == "returned"]
    reasons = threads.get_return_reasons(db, person, returned)
    return [
        ActiveTask(
            assignment.id,
            kind,
            newest_turn(prompt.text, prompt.messages) if prompt else None,
            assignment.lease_until,
            bool(prompt and prompt.sensitive),
            reasons.get(assignment.id),
        )
        for assignment, kind, prompt in rows
    ]


def count_available_tasks(db: Session, person: Person) -> list[TasksAvailable]:
    """Return the kinds of tasks that wait for a person, gold included, with one statement for each kind."""
    batches: dict[TaskKind, list[str]] = {}
    for batch in list_eligible_batches(db, person, None, None):
        batches.setdefault(batch.kind, []).append(batch.id)
    available = []
    for kind in (kind for kind in TASK_KINDS if kind in batches):
        task_ids = pending_task_ids_statement(person, batches[kind], MAX_COUNTED_TASKS + 1).subquery()
        if count := db.scalar(select(func.count()).select_from(task_ids)):
            available.append(TasksAvailable(kind, count))
    return available


def get_day_stats(db: Session, person: Person, now_ms: int) -> DayStats:
    """Return a labeler's last-24-hour counts. Edits add time but not submissions."""
    submitted = select(func.count(Submission.id)).join(Assignment).where(Assignment.person_id == person.id)
    today, last_week = (submitted.where(Submission.created_at > now_ms - days * DAY_MS) for days in (1, 7))
    current = Submission.replaced_at.is_(None)
    sensitive = (
        select(func.count())
        .select_from(Assignment)
        .join(Task, Task.id == Assignment.task_id)
        .join(PromptRow, PromptRow.id == Task.prompt_id)
        .where(Assignment.person_id == person.id, Assignment.opened_at > now_ms - DAY_MS, PromptRow.sensitive)
    )
    skips = select(func.count(Skip.id)).join(Assignment).where(Assignment.person_id == person.id)
    return DayStats(
        submitted=db.scalar(today.where(current)) or 0,
        skipped=db.scalar(skips.where(Skip.at > now_ms - DAY_MS, Skip.undone_at.is_(None))) or 0,
        active_ms=int(db.scalar(today.with_only_columns(func.sum(Submission.active_ms))) or 0),
        sensitive=db.scalar(sensitive) or 0,
        submitted_last_week=db.scalar(last_week.where(current)) or 0,
    )


def list_unread_instructions(db: Session, person: Person) -> list[tuple[str, bool]]:
    """Return (purpose, has read an earlier version) of open batches with unread instructions."""
    purposes = sorted({batch.purpose for batch in list_eligible_batches(db, person, None, None)})
    unread = []
    for purpose in purposes:
        if not instructions.has_read_instructions(db, person, purpose):
            versions = instructions.list_instructions_versions(db, purpose)
            unread.append((purpose, any(instructions.get_instructions_read(db, person, text) for text in versions)))
    return unread


def list_open_rooms(db: Session) -> list[CalibrationRoom]:
    """Return the five newest open calibration rooms."""
    statement = select(CalibrationRoom).where(CalibrationRoom.stage != "closed")
    return list(db.scalars(statement.order_by(CalibrationRoom.created_at.desc()).limit(5)))


def list_assignments_with_replies(db: Session, person: Person, now_ms: int) -> list[str]:
    """Return assignments with a new reply within seven days; returned work shows its reason instead."""
    last_message = (
        select(MessageRow.task_id, func.max(MessageRow.at).label("at"))
        .where(MessageRow.about_id == person.id)
        .group_by(MessageRow.task_id)
        .having(func.max(MessageRow.at) > now_ms - 7 * DAY_MS)
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
