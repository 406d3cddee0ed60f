"""What programs do with a key: batches made and opened, tasks and submissions read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, model_validator
from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.label.auth.dependencies import Principal, get_site
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Assignment, Batch, CompletionRow, Person, PromptRow, Submission, Task
from instructgpt.label.db.models.tasks import TaskKind
from instructgpt.label.tasks import batches
from instructgpt.label.tasks.submissions import read_submission_form
from instructgpt.label.web.api.prompts import PromptRequest, to_prompt_out
from instructgpt.label.web.api.schemas import CursorPage, ReadScope, RequestModel, WriteScope, caller_id, sanitize
from instructgpt.label.web.params import AfterCursor, PageLimit, RowId, SinceMs, or_404, translate_errors
from instructgpt.records import Cohort, validate_record
from instructgpt.records import Completion as CompletionRecord
from instructgpt.records import Prompt as PromptRecord

router = APIRouter(prefix="/api/v1", tags=["service"])


class StoredInputs(RequestModel):
    """Prompts and completions that are on the site already; what is not said is not looked at."""

    models: tuple[str, ...] = ()
    source: str | None = None
    split: str | None = None
    use_case: str | None = None


class CreateBatchRequest(RequestModel):
    """A batch to be made of what is given here, or of what is stored."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    kind: TaskKind
    purpose: str = "training"
    prompts: tuple[PromptRequest, ...] = ()
    completions: tuple[CompletionRecord, ...] = ()
    stored: StoredInputs | None = None
    briefs: tuple[dict[str, Any], ...] = ()
    policy: batches.OverlapPolicy = batches.OverlapPolicy()
    screening: str | None = None
    cohort: Cohort | None = None
    baseline: str | None = None
    gold: dict[str, dict[str, Any]] | None = None
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    open: bool = False

    @model_validator(mode="before")
    @classmethod
    def _sanitize_completions(cls, value: Any) -> Any:
        return (
            {**value, "completions": sanitize(value["completions"])}
            if isinstance(value, dict) and "completions" in value
            else value
        )


class BatchOut(BaseModel):
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
    progress: batches.BatchProgress


def _to_batch_out(db: Session, batch: Batch) -> BatchOut:
    """A batch as the API shows it."""
    fields = {name: getattr(batch, name) for name in BatchOut.model_fields if name != "progress"}
    return BatchOut(**fields, progress=batches.get_batch_progress(db, batch))


@router.get("/batches")
def list_batches(request: Request, _: ReadScope) -> list[BatchOut]:
    """All batches, the newest first."""
    with get_site(request).database.read() as db:
        return [_to_batch_out(db, batch) for batch in db.scalars(select(Batch).order_by(Batch.id.desc()))]


@router.get("/batches/{key}")
def get_batch(request: Request, _: ReadScope, key: RowId) -> BatchOut:
    """One batch."""
    with get_site(request).database.read() as db:
        return _to_batch_out(db, or_404(db.get(Batch, key)))


@router.post("/batches", status_code=201)
def create_batch_endpoint(request: Request, principal: WriteScope, body: CreateBatchRequest) -> BatchOut:
    """Make a batch; with `open`, labelers get its tasks at once."""
    with translate_errors(), get_site(request).database.write() as db:
        prompts = [
            validate_record(PromptRecord, each.model_dump(exclude_none=True, mode="json")) for each in body.prompts
        ]
        completions = list(body.completions)
        if body.stored is not None:
            stored_records = _load_stored_inputs(db, body.kind, body.stored)
            prompts, completions = prompts + stored_records[0], completions + stored_records[1]
        batch = batches.create_batch_with_tasks(
            db,
            body.name,
            body.kind,
            body.purpose,
            prompts,
            completions,
            body.policy,
            screening=body.screening,
            cohort=body.cohort,
            baseline=body.baseline,
            gold=body.gold,
            briefs=body.briefs,
            priority=body.priority,
            created_by=principal.person,
        )
        audit_log.append_entry(
            db, caller_id(principal), "batch.create", batch.id, kind=batch.kind, purpose=batch.purpose
        )
        if body.open:
            batches.mark_batch_open(db, batch)
            audit_log.append_entry(db, caller_id(principal), "batch.open", batch.id)
        return _to_batch_out(db, batch)


def _load_stored_inputs(
    db: Session, kind: TaskKind, stored_inputs: StoredInputs
) -> tuple[list[PromptRecord], list[CompletionRecord]]:
    """Prompts that are on the site, and for ranking the completions of the models that were named."""
    conditions = [PromptRow.withdrawn_at.is_(None)]
    conditions += [
        getattr(PromptRow, name) == value
        for name in ("source", "split", "use_case")
        if (value := getattr(stored_inputs, name)) is not None
    ]
    if kind != "rank":
        prompt_rows = db.scalars(select(PromptRow).where(*conditions).order_by(PromptRow.id))
        prompt_fields = [
            to_prompt_out(row).model_dump(exclude={"key", "created_at", "withdrawn_at"}, exclude_none=True)
            for row in prompt_rows
        ]
        return [
            validate_record(PromptRecord, row if "messages" not in row else {**row, "prompt": None})
            for row in prompt_fields
        ], []
    if stored_inputs.models:
        conditions.append(CompletionRow.model.in_(stored_inputs.models))
    completion_rows = db.execute(
        select(CompletionRow, PromptRow)
        .join(PromptRow, CompletionRow.prompt_id == PromptRow.id)
        .where(*conditions)
        .order_by(CompletionRow.id)
    )
    return [], [
        CompletionRecord(
            prompt=prompt.text,
            completion=row.text,
            model=row.model,
            finish="length" if row.finish == "length" else "stop",
            sampling=row.sampling,
            score=row.score,
        )
        for row, prompt in completion_rows
    ]


@router.post("/batches/{key}/open")
def open_batch_endpoint(request: Request, principal: WriteScope, key: RowId) -> BatchOut:
    """Labelers get its tasks from now on."""
    return _change_batch_state(request, principal, key, "open", batches.mark_batch_open)


@router.post("/batches/{key}/close")
def close_batch_endpoint(request: Request, principal: WriteScope, key: RowId) -> BatchOut:
    """Nobody is given a task of it any more; an evaluation shows its models."""
    return _change_batch_state(request, principal, key, "close", batches.mark_batch_closed)


def _change_batch_state(
    request: Request, principal: Principal, key: str, action: str, change_state: Callable[[Session, Batch], None]
) -> BatchOut:
    with get_site(request).database.write() as db:
        batch = or_404(db.get(Batch, key))
        change_state(db, batch)
        audit_log.append_entry(db, caller_id(principal), f"batch.{action}", batch.id)
        return _to_batch_out(db, batch)


class TaskOut(BaseModel):
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


class TaskPage(CursorPage):
    """A page of tasks."""

    tasks: list[TaskOut]


@router.get("/batches/{key}/tasks")
def list_tasks(
    request: Request, _: ReadScope, key: RowId, after: AfterCursor = None, limit: PageLimit = 100
) -> TaskPage:
    """The tasks of a batch."""
    statement = select(Task).where(Task.batch_id == key).order_by(Task.id).limit(limit)
    with get_site(request).database.read() as db:
        rows = db.scalars(statement.where(Task.id > after) if after else statement)
        tasks = [TaskOut(**{name: getattr(row, name) for name in TaskOut.model_fields}) for row in rows]
    return TaskPage(tasks=tasks, next=tasks[-1].id if len(tasks) == limit else None)


class SubmissionOut(BaseModel):
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


class SubmissionPage(CursorPage):
    """A page of submissions."""

    submissions: list[SubmissionOut]


@router.get("/submissions")
def list_submissions(
    request: Request,
    _: ReadScope,
    after: AfterCursor = None,
    since: SinceMs = None,
    kind: TaskKind | None = None,
    limit: PageLimit = 100,
) -> SubmissionPage:
    """Everything that was handed in, every version, the oldest first. Completions are named by ids, never by models."""
    statement = (
        select(Submission, Assignment, Person.pseudonym)
        .join(Assignment, Submission.assignment_id == Assignment.id)
        .join(Person, Assignment.person_id == Person.id)
        .order_by(Submission.id)
        .limit(limit)
    )
    statement = statement.where(Submission.id > after) if after else statement
    statement = statement.where(Submission.created_at >= since) if since is not None else statement
    statement = statement.where(Submission.kind == kind) if kind else statement
    with get_site(request).database.read() as db:
        submissions = [
            SubmissionOut(
                id=row.id,
                assignment=assignment.id,
                task=assignment.task_id,
                labeler=pseudonym,
                kind=row.kind,
                version=row.version,
                round=assignment.round,
                form=read_submission_form(db, row).model_dump(mode="json"),
                active_ms=row.active_ms,
                surplus=row.surplus,
                invalid_reason=row.invalid_reason,
                created_at=row.created_at,
                replaced_at=row.replaced_at,
            )
            for row, assignment, pseudonym in db.execute(statement).all()
        ]
    return SubmissionPage(submissions=submissions, next=submissions[-1].id if len(submissions) == limit else None)
