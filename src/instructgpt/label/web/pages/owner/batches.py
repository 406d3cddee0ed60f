"""Batches: make one with a dry run of its work beforehand, open and close it, see how far it is and what needs a person."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import ValidationError
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from instructgpt.errors import InputError
from instructgpt.label.analysis import forecast
from instructgpt.label.analysis.forecast import Workload
from instructgpt.label.analysis.results import is_blind
from instructgpt.label.auth.dependencies import Principal, get_site, require
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import (
    Batch,
    CompletionRow,
    MessageRow,
    Person,
    PromptRow,
    Skip,
    Task,
    TaskCompletion,
    current_time_ms,
)
from instructgpt.label.db.models.submissions import Assignment
from instructgpt.label.errors import SiteError, format_user_message
from instructgpt.label.tasks import batch_requests, batches
from instructgpt.label.tasks.batch_requests import BATCH_INPUT_FILES, BatchSpec
from instructgpt.label.tasks.ingest import MAX_COMPLETIONS
from instructgpt.label.web import charts
from instructgpt.label.web.pages.owner.overview import parse_positive
from instructgpt.label.web.rendering import render_page
from instructgpt.records import USE_CASES, format_validation_error

router = APIRouter()
_TeamUser = Annotated[Principal, require("researcher", "owner")]
_TASKS_PER_PAGE = 50
"""Tasks on one page."""
_PERCENT_FIELDS = ("cohort_share", "gold_share", "repeat_share")
"""Typed in percent."""


@dataclass(frozen=True, slots=True)
class _BatchFormInput:
    """What somebody filled in: fields as typed, and the files that came along now or with an earlier preview."""

    fields: Mapping[str, str]
    files: Mapping[str, tuple[str, str]]
    """(token, name as the person knows it) of each file."""


async def _read_batch_form(request: Request) -> _BatchFormInput:
    """The form of a new batch. Its files are kept on the server, so that a preview need not send them twice."""
    folder = get_site(request).settings.folder
    files: dict[str, tuple[str, str]] = {}
    async with request.form(max_files=len(BATCH_INPUT_FILES), max_fields=60) as form:
        for name in BATCH_INPUT_FILES:
            upload, token = form.get(name), form.get(f"{name}_token")
            if isinstance(upload, UploadFile) and upload.filename:
                token = await run_in_threadpool(batch_requests.store_upload, folder, upload.filename, upload.file)
                files[name] = (token, upload.filename)
            elif isinstance(token, str) and token:
                files[name] = (token, str(form.get(f"{name}_name") or token))
        return _BatchFormInput({key: value for key, value in form.items() if isinstance(value, str)}, files)


@router.get("/batches")
def show_batches(request: Request, principal: _TeamUser) -> Response:
    """All batches with their progress."""
    with get_site(request).database.read() as db:
        rows = forecast.list_batch_statuses(db)
    return render_page(request, principal, "batches.html", show=charts, rows=rows)


@router.get("/batches/new")
def show_batch_form(request: Request, principal: _TeamUser) -> Response:
    """The empty form."""
    defaults = {
        name: str(info.default)
        for name, info in BatchSpec.model_fields.items()
        if info.default is not None and not info.is_required()
    }
    defaults |= {name: f"{100 * float(defaults[name]):g}" for name in _PERCENT_FIELDS}
    return _render_batch_form(request, principal, _BatchFormInput(defaults, {}))


@router.post("/batches/preview")
def preview_batch(
    request: Request, principal: _TeamUser, form_input: Annotated[_BatchFormInput, Depends(_read_batch_form)]
) -> Response:
    """Make the batch, count its work, and take everything back."""
    site = get_site(request)
    try:
        with site.database.write() as db:
            batch = _create_batch(db, site.settings.folder, form_input, principal.signed_in_person)
            workload = forecast.estimate_batch_workload(db, batch, parse_positive(form_input.fields.get("hourly", "")))
            size_counts, ingest_report = _count_tasks_by_size(db, batch), batch.intake
            db.rollback()
    except InputError as error:
        return _render_batch_form(request, principal, form_input, str(error))
    return _render_batch_form(request, principal, form_input, None, workload, size_counts, ingest_report)


@router.post("/batches")
def create_batch_from_form(
    request: Request, principal: _TeamUser, form_input: Annotated[_BatchFormInput, Depends(_read_batch_form)]
) -> Response:
    """Make the batch; it stays closed to labelers until it is opened."""
    site = get_site(request)
    try:
        with site.database.write() as db:
            batch = _create_batch(db, site.settings.folder, form_input, principal.signed_in_person)
            audit_log.append_entry(
                db,
                principal.signed_in_person.id,
                "batch.made",
                batch.id,
                tasks=batch.intake.get("tasks"),
                kind=batch.kind,
                purpose=batch.purpose,
            )
    except InputError as error:
        return _render_batch_form(request, principal, form_input, str(error))
    for token, _ in form_input.files.values():
        (site.settings.folder / "uploads" / Path(token).name).unlink(missing_ok=True)
    return RedirectResponse(f"/batches/{batch.id}", status_code=303)


def _create_batch(db: Session, folder: Path, form_input: _BatchFormInput, creator: Person) -> Batch:
    """The batch that a form asks for. Raises BadInput with the names of files as the person knows them."""
    values: dict[str, Any] = {
        name: form_input.fields[name] for name in BatchSpec.model_fields if form_input.fields.get(name, "").strip()
    }
    for name in _PERCENT_FIELDS:
        if name in values:
            try:
                values[name] = float(values[name].replace(",", ".")) / 100
            except ValueError as error:
                raise InputError(f"{name}: '{values[name]}' is no percentage") from error
    try:
        batch_request = BatchSpec.model_validate(values)
    except ValidationError as error:
        raise InputError(format_validation_error(error)) from error
    paths: dict[str, Path] = {}
    try:
        for name, (token, _) in form_input.files.items():
            paths[name] = batch_requests.get_upload(folder, token)
        return batch_requests.create_batch_from_spec(
            db, batch_request, {name: [path] for name, path in paths.items()}, creator
        )
    except InputError as error:
        message = format_user_message(error)
        for name, path in paths.items():
            message = message.replace(str(path), form_input.files[name][1])
        raise InputError(message) from error


def _render_batch_form(
    request: Request,
    principal: Principal,
    form_input: _BatchFormInput,
    error_message: str | None = None,
    workload: Workload | None = None,
    size_counts: Mapping[int, int] | None = None,
    ingest_report: Mapping[str, int] | None = None,
) -> Response:
    """The form, with what is wrong or what a preview found."""
    sample_command = "instructgpt " + " ".join(
        batch_requests.build_sample_arguments("DIR", "prompts.jsonl", 2, "completions.jsonl")
    )
    folder = shlex.quote(str(get_site(request).settings.folder))
    batch_command = (
        f"instructgpt label batch --site {folder} --name NAME --prompts prompts.jsonl --models sft=DIR ppo=DIR --n 2"
    )
    return render_page(
        request,
        principal,
        "batch_new.html",
        status=422 if error_message else 200,
        show=charts,
        given=form_input,
        wrong=error_message,
        work=workload,
        sizes=size_counts,
        report={name: count for name, count in (ingest_report or {}).items() if count},
        use_cases=USE_CASES,
        commands=[sample_command, batch_command],
        most=MAX_COMPLETIONS,
        screening=batches.SCREENING_TASK_PARTS,
    )


def _count_tasks_by_size(db: Session, batch: Batch) -> dict[int, int]:
    """How many tasks have K completions."""
    statement = (
        select(func.count().label("k")).select_from(TaskCompletion).join(Task, Task.id == TaskCompletion.task_id)
    )
    task_sizes = statement.where(Task.batch_id == batch.id).group_by(TaskCompletion.task_id).subquery()
    rows = db.execute(select(task_sizes.c.k, func.count()).group_by(task_sizes.c.k).order_by(task_sizes.c.k))
    return {row[0]: row[1] for row in rows}


def get_batch_or_404(db: Session, batch_id: str) -> Batch:
    """A batch. Raises Problem 404."""
    batch = db.get(Batch, batch_id)
    if batch is None:
        raise SiteError(404, "no_such_batch")
    return batch


@router.get("/batches/{batch_id}")
def show_batch(
    request: Request, principal: _TeamUser, batch_id: str, after: int = -1, only: str = "", hourly: str = ""
) -> Response:
    """How far a batch is, what needs a person, and its tasks."""
    with get_site(request).database.read() as db:
        batch = get_batch_or_404(db, batch_id)
        progress = next(row for row in forecast.list_batch_statuses(db) if row.batch_id == batch_id)
        workload, size_counts = (
            forecast.estimate_batch_workload(db, batch, parse_positive(hourly)),
            _count_tasks_by_size(db, batch),
        )
        tasks = _list_task_items(db, batch, after, only)
        leaks = _tasks_revealing_models(db, batch)
        skips = dict(_skips_in_review(db, batch))
        open_messages = _open_thread_messages(db, batch)
    blind = is_blind(batch)
    return render_page(
        request,
        principal,
        "batch.html",
        show=charts,
        batch=batch,
        row=progress,
        work=workload,
        sizes=size_counts,
        tasks=tasks[:_TASKS_PER_PAGE],
        more=tasks[_TASKS_PER_PAGE - 1].position if len(tasks) > _TASKS_PER_PAGE else None,
        only=only,
        leaks=leaks,
        skips=skips,
        waiting=open_messages,
        blind=blind,
        hourly=hourly,
        report={name: count for name, count in batch.intake.items() if count},
    )


@dataclass(frozen=True, slots=True)
class _TaskListItem:
    """One line of the list of tasks."""

    id: str
    position: int
    state: str
    text: str
    overlap: int | None
    n_done: int
    n_open: int
    n_skipped: int


def _list_task_items(db: Session, batch: Batch, after: int, only: str) -> list[_TaskListItem]:
    """Tasks behind a position, one more than fits; `only`: those of one state."""
    statement = (
        select(
            Task.id, Task.position, Task.state, PromptRow.text, Task.overlap, Task.n_done, Task.n_open, Task.n_skipped
        )
        .join(PromptRow, PromptRow.id == Task.prompt_id, isouter=True)
        .where(Task.batch_id == batch.id, Task.position > after)
        .order_by(Task.position)
        .limit(_TASKS_PER_PAGE + 1)
    )
    rows = db.execute(statement.where(Task.state == only) if only else statement)
    return [
        _TaskListItem(
            task, position, state, (text or "")[:160], overlap if overlap < batches.UNLIMITED_OVERLAP else None, *counts
        )
        for task, position, state, text, overlap, *counts in rows
    ]


def _tasks_revealing_models(db: Session, batch: Batch) -> list[tuple[str, int]]:
    """(task, how many of its completions say which model wrote them)."""
    statement = (
        select(Task.id, func.count())
        .join(TaskCompletion, TaskCompletion.task_id == Task.id)
        .join(CompletionRow, CompletionRow.id == TaskCompletion.completion_id)
        .where(Task.batch_id == batch.id, Task.state != "withdrawn", CompletionRow.names_itself.is_(True))
        .group_by(Task.id, Task.position)
        .order_by(Task.position)
    )
    return [(task, count) for task, count in db.execute(statement)]


def _skips_in_review(db: Session, batch: Batch) -> list[tuple[str, list[tuple[str, str]]]]:
    """(task, (reason, note) of its skips) of the tasks in review."""
    statement = (
        select(Task.id, Skip.reason, Skip.note)
        .join(Assignment, Assignment.task_id == Task.id)
        .join(Skip, Skip.assignment_id == Assignment.id)
        .where(Task.batch_id == batch.id, Task.state == "review", Skip.undone_at.is_(None))
        .order_by(Task.position, Skip.at)
    )
    skips_by_task: dict[str, list[tuple[str, str]]] = {}
    for task, reason, note in db.execute(statement):
        skips_by_task.setdefault(task, []).append((reason, note))
    return list(skips_by_task.items())


def _open_thread_messages(db: Session, batch: Batch) -> list[tuple[str, str, str, bool, int]]:
    """(task, labeler's name, what was said, whether it is a report, when) of everything that waits for an answer."""
    statement = (
        select(MessageRow.task_id, Person.name, MessageRow.body, MessageRow.reported, MessageRow.at)
        .join(Task, Task.id == MessageRow.task_id)
        .join(Person, Person.id == MessageRow.about_id)
        .where(Task.batch_id == batch.id, MessageRow.author_id == MessageRow.about_id, MessageRow.settled_at.is_(None))
        .order_by(MessageRow.at)
    )
    return [(task, name, body, reported, at) for task, name, body, reported, at in db.execute(statement)]


@router.post("/batches/{batch_id}/state")
def change_batch_state(
    request: Request, principal: _TeamUser, batch_id: str, state: Annotated[str, Form()]
) -> Response:
    """Open or close a batch."""
    with get_site(request).database.write() as db:
        batch = get_batch_or_404(db, batch_id)
        if state == "open" and batch.purpose == "evaluation" and batch.state == "closed":
            raise SiteError(409, "names_are_known")
        if state not in ("open", "closed"):
            raise SiteError(422, "no_such_state")
        if state != batch.state:
            batches.mark_batch_open(db, batch) if state == "open" else batches.mark_batch_closed(
                db, batch, current_time_ms()
            )
            audit_log.append_entry(
                db, principal.signed_in_person.id, f"batch.{'opened' if state == 'open' else 'closed'}", batch.id
            )
    return RedirectResponse(f"/batches/{batch_id}", status_code=303)


@router.post("/batches/{batch_id}/priority")
def change_batch_priority(
    request: Request, principal: _TeamUser, batch_id: str, priority: Annotated[int, Form(ge=-1000, le=1000)]
) -> Response:
    """Which batch comes first."""
    with get_site(request).database.write() as db:
        batch = get_batch_or_404(db, batch_id)
        batch.priority = priority
        audit_log.append_entry(db, principal.signed_in_person.id, "batch.priority", batch.id, priority=priority)
    return RedirectResponse(f"/batches/{batch_id}", status_code=303)
