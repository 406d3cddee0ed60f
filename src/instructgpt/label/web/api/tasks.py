"""The labeler's own API: what the pages' scripts and simulated labelers call, with the session's cookie and its CSRF token."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Request, Response
from pydantic import BaseModel, ConfigDict

from instructgpt.label.auth.dependencies import Principal, get_site, require
from instructgpt.label.db.models import Person, Submission, Task, current_time_ms
from instructgpt.label.db.models.tasks import TaskKind
from instructgpt.label.errors import SiteError
from instructgpt.label.tasks import assignments as work
from instructgpt.label.tasks import drafts, submission_history, submissions, threads
from instructgpt.label.tasks.forms import NoteText, parse_submission_form
from instructgpt.label.tasks.task_view import TaskView, build_task_view

router = APIRouter(prefix="/api/v1", tags=["labeler"])
_LabelerUser = Annotated[Principal, require("labeler")]


class _StrictRequestModel(BaseModel):
    """Bodies of requests: what is not asked for is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ClaimRequest(_StrictRequestModel):
    """Which task is wanted: of a kind, or of a part of the screening test."""

    kind: TaskKind | None = None
    screening: str | None = None


class SkipRequest(_StrictRequestModel):
    """Why a task is handed back."""

    reason: str
    note: NoteText = ""


class MessageRequest(_StrictRequestModel):
    """A question, or a report."""

    body: str
    reported: bool = False


class SubmissionReceipt(BaseModel):
    """What was handed in, as it was stored. `ranks`: by completion, 1 is best, equal ranks tie; empty for other kinds."""

    submission: str
    version: int
    surplus: bool
    ranks: dict[str, int]
    editable_until: int


@router.post("/tasks/claim", response_model=TaskView, responses={204: {"description": "Nothing to do now"}})
def claim_task_endpoint(
    request: Request, principal: _LabelerUser, body: Annotated[ClaimRequest | None, Body()] = None
) -> Any:
    """The next task, or the one still in hand."""
    site, claim_request = get_site(request), body or ClaimRequest()

    assignment = site.database.write_with_retry(
        lambda db: work.claim_next_task(
            db,
            site.settings,
            principal.signed_in_person,
            claim_request.kind,
            current_time_ms(),
            claim_request.screening,
        )
    )
    if assignment is None:
        return Response(status_code=204)
    with site.database.read() as db:  # others can write meanwhile
        return build_task_view(db, assignment)


@router.get("/assignments/{assignment_id}")
def get_assignment(request: Request, principal: _LabelerUser, assignment_id: str) -> TaskView:
    """A task of one's own."""
    with get_site(request).database.read() as db:
        return build_task_view(db, work.get_own_assignment(db, principal.signed_in_person, assignment_id))


@router.post("/assignments/{assignment_id}/heartbeat")
def post_heartbeat(request: Request, principal: _LabelerUser, assignment_id: str) -> dict[str, int]:
    """Somebody is at work on it: the lease goes on."""
    site = get_site(request)
    return site.database.write_with_retry(
        lambda db: {
            "lease_until": work.renew_lease(
                db,
                site.settings,
                work.get_own_assignment(db, principal.signed_in_person, assignment_id),
                current_time_ms(),
            )
        }
    )


@router.put("/assignments/{assignment_id}/draft")
def put_draft(
    request: Request,
    principal: _LabelerUser,
    assignment_id: str,
    payload: Annotated[dict[str, Any], Body()],
    if_match: Annotated[str, Header()],
) -> dict[str, int]:
    """Keep what there is so far. `If-Match` is the revision it follows, 0 at first."""
    site, revision = get_site(request), if_match.strip().strip('"')
    if not revision.isascii() or not revision.isdigit() or len(revision) > 15:
        raise SiteError(422, "bad_revision")
    return site.database.write_with_retry(
        lambda db: {
            "rev": drafts.store_draft(
                db,
                work.get_own_assignment(db, principal.signed_in_person, assignment_id),
                int(revision),
                payload,
                current_time_ms(),
            )
        }
    )


@router.post("/assignments/{assignment_id}/submit")
def submit_assignment(
    request: Request,
    principal: _LabelerUser,
    assignment_id: str,
    body: Annotated[dict[str, Any], Body()],
    idempotency_key: Annotated[str, Header()],
) -> SubmissionReceipt:
    """Hand in. The key is made when the form is rendered; the same key again returns the same submission."""
    return _submit(request, principal.signed_in_person, assignment_id, body, idempotency_key, is_edit=False)


@router.post("/assignments/{assignment_id}/edit")
def edit_submission_endpoint(
    request: Request,
    principal: _LabelerUser,
    assignment_id: str,
    body: Annotated[dict[str, Any], Body()],
    idempotency_key: Annotated[str, Header()],
) -> SubmissionReceipt:
    """A new version of what was handed in."""
    return _submit(request, principal.signed_in_person, assignment_id, body, idempotency_key, is_edit=True)


def _submit(
    request: Request, person: Person, assignment_id: str, body: dict[str, Any], idempotency_key: str, *, is_edit: bool
) -> SubmissionReceipt:
    site = get_site(request)

    def store(db: Any) -> SubmissionReceipt:
        assignment = work.get_own_assignment(db, person, assignment_id)
        form = parse_submission_form(db.get_one(Task, assignment.task_id).kind, body)
        store_form = submissions.submit_edit if is_edit else submissions.submit_form
        submission = store_form(db, site.settings, assignment, form, idempotency_key, current_time_ms())
        until = submissions.editable_until(site.settings, work.get_own_assignment(db, person, assignment_id))
        return SubmissionReceipt(
            submission=submission.id,
            version=submission.version,
            surplus=submission.surplus,
            ranks=_stored_ranks(db, submission),
            editable_until=until,
        )

    return site.database.write_with_retry(store)


def _stored_ranks(db: Any, submission: Submission) -> dict[str, int]:
    """A ranking as it was stored."""
    return submission_history.get_submitted_ranks(db, submission.id)


@router.post("/assignments/{assignment_id}/skip")
def skip_assignment_endpoint(
    request: Request, principal: _LabelerUser, assignment_id: str, body: SkipRequest
) -> dict[str, str]:
    """Hand a task back, with a reason."""
    site = get_site(request)

    def skip_assignment(db: Any) -> dict[str, str]:
        assignment = work.get_own_assignment(db, principal.signed_in_person, assignment_id)
        return {
            "skip": work.skip_assignment(db, site.settings, assignment, body.reason, body.note, current_time_ms()).id
        }

    return site.database.write_with_retry(skip_assignment)


@router.post("/assignments/{assignment_id}/undo")
def undo_last_endpoint(request: Request, principal: _LabelerUser, assignment_id: str) -> TaskView:
    """Take back the last step: a skip, or what was handed in."""
    site = get_site(request)

    def undo_last_step(db: Any) -> TaskView:
        assignment = work.get_own_assignment(db, principal.signed_in_person, assignment_id)
        submissions.undo_last_action(db, site.settings, assignment, current_time_ms())
        return build_task_view(db, assignment)

    return site.database.write_with_retry(undo_last_step)


@router.get("/assignments/{assignment_id}/thread")
def get_thread_endpoint(request: Request, principal: _LabelerUser, assignment_id: str) -> list[threads.ThreadMessage]:
    """The talk about a task of one's own."""
    with get_site(request).database.read() as db:
        assignment = work.get_own_assignment(db, principal.signed_in_person, assignment_id)
        return threads.list_thread_messages(db, assignment.task_id, principal.signed_in_person.id)


@router.post("/assignments/{assignment_id}/thread")
def post_thread_message(
    request: Request, principal: _LabelerUser, assignment_id: str, body: MessageRequest
) -> list[threads.ThreadMessage]:
    """Ask about a task, or report it."""

    def store_message(db: Any) -> list[threads.ThreadMessage]:
        assignment = work.get_own_assignment(db, principal.signed_in_person, assignment_id)
        threads.post_question(db, assignment, body.body, current_time_ms(), reported=body.reported)
        return threads.list_thread_messages(db, assignment.task_id, principal.signed_in_person.id)

    return get_site(request).database.write_with_retry(store_message)


@router.get("/me/history")
def get_history(request: Request, principal: _LabelerUser, before: str | None = None) -> submission_history.HistoryPage:
    """What one handed in and skipped, the newest first, a page at a time."""
    site = get_site(request)
    with site.database.read() as db:
        return submission_history.get_history_page(db, site.settings, principal.signed_in_person, before)
