"""Exactly what a labeler's browser gets of a task: never a model's name, sampling, score, a batch's name, or a mark of gold or repeat."""

from __future__ import annotations

from string import ascii_uppercase
from typing import Any

from pydantic import BaseModel, ConfigDict
from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from instructgpt.label.db.models import (
    Assignment,
    Batch,
    CompletionRow,
    Draft,
    Instructions,
    PromptRow,
    Submission,
    Task,
)
from instructgpt.label.db.models.tasks import TaskKind
from instructgpt.label.errors import SiteError
from instructgpt.label.tasks.forms import CONDITIONAL_LABELS, EXPLICIT_NO_LABELS, PROMPT_LABELS
from instructgpt.label.tasks.submission_contents import read_submission_form
from instructgpt.records import LABELS


class _FrozenModel(BaseModel):
    """What all parts have: frozen, nothing else in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class CompletionView(_FrozenModel):
    """One completion under its letter."""

    id: str
    letter: str
    text: str


class LabelQuestion(_FrozenModel):
    """One question; a conditional one can be not applicable."""

    name: str
    conditional: bool
    by_hand: bool
    """Its No is a reproach, so that "all remaining No" leaves it alone."""


class DraftView(_FrozenModel):
    """What was saved, and as which revision."""

    rev: int
    payload: dict[str, Any]


class TaskView(_FrozenModel):
    """A task in a labeler's hands."""

    assignment: str
    state: str
    kind: TaskKind
    purpose: str
    screening: str | None
    prompt: str | None
    messages: list[dict[str, str]] | None
    sensitive: bool
    brief: dict[str, Any] | None
    completions: list[CompletionView]
    lease_until: int
    draft: DraftView | None
    submission: dict[str, Any] | None
    """The form that was handed in, where there is one."""
    version: int
    """Of the submission; 0 before the first."""
    instructions: int | None
    """The version of the instructions that held when the task was given."""
    labels: list[LabelQuestion]
    """Rank: the paper's Table 3, of each completion. Review: its Table 7, of the prompt."""


_TASK_STATEMENT = (
    select(Task, Batch, PromptRow, Draft, Submission, Instructions.version)
    .join(Assignment, Assignment.task_id == Task.id)
    .join(Batch, Batch.id == Task.batch_id)
    .outerjoin(PromptRow, PromptRow.id == Task.prompt_id)
    .outerjoin(Draft, Draft.assignment_id == Assignment.id)
    .outerjoin(Submission, (Submission.assignment_id == Assignment.id) & Submission.replaced_at.is_(None))
    .outerjoin(Instructions, Instructions.id == Assignment.instructions_id)
    .where(Assignment.id == bindparam("assignment"))
)
"""Everything around an assignment, in one statement that is put together once."""


def build_task_view(db: Session, assignment: Assignment) -> TaskView:
    """A task as its labeler sees it.

    Raises:
        Problem: `prompt_withdrawn` (410).
    """
    task, batch, prompt, draft, submission, instructions_version = db.execute(
        _TASK_STATEMENT, {"assignment": assignment.id}
    ).one()
    if prompt is not None and prompt.withdrawn_at is not None:
        raise SiteError(410, "prompt_withdrawn")
    return TaskView(
        assignment=assignment.id,
        state=assignment.state,
        kind=task.kind,
        purpose=batch.purpose,
        screening=batch.screening,
        prompt=prompt.text if prompt else None,
        messages=prompt.messages if prompt else None,
        sensitive=prompt.sensitive if prompt else False,
        brief=task.brief,
        completions=_completions(db, assignment),
        lease_until=assignment.lease_until,
        draft=DraftView(rev=draft.rev, payload=draft.payload) if draft else None,
        submission=read_submission_form(db, submission).model_dump(mode="json") if submission else None,
        version=submission.version if submission else 0,
        instructions=instructions_version,
        labels=_labels(task.kind),
    )


def _completions(db: Session, assignment: Assignment) -> list[CompletionView]:
    texts = {
        completion.id: completion.text
        for completion in db.scalars(select(CompletionRow).where(CompletionRow.id.in_(assignment.shown)))
    }
    return [
        CompletionView(id=completion, letter=letter, text=texts[completion])
        for letter, completion in zip(ascii_uppercase, assignment.shown, strict=False)
    ]


def _labels(kind: TaskKind) -> list[LabelQuestion]:
    names = {"rank": LABELS, "review": PROMPT_LABELS}.get(kind, ())
    return [
        LabelQuestion(name=name, conditional=name in CONDITIONAL_LABELS, by_hand=name in EXPLICIT_NO_LABELS)
        for name in names
    ]
