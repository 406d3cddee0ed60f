"""Assign tasks to labelers: claims with leases, skips, and counters that can be verified.

A claim is one transaction: expire leases, return the person's active assignment or choose a task, count it and record
it. The counters of a task are `n_open` (assigned), `n_done` (submitted and counted) and `n_skipped`; hidden repeats
(round 1) change none of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from random import SystemRandom

from sqlalchemy import Integer, Select, bindparam, func, select
from sqlalchemy.orm import Session

from instructgpt.label.context import Settings
from instructgpt.label.db.models import Assignment, Batch, Person, PromptRow, Skip, Submission, Task, TaskCompletion
from instructgpt.label.db.models.base import is_id, new_id
from instructgpt.label.db.models.submissions import SKIP_REASONS
from instructgpt.label.errors import SiteError
from instructgpt.label.tasks import instructions
from instructgpt.label.tasks.queue import choose_next_task, list_eligible_batches
from instructgpt.label.tasks.task_events import record_batch_completion
from instructgpt.label.vocabulary import TaskKind

MINUTE_MS = 60_000
_EXPIRY_CHUNK_SIZE = 200  # leases that one claim expires at most, to stay fast after a quiet night


def claim_next_task(
    db: Session, settings: Settings, person: Person, kind: TaskKind | None, now_ms: int, screening: str | None = None
) -> Assignment | None:
    """Return the person's active assignment or a new one; None when no task is left.

    Args:
        kind: of the task; None: any.
        screening: the part of the screening test, for people in screening; None: ordinary tasks.

    Raises:
        SiteError: `not_active` (403) for a person of another status; `read_instructions` (409, with the purpose) before
            the newest instructions are read.
    """
    # Lock order of every transaction: person, assignment, tasks by id; this avoids deadlocks. The lock on the person
    # serializes two claims of one person.
    locked_person = _lock_person(db, person)
    if locked_person.status != ("screening" if screening else "active"):
        raise SiteError(403, "not_active", account=locked_person.status)
    expire_leases(db, now_ms)
    if (assignment := _active_assignment(db, locked_person, kind, screening)) is not None:
        return assignment
    for batch in list_eligible_batches(db, locked_person, kind, screening):
        choice = choose_next_task(db, locked_person, batch)
        if choice is None:
            continue
        task, previous = choice
        instructions_id, has_read = instructions.get_read_status(db, locked_person, batch.purpose)
        if not has_read:
            raise SiteError(409, "read_instructions", purpose=batch.purpose)
        if previous is not None and previous.state == "expired":
            return _reopen_assignment(settings, task, previous, now_ms)
        return _create_assignment(db, settings, locked_person, task, previous, instructions_id, now_ms)
    return None


_LOCK_PERSON_STATEMENT = (
    select(Person)
    .where(Person.id == bindparam("person"))
    .with_for_update(key_share=True)
    .execution_options(populate_existing=True)
)


def _lock_person(db: Session, person: Person) -> Person:
    return db.execute(_LOCK_PERSON_STATEMENT, {"person": person.id}).scalar_one()


def _active_assignment(db: Session, person: Person, kind: TaskKind | None, screening: str | None) -> Assignment | None:
    """Return the person's unfinished assignment, returned work first; None if there is none."""
    statement = _active_assignment_statement(screening is not None, kind is not None)
    return db.scalar(statement, {"person": person.id, "screening": screening, "kind": kind})


@cache  # building a statement takes longer than running it
def _active_assignment_statement(with_screening: bool, with_kind: bool) -> Select[Assignment]:
    statement = (
        select(Assignment)
        .join(Task, Task.id == Assignment.task_id)
        .join(Batch, Batch.id == Task.batch_id)
        .where(Assignment.person_id == bindparam("person"), Assignment.state.in_(("open", "returned")))
        .where(Task.state != "withdrawn")
        .where(Batch.screening == bindparam("screening") if with_screening else Batch.screening.is_(None))
        .order_by(Assignment.state.desc(), Assignment.opened_at, Assignment.id)
        .limit(1)
    )
    return statement.where(Task.kind == bindparam("kind")) if with_kind else statement


def lease_duration_ms(settings: Settings, kind: TaskKind) -> int:
    return MINUTE_MS * (settings.rank_lease if kind in ("rank", "review") else settings.write_lease)


def _create_assignment(
    db: Session,
    settings: Settings,
    person: Person,
    task: Task,
    previous: Assignment | None,
    instructions_id: str | None,
    now_ms: int,
) -> Assignment:
    """Create the person's first assignment of a task, or the hidden repeat of `previous`."""
    assignment = Assignment(
        id=new_id(),
        task_id=task.id,
        person_id=person.id,
        round=0 if previous is None else 1,
        lease_until=now_ms + lease_duration_ms(settings, task.kind),
        shown=shuffle_completion_ids(db, task),
        instructions_id=instructions_id,
        opened_at=now_ms,
    )
    db.add(assignment)
    if previous is None:
        task.n_open += 1
    db.flush()
    return assignment


def shuffle_completion_ids(db: Session, task: Task) -> list[str]:
    """Return a task's completions in an order that nothing on a page reproduces: no seed, the row stores the order."""
    statement = select(TaskCompletion.completion_id).where(TaskCompletion.task_id == task.id)
    completion_ids = list(db.scalars(statement.order_by(TaskCompletion.position)))
    SystemRandom().shuffle(completion_ids)
    return completion_ids


def _reopen_assignment(settings: Settings, task: Task, assignment: Assignment, now_ms: int) -> Assignment:
    """Renew an expired or skipped assignment: same task, same order of completions, same draft."""
    assignment.state, assignment.closed_at = "open", None
    assignment.lease_until = now_ms + lease_duration_ms(settings, task.kind)
    if assignment.round == 0:
        task.n_open += 1
    return assignment


def get_own_assignment(db: Session, person: Person, assignment_id: str) -> Assignment:
    """Return a person's assignment; raise SiteError 404 for unknown ids and other people's alike."""
    assignment = db.get(Assignment, assignment_id) if is_id(assignment_id) else None
    if assignment is None or assignment.person_id != person.id:
        raise SiteError(404, "no_such_task")
    return assignment


def lock_assignment(db: Session, assignment: Assignment) -> tuple[Assignment, Task]:
    """Reload and lock an assignment and its task until the end of the transaction."""
    statement = select(Assignment).where(Assignment.id == assignment.id)
    # FOR NO KEY UPDATE (`key_share`): inserts that reference the row need not wait.
    locking = statement.with_for_update(key_share=True).execution_options(populate_existing=True)
    locked = db.execute(locking).scalar_one()
    return locked, lock_tasks(db, [locked.task_id])[locked.task_id]


def lock_tasks(db: Session, task_ids: Iterable[str]) -> dict[str, Task]:
    """Reload and lock tasks, in the order of their ids, until the end of the transaction."""
    statement = select(Task).where(Task.id.in_(set(task_ids))).order_by(Task.id)
    rows = db.scalars(statement.with_for_update(key_share=True).execution_options(populate_existing=True))
    return {task.id: task for task in rows}


def _has_capacity(task: Task) -> bool:
    return task.state == "open" and task.n_open + task.n_done < task.overlap


def renew_lease(db: Session, settings: Settings, assignment: Assignment, now_ms: int) -> int:
    """Extend the lease of an assignment and return its end in milliseconds.

    An expired lease starts again while the task has a free place.

    Raises:
        SiteError: `lease_over` (409): the place is taken; a submission is still stored.
    """
    locked, task = lock_assignment(db, assignment)
    if locked.state == "expired" and (locked.round == 1 or _has_capacity(task)):
        _reopen_assignment(settings, task, locked, now_ms)
    if locked.state != "open":
        raise SiteError(409, "lease_over", state=locked.state)
    locked.lease_until = max(locked.lease_until, now_ms + lease_duration_ms(settings, task.kind))
    return locked.lease_until


_EXPIRED_LEASES_STATEMENT = (
    select(Assignment)
    .where(Assignment.state == "open", Assignment.lease_until < bindparam("at"))
    .order_by(Assignment.task_id)
    .limit(bindparam("most", type_=Integer()))
    .with_for_update(key_share=True, skip_locked=True)
    .execution_options(populate_existing=True)
)


def expire_leases(db: Session, now_ms: int, limit: int = _EXPIRY_CHUNK_SIZE) -> int:
    """Expire leases that ran out and return their number. Drafts stay, and late submissions are stored."""
    expired = list(db.scalars(_EXPIRED_LEASES_STATEMENT, {"at": now_ms, "most": limit}))
    tasks = lock_tasks(db, (assignment.task_id for assignment in expired)) if expired else {}
    for assignment in expired:
        assignment.state, assignment.closed_at = "expired", now_ms
        if assignment.round == 0:
            tasks[assignment.task_id].n_open -= 1
    db.flush()
    return len(expired)


def skip_assignment(
    db: Session, settings: Settings, assignment: Assignment, reason: str, note: str, now_ms: int
) -> Skip:
    """Skip a task. Every `skips_to_review` skips, it waits for a researcher. Raise SiteError (422, 409)."""
    if reason not in SKIP_REASONS:
        raise SiteError(422, "bad_reason", reasons=", ".join(SKIP_REASONS))
    locked, task = lock_assignment(db, assignment)
    if locked.state in ("submitted", "returned"):
        raise SiteError(409, "already_submitted")
    if locked.state == "skipped":
        raise SiteError(409, "already_skipped")
    if locked.round == 0:
        task.n_open -= locked.state == "open"
        task.n_skipped += 1
        if task.state == "open" and task.n_skipped % settings.skips_to_review == 0:
            task.state = "review"
    locked.state, locked.closed_at = "skipped", now_ms
    skip_row = Skip(assignment_id=locked.id, reason=reason, note=note, at=now_ms)
    db.add(skip_row)
    db.flush()
    return skip_row


def release_sensitive_assignments(db: Session, settings: Settings, person: Person, now_ms: int) -> int:
    """Skip the active sensitive tasks of a person who opts out of such content; return their number.

    Drafts stay; the screening test and returned work are not skipped.
    """
    statement = (
        select(Assignment)
        .join(Task, Task.id == Assignment.task_id)
        .join(Batch, Batch.id == Task.batch_id)
        .join(PromptRow, PromptRow.id == Task.prompt_id)
        .where(Assignment.person_id == person.id, Assignment.state == "open")
        .where(PromptRow.sensitive, Batch.screening.is_(None))
    )
    assignments = db.scalars(statement).all()
    for assignment in assignments:
        skip_assignment(db, settings, assignment, "sensitive", "", now_ms)
    return len(assignments)


def undo_skip(db: Session, settings: Settings, assignment: Assignment, now_ms: int) -> Assignment:
    """Undo a skip: the task is assigned again, with its draft; raise SiteError (409), also if its place is taken."""
    locked, task = lock_assignment(db, assignment)
    if locked.state != "skipped":
        raise SiteError(409, "not_skipped")
    cancel_skip(db, settings, locked, task, now_ms)
    if locked.round == 0 and not _has_capacity(task):
        raise SiteError(409, "task_taken")
    return _reopen_assignment(settings, task, locked, now_ms)


def cancel_skip(db: Session, settings: Settings, assignment: Assignment, task: Task, now_ms: int) -> None:
    """Stop counting a skip; the task leaves review if this skip put it there."""
    skip_row = db.scalars(select(Skip).where(Skip.assignment_id == assignment.id, Skip.undone_at.is_(None))).one()
    skip_row.undone_at = now_ms
    if assignment.round == 0:
        task.n_skipped -= 1
        if task.state == "review" and (task.n_skipped + 1) % settings.skips_to_review == 0:
            leave_review(db, task)


def leave_review(db: Session, task: Task) -> None:
    """Give a task to labelers again that waited for a researcher."""
    task.state = "done" if task.n_done >= task.overlap else "open"
    if task.state == "done":
        record_batch_completion(db, task.batch_id)


def return_to_labeler(db: Session, assignment: Assignment, now_ms: int) -> Assignment:
    """Return submitted work for a new version, until which it counts; raise SiteError `not_submitted` (409)."""
    locked, _ = lock_assignment(db, assignment)
    statement = select(Submission.id).where(Submission.assignment_id == locked.id, Submission.replaced_at.is_(None))
    if locked.state != "submitted" or db.scalar(statement) is None:
        raise SiteError(409, "not_submitted")
    locked.state, locked.closed_at = "returned", now_ms
    return locked


def find_counter_mismatches(db: Session) -> list[str]:
    """Describe every difference between the tasks' counters and the assignments and submissions."""
    first_round = [Assignment.task_id == Task.id, Assignment.round == 0]
    counted = [Submission.replaced_at.is_(None), ~Submission.surplus, Submission.invalid_reason.is_(None)]
    expected_counts = {
        "n_open": select(func.count()).where(*first_round, Assignment.state == "open"),
        "n_done": select(func.count()).select_from(Submission).join(Assignment).where(*first_round, *counted),
        "n_skipped": select(func.count(Skip.id)).join(Assignment).where(*first_round, Skip.undone_at.is_(None)),
    }
    columns = [statement.correlate(Task).scalar_subquery() for statement in expected_counts.values()]
    mismatches = []
    for task, *counts in db.execute(select(Task, *columns).execution_options(yield_per=1000)):
        for name, count in zip(expected_counts, counts, strict=True):
            if getattr(task, name) != count:
                mismatches.append(f"task {task.id}: {name} is {getattr(task, name)}, counted {count}")
        if task.state in ("open", "done") and (task.state == "done") != (task.n_done >= task.overlap):
            mismatches.append(f"task {task.id}: state is {task.state} with {task.n_done} of {task.overlap} done")
    return mismatches
