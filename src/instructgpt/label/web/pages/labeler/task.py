"""The task pages. They work as plain HTML forms; their scripts save drafts and submit through the labelers' API."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy.orm import Session

from instructgpt.label.auth.dependencies import LabelerUser, Principal, get_current_principal, get_site
from instructgpt.label.db.models import Assignment, Batch, Instructions, Task, current_time_ms, new_id
from instructgpt.label.db.models.submissions import SKIP_REASONS
from instructgpt.label.errors import SiteError
from instructgpt.label.tasks import actions, submission_history, submissions, threads
from instructgpt.label.tasks.assignments import get_own_assignment
from instructgpt.label.tasks.form_fields import FormFields, fields_to_payload, payload_to_fields
from instructgpt.label.tasks.forms import MAX_TEXT_LENGTH, RankingForm
from instructgpt.label.tasks.questions import batch_questions, list_unanswered
from instructgpt.label.tasks.task_view import TaskView, build_task_view
from instructgpt.label.vocabulary import TASK_KINDS
from instructgpt.label.web.rendering import get_translator, redirect, render_page, translate_error
from instructgpt.records import USE_CASES

router = APIRouter(prefix="/tasks")
_SCRIPT_SECTIONS = ("save.", "again.", "conflict.", "board.", "rank.", "compare.", "work.", "write.", "demonstrate.")
_SCRIPT_KEYS = (*_SCRIPT_SECTIONS, "unreachable", "close")
"""Prefixes of the catalogue keys that the scripts use; the page carries these sentences."""
_MIN_EXAMPLES = 3
"""Example fields on the page of a prompt, empty ones included."""


async def read_posted_fields(request: Request) -> list[tuple[str, str]]:
    """Return the text fields of a posted form, in its order."""
    return [(name, value) for name, value in (await request.form()).multi_items() if isinstance(value, str)]


_PostedFields = Annotated[list[tuple[str, str]], Depends(read_posted_fields)]


@router.post("/claim")
def claim_from_form(request: Request, principal: LabelerUser, posted: _PostedFields) -> Response:
    values = dict(posted)
    kind = next((kind for kind in TASK_KINDS if kind == values.get("kind")), None)
    screening = values.get("screening") or None
    try:
        assignment = actions.claim_task(get_site(request), principal.user, kind, screening)
    except SiteError as error:
        if error.code != "read_instructions":
            raise
        start = {"start": kind or "any"} | ({"screening": screening} if screening else {})
        return redirect(f"/instructions/{error.values['purpose']}?{urlencode(start)}")
    if assignment is None:
        return redirect("/screening" if screening else "/home?nothing=true")
    return redirect(f"/tasks/{assignment.id}")


@router.get("/{assignment_id}")
def show_task(
    request: Request, principal: LabelerUser, assignment_id: str, edit: bool = False, show: bool = False
) -> Response:
    """Show a task's form. `edit`: with the submission, to replace it; `show`: sensitive content without the gate."""
    site = get_site(request)
    with site.database.read() as db:
        assignment = get_own_assignment(db, principal.user, assignment_id)
        is_submitted = assignment.state == "submitted"
        is_edit = edit and is_submitted and submissions.editable_until(site.settings, assignment) > current_time_ms()
        if assignment.state in ("submitted", "skipped") and not is_edit:
            return redirect(f"/tasks/{assignment.id}/done")
        task = build_task_view(db, assignment)
        payload = task.draft.payload if task.draft and not is_edit else task.submission or {}
        fields, active_ms = payload_to_fields(payload), payload.get("active_ms")
        return _render_task_form(request, db, assignment, task, fields, active_ms, is_edit=is_edit, show=show)


def _render_task_form(
    request: Request,
    db: Session,
    assignment: Assignment,
    task: TaskView,
    fields: FormFields,
    active_ms: Any,
    *,
    is_edit: bool,
    show: bool = False,
    error: str | None = None,
) -> Response:
    user = get_current_principal(request).user
    # payload_to_fields writes a blank half of an example as " ", because it leaves empty fields out
    prompts = [value.strip(" ") for name, value in fields if name == "example_prompt"]
    completions = [value.strip(" ") for name, value in fields if name == "example_completion"]
    examples = list(zip(prompts, completions, strict=False))
    is_returned = assignment.state == "returned"
    return render_page(
        request,
        f"labeler/{task.kind}.html",
        status=422 if error else 200,
        task=task,
        path_prefix=f"/tasks/{assignment.id}",
        key=new_id(),
        values=dict(fields),
        examples=examples + [("", "")] * max(0, _MIN_EXAMPLES - len(examples)),
        is_edit=is_edit,
        error=error,
        is_gated=task.sensitive and not (show or is_edit or error),
        is_returned=is_returned,
        reason=threads.get_return_reasons(db, user, [assignment]).get(assignment.id) if is_returned else None,
        active_ms=active_ms if isinstance(active_ms, int) else 0,
        labels=task.labels,
        use_cases=USE_CASES,
        max_text=MAX_TEXT_LENGTH,
        skip_reasons=SKIP_REASONS,
        script_messages=_script_messages(request),
        messages=threads.list_thread_messages(db, assignment.task_id, user.id),
        instructions=db.get(Instructions, assignment.instructions_id) if assignment.instructions_id else None,
    )


def _script_messages(request: Request) -> dict[str, str]:
    messages = get_translator(request).messages
    return {key: sentence for key, sentence in messages.items() if key.startswith(_SCRIPT_KEYS)}


@router.post("/{assignment_id}/submit")
def submit_from_form(request: Request, principal: LabelerUser, assignment_id: str, posted: _PostedFields) -> Response:
    return _submit_form(request, principal, assignment_id, posted, is_edit=False)


@router.post("/{assignment_id}/edit")
def edit_from_form(request: Request, principal: LabelerUser, assignment_id: str, posted: _PostedFields) -> Response:
    return _submit_form(request, principal, assignment_id, posted, is_edit=True)


def _submit_form(
    request: Request, principal: Principal, assignment_id: str, posted: FormFields, *, is_edit: bool
) -> Response:
    """Store the form; if it is invalid, show it again with the error and everything that was filled in."""
    site, user = get_site(request), principal.user
    try:
        key = dict(posted).get("key", "")
        actions.submit_task(site, user, assignment_id, {"fields": posted}, key, is_edit=is_edit)
    except SiteError as error:
        if error.code not in ("bad_form", "unanswered"):
            raise
        message = translate_error(request, error)
        with site.database.read() as db:
            assignment = get_own_assignment(db, user, assignment_id)
            task, active_ms = build_task_view(db, assignment), fields_to_payload("review", posted)["active_ms"]
            return _render_task_form(request, db, assignment, task, posted, active_ms, is_edit=is_edit, error=message)
    return redirect(f"/tasks/{assignment_id}/done")


@router.get("/{assignment_id}/done")
def show_submitted_task(request: Request, principal: LabelerUser, assignment_id: str) -> Response:
    site = get_site(request)
    with site.database.read() as db:
        assignment = get_own_assignment(db, principal.user, assignment_id)
        if assignment.state not in ("submitted", "skipped"):
            return redirect(f"/tasks/{assignment.id}")
        task, submission = build_task_view(db, assignment), submissions.get_current_submission(db, assignment)
        ranks = submission_history.get_submitted_ranks(db, submission.id) if submission else {}
        return render_page(
            request,
            "labeler/submitted.html",
            task=task,
            path_prefix=f"/tasks/{assignment.id}",
            submission=submission,
            form=task.submission or {},
            own={question.name: question for question in task.labels},
            unanswered=_count_unanswered(db, assignment, task),
            order=_format_ranking(task, ranks),
            ranks=ranks,
            completions=sorted(task.completions, key=lambda completion: ranks.get(completion.id, 0)),
            now_ms=current_time_ms(),
            editable_until=submissions.editable_until(site.settings, assignment),
            messages=threads.list_thread_messages(db, assignment.task_id, principal.user.id),
        )


def _count_unanswered(db: Session, assignment: Assignment, task: TaskView) -> int:
    """Count the questions that a submitted ranking left open."""
    if task.kind != "rank" or task.submission is None:
        return 0
    batch = db.get_one(Batch, db.get_one(Task, assignment.task_id).batch_id)
    form = RankingForm.model_validate(task.submission)
    return len(list_unanswered(batch_questions(batch), form, assignment.shown))


def _format_ranking(task: TaskView, ranks: dict[str, int]) -> str:
    """Write a ranking with the letters of the completions: "B > A = D > C"."""
    tiers: dict[int, list[str]] = {}
    for completion in task.completions:
        if completion.id in ranks:
            tiers.setdefault(ranks[completion.id], []).append(completion.letter)
    return " > ".join(" = ".join(tiers[rank]) for rank in sorted(tiers))


@router.post("/{assignment_id}/skip")
def skip_from_form(request: Request, principal: LabelerUser, assignment_id: str, posted: _PostedFields) -> Response:
    values = dict(posted)
    reason, note = values.get("reason", ""), values.get("note", "")
    actions.skip_task(get_site(request), principal.user, assignment_id, reason, note)
    return redirect(f"/tasks/{assignment_id}/done")


@router.post("/{assignment_id}/undo")
def undo_from_form(request: Request, principal: LabelerUser, assignment_id: str) -> Response:
    actions.undo_last(get_site(request), principal.user, assignment_id)
    return redirect(f"/tasks/{assignment_id}")


@router.post("/{assignment_id}/ask")
def ask_from_form(request: Request, principal: LabelerUser, assignment_id: str, posted: _PostedFields) -> Response:
    values = dict(posted)
    body, is_reported = values.get("body", ""), "reported" in values
    actions.post_message(get_site(request), principal.user, assignment_id, body, reported=is_reported)
    return redirect(f"/tasks/{assignment_id}#thread")
