"""Batches, tasks and submissions for programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, model_validator
from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.label.auth.dependencies import Principal, ReadScope, WriteScope, get_site
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Assignment, Batch, CompletionRow, Person, PromptRow, Submission, Task
from instructgpt.label.db.staging import write_in_portions
from instructgpt.label.exchange.export_rows import prompt_fields
from instructgpt.label.tasks import batches
from instructgpt.label.tasks.submission_contents import read_submission_forms
from instructgpt.label.vocabulary import TaskKind
from instructgpt.label.web.api.prompts import PromptRequest, to_prompt_out
from instructgpt.label.web.api.schemas import CursorPage, RequestModel, sanitize
from instructgpt.label.web.params import AfterCursor, PageLimit, RowId, SinceMs, caller_id, or_404, translate_errors
from instructgpt.records import Cohort, validate_record
from instructgpt.records import Completion as CompletionRecord
from instructgpt.records import Prompt as PromptRecord

_MAX_RECORDS_AT_ONCE = 200  # of a batch that is created in one transaction
router = APIRouter(prefix="/api/v1", tags=["service"])


class StoredInputs(RequestModel):
    """A filter of the prompts and completions on the site; fields left out do not filter."""

    models: tuple[str, ...] = ()
    source: str | None = None
    split: str | None = None
    use_case: str | None = None


class CreateBatchRequest(RequestModel):
    """A new batch: of the prompts and completions in this body, of stored ones, or of both."""

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
    questions: dict[str, Any] | None = None
    open: bool = False

    @model_validator(mode="before")
    @classmethod
    def _sanitize_completions(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "completions" not in value:
            return value
        return {**value, "completions": sanitize(value["completions"])}


class BatchOut(BaseModel):
    """A batch with its intake report and progress."""

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
    fields = {name: getattr(batch, name) for name in BatchOut.model_fields if name != "progress"}
    return BatchOut(**fields, progress=batches.get_batch_progress(db, batch))


@router.get("/batches")
def list_batches(request: Request, _: ReadScope) -> list[BatchOut]:
    """List all batches, newest first."""
    with get_site(request).database.read() as db:
        return [_to_batch_out(db, batch) for batch in db.scalars(select(Batch).order_by(Batch.id.desc()))]


@router.get("/batches/{key}")
def get_batch(request: Request, _: ReadScope, key: RowId) -> BatchOut:
    with get_site(request).database.read() as db:
        return _to_batch_out(db, or_404(db.get(Batch, key)))


@router.post("/batches", status_code=201)
def create_batch_endpoint(request: Request, principal: WriteScope, body: CreateBatchRequest) -> BatchOut:
    """Create a batch. With `open`, labelers get its tasks at once."""
    database = get_site(request).database

    def create(db: Session) -> BatchOut:
        prompt_fields = [prompt.model_dump(exclude_none=True, mode="json") for prompt in body.prompts]
        prompts = [validate_record(PromptRecord, fields) for fields in prompt_fields]
        completions = list(body.completions)
        if body.stored is not None:
            stored_prompts, stored_completions = _load_stored_inputs(db, body.kind, body.stored)
            prompts, completions = prompts + stored_prompts, completions + stored_completions
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
            questions=body.questions,
            created_by=principal.person,
        )
        detail = {"kind": batch.kind, "purpose": batch.purpose}
        audit_log.append_entry(db, caller_id(principal), "batch.create", batch.id, **detail)
        if body.open:
            batches.mark_batch_open(db, batch)
            audit_log.append_entry(db, caller_id(principal), "batch.open", batch.id)
        return _to_batch_out(db, batch)

    with translate_errors():
        if body.stored is not None or len(body.prompts) + len(body.completions) > _MAX_RECORDS_AT_ONCE:
            return write_in_portions(database, create)
        with database.write() as db:
            return create(db)


_InputRecords = tuple[list[PromptRecord], list[CompletionRecord]]


def _load_stored_inputs(db: Session, kind: TaskKind, stored: StoredInputs) -> _InputRecords:
    """Load prompts, or for ranking completions with their prompts."""
    conditions = [PromptRow.withdrawn_at.is_(None)]
    filters = {name: getattr(stored, name) for name in ("source", "split", "use_case")}
    conditions += [getattr(PromptRow, name) == value for name, value in filters.items() if value is not None]
    if kind != "rank":
        rows = db.scalars(select(PromptRow).where(*conditions).order_by(PromptRow.id))
        return [_to_prompt_record(row) for row in rows], []
    if stored.models:
        conditions.append(CompletionRow.model.in_(stored.models))
    statement = select(CompletionRow, PromptRow).join(PromptRow, CompletionRow.prompt_id == PromptRow.id)
    completion_rows = db.execute(
        statement.where(*conditions).order_by(PromptRow.id, CompletionRow.created_at, CompletionRow.model)
    )
    return [], [
        CompletionRecord.model_validate(
            prompt_fields(prompt)
            | {
                "completion": row.text,
                "model": row.model,
                "finish": "length" if row.finish == "length" else "stop",
                "sampling": row.sampling,
                "score": row.score,
            }
        )
        for row, prompt in completion_rows
    ]


def _to_prompt_record(row: PromptRow) -> PromptRecord:
    fields = to_prompt_out(row).model_dump(exclude={"key", "created_at", "withdrawn_at"}, exclude_none=True)
    return validate_record(PromptRecord, fields)


@router.post("/batches/{key}/open")
def open_batch_endpoint(request: Request, principal: WriteScope, key: RowId) -> BatchOut:
    """Open a batch: labelers get its tasks."""
    return _change_batch_state(request, principal, key, "open", batches.mark_batch_open)


@router.post("/batches/{key}/close")
def close_batch_endpoint(request: Request, principal: WriteScope, key: RowId) -> BatchOut:
    """Close a batch: no more of its tasks are assigned, and an evaluation shows its models."""
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
    """A task with its counts of open, completed and skipped assignments."""

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
    tasks: list[TaskOut]


@router.get("/batches/{key}/tasks")
def list_tasks(
    request: Request, _: ReadScope, key: RowId, after: AfterCursor = None, limit: PageLimit = 100
) -> TaskPage:
    """List the tasks of a batch."""
    statement = select(Task).where(Task.batch_id == key).order_by(Task.id).limit(limit)
    with get_site(request).database.read() as db:
        rows = db.scalars(statement.where(Task.id > after) if after else statement)
        tasks = [TaskOut(**{name: getattr(row, name) for name in TaskOut.model_fields}) for row in rows]
    return TaskPage(tasks=tasks, next=tasks[-1].id if len(tasks) == limit else None)


class SubmissionOut(BaseModel):
    """A version of a submission. `labeler`: a pseudonym; `replaced_at`: when an edit or an undo replaced it."""

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
    """List all versions of all submissions, oldest first. Completions are identified by id, not by model."""
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
        rows = db.execute(statement).all()
        forms = read_submission_forms(db, [row for row, _, _ in rows])
        submissions = [
            SubmissionOut(
                id=row.id,
                assignment=assignment.id,
                task=assignment.task_id,
                labeler=pseudonym,
                kind=row.kind,
                version=row.version,
                round=assignment.round,
                form=forms[row.id].model_dump(mode="json"),
                active_ms=row.active_ms,
                surplus=row.surplus,
                invalid_reason=row.invalid_reason,
                created_at=row.created_at,
                replaced_at=row.replaced_at,
            )
            for row, assignment, pseudonym in rows
        ]
    return SubmissionPage(submissions=submissions, next=submissions[-1].id if len(submissions) == limit else None)
