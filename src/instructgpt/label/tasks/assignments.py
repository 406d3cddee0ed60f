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
from instructgpt.label.db.models import Assignment, Batch, Person, Prompt, Skip, Submission, Task, TaskCompletion
from instructgpt.label.db.models.base import is_id, new_id
from instructgpt.label.db.models.submissions import SKIP_REASONS
from instructgpt.label.db.models.tasks import Kind
from instructgpt.label.errors import Problem
from instructgpt.label.tasks import instructions
from instructgpt.label.tasks.queue import batches_for, next_task

MINUTE = 60_000
REAPED_AT_ONCE = 200
"""Leases that one claim takes back at most, so that the first claim after a long night is not a slow one."""


def claim(db: Session, settings: Settings, person: Person, kind: Kind | None, at: int, screening: str | None = None) -> Assignment | None:
    """The next task for somebody, or the one still in their hands; None when there is nothing for them now.

    Args:
        kind: only tasks of this kind; None: any.
        at: the time, in milliseconds.
        screening: the part of the screening test, for people in screening; None: work.

    Raises:
        Problem: `not_active` (403) unless the person may work, or is in screening where that is asked for; `read_instructions` (409,
            with the purpose) before the newest version of the instructions is read.
    """
    me = lock_person(db, person)
    if me.status != ("screening" if screening else "active"):
        raise Problem(403, "not_active", account=me.status)
    reap(db, at)
    if (mine := in_hand(db, me, kind, screening)) is not None:
        return mine
    for batch in batches_for(db, me, kind, screening):
        found = next_task(db, me, batch)
        if found is None:
            continue
        task, earlier = found
        newest, read = instructions.standing(db, me, batch.purpose)
        if not read:
            raise Problem(409, "read_instructions", purpose=batch.purpose)
        return _open_again(settings, task, earlier, at) if _expired(earlier) else _give(db, settings, me, task, earlier, newest, at)
    return None


def _expired(earlier: Assignment | None) -> bool:
    return earlier is not None and earlier.state == "expired"


ONE_PERSON = (
    select(Person).where(Person.id == bindparam("person")).with_for_update(key_share=True).execution_options(populate_existing=True)
)


def lock_person(db: Session, person: Person) -> Person:
    """The person's row, held until the transaction ends: two claims of one person come one after the other."""
    return db.execute(ONE_PERSON, {"person": person.id}).scalar_one()


def in_hand(db: Session, person: Person, kind: Kind | None, screening: str | None) -> Assignment | None:
    """What this person was given and has not handed in; work that a researcher gave back comes first. Withdrawn tasks are left out."""
    found = _in_hand(screening is not None, kind is not None)
    return db.scalar(found, {"person": person.id, "screening": screening, "kind": kind})


@cache
def _in_hand(of_screening: bool, of_kind: bool) -> Select[Assignment]:
    """The statement of `in_hand`, put together once."""
    found = (
        select(Assignment)
        .join(Task, Task.id == Assignment.task_id)
        .join(Batch, Batch.id == Task.batch_id)
        .where(Assignment.person_id == bindparam("person"), Assignment.state.in_(("open", "returned")), Task.state != "withdrawn")
        .where(Batch.screening == bindparam("screening") if of_screening else Batch.screening.is_(None))
        .order_by(Assignment.state.desc(), Assignment.opened_at, Assignment.id)
        .limit(1)
    )
    return found.where(Task.kind == bindparam("kind")) if of_kind else found


def lease(settings: Settings, kind: Kind) -> int:
    """How long a task of a kind stays in somebody's hands, in milliseconds."""
    return MINUTE * (settings.rank_lease if kind in ("rank", "review") else settings.write_lease)


def _give(
    db: Session, settings: Settings, me: Person, task: Task, earlier: Assignment | None, newest: str | None, at: int
) -> Assignment:  # fmt: skip
    """A new assignment: the first of this person for this task, or the hidden repeat of an earlier one. `newest`: of the instructions."""
    number = new_id()
    given = Assignment(
        id=number,
        task_id=task.id,
        person_id=me.id,
        round=0 if earlier is None else 1,
        lease_until=at + lease(settings, task.kind),
        shown=_shuffled(db, task, number),
        instructions_id=newest,
        opened_at=at,
    )
    db.add(given)
    if earlier is None:
        task.n_open += 1
    db.flush()
    return given


def _shuffled(db: Session, task: Task, seed: str) -> list[str]:
    """The completions of a task in an order of this assignment's own."""
    chosen = select(TaskCompletion.completion_id).where(TaskCompletion.task_id == task.id).order_by(TaskCompletion.position)
    completions = list(db.scalars(chosen))
    Random(seed).shuffle(completions)
    return completions


def _open_again(settings: Settings, task: Task, assignment: Assignment | None, at: int) -> Assignment:
    """An assignment of the person's own whose lease ran out: the same task in the same order, with its draft."""
    assert assignment is not None
    assignment.state, assignment.closed_at = "open", None
    assignment.lease_until = at + lease(settings, task.kind)
    if assignment.round == 0:
        task.n_open += 1
    return assignment


def own(db: Session, person: Person, assignment_id: str) -> Assignment:
    """A person's own assignment.

    Raises:
        Problem: `no_such_task` (404), for one that does not exist and for somebody else's alike.
    """
    found = db.get(Assignment, assignment_id) if is_id(assignment_id) else None
    if found is None or found.person_id != person.id:
        raise Problem(404, "no_such_task")
    return found


def lock(db: Session, assignment: Assignment) -> tuple[Assignment, Task]:
    """An assignment and its task as they stand now, held until the transaction ends."""
    mine = select(Assignment).where(Assignment.id == assignment.id)
    now_mine = db.execute(mine.with_for_update(key_share=True).execution_options(populate_existing=True)).scalar_one()
    return now_mine, lock_tasks(db, [now_mine.task_id])[now_mine.task_id]


def lock_tasks(db: Session, ids: Iterable[str]) -> dict[str, Task]:
    """Tasks as they stand now, held until the transaction ends; always locked in the order of their ids."""
    chosen = select(Task).where(Task.id.in_(set(ids))).order_by(Task.id)
    rows = db.scalars(chosen.with_for_update(key_share=True).execution_options(populate_existing=True))
    return {task.id: task for task in rows}


def has_room(task: Task) -> bool:
    """Whether one more labeler can be given the task."""
    return task.state == "open" and task.n_open + task.n_done < task.overlap


def heartbeat(db: Session, settings: Settings, assignment: Assignment, at: int) -> int:
    """Keep a task in hand while somebody works on it. -> when the lease ends now, in milliseconds.

    A lease that ran out begins again while nobody else took the place.

    Raises:
        Problem: `lease_over` (409): the place was given to somebody else; what is handed in is kept all the same.
    """
    mine, task = lock(db, assignment)
    if mine.state == "expired" and (mine.round == 1 or has_room(task)):
        _open_again(settings, task, mine, at)
    if mine.state != "open":
        raise Problem(409, "lease_over", state=mine.state)
    mine.lease_until = max(mine.lease_until, at + lease(settings, task.kind))
    return mine.lease_until


RAN_OUT = (
    select(Assignment)
    .where(Assignment.state == "open", Assignment.lease_until < bindparam("at"))
    .order_by(Assignment.task_id)
    .limit(bindparam("most", type_=Integer()))
    .with_for_update(key_share=True, skip_locked=True)
    .execution_options(populate_existing=True)
)


def reap(db: Session, at: int, most: int = REAPED_AT_ONCE) -> int:
    """Take back tasks whose lease ran out. Drafts stay, and a late submission is kept. -> how many."""
    late = list(db.scalars(RAN_OUT, {"at": at, "most": most}))
    tasks = lock_tasks(db, (each.task_id for each in late)) if late else {}
    for each in late:
        each.state, each.closed_at = "expired", at
        if each.round == 0:
            tasks[each.task_id].n_open -= 1
    db.flush()
    return len(late)


def skip(db: Session, settings: Settings, assignment: Assignment, reason: str, note: str, at: int) -> Skip:
    """Hand a task back with a reason. After every `skips_to_review` skips a researcher looks at it before anybody else gets it.

    Raises:
        Problem: `bad_reason` (422), `already_submitted` (409), `already_skipped` (409).
    """
    if reason not in SKIP_REASONS:
        raise Problem(422, "bad_reason", reasons=", ".join(SKIP_REASONS))
    mine, task = lock(db, assignment)
    if mine.state in ("submitted", "returned"):
        raise Problem(409, "already_submitted")
    if mine.state == "skipped":
        raise Problem(409, "already_skipped")
    if mine.round == 0:
        task.n_open -= mine.state == "open"
        task.n_skipped += 1
        if task.state == "open" and task.n_skipped % settings.skips_to_review == 0:
            task.state = "review"
    mine.state, mine.closed_at = "skipped", at
    skipped = Skip(assignment_id=mine.id, reason=reason, note=note, at=at)
    db.add(skipped)
    db.flush()
    return skipped


def put_back_sensitive(db: Session, settings: Settings, person: Person, at: int) -> int:
    """Skip the sensitive tasks in the hands of somebody who wants no such content any more. Returns how many there were.

    Drafts are kept, as with every skip; the screening test and what a researcher returned stay.
    """
    held = (
        select(Assignment)
        .join(Task, Task.id == Assignment.task_id)
        .join(Batch, Batch.id == Task.batch_id)
        .join(Prompt, Prompt.id == Task.prompt_id)
        .where(Assignment.person_id == person.id, Assignment.state == "open", Prompt.sensitive, Batch.screening.is_(None))
    )
    mine = db.scalars(held).all()
    for assignment in mine:
        skip(db, settings, assignment, "sensitive", "", at)
    return len(mine)


def undo_skip(db: Session, settings: Settings, assignment: Assignment, at: int) -> Assignment:
    """Take a skip back: the task is in hand again, with its draft.

    Raises:
        Problem: `not_skipped` (409), or `task_taken` (409): it was given to somebody else since.
    """
    mine, task = lock(db, assignment)
    if mine.state != "skipped":
        raise Problem(409, "not_skipped")
    take_back_skip(db, settings, mine, task, at)
    if mine.round == 0 and not has_room(task):
        raise Problem(409, "task_taken")
    return _open_again(settings, task, mine, at)


def take_back_skip(db: Session, settings: Settings, assignment: Assignment, task: Task, at: int) -> None:
    """The skip of an assignment no longer counts; its row stays. The task leaves review if nothing else holds it there."""
    skipped = db.scalars(select(Skip).where(Skip.assignment_id == assignment.id, Skip.undone_at.is_(None))).one()
    skipped.undone_at = at
    if assignment.round == 0:
        task.n_skipped -= 1
        if task.state == "review" and (task.n_skipped + 1) % settings.skips_to_review == 0:
            task.state = "done" if task.n_done >= task.overlap else "open"


def return_to_labeler(db: Session, assignment: Assignment, at: int) -> Assignment:
    """Give handed-in work back to its labeler to be looked at again. It counts as it is until a new version comes.

    Raises:
        Problem: `not_submitted` (409).
    """
    mine, _ = lock(db, assignment)
    current = select(Submission.id).where(Submission.assignment_id == mine.id, Submission.replaced_at.is_(None))
    if mine.state != "submitted" or db.scalar(current) is None:
        raise Problem(409, "not_submitted")
    mine.state, mine.closed_at = "returned", at
    return mine


def recount(db: Session) -> list[str]:
    """Compare the counters of all tasks with what the assignments and submissions say. -> every difference, in words."""
    mine = [Assignment.task_id == Task.id, Assignment.round == 0]
    counted = [Submission.replaced_at.is_(None), ~Submission.surplus, Submission.invalid_reason.is_(None)]
    truth = {
        "n_open": select(func.count()).where(*mine, Assignment.state == "open"),
        "n_done": select(func.count()).select_from(Submission).join(Assignment).where(*mine, *counted),
        "n_skipped": select(func.count()).select_from(Skip).join(Assignment).where(*mine, Skip.undone_at.is_(None)),
    }
    rows = db.execute(select(Task, *(one.correlate(Task).scalar_subquery() for one in truth.values())).execution_options(yield_per=1000))
    found = []
    for task, *counts in rows:
        for name, count in zip(truth, counts, strict=True):
            if getattr(task, name) != count:
                found.append(f"task {task.id}: {name} is {getattr(task, name)}, counted {count}")
        if task.state in ("open", "done") and (task.state == "done") != (task.n_done >= task.overlap):
            found.append(f"task {task.id}: state is {task.state} with {task.n_done} of {task.overlap} done")
    return found
