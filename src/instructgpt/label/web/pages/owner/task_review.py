"""One task as researchers see it: what was asked, what everybody did with it, the talk about it, and what to do about it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.label.analysis.adjudication import get_task_completions
from instructgpt.label.analysis.results import get_hidden_model_names, redact_model_names
from instructgpt.label.auth.dependencies import Principal, get_site, require
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Assignment, Batch, MessageRow, Person, PromptRow, Skip, Task, current_time_ms
from instructgpt.label.errors import SiteError
from instructgpt.label.tasks import assignments, batches, threads
from instructgpt.label.tasks.submission_history import list_task_submissions
from instructgpt.label.web import charts
from instructgpt.label.web.rendering import render_page

router = APIRouter()
_TeamUser = Annotated[Principal, require("researcher", "owner")]
_LongText = Annotated[str, Form(max_length=10_000)]


@router.get("/batches/tasks/{task_id}")
def show_task_review(request: Request, principal: _TeamUser, task_id: str) -> Response:
    """Everything about a task, without the names of models that are hidden."""
    with get_site(request).database.read() as db:
        task = _get_task_or_404(db, task_id)
        batch = db.get_one(Batch, task.batch_id)
        prompt = db.get(PromptRow, task.prompt_id) if task.prompt_id else None
        hidden_names = get_hidden_model_names(db)
        completions = get_task_completions(db, task_id)
        submissions = list_task_submissions(db, task)
        labeler_threads = _threads_by_labeler(db, task)
        skips = list(
            db.execute(
                select(Person.name, Skip.reason, Skip.note, Skip.at, Skip.undone_at)
                .join(Assignment, Assignment.id == Skip.assignment_id)
                .join(Person, Person.id == Assignment.person_id)
                .where(Assignment.task_id == task_id)
                .order_by(Skip.at)
            )
        )
    texts = [
        (letter, redact_model_names(each.text, hidden_names), each.names_itself)
        for letter, each in zip("ABCDEFGHI", completions, strict=False)
    ]
    letters = {each.id: letter for letter, each in zip("ABCDEFGHI", completions, strict=False)}
    return render_page(
        request,
        principal,
        "task.html",
        show=charts,
        task=task,
        batch=batch,
        prompt=prompt,
        texts=texts,
        work=submissions,
        talk=labeler_threads,
        skips=skips,
        letters=letters,
        text=redact_model_names(prompt.text, hidden_names) if prompt else "",
        everybody=batches.UNLIMITED_OVERLAP,
    )


def _get_task_or_404(db: Session, task_id: str) -> Task:
    """A task. Raises Problem 404."""
    task = db.get(Task, task_id)
    if task is None:
        raise SiteError(404, "not_found")
    return task


def _threads_by_labeler(db: Session, task: Task) -> dict[tuple[str, str], list[MessageRow]]:
    """(id, name) of a labeler -> their thread, in order."""
    statement = select(Person.id, Person.name, MessageRow).join(MessageRow, MessageRow.about_id == Person.id)
    messages_by_labeler: dict[tuple[str, str], list[MessageRow]] = {}
    for person, name, message in db.execute(
        statement.where(MessageRow.task_id == task.id).order_by(MessageRow.at, MessageRow.id)
    ):
        messages_by_labeler.setdefault((person, name), []).append(message)
    return messages_by_labeler


def _redirect_to_task(task_id: str) -> Response:
    """The task's page again."""
    return RedirectResponse(f"/batches/tasks/{task_id}", status_code=303)


@router.post("/batches/tasks/{task_id}/answer")
def answer_thread(
    request: Request, principal: _TeamUser, task_id: str, about: Annotated[str, Form()], body: _LongText
) -> Response:
    """Answer in a labeler's thread."""
    with get_site(request).database.write() as db:
        task, person = _get_task_or_404(db, task_id), db.get(Person, about)
        if person is None:
            raise SiteError(404, "not_found")
        message = threads.post_answer(db, task.id, person, principal.signed_in_person, body, current_time_ms())
        audit_log.append_entry(db, principal.signed_in_person.id, "thread.answered", task.id, message=message.id)
    return _redirect_to_task(task_id)


@router.post("/batches/tasks/{task_id}/return")
def return_assignment(
    request: Request, principal: _TeamUser, task_id: str, assignment_id: Annotated[str, Form()], reason: _LongText
) -> Response:
    """Return handed-in work to its labeler, with the reason as a message in their thread."""
    with get_site(request).database.write() as db:
        returned_assignment = db.get(Assignment, assignment_id)
        if returned_assignment is None or returned_assignment.task_id != task_id:
            raise SiteError(404, "not_found")
        now_ms = current_time_ms()
        assignments.return_to_labeler(db, returned_assignment, now_ms)
        person = db.get_one(Person, returned_assignment.person_id)
        message = threads.post_answer(db, task_id, person, principal.signed_in_person, reason, now_ms)
        audit_log.append_entry(
            db, principal.signed_in_person.id, "assignment.returned", returned_assignment.id, message=message.id
        )
    return _redirect_to_task(task_id)


@router.post("/batches/tasks/{task_id}/release")
def reopen_task(request: Request, principal: _TeamUser, task_id: str) -> Response:
    """Give a task that was skipped too often out again."""
    with get_site(request).database.write() as db:
        task = assignments.lock_tasks(db, [_get_task_or_404(db, task_id).id])[task_id]
        if task.state != "review":
            raise SiteError(409, "not_in_review")
        task.state = "done" if task.n_done >= task.overlap else "open"
        audit_log.append_entry(db, principal.signed_in_person.id, "task.released", task.id)
    return _redirect_to_task(task_id)


@router.post("/batches/tasks/{task_id}/withdraw")
def withdraw_task_prompt(request: Request, principal: _TeamUser, task_id: str, reason: _LongText) -> Response:
    """Withdraw the prompt of a task, from all batches and exports."""
    with get_site(request).database.write() as db:
        task = _get_task_or_404(db, task_id)
        prompt = db.get(PromptRow, task.prompt_id) if task.prompt_id else None
        if prompt is None:
            raise SiteError(404, "not_found")
        count = batches.withdraw_prompt(db, prompt, current_time_ms())
        audit_log.append_entry(
            db, principal.signed_in_person.id, "prompt.withdrawn", prompt.id, tasks=count, reason=reason
        )
    return _redirect_to_task(task_id)
