"""Choose a person's next task: the eligible batches, then the next task of a batch.

An index (batch, state, gold, position) holds the waiting tasks. Full tasks leave it as `done`, so a choice scans few
rows whatever the size of the batch: the tasks in progress and those that this person has had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from zlib import crc32

from sqlalchemy import BindParameter, ColumnElement, Select, String, and_, bindparam, exists, func, or_, select
from sqlalchemy.orm import Session, aliased

from instructgpt.label.db.models import (
    Assignment,
    Batch,
    CompletionRow,
    DemonstrationRow,
    Person,
    PromptRow,
    Task,
    TaskCompletion,
)
from instructgpt.label.vocabulary import TaskKind

_PERSON_PARAM: BindParameter[str] = bindparam("person", type_=String())
_BATCH_PARAM: BindParameter[str] = bindparam("batch", type_=String())
_COHORT_PARAM: BindParameter[str | None] = bindparam("cohort", type_=String())
_IdOrParam = str | BindParameter[str]

_TaskChoice = tuple[Task, Assignment | None]
"""A task, and the person's earlier assignment of it if it is to be reopened or repeated."""


def list_eligible_batches(db: Session, person: Person, kind: TaskKind | None, screening: str | None) -> list[Batch]:
    """Return a person's open batches by priority; held-out labelers never get training tasks (paper, B.1)."""
    statement = select(Batch).where(
        Batch.state == "open",
        Batch.screening == screening if screening else Batch.screening.is_(None),
        Batch.cohort.is_(None) | (Batch.cohort == person.cohort),
    )
    if kind is not None:
        statement = statement.where(Batch.kind == kind)
    if person.cohort == "heldout":
        statement = statement.where(Batch.purpose != "training")
    return list(db.scalars(statement.order_by(Batch.priority.desc(), Batch.created_at, Batch.id)))


def choose_next_task(db: Session, person: Person, batch: Batch) -> _TaskChoice | None:
    """Choose and lock a person's next task of a batch; None when there is none.

    In this order: an expired assignment of theirs, a due hidden repeat, a due gold task, the next task, the remaining
    repeats.
    """
    if (choice := _next_expired_task(db, person, batch)) is not None:
        return choice
    gap = int(batch.policy.get("repeat_gap", 0))
    repeats = batch.policy.get("repeat_share", 0) > 0
    if repeats and (choice := _next_repeat(db, person, batch, gap)) is not None:
        return choice
    if _is_gold_due(db, person, batch) and (task := _next_new_task(db, person, batch, gold=True)) is not None:
        return task, None
    if (task := _next_new_task(db, person, batch, gold=False)) is not None:
        return task, None
    if batch.screening is not None and (task := _next_new_task(db, person, batch, gold=True)) is not None:
        return task, None
    return _next_repeat(db, person, batch, 1) if repeats else None


def _has_capacity() -> ColumnElement[bool]:
    return and_(Task.state == "open", Task.n_open + Task.n_done < Task.overlap)


def _for_cohort(cohort: str | BindParameter[str | None] | None) -> ColumnElement[bool]:
    """Condition on tasks that are for everybody, or for this cohort."""
    return or_(Task.cohort.is_(None), Task.cohort == cohort)


def _non_sensitive(sees_sensitive: bool) -> list[ColumnElement[bool]]:
    """Conditions on tasks for a person's choice about sensitive content."""
    return [] if sees_sensitive else [~exists().where(PromptRow.id == Task.prompt_id, PromptRow.sensitive)]


def _eligible(person: _IdOrParam, sees_sensitive: bool) -> list[ColumnElement[bool]]:
    """Conditions on tasks that a person has not had, without their own prompts and demonstrations' texts."""
    conditions = _non_sensitive(sees_sensitive)
    completion = aliased(CompletionRow)
    demonstration_hashes = select(DemonstrationRow.text_hash).where(
        DemonstrationRow.person_id == person, DemonstrationRow.prompt_id == Task.prompt_id
    )
    contains_own = (
        exists()
        .where(TaskCompletion.task_id == Task.id, completion.id == TaskCompletion.completion_id)
        .where((completion.author_id == person) | completion.text_hash.in_(demonstration_hashes.correlate(Task)))
    )
    already_assigned = exists().where(Assignment.task_id == Task.id, Assignment.person_id == person)
    wrote_prompt = exists().where(PromptRow.id == Task.prompt_id, PromptRow.author_id == person, Task.kind == "review")
    return [*conditions, ~already_assigned, ~contains_own, ~wrote_prompt]


def is_eligible(db: Session, person: Person, task: Task) -> bool:
    """Return whether a person has not had a task and may get it, apart from its batch and its free places."""
    conditions = _eligible(person.id, person.sees_sensitive)
    statement = select(Task.id).where(Task.id == task.id, _for_cohort(person.cohort), *conditions)
    return db.scalar(statement) is not None


def pending_task_statement(person: Person, batch: Batch, gold: bool) -> Select[Task]:
    """Select the first task of a batch that a person has not had."""
    return _build_pending_statement(person.id, batch.id, person.cohort, gold, person.sees_sensitive)


def pending_task_ids_statement(person: Person, batches: Sequence[str], limit: int) -> Select[str]:
    """Select up to `limit` ids of tasks that a person has not had."""
    statement = select(Task.id).where(Task.batch_id.in_(batches), _has_capacity(), _for_cohort(person.cohort))
    return statement.where(*_eligible(person.id, person.sees_sensitive)).limit(limit)


def _build_pending_statement(
    person: _IdOrParam,
    batch: _IdOrParam,
    cohort: str | BindParameter[str | None] | None,
    gold: bool,
    sees_sensitive: bool,
) -> Select[Task]:
    statement = select(Task).where(Task.batch_id == batch, Task.gold == gold, _has_capacity(), _for_cohort(cohort))
    return statement.where(*_eligible(person, sees_sensitive)).order_by(Task.position).limit(1)


@cache  # building a statement takes longer than running it
def _cached_pending_statement(gold: bool, sees_sensitive: bool) -> Select[Task]:
    return _build_pending_statement(_PERSON_PARAM, _BATCH_PARAM, _COHORT_PARAM, gold, sees_sensitive)


_EXPIRED_TASKS_STATEMENT = (
    select(Task)
    .join(Assignment, (Assignment.task_id == Task.id) & (Assignment.person_id == _PERSON_PARAM))
    .where(Assignment.state == "expired", Assignment.round == 0, Task.batch_id == _BATCH_PARAM, _has_capacity())
    .order_by(Assignment.id)
    .limit(1)
)


def _next_new_task(db: Session, person: Person, batch: Batch, gold: bool) -> Task | None:
    statement = _cached_pending_statement(gold, person.sees_sensitive)
    return _lock_first_task(db, statement, {"person": person.id, "batch": batch.id, "cohort": person.cohort})


def _lock_first_task(db: Session, statement: Select[Task], parameters: Mapping[str, str | None]) -> Task | None:
    # Skip rows that other claims hold right now. If only such rows are left, wait for one: it may still have a place.
    refreshed = statement.execution_options(populate_existing=True)
    task = db.scalar(refreshed.with_for_update(of=Task, key_share=True, skip_locked=True), parameters)
    if task is None and db.get_bind().dialect.name != "sqlite":
        task = db.scalar(refreshed.with_for_update(of=Task, key_share=True), parameters)
    return task


def _next_expired_task(db: Session, person: Person, batch: Batch) -> _TaskChoice | None:
    """Choose a task whose lease this person let run out and that still has a place."""
    statement = _EXPIRED_TASKS_STATEMENT.where(*_non_sensitive(person.sees_sensitive))
    task = _lock_first_task(db, statement, {"person": person.id, "batch": batch.id})
    return None if task is None else (task, _get_assignment(db, person, task, 0))


def _get_assignment(db: Session, person: Person, task: Task, round_number: int) -> Assignment | None:
    statement = select(Assignment).where(Assignment.task_id == task.id, Assignment.person_id == person.id)
    return db.scalar(statement.where(Assignment.round == round_number))


def _next_repeat(db: Session, person: Person, batch: Batch, gap: int) -> _TaskChoice | None:
    """Choose a task marked for repetition that this person submitted `gap` or more assignments ago."""
    first, repeat = aliased(Assignment), aliased(Assignment)
    newest = select(Assignment.opened_at).where(Assignment.person_id == person.id).order_by(Assignment.opened_at.desc())
    cutoff_ms = db.scalar(newest.offset(gap - 1).limit(1))
    if cutoff_ms is None:
        return None
    already_repeated = (
        exists()
        .where(repeat.task_id == Task.id, repeat.person_id == person.id)
        .where(repeat.round == 1, repeat.state != "expired")
    )
    statement = (
        select(Task)
        .join(first, and_(first.task_id == Task.id, first.person_id == person.id))
        .where(first.round == 0, first.state == "submitted", first.opened_at < cutoff_ms)
        .where(Task.batch_id == batch.id, Task.repeat, Task.state.in_(("open", "done")))
        .where(*_non_sensitive(person.sees_sensitive), ~already_repeated)
        .order_by(first.id)
        .limit(1)
    )
    task = _lock_first_task(db, statement, {})
    if task is None:
        return None
    return task, _get_assignment(db, person, task, 1) or _get_assignment(db, person, task, 0)


def _is_gold_due(db: Session, person: Person, batch: Batch) -> bool:
    """Return whether the next task is a gold one: of the first n tasks of a batch, floor(n · share + phase) are gold.

    The phase differs between people, so that colleagues who compare positions cannot detect gold tasks.
    """
    share = float(batch.policy.get("gold_share", 0))
    if not share or batch.screening is not None:
        return False
    statement = (
        select(func.count(), func.count().filter(Task.gold))
        .select_from(Assignment)
        .join(Task, Task.id == Assignment.task_id)
        .where(Assignment.person_id == person.id, Assignment.round == 0, Task.batch_id == batch.id)
    )
    assigned, gold = db.execute(statement).one()
    phase = crc32(f"{batch.id}{person.id}".encode()) / 2**32
    return bool(gold < int((assigned + 1) * share + phase))
