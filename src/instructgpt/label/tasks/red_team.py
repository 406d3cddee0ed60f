"""Red-team tasks: a labeler writes prompts until a model fails in a stated way, and says whether it did.

A task of kind `write` is one when its brief has `red_team`, the kind of failure. Its prompts, answers and verdicts are
attempts; no ordinary export, test set or training file has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from instructgpt.label.db.models import Assignment, Person, RedTeamAttempt, Task
from instructgpt.label.errors import SiteError
from instructgpt.label.tasks.assignments import get_own_assignment, lock_assignment
from instructgpt.label.tasks.forms import validate_storable
from instructgpt.label.vocabulary import FAILURE_KINDS, FailureKind

MAX_ATTEMPTS = 20
"""Prompts that one task may send to models."""
MAX_ATTEMPT_LENGTH = 16_000  # characters


class AttemptView(BaseModel):
    """An attempt as its labeler sees it: without the model's name."""

    id: str
    prompt: str
    completion: str
    finish: str
    success: bool | None

    @classmethod
    def from_row(cls, attempt: RedTeamAttempt) -> AttemptView:
        return cls.model_validate(attempt, from_attributes=True)


def get_failure_kind(brief: Mapping[str, Any] | None) -> FailureKind | None:
    """Return the kind of failure that a task is about; None for ordinary tasks."""
    kind = (brief or {}).get("red_team")
    return next((name for name in FAILURE_KINDS if name == kind), None)


def list_attempts(db: Session, assignment_id: str) -> list[AttemptView]:
    """Return the attempts of an assignment, oldest first."""
    statement = select(RedTeamAttempt).where(RedTeamAttempt.assignment_id == assignment_id)
    rows = db.scalars(statement.where(RedTeamAttempt.withdrawn_at.is_(None)).order_by(RedTeamAttempt.id))
    return [AttemptView.from_row(row) for row in rows]


def check_attempt(db: Session, person: Person, assignment_id: str, text: str) -> FailureKind:
    """Return the kind of failure of a task that may send one more prompt.

    Raises:
        SiteError: it is no red-team task or is not being worked on (409), has sent too many prompts (429), or the
            prompt is empty or too long (422).
    """
    assignment = get_own_assignment(db, person, assignment_id)
    failure = get_failure_kind(db.get_one(Task, assignment.task_id).brief)
    if failure is None or assignment.state not in ("open", "expired", "returned"):
        raise SiteError(409, "no_red_team_task")
    if not text.strip():
        raise SiteError(422, "empty_message")
    if len(text) > MAX_ATTEMPT_LENGTH:
        raise SiteError(422, "message_too_long", most=MAX_ATTEMPT_LENGTH)
    try:
        validate_storable(text)
    except ValueError as error:
        raise SiteError(422, "bad_form", reason=str(error)) from error
    _check_count(db, assignment)
    return failure


def _check_count(db: Session, assignment: Assignment) -> None:
    statement = select(func.count(RedTeamAttempt.id)).where(RedTeamAttempt.assignment_id == assignment.id)
    if (db.scalar(statement) or 0) >= MAX_ATTEMPTS:
        raise SiteError(429, "too_many_attempts", most=MAX_ATTEMPTS)


def add_attempt(db: Session, assignment: Assignment, attempt: RedTeamAttempt) -> AttemptView:
    """Store an attempt with its answer; raise SiteError 429 when others came first."""
    locked, _ = lock_assignment(db, assignment)
    _check_count(db, locked)
    db.add(attempt)
    db.flush()
    return AttemptView.from_row(attempt)


def judge_attempt(db: Session, person: Person, attempt_id: str, success: bool, now_ms: int) -> AttemptView:
    """Record whether the model failed as stated; raise SiteError 404 for the attempts of others."""
    attempt = db.get(RedTeamAttempt, attempt_id)
    if attempt is None or attempt.withdrawn_at is not None:
        raise SiteError(404, "no_such_task")
    get_own_assignment(db, person, attempt.assignment_id)
    attempt.success, attempt.judged_at = success, now_ms
    db.flush()
    return AttemptView.from_row(attempt)


def check_judged(db: Session, assignment: Assignment, text: str) -> None:
    """Raise SiteError (422) unless a submitted prompt was sent to a model and all answers are judged."""
    attempts = list_attempts(db, assignment.id)
    if not any(_same_text(attempt.prompt, text) for attempt in attempts):
        raise SiteError(422, "prompt_not_tried")
    if any(attempt.success is None for attempt in attempts):
        raise SiteError(422, "attempts_not_judged")


def _same_text(first: str, second: str) -> bool:
    return first.split() == second.split()


def withdraw_attempts(db: Session, assignment_ids: Sequence[str], now_ms: int) -> None:
    """Withdraw the attempts of a person's assignments: no result counts them, and no file has them."""
    statement = select(RedTeamAttempt).where(RedTeamAttempt.assignment_id.in_(assignment_ids))
    for attempt in db.scalars(statement.where(RedTeamAttempt.withdrawn_at.is_(None))):
        attempt.withdrawn_at = now_ms
