"""A labeler's own work, the newest first."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.label.context import Settings
from instructgpt.label.db.models import Assignment, Person, Prompt, RankingItem, Submission, Task
from instructgpt.label.db.models.base import is_id
from instructgpt.label.db.models.tasks import Kind
from instructgpt.label.tasks.submissions import editable_until

PAGE = 50
BEGINNING = 200
"""Characters of the prompt that a list shows."""


class Entry(BaseModel):
    """One task as it stands now."""

    model_config = ConfigDict(frozen=True)
    assignment: str
    kind: Kind
    state: str
    prompt: str | None
    """How the prompt begins, the one that was asked or written; None where there is none or it was withdrawn."""
    at: int
    version: int
    editable_until: int | None


class Page(BaseModel):
    """Some entries, and where the next ones begin (`before`); None at the end."""

    model_config = ConfigDict(frozen=True)
    entries: list[Entry]
    before: str | None


def page(db: Session, settings: Settings, person: Person, before: str | None = None, size: int = PAGE) -> Page:
    """A person's assignments except those that only ran out, from the newest; `before`: the id of the last one already seen."""
    chosen = (
        select(Assignment, Task, Prompt, Submission)
        .join(Task, Task.id == Assignment.task_id)
        .outerjoin(Submission, (Submission.assignment_id == Assignment.id) & Submission.replaced_at.is_(None))
        .outerjoin(Prompt, (Prompt.id == Task.prompt_id) | ((Task.kind == "write") & (Prompt.submission_id == Submission.id)))
        .where(Assignment.person_id == person.id, Assignment.state != "expired")
        .order_by(Assignment.id.desc())
        .limit(size + 1)
    )
    rows = db.execute(chosen.where(Assignment.id < before) if before and is_id(before) else chosen).all()
    entries = [_entry(settings, *row) for row in rows[:size]]
    return Page(entries=entries, before=entries[-1].assignment if len(rows) > size else None)


def _entry(settings: Settings, assignment: Assignment, task: Task, prompt: Prompt | None, submission: Submission | None) -> Entry:
    begins = prompt.text[:BEGINNING] if prompt is not None and prompt.withdrawn_at is None else None
    return Entry(
        assignment=assignment.id,
        kind=task.kind,
        state=assignment.state,
        prompt=begins,
        at=submission.created_at if submission else assignment.closed_at or assignment.opened_at,
        version=submission.version if submission else 0,
        editable_until=editable_until(settings, assignment) if assignment.state == "submitted" else None,
    )


def ranks(db: Session, submission_id: str) -> dict[str, int]:
    """The ranks of a ranking as they were stored, by completion; empty for other submissions."""
    stored = select(RankingItem.completion_id, RankingItem.rank).where(RankingItem.submission_id == submission_id)
    return dict(db.execute(stored.order_by(RankingItem.shown)).all())
