"""The attempts of a red-team task, as plain HTML forms: send a prompt to a model, and say whether the model failed."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from instructgpt.label.auth.dependencies import LabelerUser, get_site
from instructgpt.label.context import Site
from instructgpt.label.db.models import Person, current_time_ms
from instructgpt.label.playground.red_team import send_attempt
from instructgpt.label.tasks import actions
from instructgpt.label.tasks.assignments import get_own_assignment
from instructgpt.label.tasks.drafts import get_draft
from instructgpt.label.tasks.red_team import judge_attempt
from instructgpt.label.web.pages.labeler.task import read_posted_fields
from instructgpt.label.web.rendering import redirect

router = APIRouter(prefix="/tasks")
_PostedFields = Annotated[list[tuple[str, str]], Depends(read_posted_fields)]


@router.post("/{assignment_id}/attempts")
def send_attempt_from_form(
    request: Request, principal: LabelerUser, assignment_id: str, posted: _PostedFields
) -> Response:
    """Send the prompt of the form to a model; the form's fields become the draft."""
    site = get_site(request)
    _keep_fields(site, principal.user, assignment_id, posted)
    send_attempt(site, request.app.state.playground, principal.user, assignment_id, dict(posted).get("text", ""))
    return redirect(f"/tasks/{assignment_id}#attempts")


@router.post("/{assignment_id}/attempts/{attempt_id}")
def judge_attempt_from_form(
    request: Request, principal: LabelerUser, assignment_id: str, attempt_id: str, posted: _PostedFields
) -> Response:
    """Record the labeler's verdict on an answer; the form's fields become the draft."""
    site, user, now_ms = get_site(request), principal.user, current_time_ms()
    success = dict(posted).get("success") == "true"
    site.database.write_with_retry(lambda db: judge_attempt(db, user, attempt_id, success, now_ms))
    _keep_fields(site, user, assignment_id, [row for row in posted if row[0] != "success"])
    return redirect(f"/tasks/{assignment_id}#attempts")


def _keep_fields(site: Site, person: Person, assignment_id: str, posted: list[tuple[str, str]]) -> None:
    with site.database.read() as db:
        draft = get_draft(db, get_own_assignment(db, person, assignment_id))
        revision = draft.rev if draft else 0
    actions.save_draft(site, person, assignment_id, revision, {"fields": posted})
