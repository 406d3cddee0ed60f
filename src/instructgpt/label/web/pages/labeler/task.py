"""The task pages. They work as plain forms; with script the same forms save drafts and hand in over the labeler's API."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy.orm import Session

from instructgpt.label.auth.dependencies import Principal, get_site, require
from instructgpt.label.db.models import Assignment, Instructions, Task, current_time_ms, new_id
from instructgpt.label.db.models.submissions import SKIP_REASONS
from instructgpt.label.db.models.tasks import TASK_KINDS, TaskKind
from instructgpt.label.errors import SiteError
from instructgpt.label.i18n import Translator
from instructgpt.label.tasks import assignments as work
from instructgpt.label.tasks import submission_history, submissions, threads
from instructgpt.label.tasks.form_fields import FormFields, fields_to_payload, payload_to_fields
from instructgpt.label.tasks.forms import MAX_TEXT_LENGTH, parse_submission_form
from instructgpt.label.tasks.task_view import TaskView, build_task_view
from instructgpt.label.web.rendering import get_translator, render_page
from instructgpt.records import USE_CASES

router = APIRouter(prefix="/tasks")
_LabelerUser = Annotated[Principal, require("labeler")]
_SCRIPT_SECTIONS = (
    "save.",
    "again.",
    "conflict.",
    "board.",
    "rank.",
    "compare.",
    "work.",
    "write.",
    "demonstrate.",
    "unreachable",
    "close",
)
"""Sections of the catalogue that the scripts speak with."""
_MIN_EXAMPLE_FIELDS = 3
"""Empty example fields a few-shot prompt begins with."""


async def _read_posted_fields(request: Request) -> list[tuple[str, str]]:
    """The fields of a posted form, in order."""
    return [(name, value) for name, value in (await request.form()).multi_items() if isinstance(value, str)]


_PostedFields = Annotated[list[tuple[str, str]], Depends(_read_posted_fields)]


@router.post("/claim")
def claim_from_form(request: Request, principal: _LabelerUser, posted: _PostedFields) -> Response:
    """The next task of a kind, or the one still in hand."""
    site, form_values = get_site(request), dict(posted)
    kind = next((each for each in TASK_KINDS if each == form_values.get("kind")), None)
    try:
        assignment = site.database.write_with_retry(
            lambda db: work.claim_next_task(
                db,
                site.settings,
                principal.signed_in_person,
                kind,
                current_time_ms(),
                form_values.get("screening") or None,
            )
        )
    except SiteError as problem:
        if problem.code != "read_instructions":
            raise
        return RedirectResponse(f"/instructions/{problem.values['purpose']}", status_code=303)
    fallback_path = "/screening" if form_values.get("screening") else "/home?nothing=true"
    return RedirectResponse(f"/tasks/{assignment.id}" if assignment else fallback_path, status_code=303)


@router.get("/{assignment_id}")
def show_task(
    request: Request, principal: _LabelerUser, assignment_id: str, edit: bool = False, show: bool = False
) -> Response:
    """A task to work on; what is handed in or skipped shows what was stored, unless it is to be edited."""
    site = get_site(request)
    with site.database.read() as db:
        assignment = work.get_own_assignment(db, principal.signed_in_person, assignment_id)
        editing = (
            edit
            and assignment.state == "submitted"
            and submissions.editable_until(site.settings, assignment) > current_time_ms()
        )
        if assignment.state in ("submitted", "skipped") and not editing:
            return RedirectResponse(f"/tasks/{assignment.id}/done", status_code=303)
        task_content = build_task_view(db, assignment)
        payload = task_content.draft.payload if task_content.draft and not editing else task_content.submission or {}
        return _render_task_form(
            request,
            principal,
            db,
            assignment,
            task_content,
            payload_to_fields(payload),
            payload.get("active_ms"),
            editing=editing,
            show=show,
        )


def _render_task_form(
    request: Request,
    principal: Principal,
    db: Session,
    assignment: Assignment,
    task_content: TaskView,
    fields: FormFields,
    active_ms: Any,
    *,
    editing: bool,
    show: bool = False,
    error_message: str | None = None,
) -> Response:
    """The form of a task, filled in with what there is."""
    examples = list(
        zip(
            [value.strip(" ") for name, value in fields if name == "example_prompt"],
            [value.strip(" ") for name, value in fields if name == "example_completion"],
            strict=False,
        )
    )
    return render_page(
        request,
        principal,
        f"work/{task_content.kind}.html",
        status=422 if error_message else 200,
        task=task_content,
        address=f"/tasks/{assignment.id}",
        key=new_id(),
        values=dict(fields),
        examples=examples + [("", "")] * max(0, _MIN_EXAMPLE_FIELDS - len(examples)),
        editing=editing,
        wrong=error_message,
        gated=task_content.sensitive and not (show or editing or error_message),
        returned=assignment.state == "returned",
        reason=threads.get_return_reasons(db, principal.signed_in_person, [assignment]).get(assignment.id)
        if assignment.state == "returned"
        else None,
        already=active_ms if isinstance(active_ms, int) else 0,
        labels=task_content.labels,
        use_cases=USE_CASES,
        max_text=MAX_TEXT_LENGTH,
        skip_reasons=SKIP_REASONS,
        words=_script_translations(get_translator(request, principal)),
        messages=threads.list_thread_messages(db, assignment.task_id, principal.signed_in_person.id),
        instructions=db.get(Instructions, assignment.instructions_id) if assignment.instructions_id else None,
    )


def _script_translations(translator: Translator) -> dict[str, str]:
    """The sentences the scripts need."""
    return {key: sentence for key, sentence in translator.messages.items() if key.startswith(_SCRIPT_SECTIONS)}


@router.post("/{assignment_id}/submit")
def submit_from_form(request: Request, principal: _LabelerUser, assignment_id: str, posted: _PostedFields) -> Response:
    """Hand in a plain form."""
    return _submit_form(request, principal, assignment_id, posted, is_edit=False)


@router.post("/{assignment_id}/edit")
def edit_from_form(request: Request, principal: _LabelerUser, assignment_id: str, posted: _PostedFields) -> Response:
    """A new version from a plain form."""
    return _submit_form(request, principal, assignment_id, posted, is_edit=True)


def _submit_form(
    request: Request, principal: Principal, assignment_id: str, posted: FormFields, *, is_edit: bool
) -> Response:
    """Store a form, or show it again with what is wrong and everything that was filled in."""
    site = get_site(request)

    def store(db: Session) -> None:
        assignment = work.get_own_assignment(db, principal.signed_in_person, assignment_id)
        kind: TaskKind = db.get_one(Task, assignment.task_id).kind
        form = parse_submission_form(kind, fields_to_payload(kind, posted, assignment.shown))
        store_form = submissions.submit_edit if is_edit else submissions.submit_form
        store_form(db, site.settings, assignment, form, dict(posted).get("key", ""), current_time_ms())

    try:
        site.database.write_with_retry(store)
    except SiteError as problem:
        if problem.code != "bad_form":
            raise
        message = get_translator(request, principal)("problem.bad_form", **problem.values)
        with site.database.read() as db:
            assignment = work.get_own_assignment(db, principal.signed_in_person, assignment_id)
            active_ms = fields_to_payload("review", posted)["active_ms"]
            return _render_task_form(
                request,
                principal,
                db,
                assignment,
                build_task_view(db, assignment),
                posted,
                active_ms,
                editing=is_edit,
                error_message=message,
            )
    return RedirectResponse(f"/tasks/{assignment_id}/done", status_code=303)


@router.get("/{assignment_id}/done")
def show_submitted_task(request: Request, principal: _LabelerUser, assignment_id: str) -> Response:
    """What was stored, as the database has it."""
    site, now_ms = get_site(request), current_time_ms()
    with site.database.read() as db:
        assignment = work.get_own_assignment(db, principal.signed_in_person, assignment_id)
        if assignment.state not in ("submitted", "skipped"):
            return RedirectResponse(f"/tasks/{assignment.id}", status_code=303)
        task_content, submission = build_task_view(db, assignment), submissions.get_current_submission(db, assignment)
        ranks = submission_history.get_submitted_ranks(db, submission.id) if submission else {}
        return render_page(
            request,
            principal,
            "work/done.html",
            task=task_content,
            address=f"/tasks/{assignment.id}",
            stored=submission,
            form=task_content.submission or {},
            order=_format_ranking(task_content, ranks),
            ranks=ranks,
            listed=sorted(task_content.completions, key=lambda each: ranks.get(each.id, 0)),
            at=now_ms,
            until=submissions.editable_until(site.settings, assignment),
            messages=threads.list_thread_messages(db, assignment.task_id, principal.signed_in_person.id),
            skip_reasons=(),
            instructions=None,
        )


def _format_ranking(task_content: TaskView, ranks: dict[str, int]) -> str:
    """A stored ranking as people write it: "B > A = D > C"."""
    tiers: dict[int, list[str]] = {}
    for completion in task_content.completions:
        if completion.id in ranks:
            tiers.setdefault(ranks[completion.id], []).append(completion.letter)
    return " > ".join(" = ".join(tiers[rank]) for rank in sorted(tiers))


@router.post("/{assignment_id}/skip")
def skip_from_form(request: Request, principal: _LabelerUser, assignment_id: str, posted: _PostedFields) -> Response:
    """Hand a task back, with a reason."""
    site, form_values = get_site(request), dict(posted)
    site.database.write_with_retry(
        lambda db: (
            work.skip_assignment(
                db,
                site.settings,
                work.get_own_assignment(db, principal.signed_in_person, assignment_id),
                form_values.get("reason", ""),
                form_values.get("note", ""),
                current_time_ms(),
            ).id
        )
    )
    return RedirectResponse(f"/tasks/{assignment_id}/done", status_code=303)


@router.post("/{assignment_id}/undo")
def undo_from_form(request: Request, principal: _LabelerUser, assignment_id: str) -> Response:
    """Take the last step back, a skip or what was handed in; the task is in hand again with everything in it."""
    site = get_site(request)

    site.database.write_with_retry(
        lambda db: submissions.undo_last_action(
            db, site.settings, work.get_own_assignment(db, principal.signed_in_person, assignment_id), current_time_ms()
        )
    )
    return RedirectResponse(f"/tasks/{assignment_id}", status_code=303)


@router.post("/{assignment_id}/ask")
def ask_from_form(request: Request, principal: _LabelerUser, assignment_id: str, posted: _PostedFields) -> Response:
    """A question about a task, or a report of something wrong with it."""
    form_values = dict(posted)

    def store_message(db: Session) -> None:
        assignment = work.get_own_assignment(db, principal.signed_in_person, assignment_id)
        threads.post_question(
            db, assignment, form_values.get("body", ""), current_time_ms(), reported="reported" in form_values
        )

    get_site(request).database.write_with_retry(store_message)
    return RedirectResponse(f"/tasks/{assignment_id}#thread", status_code=303)
