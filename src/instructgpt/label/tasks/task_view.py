"""A task as its labeler gets it: without model name, sampling, score, batch name or mark of gold and repeats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from instructgpt.label.db.models import Assignment, Batch, CompletionRow, Draft, Instructions, PromptRow, Submission
from instructgpt.label.db.models.tasks import Task
from instructgpt.label.errors import SiteError
from instructgpt.label.tasks.forms import PROMPT_LABELS
from instructgpt.label.tasks.questions import QuestionSet, RatingQuestion, batch_questions
from instructgpt.label.tasks.red_team import AttemptView, get_failure_kind, list_attempts
from instructgpt.label.tasks.submission_contents import read_submission_form
from instructgpt.label.vocabulary import TaskKind


class _FrozenModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CompletionView(_FrozenModel):
    id: str
    letter: str
    text: str


class QuestionView(_FrozenModel):
    """A yes/no question; `conditional` ones may be not applicable."""

    name: str
    conditional: bool
    by_hand: bool = False  # must be answered explicitly; the "mark rest as No" shortcut skips it
    required: bool = False
    scope: Literal["completion", "task"] = "completion"
    when: dict[str, bool] = {}  # answers of earlier questions after which it is asked
    text: dict[str, str] = {}  # by language; empty for the questions of the paper
    short: dict[str, str] = {}


class DraftView(_FrozenModel):
    rev: int
    payload: dict[str, Any]


class TaskView(_FrozenModel):
    """An assigned task."""

    assignment: str
    state: str
    kind: TaskKind
    purpose: str
    screening: str | None
    prompt: str | None
    messages: list[dict[str, str]] | None
    sensitive: bool
    brief: dict[str, Any] | None
    attempts: list[AttemptView] | None
    """Red-team tasks: the prompts that were sent to models, with the answers; None for other tasks."""
    completions: list[CompletionView]
    lease_until: int
    draft: DraftView | None
    submission: dict[str, Any] | None  # the submitted form, if any
    version: int  # of the submission; 0 before the first
    instructions: int | None  # version at the time of the assignment
    labels: list[QuestionView]
    """Rank: the batch's questions, by default the paper's Table 3. Review: its Table 7."""
    rating: RatingQuestion | None  # rank: the scale; None where there is none


def newest_turn(text: str, messages: Sequence[Mapping[str, str]] | None) -> str:
    """Return what a list shows of a prompt: the last turn of a conversation, or the text."""
    return messages[-1]["content"] if messages else text


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


def build_task_view(db: Session, assignment: Assignment) -> TaskView:
    """Build the view of an assignment; raise SiteError `prompt_withdrawn` (410)."""
    row = db.execute(_TASK_STATEMENT, {"assignment": assignment.id}).one()
    task, batch, prompt, draft, submission, instructions_version = row
    if prompt is not None and prompt.withdrawn_at is not None:
        raise SiteError(410, "prompt_withdrawn")
    questions = batch_questions(batch) if task.kind == "rank" else None
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
        attempts=list_attempts(db, assignment.id) if get_failure_kind(task.brief) is not None else None,
        completions=_completions(db, assignment),
        lease_until=assignment.lease_until,
        draft=DraftView(rev=draft.rev, payload=draft.payload) if draft else None,
        submission=read_submission_form(db, submission).model_dump(mode="json") if submission else None,
        version=submission.version if submission else 0,
        instructions=instructions_version,
        labels=_labels(task.kind, questions),
        rating=questions.rating if questions and questions.rating.answer != "off" else None,
    )


def _completions(db: Session, assignment: Assignment) -> list[CompletionView]:
    rows = db.scalars(select(CompletionRow).where(CompletionRow.id.in_(assignment.shown)))
    texts = {row.id: row.text for row in rows}
    letters = zip(ascii_uppercase, assignment.shown, strict=False)
    return [CompletionView(id=row_id, letter=letter, text=texts[row_id]) for letter, row_id in letters]


def _labels(kind: TaskKind, questions: QuestionSet | None) -> list[QuestionView]:
    if questions is None:
        return [QuestionView(name=name, conditional=False) for name in PROMPT_LABELS] if kind == "review" else []
    return [
        QuestionView(
            name=name,
            conditional=question.not_applicable,
            by_hand=question.explicit_no,
            required=question.answer == "required",
            scope=question.scope,
            when=question.when,
            text=question.text,
            short=question.short,
        )
        for scope in ("task", "completion")
        for name, question in questions.active(scope).items()
    ]
