"""Who works on what: claims with leases, heartbeats, skips, and counters that can be recounted.

A claim is one transaction: leases that ran out are taken back, a task still in the person's hands is given again, otherwise one is
chosen, counted and recorded. Rows are locked in one order (person, assignment, tasks by id), so that claims do not wait in a circle.
The counters of a task are `n_open` (in somebody's hands), `n_done` (handed in and counted) and `n_skipped`; hidden repeats (round 1)
touch none of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from random import Random

from sqlalchemy import Integer, Select, bindparam, func, select
from sqlalchemy.orm import Session

from instructgpt.label.context import Settings
from instructgpt.label.db.models import Assignment, Batch, Person, PromptRow, Skip, Submission, Task, TaskCompletion
from instructgpt.label.db.models.base import is_id, new_id
from instructgpt.label.db.models.submissions import SKIP_REASONS
from instructgpt.label.db.models.tasks import TaskKind
from instructgpt.label.errors import SiteError
from instructgpt.label.tasks import instructions
from instructgpt.label.tasks.queue import choose_next_task, list_eligible_batches

MINUTE_MS = 60_000
_EXPIRY_CHUNK_SIZE = 200
"""Leases that one claim takes back at most, so that the first claim after a long night is not a slow one."""


def claim_next_task(
    db: Session, settings: Settings, person: Person, kind: TaskKind | None, now_ms: int, screening: str | None = None
) -> Assignment | None:
    """The next task for somebody, or the one still in their hands; None when there is nothing for them now.

    Args:
        kind: only tasks of this kind; None: any.
        at: the time, in milliseconds.
        screening: the part of the screening test, for people in screening; None: work.

    Raises:
        Problem: `not_active` (403) unless the person may work, or is in screening where that is asked for; `read_instructions` (409,
            with the purpose) before the newest version of the instructions is read.
    """
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
        return (
            _reopen_assignment(settings, task, previous, now_ms)
            if _is_expired(previous)
            else _create_assignment(db, settings, locked_person, task, previous, instructions_id, now_ms)
        )
    return None


def _is_expired(previous: Assignment | None) -> bool:
    return previous is not None and previous.state == "expired"


_LOCK_PERSON_STATEMENT = (
    select(Person)
    .where(Person.id == bindparam("person"))
    .with_for_update(key_share=True)
    .execution_options(populate_existing=True)
)


def _lock_person(db: Session, person: Person) -> Person:
    """The person's row, held until the transaction ends: two claims of one person come one after the other."""
    return db.execute(_LOCK_PERSON_STATEMENT, {"person": person.id}).scalar_one()


def _active_assignment(db: Session, person: Person, kind: TaskKind | None, screening: str | None) -> Assignment | None:
    """What this person was given and has not handed in; work that a researcher gave back comes first. Withdrawn tasks are left out."""
    statement = _active_assignment_statement(screening is not None, kind is not None)
    return db.scalar(statement, {"person": person.id, "screening": screening, "kind": kind})


@cache
def _active_assignment_statement(with_screening: bool, with_kind: bool) -> Select[Assignment]:
    """The statement of `in_hand`, put together once."""
    statement = (
        select(Assignment)
        .join(Task, Task.id == Assignment.task_id)
        .join(Batch, Batch.id == Task.batch_id)
        .where(
            Assignment.person_id == bindparam("person"),
            Assignment.state.in_(("open", "returned")),
            Task.state != "withdrawn",
        )
        .where(Batch.screening == bindparam("screening") if with_screening else Batch.screening.is_(None))
        .order_by(Assignment.state.desc(), Assignment.opened_at, Assignment.id)
        .limit(1)
    )
    return statement.where(Task.kind == bindparam("kind")) if with_kind else statement


def lease_duration_ms(settings: Settings, kind: TaskKind) -> int:
    """How long a task of a kind stays in somebody's hands, in milliseconds."""
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
    """A new assignment: the first of this person for this task, or the hidden repeat of an earlier one. `newest`: of the instructions."""
    assignment_id = new_id()
    assignment = Assignment(
        id=assignment_id,
        task_id=task.id,
        person_id=person.id,
        round=0 if previous is None else 1,
        lease_until=now_ms + lease_duration_ms(settings, task.kind),
        shown=_shuffled_completion_ids(db, task, assignment_id),
        instructions_id=instructions_id,
        opened_at=now_ms,
    )
    db.add(assignment)
    if previous is None:
        task.n_open += 1
    db.flush()
    return assignment


def _shuffled_completion_ids(db: Session, task: Task, seed: str) -> list[str]:
    """The completions of a task in an order of this assignment's own."""
    statement = (
        select(TaskCompletion.completion_id).where(TaskCompletion.task_id == task.id).order_by(TaskCompletion.position)
    )
    completion_ids = list(db.scalars(statement))
    Random(seed).shuffle(completion_ids)
    return completion_ids


def _reopen_assignment(settings: Settings, task: Task, assignment: Assignment | None, now_ms: int) -> Assignment:
    """An assignment of the person's own whose lease ran out: the same task in the same order, with its draft."""
    assert assignment is not None
    assignment.state, assignment.closed_at = "open", None
    assignment.lease_until = now_ms + lease_duration_ms(settings, task.kind)
    if assignment.round == 0:
        task.n_open += 1
    return assignment


def get_own_assignment(db: Session, person: Person, assignment_id: str) -> Assignment:
    """A person's own assignment.

    Raises:
        Problem: `no_such_task` (404), for one that does not exist and for somebody else's alike.
    """
    assignment = db.get(Assignment, assignment_id) if is_id(assignment_id) else None
    if assignment is None or assignment.person_id != person.id:
        raise SiteError(404, "no_such_task")
    return assignment


def lock_assignment(db: Session, assignment: Assignment) -> tuple[Assignment, Task]:
    """An assignment and its task as they stand now, held until the transaction ends."""
    statement = select(Assignment).where(Assignment.id == assignment.id)
    locked = db.execute(
        statement.with_for_update(key_share=True).execution_options(populate_existing=True)
    ).scalar_one()
    return locked, lock_tasks(db, [locked.task_id])[locked.task_id]


def lock_tasks(db: Session, task_ids: Iterable[str]) -> dict[str, Task]:
    """Tasks as they stand now, held until the transaction ends; always locked in the order of their ids."""
    statement = select(Task).where(Task.id.in_(set(task_ids))).order_by(Task.id)
    rows = db.scalars(statement.with_for_update(key_share=True).execution_options(populate_existing=True))
    return {task.id: task for task in rows}


def _has_capacity(task: Task) -> bool:
    """Whether one more labeler can be given the task."""
    return task.state == "open" and task.n_open + task.n_done < task.overlap


def renew_lease(db: Session, settings: Settings, assignment: Assignment, now_ms: int) -> int:
    """Keep a task in hand while somebody works on it. -> when the lease ends now, in milliseconds.

    A lease that ran out begins again while nobody else took the place.

    Raises:
        Problem: `lease_over` (409): the place was given to somebody else; what is handed in is kept all the same.
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
    """Take back tasks whose lease ran out. Drafts stay, and a late submission is kept. -> how many."""
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
    """Hand a task back with a reason. After every `skips_to_review` skips a researcher looks at it before anybody else gets it.

    Raises:
        Problem: `bad_reason` (422), `already_submitted` (409), `already_skipped` (409).
    """
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
    """Skip the sensitive tasks in the hands of somebody who wants no such content any more. Returns how many there were.

    Drafts are kept, as with every skip; the screening test and what a researcher returned stay.
    """
    statement = (
        select(Assignment)
        .join(Task, Task.id == Assignment.task_id)
        .join(Batch, Batch.id == Task.batch_id)
        .join(PromptRow, PromptRow.id == Task.prompt_id)
        .where(
            Assignment.person_id == person.id,
            Assignment.state == "open",
            PromptRow.sensitive,
            Batch.screening.is_(None),
        )
    )
    assignments = db.scalars(statement).all()
    for assignment in assignments:
        skip_assignment(db, settings, assignment, "sensitive", "", now_ms)
    return len(assignments)


def undo_skip(db: Session, settings: Settings, assignment: Assignment, now_ms: int) -> Assignment:
    """Take a skip back: the task is in hand again, with its draft.

    Raises:
        Problem: `not_skipped` (409), or `task_taken` (409): it was given to somebody else since.
    """
    locked, task = lock_assignment(db, assignment)
    if locked.state != "skipped":
        raise SiteError(409, "not_skipped")
    cancel_skip(db, settings, locked, task, now_ms)
    if locked.round == 0 and not _has_capacity(task):
        raise SiteError(409, "task_taken")
    return _reopen_assignment(settings, task, locked, now_ms)


def cancel_skip(db: Session, settings: Settings, assignment: Assignment, task: Task, now_ms: int) -> None:
    """The skip of an assignment no longer counts; its row stays. The task leaves review if nothing else holds it there."""
    skip_row = db.scalars(select(Skip).where(Skip.assignment_id == assignment.id, Skip.undone_at.is_(None))).one()
    skip_row.undone_at = now_ms
    if assignment.round == 0:
        task.n_skipped -= 1
        if task.state == "review" and (task.n_skipped + 1) % settings.skips_to_review == 0:
            task.state = "done" if task.n_done >= task.overlap else "open"


def return_to_labeler(db: Session, assignment: Assignment, now_ms: int) -> Assignment:
    """Give handed-in work back to its labeler to be looked at again. It counts as it is until a new version comes.

    Raises:
        Problem: `not_submitted` (409).
    """
    locked, _ = lock_assignment(db, assignment)
    statement = select(Submission.id).where(Submission.assignment_id == locked.id, Submission.replaced_at.is_(None))
    if locked.state != "submitted" or db.scalar(statement) is None:
        raise SiteError(409, "not_submitted")
    locked.state, locked.closed_at = "returned", now_ms
    return locked


def find_counter_mismatches(db: Session) -> list[str]:
    """Compare the counters of all tasks with what the assignments and submissions say. -> every difference, in words."""
    first_round = [Assignment.task_id == Task.id, Assignment.round == 0]
    is_counted = [Submission.replaced_at.is_(None), ~Submission.surplus, Submission.invalid_reason.is_(None)]
    expected_counts = {
        "n_open": select(func.count()).where(*first_round, Assignment.state == "open"),
        "n_done": select(func.count()).select_from(Submission).join(Assignment).where(*first_round, *is_counted),
        "n_skipped": select(func.count())
        .select_from(Skip)
        .join(Assignment)
        .where(*first_round, Skip.undone_at.is_(None)),
    }
    rows = db.execute(
        select(
            Task, *(statement.correlate(Task).scalar_subquery() for statement in expected_counts.values())
        ).execution_options(yield_per=1000)
    )
    mismatches = []
    for task, *counts in rows:
        for name, count in zip(expected_counts, counts, strict=True):
            if getattr(task, name) != count:
                mismatches.append(f"task {task.id}: {name} is {getattr(task, name)}, counted {count}")
        if task.state in ("open", "done") and (task.state == "done") != (task.n_done >= task.overlap):
            mismatches.append(f"task {task.id}: state is {task.state} with {task.n_done} of {task.overlap} done")
    return mismatches
