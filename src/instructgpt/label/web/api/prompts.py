"""Prompts and completions that programs put onto the site, one by one or as JSON lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, Field
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from instructgpt.errors import BadInput, in_one_line
from instructgpt.io import parse_row
from instructgpt.label.auth.dependencies import Visitor, site_of
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Completion, Prompt, now
from instructgpt.label.errors import Problem
from instructgpt.label.exchange.imports import put_completion, upsert_prompt
from instructgpt.label.tasks import batches
from instructgpt.label.web.api.schemas import Given, Governs, Page, Reads, Writes, caller, mended, unstorable
from instructgpt.label.web.params import After, Id, Limit, Since, existing, refusing
from instructgpt.records import Completion as CompletionRecord
from instructgpt.records import Message, as_record
from instructgpt.records import Prompt as PromptRecord

router = APIRouter(prefix="/api/v1", tags=["service"])
LINES_AT_ONCE = 200
MOST_LINE = 4_000_000
"""Bytes of one line of an import."""


class PromptGiven(Given):
    """A prompt: its text, or the turns of a conversation. An `id` that is there already is updated, its text never."""

    id: Annotated[str, Field(max_length=500)] | None = None
    prompt: str | None = None
    messages: tuple[Message, ...] | None = None
    user: str | None = None
    source: str | None = None
    use_case: str | None = None
    split: str | None = None
    sensitive: bool | None = None


class PromptShown(BaseModel):
    """A prompt of the site. `key` is the site's own id."""

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


class Line(BaseModel):
    """What became of one line of an import: `created`, `updated`, `unchanged`, or `error` with what is wrong."""

    line: int
    status: str
    key: str | None = None
    error: str | None = None


class Imported(BaseModel):
    """What became of an import, line by line."""

    lines: list[Line]
    errors: int


class Prompts(Page):
    """A page of prompts."""

    prompts: list[PromptShown]


def prompt_shown(row: Prompt) -> PromptShown:
    """A prompt as the API shows it."""
    return PromptShown(
        key=row.id, id=row.external_id, prompt=row.text, messages=[Message.model_validate(turn) for turn in row.messages or ()] or None,
        user=row.user, source=row.source, use_case=row.use_case, split=row.split, sensitive=row.sensitive, created_at=row.created_at,
        withdrawn_at=row.withdrawn_at,
    )  # fmt: skip


@router.get("/prompts")
def list_prompts(request: Request, _: Reads, after: After = None, since: Since = None, limit: Limit = 100) -> Prompts:
    """Prompts, the oldest first."""
    chosen = select(Prompt).order_by(Prompt.id).limit(limit)
    chosen = chosen.where(Prompt.id > after) if after else chosen
    chosen = chosen.where(Prompt.created_at >= since) if since is not None else chosen
    with site_of(request).database.read() as db:
        found = [prompt_shown(row) for row in db.scalars(chosen)]
    return Prompts(prompts=found, next=found[-1].key if len(found) == limit else None)


@router.post("/prompts")
def put_prompt(request: Request, visitor: Writes, given: PromptGiven) -> PromptShown:
    """One prompt, new or by its id."""
    with refusing(), site_of(request).database.write() as db:
        record = as_record(PromptRecord, given.model_dump(exclude_none=True, mode="json"))
        row, status = upsert_prompt(db, record)
        if status != "unchanged":
            audit_log.note(db, caller(visitor), f"prompt.{status}", row.id)
        return prompt_shown(row)


@router.post("/prompts/{key}/withdraw")
def withdraw(request: Request, visitor: Governs, key: Id) -> PromptShown:
    """Take a prompt back: no labeler sees it again, and no export holds it or what was made of it."""
    with site_of(request).database.write() as db:
        row = existing(db.get(Prompt, key))
        tasks = batches.withdraw_prompt(db, row, now())
        audit_log.note(db, caller(visitor), "prompt.withdraw", row.id, tasks=tasks)
        return prompt_shown(row)


@router.post("/prompts:import", openapi_extra={"requestBody": {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}}})
async def import_prompts(request: Request, visitor: Writes) -> Imported:
    """Prompts as JSON lines. A line that is wrong is said and left out; the others are in."""
    return await _lines(request, visitor, "prompts.import", _put_prompt)


@router.post("/completions:import", openapi_extra={"requestBody": {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}}})
async def import_completions(request: Request, visitor: Writes) -> Imported:
    """Completions as JSON lines, as `sample` writes them; batches are made of them afterwards."""
    return await _lines(request, visitor, "completions.import", _put_completion)


def _put_prompt(db: Session, row: dict[str, Any]) -> tuple[str, str]:
    if fault := unstorable(row):
        raise ValueError(fault)
    prompt, status = upsert_prompt(db, as_record(PromptRecord, row))
    return prompt.id, status


def _put_completion(db: Session, row: dict[str, Any]) -> tuple[str, str]:
    completion, status = put_completion(db, as_record(CompletionRecord, mended(row)))
    return completion.id, status


async def _lines(request: Request, visitor: Visitor, action: str, put: Callable[[Session, dict[str, Any]], tuple[str, str]]) -> Imported:
    """Take in a body of JSON lines as it comes, some hundreds in a transaction."""
    results: list[Line] = []
    waiting: list[bytes] = []
    rest = b""
    async for piece in request.stream():
        *whole, rest = (rest + piece).split(b"\n")
        if len(rest) > MOST_LINE:
            raise Problem(413, "line_too_long", line=len(results) + len(waiting) + len(whole) + 1, most=MOST_LINE)
        waiting += whole
        if len(waiting) >= LINES_AT_ONCE:
            results += await run_in_threadpool(_take, request, visitor, action, waiting, len(results), put)
            waiting = []
    results += await run_in_threadpool(_take, request, visitor, action, [*waiting, *([rest] if rest else [])], len(results), put)
    shown = [line for line in results if line.status != "blank"]
    return Imported(lines=shown, errors=sum(line.status == "error" for line in shown))


def _take(
    request: Request,
    visitor: Visitor,
    action: str,
    lines: list[bytes],
    before: int,
    put: Callable[[Session, dict[str, Any]], tuple[str, str]],
) -> list[Line]:
    """One transaction's worth of lines; each that fails leaves nothing behind."""
    results: list[Line] = []
    with refusing(), site_of(request).database.write() as db:
        for number, raw in enumerate(lines, before + 1):
            if not raw.strip():
                results.append(Line(line=number, status="blank"))
                continue
            try:
                row = parse_row(raw.decode("utf-8"))
                with db.begin_nested():
                    key, status = put(db, row)
                results.append(Line(line=number, status=status, key=key))
            except (BadInput, ValueError) as error:
                results.append(Line(line=number, status="error", error=in_one_line(error, 500)))
        made = sum(line.status in ("created", "updated") for line in results)
        if made:
            audit_log.note(db, caller(visitor), action, "", lines=made)
    return results


class ModelShown(BaseModel):
    """A model and how many completions of it there are."""

    model: str
    completions: int


@router.get("/models")
def list_models(request: Request, _: Reads) -> list[ModelShown]:
    """The models whose completions are here."""
    counted = select(Completion.model, func.count()).group_by(Completion.model).order_by(Completion.model)
    with site_of(request).database.read() as db:
        return [ModelShown(model=model, completions=count) for model, count in db.execute(counted)]
