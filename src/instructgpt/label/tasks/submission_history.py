"""A labeler's own work, the newest first."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.label.context import Settings
from instructgpt.label.db.models import Assignment, Person, PromptRow, RankingItem, Submission, Task
from instructgpt.label.db.models.base import is_id
from instructgpt.label.db.models.tasks import TaskKind
from instructgpt.label.tasks.submissions import editable_until

_PAGE_SIZE = 50
_PREVIEW_LENGTH = 200
"""Characters of the prompt that a list shows."""


class HistoryItem(BaseModel):
    """One task as it stands now."""

    model_config = ConfigDict(frozen=True)
    assignment: str
    kind: TaskKind
    state: str
    prompt: str | None
    """How the prompt begins, the one that was asked or written; None where there is none or it was withdrawn."""
    at: int
    version: int
    editable_until: int | None


class HistoryPage(BaseModel):
    """Some entries, and where the next ones begin (`before`); None at the end."""

    model_config = ConfigDict(frozen=True)
    entries: list[HistoryItem]
    before: str | None


def get_history_page(
    db: Session, settings: Settings, person: Person, before: str | None = None, size: int = _PAGE_SIZE
) -> HistoryPage:
    """A person's assignments except those that only ran out, from the newest; `before`: the id of the last one already seen."""
    statement = (
        select(Assignment, Task, PromptRow, Submission)
        .join(Task, Task.id == Assignment.task_id)
        .outerjoin(Submission, (Submission.assignment_id == Assignment.id) & Submission.replaced_at.is_(None))
        .outerjoin(
            PromptRow,
            (PromptRow.id == Task.prompt_id) | ((Task.kind == "write") & (PromptRow.submission_id == Submission.id)),
        )
        .where(Assignment.person_id == person.id, Assignment.state != "expired")
        .order_by(Assignment.id.desc())
        .limit(size + 1)
    )
    rows = db.execute(statement.where(Assignment.id < before) if before and is_id(before) else statement).all()
    entries = [_build_history_item(settings, *row) for row in rows[:size]]
    return HistoryPage(entries=entries, before=entries[-1].assignment if len(rows) > size else None)


def _build_history_item(
    settings: Settings, assignment: Assignment, task: Task, prompt: PromptRow | None, submission: Submission | None
) -> HistoryItem:
    preview = prompt.text[:_PREVIEW_LENGTH] if prompt is not None and prompt.withdrawn_at is None else None
    return HistoryItem(
        assignment=assignment.id,
        kind=task.kind,
        state=assignment.state,
        prompt=preview,
        at=submission.created_at if submission else assignment.closed_at or assignment.opened_at,
        version=submission.version if submission else 0,
        editable_until=editable_until(settings, assignment) if assignment.state == "submitted" else None,
    )


def get_submitted_ranks(db: Session, submission_id: str) -> dict[str, int]:
    """The ranks of a ranking as they were stored, by completion; empty for other submissions."""
    statement = select(RankingItem.completion_id, RankingItem.rank).where(RankingItem.submission_id == submission_id)
    return dict(db.execute(statement.order_by(RankingItem.shown)).all())
