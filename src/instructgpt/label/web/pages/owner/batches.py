"""Batches: create one after a preview of its work, open and close it, follow its progress."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Request, Response
from pydantic import ValidationError
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from instructgpt.errors import InputError
from instructgpt.label.analysis import forecast
from instructgpt.label.analysis.forecast import Workload
from instructgpt.label.analysis.results import is_blind
from instructgpt.label.auth.dependencies import TeamUser, get_site
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
from instructgpt.label.db.staging import try_out, write_in_portions
from instructgpt.label.errors import SiteError, format_user_message
from instructgpt.label.tasks import batch_requests, batches
from instructgpt.label.tasks.batch_requests import BATCH_INPUT_FILES, BatchSpec
from instructgpt.label.tasks.batch_warnings import BatchWarning, find_batch_warnings
from instructgpt.label.tasks.questions import ANSWER_POLICIES, batch_questions, load_questions_yaml
from instructgpt.label.tasks.rates import get_current_rate, list_rates, sum_spent
from instructgpt.label.tasks.task_view import newest_turn
from instructgpt.label.vocabulary import FAILURE_KINDS, MAX_COMPLETIONS
from instructgpt.label.web.rendering import redirect, render_page
from instructgpt.records import LABELS, USE_CASES, format_validation_error

router = APIRouter()
_TASKS_PER_PAGE = 50
_PREVIEW_LENGTH = 160
"""Characters of a prompt in the list of tasks."""
_QUESTIONS_EXAMPLE = """rating: {points: 5, low: {en: useless}, high: {en: perfect}}
labels:
  cites_source: {text: {en: Names a source}, answer: required}
  source_exists: {text: {en: The source exists}, when: {cites_source: yes}}
"""
_COMPLETIONS_EXAMPLE = '{"prompt": "Why is the sky blue?", "completion": "Air scatters blue light.", "model": "sft"}'
_PERCENT_FIELDS = ("cohort_share", "gold_share", "repeat_share", "heldout_share")
"""Shares that the form has in percent."""


@dataclass(frozen=True, slots=True)
class _BatchFormInput:
    """The fields as typed, and (token, file name) of each upload of this request or of an earlier preview."""

    fields: Mapping[str, str]
    files: Mapping[str, tuple[str, str]]
    error: str | None = None  # of an upload


async def _read_batch_form(request: Request) -> _BatchFormInput:
    """Read the form and store its files on the server, so that a preview need not upload them twice."""
    folder = get_site(request).settings.folder
    files: dict[str, tuple[str, str]] = {}
    error: str | None = None
    async with request.form(max_files=len(BATCH_INPUT_FILES), max_fields=90) as form:
        for name in BATCH_INPUT_FILES:
            upload, token = form.get(name), form.get(f"{name}_token")
            if isinstance(upload, UploadFile) and upload.filename:
                try:
                    token = await run_in_threadpool(batch_requests.store_upload, folder, upload.filename, upload.file)
                    files[name] = (token, upload.filename)
                except InputError as refusal:
                    error = str(refusal)
            elif isinstance(token, str) and token:
                files[name] = (token, str(form.get(f"{name}_name") or token))
        return _BatchFormInput({key: value for key, value in form.items() if isinstance(value, str)}, files, error)


_BatchForm = Annotated[_BatchFormInput, Depends(_read_batch_form)]


@router.get("/batches")
def show_batches(request: Request, _: TeamUser) -> Response:
    with get_site(request).database.read() as db:
        rows = forecast.list_batch_statuses(db)
    return render_page(request, "owner/batches.html", rows=rows)


@router.get("/batches/new")
def show_batch_form(request: Request, _: TeamUser) -> Response:
    defaults = {
        name: str(info.default)
        for name, info in BatchSpec.model_fields.items()
        if info.default is not None and not info.is_required()
    }
    defaults |= {name: f"{100 * float(defaults[name]):g}" for name in _PERCENT_FIELDS if name in defaults}
    with get_site(request).database.read() as db:
        newest = db.scalars(select(Batch).order_by(Batch.created_at.desc()).limit(1)).first()
        if newest is not None and (rate := get_current_rate(newest)) is not None:
            defaults |= {"hourly": f"{rate.amount:g}", "currency": rate.currency}
    return _render_batch_form(request, _BatchFormInput(defaults, {}))


@router.post("/batches/preview")
def preview_batch(request: Request, principal: TeamUser, form: _BatchForm) -> Response:
    """Create the batch, count its work, and roll everything back."""
    site = get_site(request)

    def create(db: Session) -> tuple[Any, dict[str, Any], forecast.Workload, list[BatchWarning]]:
        batch = _create_batch(db, site.settings.folder, form, principal.user)
        workload = forecast.estimate_batch_workload(db, batch)
        return _count_tasks_by_size(db, batch), batch.intake, workload, find_batch_warnings(db, batch)

    try:
        sizes, intake, workload, warnings = try_out(site.database, create)
    except InputError as error:
        return _render_batch_form(request, form, str(error))
    return _render_batch_form(request, form, None, workload, sizes, intake, warnings)


@router.post("/batches")
def create_batch_from_form(request: Request, principal: TeamUser, form: _BatchForm) -> Response:
    """Create the batch as a draft: labelers get its tasks when it is opened."""
    site, user = get_site(request), principal.user

    def create(db: Session) -> Batch:
        batch = _create_batch(db, site.settings.folder, form, user)
        detail = {"tasks": batch.intake.get("tasks"), "kind": batch.kind, "purpose": batch.purpose}
        audit_log.append_entry(db, user.id, "batch.made", batch.id, **detail)
        return batch

    try:
        batch = write_in_portions(site.database, create)
    except InputError as error:
        return _render_batch_form(request, form, str(error))
    for token, _ in form.files.values():
        (site.settings.folder / "uploads" / Path(token).name).unlink(missing_ok=True)
    return redirect(f"/batches/{batch.id}")


def _create_batch(db: Session, folder: Path, form: _BatchFormInput, creator: Person) -> Batch:
    """Create the batch of a form. Raises InputError, with the uploads' own file names."""
    if form.error is not None:
        raise InputError(form.error)
    fields = {name: value for name, value in form.fields.items() if value.strip()}
    values: dict[str, Any] = {name: fields[name] for name in BatchSpec.model_fields if name in fields}
    if "hourly" in values or "currency" in values:
        values["hourly"] = values.get("hourly", "").replace(",", ".") or None
        values["currency"] = values.get("currency", "").strip().upper() or None
    for name in _PERCENT_FIELDS:
        if name in values:
            try:
                values[name] = float(values[name].replace(",", ".")) / 100
            except ValueError as error:
                raise InputError(f"{name}: '{values[name]}' is not a percentage") from error
    values["questions"] = _read_questions(fields) if fields.get("kind") == "rank" else None
    try:
        spec = BatchSpec.model_validate(values)
    except ValidationError as error:
        raise InputError(format_validation_error(error)) from error
    paths: dict[str, Path] = {}
    try:
        for name, (token, _) in form.files.items():
            paths[name] = batch_requests.get_upload(folder, token)
        inputs = {name: [path] for name, path in paths.items()}
        return batch_requests.create_batch_from_spec(db, spec, inputs, creator)
    except InputError as error:
        message = format_user_message(error)
        for name, path in paths.items():
            message = message.replace(str(path), form.files[name][1])
        raise InputError(message) from error


def _read_questions(fields: Mapping[str, str]) -> dict[str, Any] | None:
    """Read the questions of a form: the YAML as typed, then the choices for the rating and each label of Table 3."""
    document = load_questions_yaml(fields.get("questions", "")) or {}
    if "answer_rating" in fields:
        rating = document.get("rating")
        document["rating"] = (rating if isinstance(rating, dict) else {}) | {"answer": fields["answer_rating"]}
    chosen = {name: fields[f"answer_{name}"] for name in LABELS if f"answer_{name}" in fields}
    if chosen:
        labels = document.get("labels") or {}
        for name, answer in chosen.items():
            labels[name] = (labels[name] if isinstance(labels.get(name), dict) else {}) | {"answer": answer}
        document["labels"] = labels
    if "answer_table_3" in fields:
        document["table_3"] = fields["answer_table_3"]
    return document or None


def _render_batch_form(
    request: Request,
    form: _BatchFormInput,
    error: str | None = None,
    workload: Workload | None = None,
    sizes: Mapping[int, int] | None = None,
    intake: Mapping[str, int] | None = None,
    warnings: Sequence[BatchWarning] = (),
) -> Response:
    sample_arguments = batch_requests.build_sample_arguments("DIR", "prompts.jsonl", 2, "completions.jsonl")
    folder = shlex.quote(str(get_site(request).settings.folder))
    batch_arguments = f"--site {folder} --name NAME --prompts prompts.jsonl --models sft=DIR ppo=DIR --n 2"
    return render_page(
        request,
        "owner/batch_new.html",
        status=422 if error else 200,
        form=form,
        error=error,
        workload=workload,
        warnings=warnings,
        sizes=sizes,
        intake={name: count for name, count in (intake or {}).items() if count},
        use_cases=USE_CASES,
        commands=[f"instructgpt {' '.join(sample_arguments)}", f"instructgpt label batch {batch_arguments}"],
        max_completions=MAX_COMPLETIONS,
        questions_example=_QUESTIONS_EXAMPLE,
        completions_example=_COMPLETIONS_EXAMPLE,
        answer_policies=ANSWER_POLICIES,
        table_3=LABELS,
        screening_parts=batches.SCREENING_TASK_PARTS,
        failure_kinds=FAILURE_KINDS,
    )


def _count_tasks_by_size(db: Session, batch: Batch) -> dict[int, int]:
    """Count the tasks with K completions. -> {K: count}"""
    in_batch = select(Task.id).where(Task.batch_id == batch.id)
    completions = select(func.count().label("k")).where(TaskCompletion.task_id.in_(in_batch))
    sizes = completions.group_by(TaskCompletion.task_id).subquery()
    rows = db.execute(select(sizes.c.k, func.count()).group_by(sizes.c.k).order_by(sizes.c.k))
    return {row[0]: row[1] for row in rows}


def get_batch_or_404(db: Session, batch_id: str) -> Batch:
    """Return a batch. Raises SiteError `no_such_batch` (404)."""
    batch = db.get(Batch, batch_id)
    if batch is None:
        raise SiteError(404, "no_such_batch")
    return batch


@router.get("/batches/{batch_id}")
def show_batch(request: Request, _: TeamUser, batch_id: str, after: int = -1, only: str = "") -> Response:
    """`after`, `only`: tasks behind a position, of a state."""
    with get_site(request).database.read() as db:
        batch = get_batch_or_404(db, batch_id)
        tasks = _list_task_items(db, batch, after, only)
        return render_page(
            request,
            "owner/batch.html",
            batch=batch,
            row=next(row for row in forecast.list_batch_statuses(db) if row.batch_id == batch_id),
            workload=forecast.estimate_batch_workload(db, batch),
            rate=get_current_rate(batch),
            rates=list_rates(batch),
            spent=sum_spent(db, [batch]).get(batch_id, {}),
            sizes=_count_tasks_by_size(db, batch),
            tasks=tasks[:_TASKS_PER_PAGE],
            next_after=tasks[_TASKS_PER_PAGE - 1].position if len(tasks) > _TASKS_PER_PAGE else None,
            only=only,
            leaks=_tasks_revealing_models(db, batch),
            skips=_skips_in_review(db, batch),
            open_messages=_open_thread_messages(db, batch),
            is_blind=is_blind(batch),
            intake={name: count for name, count in batch.intake.items() if count},
            questions=batch_questions(batch) if batch.kind == "rank" else None,
            warnings=find_batch_warnings(db, batch) if batch.state != "closed" else (),
        )


@dataclass(frozen=True, slots=True)
class _TaskListItem:
    id: str
    position: int
    state: str
    text: str
    overlap: int | None
    n_done: int
    n_open: int
    n_skipped: int


def _list_task_items(db: Session, batch: Batch, after: int, only: str) -> list[_TaskListItem]:
    """List one task more than fits on a page, to know whether there is a next page."""
    columns = (Task.id, Task.position, Task.state, PromptRow.text, PromptRow.messages, Task.overlap)
    statement = (
        select(*columns, Task.n_done, Task.n_open, Task.n_skipped)
        .join(PromptRow, PromptRow.id == Task.prompt_id, isouter=True)
        .where(Task.batch_id == batch.id, Task.position > after)
        .order_by(Task.position)
        .limit(_TASKS_PER_PAGE + 1)
    )
    items = []
    rows = db.execute(statement.where(Task.state == only) if only else statement)
    for task_id, position, state, text, messages, overlap, *counts in rows:
        preview = newest_turn(text or "", messages)[:_PREVIEW_LENGTH]
        limit = overlap if overlap < batches.UNLIMITED_OVERLAP else None
        items.append(_TaskListItem(task_id, position, state, preview, limit, *counts))
    return items


def _tasks_revealing_models(db: Session, batch: Batch) -> list[tuple[str, int]]:
    """Return (task, count of its completions that name their model)."""
    statement = (
        select(Task.id, func.count())
        .join(TaskCompletion, TaskCompletion.task_id == Task.id)
        .join(CompletionRow, CompletionRow.id == TaskCompletion.completion_id)
        .where(Task.batch_id == batch.id, Task.state != "withdrawn", CompletionRow.names_itself.is_(True))
        .group_by(Task.id, Task.position)
        .order_by(Task.position)
    )
    return [(task, count) for task, count in db.execute(statement)]


def _skips_in_review(db: Session, batch: Batch) -> dict[str, list[tuple[str, str]]]:
    """Return {task: [(reason, note) of its skips]} of the tasks in review."""
    statement = (
        select(Task.id, Skip.reason, Skip.note)
        .join(Assignment, Assignment.task_id == Task.id)
        .join(Skip, Skip.assignment_id == Assignment.id)
        .where(Task.batch_id == batch.id, Task.state == "review", Skip.undone_at.is_(None))
        .order_by(Task.position, Skip.at)
    )
    skips: dict[str, list[tuple[str, str]]] = {}
    for task, reason, note in db.execute(statement):
        skips.setdefault(task, []).append((reason, note))
    return skips


def _open_thread_messages(db: Session, batch: Batch) -> list[tuple[str, str, str, bool, int]]:
    """Return (task, labeler's name, body, whether it is a report, time) of the labelers' messages without an answer."""
    is_open = (MessageRow.author_id == MessageRow.about_id, MessageRow.settled_at.is_(None))
    statement = (
        select(MessageRow.task_id, Person.name, MessageRow.body, MessageRow.reported, MessageRow.at)
        .join(Task, Task.id == MessageRow.task_id)
        .join(Person, Person.id == MessageRow.about_id)
        .where(Task.batch_id == batch.id, *is_open)
        .order_by(MessageRow.at)
    )
    return [(task, name, body, reported, at) for task, name, body, reported, at in db.execute(statement)]


@router.post("/batches/{batch_id}/state")
def change_batch_state(request: Request, principal: TeamUser, batch_id: str, state: Annotated[str, Form()]) -> Response:
    with get_site(request).database.write() as db:
        batch = get_batch_or_404(db, batch_id)
        if state == "open" and batch.purpose == "evaluation" and batch.state == "closed":
            raise SiteError(409, "names_are_known")  # a closed evaluation is unblinded: nobody ranks it blind any more
        if state not in ("open", "closed"):
            raise SiteError(422, "no_such_state")
        if state != batch.state:
            if state == "open":
                batches.mark_batch_open(db, batch)
            else:
                batches.mark_batch_closed(db, batch, current_time_ms())
            action = "batch.opened" if state == "open" else "batch.closed"
            audit_log.append_entry(db, principal.user.id, action, batch.id)
    return redirect(f"/batches/{batch_id}")


@router.post("/batches/{batch_id}/priority")
def change_batch_priority(
    request: Request, principal: TeamUser, batch_id: str, priority: Annotated[int, Form(ge=-1000, le=1000)]
) -> Response:
    with get_site(request).database.write() as db:
        batch = get_batch_or_404(db, batch_id)
        batch.priority = priority
        audit_log.append_entry(db, principal.user.id, "batch.priority", batch.id, priority=priority)
    return redirect(f"/batches/{batch_id}")
