"""One task as researchers see it: what was asked, what everybody did with it, the talk about it, and what to do about it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.label.analysis.adjudication import completions_of
from instructgpt.label.analysis.results import masked, names_hidden
from instructgpt.label.auth.dependencies import Visitor, allow, site_of
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Assignment, Batch, Message, Person, Prompt, Skip, Task, now
from instructgpt.label.errors import Problem
from instructgpt.label.tasks import assignments, batches, threads
from instructgpt.label.tasks.submission_details import work_on
from instructgpt.label.web import charts
from instructgpt.label.web.rendering import page

router = APIRouter()
Team = Annotated[Visitor, allow("researcher", "owner")]
Words = Annotated[str, Form(max_length=10_000)]


@router.get("/batches/tasks/{task_id}")
def one_task(request: Request, visitor: Team, task_id: str) -> Response:
    """Everything about a task, without the names of models that are hidden."""
    with site_of(request).database.read() as db:
        task = task_of(db, task_id)
        batch = db.get_one(Batch, task.batch_id)
        prompt = db.get(Prompt, task.prompt_id) if task.prompt_id else None
        hidden = names_hidden(db)
        shown = completions_of(db, task_id)
        work = work_on(db, task)
        talk = talk_about(db, task)
        skips = list(
            db.execute(
                select(Person.name, Skip.reason, Skip.note, Skip.at, Skip.undone_at)
                .join(Assignment, Assignment.id == Skip.assignment_id)
                .join(Person, Person.id == Assignment.person_id)
                .where(Assignment.task_id == task_id)
                .order_by(Skip.at)
            )
        )
    texts = [(letter, masked(each.text, hidden), each.names_itself) for letter, each in zip("ABCDEFGHI", shown, strict=False)]
    letters = {each.id: letter for letter, each in zip("ABCDEFGHI", shown, strict=False)}
    return page(
        request, visitor, "task.html", show=charts, task=task, batch=batch, prompt=prompt, texts=texts, work=work, talk=talk, skips=skips,
        letters=letters, text=masked(prompt.text, hidden) if prompt else "", everybody=batches.EVERYBODY,
    )  # fmt: skip


def task_of(db: Session, task_id: str) -> Task:
    """A task. Raises Problem 404."""
    task = db.get(Task, task_id)
    if task is None:
        raise Problem(404, "not_found")
    return task


def talk_about(db: Session, task: Task) -> dict[tuple[str, str], list[Message]]:
    """(id, name) of a labeler -> their thread, in order."""
    statement = select(Person.id, Person.name, Message).join(Message, Message.about_id == Person.id)
    found: dict[tuple[str, str], list[Message]] = {}
    for person, name, message in db.execute(statement.where(Message.task_id == task.id).order_by(Message.at, Message.id)):
        found.setdefault((person, name), []).append(message)
    return found


def back(task_id: str) -> Response:
    """The task's page again."""
    return RedirectResponse(f"/batches/tasks/{task_id}", status_code=303)


@router.post("/batches/tasks/{task_id}/answer")
def answer(request: Request, visitor: Team, task_id: str, about: Annotated[str, Form()], body: Words) -> Response:
    """Answer in a labeler's thread."""
    with site_of(request).database.write() as db:
        task, person = task_of(db, task_id), db.get(Person, about)
        if person is None:
            raise Problem(404, "not_found")
        said = threads.answer(db, task.id, person, visitor.me, body, now())
        audit_log.note(db, visitor.me.id, "thread.answered", task.id, message=said.id)
    return back(task_id)


@router.post("/batches/tasks/{task_id}/return")
def give_back(request: Request, visitor: Team, task_id: str, assignment_id: Annotated[str, Form()], reason: Words) -> Response:
    """Return handed-in work to its labeler, with the reason as a message in their thread."""
    with site_of(request).database.write() as db:
        mine = db.get(Assignment, assignment_id)
        if mine is None or mine.task_id != task_id:
            raise Problem(404, "not_found")
        at = now()
        assignments.return_to_labeler(db, mine, at)
        person = db.get_one(Person, mine.person_id)
        said = threads.answer(db, task_id, person, visitor.me, reason, at)
        audit_log.note(db, visitor.me.id, "assignment.returned", mine.id, message=said.id)
    return back(task_id)


@router.post("/batches/tasks/{task_id}/release")
def release(request: Request, visitor: Team, task_id: str) -> Response:
    """Give a task that was skipped too often out again."""
    with site_of(request).database.write() as db:
        task = assignments.lock_tasks(db, [task_of(db, task_id).id])[task_id]
        if task.state != "review":
            raise Problem(409, "not_in_review")
        task.state = "done" if task.n_done >= task.overlap else "open"
        audit_log.note(db, visitor.me.id, "task.released", task.id)
    return back(task_id)


@router.post("/batches/tasks/{task_id}/withdraw")
def withdraw(request: Request, visitor: Team, task_id: str, reason: Words) -> Response:
    """Withdraw the prompt of a task, from all batches and exports."""
    with site_of(request).database.write() as db:
        task = task_of(db, task_id)
        prompt = db.get(Prompt, task.prompt_id) if task.prompt_id else None
        if prompt is None:
            raise Problem(404, "not_found")
        count = batches.withdraw_prompt(db, prompt, now())
        audit_log.note(db, visitor.me.id, "prompt.withdrawn", prompt.id, tasks=count, reason=reason)
    return back(task_id)
