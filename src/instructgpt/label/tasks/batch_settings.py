"""What may change after a batch is made: its name, overlap and cohort; copies; deletion while nobody has worked."""

from __future__ import annotations

from sqlalchemy import and_, case, delete, exists, insert, or_, select, update
from sqlalchemy.orm import Session

from instructgpt.label.db.models import (
    Adjudication,
    Assignment,
    Batch,
    CalibrationRoom,
    GoldAnswer,
    MessageRow,
    Person,
    PlaygroundRound,
    PromptRow,
    Task,
    TaskCompletion,
    new_id,
)
from instructgpt.label.errors import SiteError
from instructgpt.label.tasks.batches import UNLIMITED_OVERLAP
from instructgpt.records import Cohort

_COMPLETION_COLUMNS = ("completion_id", "position", "models")


def rename_batch(db: Session, batch: Batch, name: str) -> None:
    """Rename a batch; raise SiteError (422, 409) for a name that is empty or taken."""
    if not name.strip():
        raise SiteError(422, "bad_field", field="name", wrong="a batch needs a name")
    if db.scalar(select(Batch.id).where(Batch.name == name.strip(), Batch.id != batch.id)) is not None:
        raise SiteError(409, "batch_name_taken")
    batch.name = name.strip()
    db.flush()


def change_cohort(db: Session, batch: Batch, cohort: Cohort | None) -> None:
    """Change who gets the tasks, of a divided batch too; held-out labelers never get training tasks (SiteError 422)."""
    if cohort == "heldout" and batch.purpose == "training":
        raise SiteError(422, "heldout_training")
    batch.cohort = cohort
    if batch.policy.get("heldout_share") is not None:
        batch.policy = {**batch.policy, "heldout_share": None}
        db.execute(update(Task).where(Task.batch_id == batch.id).values(cohort=None))
    db.flush()


def change_overlap(db: Session, batch: Batch, overlap: int) -> int:
    """Change the labelers of each task, without the share with a higher overlap. Return the number of tasks.

    A task that more have begun already keeps them. Raise SiteError (422) for an imported batch, which has no policy.
    """
    if not batch.policy:
        raise SiteError(422, "bad_field", field="overlap", wrong="an imported batch has none")
    previous = int(batch.policy["overlap"])
    batch.policy = {
        **batch.policy,
        "overlap": overlap,
        "cohort_overlap": max(overlap, int(batch.policy["cohort_overlap"])),
    }
    in_use = Task.n_open + Task.n_done
    concerned = (Task.batch_id == batch.id, Task.overlap == previous, Task.overlap < UNLIMITED_OVERLAP)
    lifted = (Task.batch_id == batch.id, Task.overlap > previous, Task.overlap < overlap)
    changed = db.execute(
        update(Task)
        .where(or_(and_(*concerned), and_(*lifted)))
        .values(overlap=case((in_use > overlap, in_use), else_=overlap))
    )
    for state, condition in (("done", Task.n_done >= Task.overlap), ("open", Task.n_done < Task.overlap)):
        in_other = Task.state == ("open" if state == "done" else "done")
        db.execute(update(Task).where(Task.batch_id == batch.id, in_other, condition).values(state=state))
    db.flush()
    return int(changed.rowcount)  # type: ignore[attr-defined]


def duplicate_batch(db: Session, batch: Batch, name: str, created_by: Person) -> Batch:
    """Copy a batch with its tasks and gold answers as a draft, without withdrawn prompts and without any work."""
    fields = ("kind", "purpose", "screening", "cohort", "priority", "policy", "intake", "baseline", "questions")
    latest_rates = [{**row, "since": 0} for row in batch.rates[-1:]]
    copy = Batch(
        name=name, created_by=created_by.id, rates=latest_rates, **{field: getattr(batch, field) for field in fields}
    )
    rename_batch(db, copy, name)
    db.add(copy)
    db.flush()
    is_usable = (Task.batch_id == batch.id, Task.state != "withdrawn")
    statement = select(Task).outerjoin(PromptRow, PromptRow.id == Task.prompt_id)
    tasks = db.scalars(statement.where(*is_usable, PromptRow.withdrawn_at.is_(None)).order_by(Task.position)).all()
    ids = {task.id: new_id() for task in tasks}
    columns = ("kind", "prompt_id", "brief", "overlap", "position", "gold", "repeat", "cohort")
    rows = [
        {"id": ids[task.id], "batch_id": copy.id, **{column: getattr(task, column) for column in columns}}
        for task in tasks
    ]
    of_batch = select(Task.id).where(Task.batch_id == batch.id)
    completions = [
        {
            "task_id": ids[row.task_id],
            "completion_id": row.completion_id,
            "position": row.position,
            "models": row.models,
        }
        for row in db.scalars(select(TaskCompletion).where(TaskCompletion.task_id.in_(of_batch)))
        if row.task_id in ids
    ]
    gold = [
        {"task_id": ids[row.task_id], "answer": row.answer, "source": row.source, "created_by": created_by.id}
        for row in db.scalars(select(GoldAnswer).where(GoldAnswer.task_id.in_(of_batch)))
        if row.task_id in ids
    ]
    for table, values in ((Task, rows), (TaskCompletion, completions), (GoldAnswer, gold)):
        if values:
            db.execute(insert(table), values)
    return copy


def delete_empty_batch(db: Session, batch: Batch) -> None:
    """Delete a batch and its tasks; prompts and completions stay. Raise SiteError (409) once somebody has worked."""
    of_batch = select(Task.id).where(Task.batch_id == batch.id)
    tables = (Assignment, MessageRow, CalibrationRoom, Adjudication)
    conditions = [exists().where(table.task_id.in_(of_batch)) for table in tables]
    conditions.append(exists().where(PlaygroundRound.batch_id == batch.id))
    if db.scalar(select(or_(*conditions))):
        raise SiteError(409, "batch_not_empty")
    for table in (TaskCompletion, GoldAnswer):
        db.execute(delete(table).where(table.task_id.in_(of_batch)))
    db.execute(delete(Task).where(Task.batch_id == batch.id))
    db.delete(batch)
    db.flush()
