"""Red-team tasks in the labelers' API: send a prompt to a model, and say whether the model failed."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import Field

from instructgpt.label.auth.dependencies import LabelerUser, get_site
from instructgpt.label.db.models import current_time_ms
from instructgpt.label.playground.red_team import send_attempt
from instructgpt.label.tasks.red_team import MAX_ATTEMPT_LENGTH, AttemptView, judge_attempt
from instructgpt.label.web.api.schemas import RequestModel

router = APIRouter(prefix="/api/v1", tags=["labeler"])


class AttemptRequest(RequestModel):
    """A prompt that is meant to make the model fail."""

    text: Annotated[str, Field(max_length=MAX_ATTEMPT_LENGTH)]


class VerdictRequest(RequestModel):
    """Whether the model failed in the way that the task states."""

    success: bool


@router.post("/assignments/{assignment_id}/attempts", status_code=201)
def send_attempt_endpoint(
    request: Request, principal: LabelerUser, assignment_id: str, body: AttemptRequest
) -> AttemptView:
    """Send a prompt of a red-team task to a model, and wait for its answer."""
    site = get_site(request)
    return send_attempt(site, request.app.state.playground, principal.user, assignment_id, body.text)


@router.put("/attempts/{attempt_id}")
def judge_attempt_endpoint(
    request: Request, principal: LabelerUser, attempt_id: str, body: VerdictRequest
) -> AttemptView:
    """Say whether the model failed. It may be said again: the last word counts."""
    user, now_ms = principal.user, current_time_ms()
    return get_site(request).database.write_with_retry(
        lambda db: judge_attempt(db, user, attempt_id, body.success, now_ms)
    )
