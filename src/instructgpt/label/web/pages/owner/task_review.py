"""A task as researchers see it: prompt, completions, submissions, skips, threads; answer, return, reopen, withdraw."""

from __future__ import annotations

from string import ascii_uppercase
from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.label.analysis.adjudication import get_task_completions
from instructgpt.label.analysis.results import get_hidden_model_names, redact_model_names, redact_turns
from instructgpt.label.auth.dependencies import TeamUser, get_site
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Assignment, Batch, MessageRow, Person, PromptRow, Skip, Task, current_time_ms
from instructgpt.label.errors import SiteError
from instructgpt.label.tasks import assignments, batches, threads
from instructgpt.label.tasks.questions import load_own_questions
from instructgpt.label.tasks.submission_history import list_task_submissions
from instructgpt.label.web.params import or_404
from instructgpt.label.web.rendering import redirect, render_page

router = APIRouter()
_LongText = Annotated[str, Form(max_length=10_000)]


@router.get("/batches/tasks/{task_id}")
def show_task_review(request: Request, _: TeamUser, task_id: str) -> Response:
    with get_site(request).database.read() as db:
        task = or_404(db.get(Task, task_id))
        prompt = db.get(PromptRow, task.prompt_id) if task.prompt_id else None
        hidden_names = get_hidden_model_names(db)
        completions = list(zip(ascii_uppercase, get_task_completions(db, task_id), strict=False))
        skips = (
            select(Person.name, Skip.reason, Skip.note, Skip.at, Skip.undone_at)
            .join(Assignment, Assignment.id == Skip.assignment_id)
            .join(Person, Person.id == Assignment.person_id)
            .where(Assignment.task_id == task_id)
            .order_by(Skip.at)
        )
        return render_page(
            request,
            "owner/task_review.html",
            task=task,
            batch=db.get_one(Batch, task.batch_id),
            prompt=prompt,
            text=redact_model_names(prompt.text, hidden_names) if prompt else "",
            turns=redact_turns(prompt.messages, hidden_names) if prompt else None,
            completions=[
                (letter, redact_model_names(completion.text, hidden_names), completion.names_itself)
                for letter, completion in completions
            ],
            letters={completion.id: letter for letter, completion in completions},
            submissions=list_task_submissions(db, task),
            threads=_threads_by_labeler(db, task),
            skips=list(db.execute(skips)),
            unlimited=batches.UNLIMITED_OVERLAP,
            own=load_own_questions(db, task.batch_id),
        )


def _threads_by_labeler(db: Session, task: Task) -> dict[tuple[str, str], list[MessageRow]]:
    """Return {(id, name) of a labeler: messages of their thread, oldest first}."""
    statement = select(Person.id, Person.name, MessageRow).join(MessageRow, MessageRow.about_id == Person.id)
    statement = statement.where(MessageRow.task_id == task.id).order_by(MessageRow.at, MessageRow.id)
    messages_by_labeler: dict[tuple[str, str], list[MessageRow]] = {}
    for person_id, name, message in db.execute(statement):
        messages_by_labeler.setdefault((person_id, name), []).append(message)
    return messages_by_labeler


def _redirect_to_task(task_id: str) -> Response:
    return redirect(f"/batches/tasks/{task_id}")


@router.post("/batches/tasks/{task_id}/answer")
def answer_thread(
    request: Request,
    principal: TeamUser,
    task_id: str,
    labeler_id: Annotated[str, Form(alias="about")],
    body: _LongText,
) -> Response:
    with get_site(request).database.write() as db:
        task, labeler = or_404(db.get(Task, task_id)), or_404(db.get(Person, labeler_id))
        message = threads.post_answer(db, task.id, labeler, principal.user, body, current_time_ms())
        audit_log.append_entry(db, principal.user.id, "thread.answered", task.id, message=message.id)
    return _redirect_to_task(task_id)


@router.post("/batches/tasks/{task_id}/return")
def return_assignment(
    request: Request, principal: TeamUser, task_id: str, assignment_id: Annotated[str, Form()], reason: _LongText
) -> Response:
    """Return a submission to its labeler; the reason becomes a message in their thread."""
    now_ms, user = current_time_ms(), principal.user
    with get_site(request).database.write() as db:
        assignment = or_404(db.get(Assignment, assignment_id))
        if assignment.task_id != task_id:
            raise SiteError(404, "not_found")
        assignments.return_to_labeler(db, assignment, now_ms)
        labeler = db.get_one(Person, assignment.person_id)
        message = threads.post_answer(db, task_id, labeler, user, reason, now_ms)
        audit_log.append_entry(db, user.id, "assignment.returned", assignment.id, message=message.id)
    return _redirect_to_task(task_id)


@router.post("/batches/tasks/{task_id}/release")
def reopen_task(request: Request, principal: TeamUser, task_id: str) -> Response:
    """Give a task to labelers again that was put into review because too many skipped it."""
    with get_site(request).database.write() as db:
        task = assignments.lock_tasks(db, [or_404(db.get(Task, task_id)).id])[task_id]
        if task.state != "review":
            raise SiteError(409, "not_in_review")
        assignments.leave_review(db, task)
        audit_log.append_entry(db, principal.user.id, "task.released", task.id)
    return _redirect_to_task(task_id)


@router.post("/batches/tasks/{task_id}/withdraw")
def withdraw_task_prompt(request: Request, principal: TeamUser, task_id: str, reason: _LongText) -> Response:
    with get_site(request).database.write() as db:
        task = or_404(db.get(Task, task_id))
        prompt = or_404(db.get(PromptRow, task.prompt_id) if task.prompt_id else None)
        count = batches.withdraw_prompt(db, prompt, current_time_ms())
        audit_log.append_entry(db, principal.user.id, "prompt.withdrawn", prompt.id, tasks=count, reason=reason)
    return _redirect_to_task(task_id)
