"""What programs do with a key: batches made and opened, tasks and submissions read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, model_validator
from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.label.auth.dependencies import Visitor, site_of
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Assignment, Batch, Completion, Person, Prompt, Submission, Task
from instructgpt.label.db.models.tasks import Kind
from instructgpt.label.tasks import batches
from instructgpt.label.tasks.submission_contents import form_of
from instructgpt.label.web.api.prompts import PromptGiven, prompt_shown
from instructgpt.label.web.api.schemas import Given, Page, Reads, Writes, caller, mended
from instructgpt.label.web.params import After, Id, Limit, Since, existing, refusing
from instructgpt.records import Cohort, as_record
from instructgpt.records import Completion as CompletionRecord
from instructgpt.records import Prompt as PromptRecord

router = APIRouter(prefix="/api/v1", tags=["service"])


class Stored(Given):
    """Prompts and completions that are on the site already; what is not said is not looked at."""

    models: tuple[str, ...] = ()
    source: str | None = None
    split: str | None = None
    use_case: str | None = None


class BatchGiven(Given):
    """A batch to be made of what is given here, or of what is stored."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    kind: Kind
    purpose: str = "training"
    prompts: tuple[PromptGiven, ...] = ()
    completions: tuple[CompletionRecord, ...] = ()
    stored: Stored | None = None
    briefs: tuple[dict[str, Any], ...] = ()
    policy: batches.Policy = batches.Policy()
    screening: str | None = None
    cohort: Cohort | None = None
    baseline: str | None = None
    gold: dict[str, dict[str, Any]] | None = None
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    open: bool = False

    @model_validator(mode="before")
    @classmethod
    def _any_output(cls, value: Any) -> Any:
        return {**value, "completions": mended(value["completions"])} if isinstance(value, dict) and "completions" in value else value


class BatchShown(BaseModel):
    """A batch, what came into it, and how far it is."""

    id: str
    name: str
    kind: str
    purpose: str
    screening: str | None
    cohort: str | None
    state: str
    priority: int
    policy: dict[str, Any]
    intake: dict[str, Any]
    baseline: str | None
    created_at: int
    closed_at: int | None
    progress: batches.Progress


def batch_shown(db: Session, batch: Batch) -> BatchShown:
    """A batch as the API shows it."""
    told = {name: getattr(batch, name) for name in BatchShown.model_fields if name != "progress"}
    return BatchShown(**told, progress=batches.progress(db, batch))


@router.get("/batches")
def list_batches(request: Request, _: Reads) -> list[BatchShown]:
    """All batches, the newest first."""
    with site_of(request).database.read() as db:
        return [batch_shown(db, batch) for batch in db.scalars(select(Batch).order_by(Batch.id.desc()))]


@router.get("/batches/{key}")
def look_at_batch(request: Request, _: Reads, key: Id) -> BatchShown:
    """One batch."""
    with site_of(request).database.read() as db:
        return batch_shown(db, existing(db.get(Batch, key)))


@router.post("/batches", status_code=201)
def make_batch(request: Request, visitor: Writes, given: BatchGiven) -> BatchShown:
    """Make a batch; with `open`, labelers get its tasks at once."""
    with refusing(), site_of(request).database.write() as db:
        prompts = [as_record(PromptRecord, each.model_dump(exclude_none=True, mode="json")) for each in given.prompts]
        completions = list(given.completions)
        if given.stored is not None:
            more = stored(db, given.kind, given.stored)
            prompts, completions = prompts + more[0], completions + more[1]
        made = batches.make_batch(
            db, given.name, given.kind, given.purpose, prompts, completions, given.policy, screening=given.screening,
            cohort=given.cohort, baseline=given.baseline, gold=given.gold, briefs=given.briefs, priority=given.priority,
            by=visitor.person,
        )  # fmt: skip
        audit_log.note(db, caller(visitor), "batch.create", made.id, kind=made.kind, purpose=made.purpose)
        if given.open:
            batches.open_batch(db, made)
            audit_log.note(db, caller(visitor), "batch.open", made.id)
        return batch_shown(db, made)


def stored(db: Session, kind: Kind, wanted: Stored) -> tuple[list[PromptRecord], list[CompletionRecord]]:
    """Prompts that are on the site, and for ranking the completions of the models that were named."""
    conditions = [Prompt.withdrawn_at.is_(None)]
    conditions += [
        getattr(Prompt, name) == value for name in ("source", "split", "use_case") if (value := getattr(wanted, name)) is not None
    ]
    if kind != "rank":
        found = db.scalars(select(Prompt).where(*conditions).order_by(Prompt.id))
        shown = [prompt_shown(row).model_dump(exclude={"key", "created_at", "withdrawn_at"}, exclude_none=True) for row in found]
        return [as_record(PromptRecord, row if "messages" not in row else {**row, "prompt": None}) for row in shown], []
    if wanted.models:
        conditions.append(Completion.model.in_(wanted.models))
    rows = db.execute(select(Completion, Prompt).join(Prompt, Completion.prompt_id == Prompt.id).where(*conditions).order_by(Completion.id))
    return [], [
        CompletionRecord(
            prompt=prompt.text, completion=row.text, model=row.model, finish="length" if row.finish == "length" else "stop",
            sampling=row.sampling, score=row.score,
        )
        for row, prompt in rows
    ]  # fmt: skip


@router.post("/batches/{key}/open")
def open_batch(request: Request, visitor: Writes, key: Id) -> BatchShown:
    """Labelers get its tasks from now on."""
    return _turn(request, visitor, key, "open", batches.open_batch)


@router.post("/batches/{key}/close")
def close_batch(request: Request, visitor: Writes, key: Id) -> BatchShown:
    """Nobody is given a task of it any more; an evaluation shows its models."""
    return _turn(request, visitor, key, "close", batches.close_batch)


def _turn(request: Request, visitor: Visitor, key: str, action: str, turn: Callable[[Session, Batch], None]) -> BatchShown:
    with site_of(request).database.write() as db:
        batch = existing(db.get(Batch, key))
        turn(db, batch)
        audit_log.note(db, caller(visitor), f"batch.{action}", batch.id)
        return batch_shown(db, batch)


class TaskShown(BaseModel):
    """A task with its counters."""

    id: str
    batch_id: str
    kind: str
    prompt_id: str | None
    state: str
    overlap: int
    n_open: int
    n_done: int
    n_skipped: int
    gold: bool
    repeat: bool


class Tasks(Page):
    """A page of tasks."""

    tasks: list[TaskShown]


@router.get("/batches/{key}/tasks")
def list_tasks(request: Request, _: Reads, key: Id, after: After = None, limit: Limit = 100) -> Tasks:
    """The tasks of a batch."""
    chosen = select(Task).where(Task.batch_id == key).order_by(Task.id).limit(limit)
    with site_of(request).database.read() as db:
        rows = db.scalars(chosen.where(Task.id > after) if after else chosen)
        found = [TaskShown(**{name: getattr(row, name) for name in TaskShown.model_fields}) for row in rows]
    return Tasks(tasks=found, next=found[-1].id if len(found) == limit else None)


class SubmissionShown(BaseModel):
    """What somebody handed in, by the labeler's pseudonym. `replaced_at`: when a later version, or an undo, took its place."""

    id: str
    assignment: str
    task: str
    labeler: str
    kind: str
    version: int
    round: int
    form: dict[str, Any]
    active_ms: int
    surplus: bool
    invalid_reason: str | None
    created_at: int
    replaced_at: int | None


class Submissions(Page):
    """A page of submissions."""

    submissions: list[SubmissionShown]


@router.get("/submissions")
def list_submissions(
    request: Request, _: Reads, after: After = None, since: Since = None, kind: Kind | None = None, limit: Limit = 100
) -> Submissions:
    """Everything that was handed in, every version, the oldest first. Completions are named by ids, never by models."""
    chosen = (
        select(Submission, Assignment, Person.pseudonym)
        .join(Assignment, Submission.assignment_id == Assignment.id)
        .join(Person, Assignment.person_id == Person.id)
        .order_by(Submission.id)
        .limit(limit)
    )
    chosen = chosen.where(Submission.id > after) if after else chosen
    chosen = chosen.where(Submission.created_at >= since) if since is not None else chosen
    chosen = chosen.where(Submission.kind == kind) if kind else chosen
    with site_of(request).database.read() as db:
        found = [
            SubmissionShown(
                id=row.id, assignment=held.id, task=held.task_id, labeler=pseudonym, kind=row.kind, version=row.version, round=held.round,
                form=form_of(db, row).model_dump(mode="json"), active_ms=row.active_ms, surplus=row.surplus,
                invalid_reason=row.invalid_reason, created_at=row.created_at, replaced_at=row.replaced_at,
            )
            for row, held, pseudonym in db.execute(chosen).all()
        ]  # fmt: skip
    return Submissions(submissions=found, next=found[-1].id if len(found) == limit else None)
