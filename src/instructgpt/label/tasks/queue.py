"""What comes next for a person: which batches are theirs, and which task of a batch.

A batch's tasks wait in one index (batch, state, gold, position). Tasks that are full leave it as `done`, so that a choice looks at few
rows however large the batch is: those in other hands, and those this person has had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from zlib import crc32

from sqlalchemy import BindParameter, ColumnElement, Select, String, and_, bindparam, exists, func, select
from sqlalchemy.orm import Session, aliased

from instructgpt.label.db.models import Assignment, Batch, Completion, Demonstration, Person, Prompt, Task, TaskCompletion
from instructgpt.label.db.models.tasks import Kind

PERSON: BindParameter[str] = bindparam("person", type_=String())
BATCH: BindParameter[str] = bindparam("batch", type_=String())
Value = str | BindParameter[str]
"""An id, or a place for one."""

Found = tuple[Task, Assignment | None]
"""A task, and the person's own earlier assignment: one that expired, or the one that is to be repeated."""


def batches_for(db: Session, person: Person, kind: Kind | None, screening: str | None) -> list[Batch]:
    """The open batches from which this person may be given tasks, the most urgent first.

    Held-out labelers never get work that could train a model (paper, appendix B.1).
    """
    chosen = select(Batch).where(
        Batch.state == "open",
        Batch.screening == screening if screening else Batch.screening.is_(None),
        Batch.cohort.is_(None) | (Batch.cohort == person.cohort),
    )
    if kind is not None:
        chosen = chosen.where(Batch.kind == kind)
    if person.cohort == "heldout":
        chosen = chosen.where(Batch.purpose != "training")
    return list(db.scalars(chosen.order_by(Batch.priority.desc(), Batch.created_at, Batch.id)))


def next_task(db: Session, person: Person, batch: Batch) -> Found | None:
    """The task of a batch that comes next for a person, locked; None when there is none.

    In this order: one whose lease ran out in their own hands, a hidden repeat that is due, a gold task that is due, the next of the
    batch; at the end of the batch the repeats that are left.
    """
    if (found := _expired(db, person, batch)) is not None:
        return found
    gap = int(batch.policy.get("repeat_gap", 0))
    repeats = batch.policy.get("repeat_share", 0) > 0
    if repeats and (found := _repeat(db, person, batch, gap)) is not None:
        return found
    if _gold_is_due(db, person, batch) and (task := _new(db, person, batch, gold=True)) is not None:
        return task, None
    if (task := _new(db, person, batch, gold=False)) is not None:
        return task, None
    if batch.screening is not None and (task := _new(db, person, batch, gold=True)) is not None:
        return task, None
    return _repeat(db, person, batch, 1) if repeats else None


def _room() -> ColumnElement[bool]:
    return and_(Task.state == "open", Task.n_open + Task.n_done < Task.overlap)


def harmless(sees_sensitive: bool) -> list[ColumnElement[bool]]:
    """Conditions on a task that keep sensitive content from whoever does not want to see it, also where they had the task before."""
    return [] if sees_sensitive else [~exists().where(Prompt.id == Task.prompt_id, Prompt.sensitive)]


def allowed(person: Value, sees_sensitive: bool) -> list[ColumnElement[bool]]:
    """Conditions on a task that a person (their id) has not had: content they do not want to see, their own prompt, their demonstration.

    A set holds somebody's demonstration also when a model gave exactly the same text.
    """
    conditions = harmless(sees_sensitive)
    shown = aliased(Completion)
    written = select(Demonstration.text_hash).where(Demonstration.person_id == person, Demonstration.prompt_id == Task.prompt_id)
    own = (
        exists()
        .where(TaskCompletion.task_id == Task.id, shown.id == TaskCompletion.completion_id)
        .where((shown.author_id == person) | shown.text_hash.in_(written.correlate(Task)))
    )
    had = exists().where(Assignment.task_id == Task.id, Assignment.person_id == person)
    by_them = exists().where(Prompt.id == Task.prompt_id, Prompt.author_id == person, Task.kind == "review")
    return [*conditions, ~had, ~own, ~by_them]


def waiting(person: Person, batch: Batch, gold: bool) -> Select[Task]:
    """The task of a batch that this person has not had and that comes first."""
    return _waiting(person.id, batch.id, gold, person.sees_sensitive)


def waiting_in(person: Person, batches: Sequence[str], most: int) -> Select[str]:
    """Ids of tasks of some batches, `most` of them at most, that this person has not had and may be given."""
    return select(Task.id).where(Task.batch_id.in_(batches), _room(), *allowed(person.id, person.sees_sensitive)).limit(most)


def _waiting(person: Value, batch: Value, gold: bool, sees_sensitive: bool) -> Select[Task]:
    chosen = select(Task).where(Task.batch_id == batch, Task.gold == gold, _room(), *allowed(person, sees_sensitive))
    return chosen.order_by(Task.position).limit(1)


@cache
def _prepared(gold: bool, sees_sensitive: bool) -> Select[Task]:
    """`waiting` for whoever and whichever batch is bound to it: putting a statement together takes longer than running it."""
    return _waiting(PERSON, BATCH, gold, sees_sensitive)


RAN_OUT = (
    select(Task)
    .join(Assignment, (Assignment.task_id == Task.id) & (Assignment.person_id == PERSON))
    .where(Assignment.state == "expired", Assignment.round == 0, Task.batch_id == BATCH, _room())
    .order_by(Assignment.id)
    .limit(1)
)
"""Tasks of a batch whose lease ran out in a person's own hands, prepared likewise."""


def _new(db: Session, person: Person, batch: Batch, gold: bool) -> Task | None:
    return _locked(db, _prepared(gold, person.sees_sensitive), {"person": person.id, "batch": batch.id})


def _locked(db: Session, chosen: Select[Task], bound: Mapping[str, str]) -> Task | None:
    """The chosen task, held until the transaction ends. Tasks that others hold right now are passed over, unless only they are left."""
    fresh = chosen.execution_options(populate_existing=True)
    found = db.scalar(fresh.with_for_update(of=Task, key_share=True, skip_locked=True), bound)
    if found is None and db.get_bind().dialect.name != "sqlite":
        found = db.scalar(fresh.with_for_update(of=Task, key_share=True), bound)
    return found


def _expired(db: Session, person: Person, batch: Batch) -> Found | None:
    """A task whose lease ran out in this person's own hands and whose place nobody took."""
    chosen = RAN_OUT if person.sees_sensitive else RAN_OUT.where(*harmless(False))
    task = _locked(db, chosen, {"person": person.id, "batch": batch.id})
    return None if task is None else (task, _mine(db, person, task, 0))


def _mine(db: Session, person: Person, task: Task, number: int) -> Assignment:
    found = db.scalars(
        select(Assignment).where(Assignment.task_id == task.id, Assignment.person_id == person.id, Assignment.round == number)
    )
    return found.one()


def _repeat(db: Session, person: Person, batch: Batch, gap: int) -> Found | None:
    """A task marked for repetition that this person handed in, `gap` or more of their assignments ago."""
    first, again = aliased(Assignment), aliased(Assignment)
    newest = select(Assignment.opened_at).where(Assignment.person_id == person.id).order_by(Assignment.opened_at.desc())
    before = db.scalar(newest.offset(gap - 1).limit(1))
    if before is None:
        return None
    chosen = (
        select(Task)
        .join(first, and_(first.task_id == Task.id, first.person_id == person.id, first.round == 0, first.state == "submitted"))
        .where(Task.batch_id == batch.id, Task.repeat, Task.state.in_(("open", "done")), *harmless(person.sees_sensitive))
        .where(~exists().where(again.task_id == Task.id, again.person_id == person.id, again.round == 1, again.state != "expired"))
        .where(first.opened_at < before)
        .order_by(first.id)
        .limit(1)
    )
    task = _locked(db, chosen, {})
    if task is None:
        return None
    started = db.scalar(select(Assignment).where(Assignment.task_id == task.id, Assignment.person_id == person.id, Assignment.round == 1))
    return task, started or _mine(db, person, task, 0)


def _gold_is_due(db: Session, person: Person, batch: Batch) -> bool:
    """Whether the next task should be a gold one: of a person's first n tasks of a batch, floor(n · share + phase) are gold.

    The phase differs from person to person, so that nobody can tell gold tasks by counting with a colleague.
    """
    share = float(batch.policy.get("gold_share", 0))
    if not share or batch.screening is not None:
        return False
    counted = (
        select(func.count(), func.count().filter(Task.gold))
        .select_from(Assignment)
        .join(Task, Task.id == Assignment.task_id)
        .where(Assignment.person_id == person.id, Assignment.round == 0, Task.batch_id == batch.id)
    )
    had, gold = db.execute(counted).one()
    phase = crc32(f"{batch.id}{person.id}".encode()) / 2**32
    return bool(gold < int((had + 1) * share + phase))
