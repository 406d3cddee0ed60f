"""The labelers' API: what the scripts of the task pages and simulated labelers call, with the session cookie."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from instructgpt.label.auth.dependencies import LabelerUser, get_site
from instructgpt.label.errors import SiteError
from instructgpt.label.markdown import render_markdown
from instructgpt.label.tasks import actions, submission_history, threads
from instructgpt.label.tasks.actions import SubmissionReceipt
from instructgpt.label.tasks.assignments import get_own_assignment
from instructgpt.label.tasks.forms import MAX_TEXT_LENGTH, NoteText
from instructgpt.label.tasks.task_view import TaskView, build_task_view
from instructgpt.label.vocabulary import TaskKind

router = APIRouter(prefix="/api/v1", tags=["labeler"])
_FormBody = Annotated[dict[str, Any], Body()]
_Key = Annotated[str, Header()]


class _StrictRequestModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClaimRequest(_StrictRequestModel):
    """Filters of a claim: tasks of a kind, or of a part of the screening test."""

    kind: TaskKind | None = None
    screening: str | None = None


class SkipRequest(_StrictRequestModel):
    reason: str
    note: NoteText = ""


class MessageRequest(_StrictRequestModel):
    """A question about a task, or a report of a problem with it."""

    body: str
    reported: bool = False


class PreviewRequest(_StrictRequestModel):
    """Markdown to render."""

    text: str = Field(max_length=MAX_TEXT_LENGTH)


@router.post("/preview")
def render_preview(_: LabelerUser, body: PreviewRequest) -> dict[str, str]:
    """Render Markdown as readers of a text get it."""
    return {"html": str(render_markdown(body.text))}


@router.post("/tasks/claim", response_model=TaskView, responses={204: {"description": "Nothing to do now"}})
def claim_endpoint(
    request: Request, principal: LabelerUser, body: Annotated[ClaimRequest | None, Body()] = None
) -> Any:
    """Claim the next task. A labeler who holds a task already gets that one again."""
    site, claim = get_site(request), body or ClaimRequest()
    assignment = actions.claim_task(site, principal.user, claim.kind, claim.screening)
    if assignment is None:
        return Response(status_code=204)
    with site.database.read() as db:  # a second transaction, so that the claim's write lock is short
        return build_task_view(db, assignment)


@router.get("/assignments/{assignment_id}")
def get_assignment(request: Request, principal: LabelerUser, assignment_id: str) -> TaskView:
    """Return a task of the caller with its draft and submission."""
    with get_site(request).database.read() as db:
        return build_task_view(db, get_own_assignment(db, principal.user, assignment_id))


@router.post("/assignments/{assignment_id}/heartbeat")
def post_heartbeat(request: Request, principal: LabelerUser, assignment_id: str) -> dict[str, int]:
    """Extend the lease of a task that is being worked on."""
    return {"lease_until": actions.extend_lease(get_site(request), principal.user, assignment_id)}


@router.put("/assignments/{assignment_id}/draft")
def put_draft(
    request: Request, principal: LabelerUser, assignment_id: str, payload: _FormBody, if_match: _Key
) -> dict[str, int]:
    """Store a draft. `If-Match` is the revision it follows, 0 for the first; a stale one is a conflict (409)."""
    revision = if_match.strip().strip('"')
    if not revision.isascii() or not revision.isdigit() or len(revision) > 15:
        raise SiteError(422, "bad_revision")
    return {"rev": actions.save_draft(get_site(request), principal.user, assignment_id, int(revision), payload)}


@router.post("/assignments/{assignment_id}/submit")
def submit_assignment(
    request: Request, principal: LabelerUser, assignment_id: str, body: _FormBody, idempotency_key: _Key
) -> SubmissionReceipt:
    """Submit a task. Send the same `Idempotency-Key` when retrying: it returns the same submission."""
    return actions.submit_task(get_site(request), principal.user, assignment_id, body, idempotency_key, is_edit=False)


@router.post("/assignments/{assignment_id}/edit")
def edit_submission_endpoint(
    request: Request, principal: LabelerUser, assignment_id: str, body: _FormBody, idempotency_key: _Key
) -> SubmissionReceipt:
    """Replace a submission by a new version."""
    return actions.submit_task(get_site(request), principal.user, assignment_id, body, idempotency_key, is_edit=True)


@router.post("/assignments/{assignment_id}/skip")
def skip_endpoint(request: Request, principal: LabelerUser, assignment_id: str, body: SkipRequest) -> dict[str, str]:
    """Return a task to the queue, with a reason."""
    return {"skip": actions.skip_task(get_site(request), principal.user, assignment_id, body.reason, body.note)}


@router.post("/assignments/{assignment_id}/undo")
def undo_last_endpoint(request: Request, principal: LabelerUser, assignment_id: str) -> TaskView:
    """Undo the last submission or skip of a task."""
    return actions.undo_last(get_site(request), principal.user, assignment_id)


@router.get("/assignments/{assignment_id}/thread")
def get_thread_endpoint(request: Request, principal: LabelerUser, assignment_id: str) -> list[threads.ThreadMessage]:
    """Return the messages between the labeler and the researchers about a task."""
    with get_site(request).database.read() as db:
        assignment = get_own_assignment(db, principal.user, assignment_id)
        return threads.list_thread_messages(db, assignment.task_id, principal.user.id)


@router.post("/assignments/{assignment_id}/thread")
def post_thread(
    request: Request, principal: LabelerUser, assignment_id: str, body: MessageRequest
) -> list[threads.ThreadMessage]:
    """Ask a question about a task, or report a problem with it."""
    site = get_site(request)
    return actions.post_message(site, principal.user, assignment_id, body.body, reported=body.reported)


@router.get("/me/history")
def get_history(request: Request, principal: LabelerUser, before: str | None = None) -> submission_history.HistoryPage:
    """Return a page of the caller's own tasks, newest first; `before` is the cursor of the page before."""
    site = get_site(request)
    with site.database.read() as db:
        return submission_history.get_history_page(db, site.settings, principal.user, before)
