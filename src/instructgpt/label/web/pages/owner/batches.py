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

from instructgpt.errors import BadInput
from instructgpt.label.analysis import forecast
from instructgpt.label.analysis.forecast import Workload
from instructgpt.label.analysis.results import is_blind
from instructgpt.label.auth.dependencies import Visitor, allow, site_of
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Batch, Completion, Message, Person, Prompt, Skip, Task, TaskCompletion, now
from instructgpt.label.db.models.submissions import Assignment
from instructgpt.label.errors import Problem, in_words
from instructgpt.label.tasks import batch_requests, batches
from instructgpt.label.tasks.batch_requests import FILES, Wish
from instructgpt.label.tasks.ingest import MOST_COMPLETIONS
from instructgpt.label.web import charts
from instructgpt.label.web.pages.owner.overview import positive
from instructgpt.label.web.rendering import page
from instructgpt.records import USE_CASES, explain

router = APIRouter()
Team = Annotated[Visitor, allow("researcher", "owner")]
AT_ONCE = 50
"""Tasks on one page."""
SHARES = ("cohort_share", "gold_share", "repeat_share")
"""Typed in percent."""


@dataclass(frozen=True, slots=True)
class Filled:
    """What somebody filled in: fields as typed, and the files that came along now or with an earlier preview."""

    fields: Mapping[str, str]
    files: Mapping[str, tuple[str, str]]
    """(token, name as the person knows it) of each file."""


async def filled(request: Request) -> Filled:
    """The form of a new batch. Its files are kept on the server, so that a preview need not send them twice."""
    folder = site_of(request).settings.folder
    files: dict[str, tuple[str, str]] = {}
    async with request.form(max_files=len(FILES), max_fields=60) as form:
        for name in FILES:
            sent, token = form.get(name), form.get(f"{name}_token")
            if isinstance(sent, UploadFile) and sent.filename:
                token = await run_in_threadpool(batch_requests.keep_upload, folder, sent.filename, sent.file)
                files[name] = (token, sent.filename)
            elif isinstance(token, str) and token:
                files[name] = (token, str(form.get(f"{name}_name") or token))
        return Filled({key: value for key, value in form.items() if isinstance(value, str)}, files)


@router.get("/batches")
def list_batches(request: Request, visitor: Team) -> Response:
    """All batches with their progress."""
    with site_of(request).database.read() as db:
        rows = forecast.progress(db)
    return page(request, visitor, "batches.html", show=charts, rows=rows)


@router.get("/batches/new")
def new_batch(request: Request, visitor: Team) -> Response:
    """The empty form."""
    start = {name: str(info.default) for name, info in Wish.model_fields.items() if info.default is not None and not info.is_required()}
    start |= {name: f"{100 * float(start[name]):g}" for name in SHARES}
    return form_page(request, visitor, Filled(start, {}))


@router.post("/batches/preview")
def preview(request: Request, visitor: Team, given: Annotated[Filled, Depends(filled)]) -> Response:
    """Make the batch, count its work, and take everything back."""
    site = site_of(request)
    try:
        with site.database.write() as db:
            batch = made(db, site.settings.folder, given, visitor.me)
            work = forecast.plan(db, batch, positive(given.fields.get("hourly", "")))
            sizes, report = sizes_of(db, batch), batch.intake
            db.rollback()
    except BadInput as error:
        return form_page(request, visitor, given, str(error))
    return form_page(request, visitor, given, None, work, sizes, report)


@router.post("/batches")
def make_batch(request: Request, visitor: Team, given: Annotated[Filled, Depends(filled)]) -> Response:
    """Make the batch; it stays closed to labelers until it is opened."""
    site = site_of(request)
    try:
        with site.database.write() as db:
            batch = made(db, site.settings.folder, given, visitor.me)
            audit_log.note(
                db, visitor.me.id, "batch.made", batch.id, tasks=batch.intake.get("tasks"), kind=batch.kind, purpose=batch.purpose
            )
    except BadInput as error:
        return form_page(request, visitor, given, str(error))
    for token, _ in given.files.values():
        (site.settings.folder / "uploads" / Path(token).name).unlink(missing_ok=True)
    return RedirectResponse(f"/batches/{batch.id}", status_code=303)


def made(db: Session, folder: Path, given: Filled, by: Person) -> Batch:
    """The batch that a form asks for. Raises BadInput with the names of files as the person knows them."""
    wanted: dict[str, Any] = {name: given.fields[name] for name in Wish.model_fields if given.fields.get(name, "").strip()}
    for name in SHARES:
        if name in wanted:
            try:
                wanted[name] = float(wanted[name].replace(",", ".")) / 100
            except ValueError as error:
                raise BadInput(f"{name}: '{wanted[name]}' is no percentage") from error
    try:
        wish = Wish.model_validate(wanted)
    except ValidationError as error:
        raise BadInput(explain(error)) from error
    paths: dict[str, Path] = {}
    try:
        for name, (token, _) in given.files.items():
            paths[name] = batch_requests.uploaded(folder, token)
        return batch_requests.make(db, wish, {name: [path] for name, path in paths.items()}, by)
    except BadInput as error:
        said = in_words(error)
        for name, path in paths.items():
            said = said.replace(str(path), given.files[name][1])
        raise BadInput(said) from error


def form_page(
    request: Request, visitor: Visitor, given: Filled, wrong: str | None = None, work: Workload | None = None,
    sizes: Mapping[int, int] | None = None, report: Mapping[str, int] | None = None,
) -> Response:  # fmt: skip
    """The form, with what is wrong or what a preview found."""
    one = "instructgpt " + " ".join(batch_requests.sample_arguments("DIR", "prompts.jsonl", 2, "completions.jsonl"))
    folder = shlex.quote(str(site_of(request).settings.folder))
    every = f"instructgpt label batch --site {folder} --name NAME --prompts prompts.jsonl --models sft=DIR ppo=DIR --n 2"
    return page(
        request, visitor, "batch_new.html", status=422 if wrong else 200, show=charts, given=given, wrong=wrong, work=work, sizes=sizes,
        report={name: count for name, count in (report or {}).items() if count}, use_cases=USE_CASES, commands=[one, every],
        most=MOST_COMPLETIONS, screening=batches.SCREENING,
    )  # fmt: skip


def sizes_of(db: Session, batch: Batch) -> dict[int, int]:
    """How many tasks have K completions."""
    sizes = select(func.count().label("k")).select_from(TaskCompletion).join(Task, Task.id == TaskCompletion.task_id)
    counted = sizes.where(Task.batch_id == batch.id).group_by(TaskCompletion.task_id).subquery()
    rows = db.execute(select(counted.c.k, func.count()).group_by(counted.c.k).order_by(counted.c.k))
    return {row[0]: row[1] for row in rows}


def batch_of(db: Session, batch_id: str) -> Batch:
    """A batch. Raises Problem 404."""
    batch = db.get(Batch, batch_id)
    if batch is None:
        raise Problem(404, "no_such_batch")
    return batch


@router.get("/batches/{batch_id}")
def one_batch(request: Request, visitor: Team, batch_id: str, after: int = -1, only: str = "", hourly: str = "") -> Response:
    """How far a batch is, what needs a person, and its tasks."""
    with site_of(request).database.read() as db:
        batch = batch_of(db, batch_id)
        progress = next(row for row in forecast.progress(db) if row.batch == batch_id)
        work, sizes = forecast.plan(db, batch, positive(hourly)), sizes_of(db, batch)
        tasks = task_rows(db, batch, after, only)
        leaks = leaking(db, batch)
        skips = dict(skipped(db, batch))
        waiting = threads(db, batch)
    blind = is_blind(batch)
    return page(
        request, visitor, "batch.html", show=charts, batch=batch, row=progress, work=work, sizes=sizes, tasks=tasks[:AT_ONCE],
        more=tasks[AT_ONCE - 1].position if len(tasks) > AT_ONCE else None, only=only, leaks=leaks, skips=skips, waiting=waiting,
        blind=blind, hourly=hourly, report={name: count for name, count in batch.intake.items() if count},
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One line of the list of tasks."""

    id: str
    position: int
    state: str
    text: str
    overlap: int | None
    n_done: int
    n_open: int
    n_skipped: int


def task_rows(db: Session, batch: Batch, after: int, only: str) -> list[TaskRow]:
    """Tasks behind a position, one more than fits; `only`: those of one state."""
    statement = (
        select(Task.id, Task.position, Task.state, Prompt.text, Task.overlap, Task.n_done, Task.n_open, Task.n_skipped)
        .join(Prompt, Prompt.id == Task.prompt_id, isouter=True)
        .where(Task.batch_id == batch.id, Task.position > after)
        .order_by(Task.position)
        .limit(AT_ONCE + 1)
    )
    rows = db.execute(statement.where(Task.state == only) if only else statement)
    return [
        TaskRow(task, position, state, (text or "")[:160], overlap if overlap < batches.EVERYBODY else None, *counts)
        for task, position, state, text, overlap, *counts in rows
    ]


def leaking(db: Session, batch: Batch) -> list[tuple[str, int]]:
    """(task, how many of its completions say which model wrote them)."""
    statement = (
        select(Task.id, func.count())
        .join(TaskCompletion, TaskCompletion.task_id == Task.id)
        .join(Completion, Completion.id == TaskCompletion.completion_id)
        .where(Task.batch_id == batch.id, Task.state != "withdrawn", Completion.names_itself.is_(True))
        .group_by(Task.id, Task.position)
        .order_by(Task.position)
    )
    return [(task, count) for task, count in db.execute(statement)]


def skipped(db: Session, batch: Batch) -> list[tuple[str, list[tuple[str, str]]]]:
    """(task, (reason, note) of its skips) of the tasks in review."""
    statement = (
        select(Task.id, Skip.reason, Skip.note)
        .join(Assignment, Assignment.task_id == Task.id)
        .join(Skip, Skip.assignment_id == Assignment.id)
        .where(Task.batch_id == batch.id, Task.state == "review", Skip.undone_at.is_(None))
        .order_by(Task.position, Skip.at)
    )
    found: dict[str, list[tuple[str, str]]] = {}
    for task, reason, note in db.execute(statement):
        found.setdefault(task, []).append((reason, note))
    return list(found.items())


def threads(db: Session, batch: Batch) -> list[tuple[str, str, str, bool, int]]:
    """(task, labeler's name, what was said, whether it is a report, when) of everything that waits for an answer."""
    statement = (
        select(Message.task_id, Person.name, Message.body, Message.reported, Message.at)
        .join(Task, Task.id == Message.task_id)
        .join(Person, Person.id == Message.about_id)
        .where(Task.batch_id == batch.id, Message.author_id == Message.about_id, Message.settled_at.is_(None))
        .order_by(Message.at)
    )
    return [(task, name, body, reported, at) for task, name, body, reported, at in db.execute(statement)]


@router.post("/batches/{batch_id}/state")
def change_state(request: Request, visitor: Team, batch_id: str, state: Annotated[str, Form()]) -> Response:
    """Open or close a batch."""
    with site_of(request).database.write() as db:
        batch = batch_of(db, batch_id)
        if state == "open" and batch.purpose == "evaluation" and batch.state == "closed":
            raise Problem(409, "names_are_known")
        if state not in ("open", "closed"):
            raise Problem(422, "no_such_state")
        if state != batch.state:
            batches.open_batch(db, batch) if state == "open" else batches.close_batch(db, batch, now())
            audit_log.note(db, visitor.me.id, f"batch.{'opened' if state == 'open' else 'closed'}", batch.id)
    return RedirectResponse(f"/batches/{batch_id}", status_code=303)


@router.post("/batches/{batch_id}/priority")
def change_priority(request: Request, visitor: Team, batch_id: str, priority: Annotated[int, Form(ge=-1000, le=1000)]) -> Response:
    """Which batch comes first."""
    with site_of(request).database.write() as db:
        batch = batch_of(db, batch_id)
        batch.priority = priority
        audit_log.note(db, visitor.me.id, "batch.priority", batch.id, priority=priority)
    return RedirectResponse(f"/batches/{batch_id}", status_code=303)
