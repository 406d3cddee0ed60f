"""Prompts and completions of the site for programs, one by one or imported as JSON lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from instructgpt.errors import InputError, one_line
from instructgpt.io import parse_json_object
from instructgpt.label.auth.dependencies import AdminScope, Principal, ReadScope, WriteScope, get_site
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import CompletionRow, PromptRow, current_time_ms
from instructgpt.label.errors import SiteError
from instructgpt.label.exchange.imports import upsert_completion, upsert_prompt
from instructgpt.label.tasks import batches
from instructgpt.label.web.api.schemas import CursorPage, RequestModel, find_unstorable, sanitize
from instructgpt.label.web.params import AfterCursor, PageLimit, RowId, SinceMs, caller_id, or_404, translate_errors
from instructgpt.records import Completion as CompletionRecord
from instructgpt.records import Message, validate_record
from instructgpt.records import Prompt as PromptRecord

router = APIRouter(prefix="/api/v1", tags=["service"])
_NDJSON_BODY = {"requestBody": {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}}}
_UpsertRow = Callable[[Session, dict[str, Any]], tuple[str, str]]
"""Returns (key, status) of a line."""
_LINES_PER_CHUNK = 200
_MAX_LINE_BYTES = 4_000_000
"""Bytes of one line of an import."""


class PromptRequest(RequestModel):
    """A prompt: a text, or the messages of a conversation. A known `id` updates the prompt, except for its text."""

    id: Annotated[str, Field(max_length=500)] | None = None
    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    user: str | None = None
    source: str | None = None
    use_case: str | None = None
    split: str | None = None
    sensitive: bool | None = None


class PromptOut(BaseModel):
    """A prompt. `key` is the site's id, `id` the one it was imported with."""

    key: str
    id: str | None
    prompt: str
    messages: list[Message] | None
    user: str | None
    source: str | None
    use_case: str | None
    split: str | None
    sensitive: bool
    created_at: int
    withdrawn_at: int | None


class ImportLineResult(BaseModel):
    """The result of a line: `created`, `updated`, `unchanged`, or `error` with a message."""

    line: int
    status: str
    key: str | None = None
    error: str | None = None


class ImportOut(BaseModel):
    lines: list[ImportLineResult]
    errors: int


class PromptPage(CursorPage):
    prompts: list[PromptOut]


def to_prompt_out(row: PromptRow) -> PromptOut:
    return PromptOut(
        key=row.id,
        id=row.external_id,
        prompt=row.text,
        messages=[Message.model_validate(turn) for turn in row.messages or ()] or None,
        user=row.user,
        source=row.source,
        use_case=row.use_case,
        split=row.split,
        sensitive=row.sensitive,
        created_at=row.created_at,
        withdrawn_at=row.withdrawn_at,
    )


@router.get("/prompts")
def list_prompts(
    request: Request, _: ReadScope, after: AfterCursor = None, since: SinceMs = None, limit: PageLimit = 100
) -> PromptPage:
    """List prompts, oldest first."""
    statement = select(PromptRow).order_by(PromptRow.id).limit(limit)
    statement = statement.where(PromptRow.id > after) if after else statement
    statement = statement.where(PromptRow.created_at >= since) if since is not None else statement
    with get_site(request).database.read() as db:
        prompts = [to_prompt_out(row) for row in db.scalars(statement)]
    return PromptPage(prompts=prompts, next=prompts[-1].key if len(prompts) == limit else None)


@router.post("/prompts")
def save_prompt(request: Request, principal: WriteScope, body: PromptRequest) -> PromptOut:
    """Create a prompt, or update the one with its `id`."""
    with translate_errors(), get_site(request).database.write() as db:
        record = validate_record(PromptRecord, body.model_dump(exclude_none=True, mode="json"))
        row, status = upsert_prompt(db, record)
        if status != "unchanged":
            audit_log.append_entry(db, caller_id(principal), f"prompt.{status}", row.id)
        return to_prompt_out(row)


@router.post("/prompts/{key}/withdraw")
def withdraw_prompt_endpoint(request: Request, principal: AdminScope, key: RowId) -> PromptOut:
    """Withdraw a prompt: no labeler sees it again, and exports leave it out with everything based on it."""
    with get_site(request).database.write() as db:
        row = or_404(db.get(PromptRow, key))
        tasks = batches.withdraw_prompt(db, row, current_time_ms())
        audit_log.append_entry(db, caller_id(principal), "prompt.withdraw", row.id, tasks=tasks)
        return to_prompt_out(row)


@router.post("/prompts:import", openapi_extra=_NDJSON_BODY)
async def import_prompts_endpoint(request: Request, principal: WriteScope) -> ImportOut:
    """Import prompts as JSON lines. Invalid lines are reported and skipped."""
    return await _import_lines(request, principal, "prompts.import", _upsert_prompt_row)


@router.post("/completions:import", openapi_extra=_NDJSON_BODY)
async def import_completions_endpoint(request: Request, principal: WriteScope) -> ImportOut:
    """Import completions as JSON lines, as `instructgpt sample` writes them."""
    return await _import_lines(request, principal, "completions.import", _upsert_completion_row)


def _upsert_prompt_row(db: Session, row: dict[str, Any]) -> tuple[str, str]:
    if fault := find_unstorable(row):
        raise ValueError(fault)
    prompt, status = upsert_prompt(db, validate_record(PromptRecord, row))
    return prompt.id, status


def _upsert_completion_row(db: Session, row: dict[str, Any]) -> tuple[str, str]:
    completion, status = upsert_completion(db, validate_record(CompletionRecord, sanitize(row)))
    return completion.id, status


async def _import_lines(request: Request, principal: Principal, action: str, upsert_row: _UpsertRow) -> ImportOut:
    # Lines are imported while the body arrives, so that a large file needs little memory.
    results: list[ImportLineResult] = []
    pending: list[bytes] = []
    remainder = b""

    async def flush(lines: list[bytes]) -> None:
        nonlocal results
        results += await run_in_threadpool(_import_chunk, request, principal, action, lines, len(results), upsert_row)

    async for chunk in request.stream():
        *lines, remainder = (remainder + chunk).split(b"\n")
        if len(remainder) > _MAX_LINE_BYTES:
            line = len(results) + len(pending) + len(lines) + 1
            raise SiteError(413, "line_too_long", line=line, most=_MAX_LINE_BYTES)
        pending += lines
        if len(pending) >= _LINES_PER_CHUNK:
            await flush(pending)
            pending = []
    await flush([*pending, *([remainder] if remainder else [])])
    nonblank = [result for result in results if result.status != "blank"]
    return ImportOut(lines=nonblank, errors=sum(result.status == "error" for result in nonblank))


def _import_chunk(
    request: Request, principal: Principal, action: str, lines: list[bytes], line_offset: int, upsert_row: _UpsertRow
) -> list[ImportLineResult]:
    """Import lines in one transaction, each in a savepoint that a bad line rolls back."""
    results: list[ImportLineResult] = []
    with translate_errors(), get_site(request).database.write() as db:
        for line_number, raw_line in enumerate(lines, line_offset + 1):
            if not raw_line.strip():
                results.append(ImportLineResult(line=line_number, status="blank"))
                continue
            try:
                row = parse_json_object(raw_line.decode("utf-8"))
                with db.begin_nested():
                    key, status = upsert_row(db, row)
                results.append(ImportLineResult(line=line_number, status=status, key=key))
            except (InputError, ValueError) as error:
                results.append(ImportLineResult(line=line_number, status="error", error=one_line(error, 500)))
        changed_count = sum(line.status in ("created", "updated") for line in results)
        if changed_count:
            audit_log.append_entry(db, caller_id(principal), action, "", lines=changed_count)
    return results


class ModelOut(BaseModel):
    model: str
    completions: int


@router.get("/models")
def list_models(request: Request, _: ReadScope) -> list[ModelOut]:
    """List the models that have completions on the site."""
    statement = select(CompletionRow.model, func.count()).group_by(CompletionRow.model).order_by(CompletionRow.model)
    with get_site(request).database.read() as db:
        return [ModelOut(model=model, completions=count) for model, count in db.execute(statement)]
