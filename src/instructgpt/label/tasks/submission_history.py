"""Submitted work as labelers see their own, and as researchers see everyone's for one task."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from instructgpt.label.context import Settings
from instructgpt.label.db.models import (
    Assignment,
    Batch,
    DemonstrationRow,
    Person,
    PromptReview,
    PromptRow,
    RankingItem,
    RankingRow,
    Rating,
    Submission,
    Task,
)
from instructgpt.label.db.models.base import is_id
from instructgpt.label.tasks.questions import QuestionSet, batch_questions, iter_unanswered
from instructgpt.label.tasks.submissions import editable_until
from instructgpt.label.tasks.task_view import newest_turn
from instructgpt.label.vocabulary import TaskKind

_PAGE_SIZE = 50
_PREVIEW_LENGTH = 200  # characters


class HistoryItem(BaseModel):
    """One task of a labeler's history."""

    model_config = ConfigDict(frozen=True)
    assignment: str
    kind: TaskKind
    state: str
    prompt: str | None  # beginning of the prompt shown or written; None if there is none or it was withdrawn
    at: int
    version: int
    editable_until: int | None


class HistoryPage(BaseModel):
    """A page of a labeler's history; `before` starts the next page, None at the end."""

    model_config = ConfigDict(frozen=True)
    entries: list[HistoryItem]
    before: str | None


def get_history_page(
    db: Session, settings: Settings, person: Person, before: str | None = None, size: int = _PAGE_SIZE
) -> HistoryPage:
    """Return a page of a person's assignments, the newest first, without expired ones; `before` is an id."""
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
    is_readable = prompt is not None and prompt.withdrawn_at is None
    preview = newest_turn(prompt.text, prompt.messages)[:_PREVIEW_LENGTH] if prompt and is_readable else None
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
    """Return the ranks of a ranking by completion; empty for other submissions."""
    statement = select(RankingItem.completion_id, RankingItem.rank).where(RankingItem.submission_id == submission_id)
    return dict(db.execute(statement.order_by(RankingItem.shown)).all())


@dataclass(slots=True)
class SubmissionDetail:
    """One labeler's current submission with the contents of its kind."""

    assignment: Assignment
    person: Person
    submission: Submission
    ranks: list[tuple[str, int]] = field(default_factory=list)  # (completion, rank), best first
    ratings: dict[str, Rating] = field(default_factory=dict)
    ranking: RankingRow | None = None
    open_questions: dict[str | None, list[str]] = field(default_factory=dict)  # by completion; None: of the task
    review: PromptReview | None = None
    text: str | None = None  # the demonstration or prompt


def list_task_submissions(db: Session, task: Task) -> list[SubmissionDetail]:
    """Return the current submissions to a task, the oldest first, in at most five statements."""
    conditions = (Assignment.task_id == task.id, Submission.replaced_at.is_(None))
    rows = db.execute(
        select(Assignment, Person, Submission)
        .join(Person, Person.id == Assignment.person_id)
        .join(Submission, Submission.assignment_id == Assignment.id)
        .where(*conditions)
        .order_by(Submission.created_at, Submission.id)
    )
    details = {row[2].id: SubmissionDetail(*row) for row in rows}
    submission_ids = select(Submission.id).join(Assignment).where(*conditions)
    if task.kind == "rank":
        _add_rankings(db, details, submission_ids)
        questions = batch_questions(db.get_one(Batch, task.batch_id))
        for detail in details.values():
            _list_open_questions(detail, questions)
    elif task.kind == "demonstrate":
        for row in db.scalars(select(DemonstrationRow).where(DemonstrationRow.submission_id.in_(submission_ids))):
            details[row.submission_id].text = row.text
    elif task.kind == "write":
        for prompt in db.scalars(select(PromptRow).where(PromptRow.submission_id.in_(submission_ids))):
            assert prompt.submission_id is not None
            details[prompt.submission_id].text = prompt.text
    else:
        for review in db.scalars(select(PromptReview).where(PromptReview.submission_id.in_(submission_ids))):
            details[review.submission_id].review = review
    return list(details.values())


def _list_open_questions(detail: SubmissionDetail, questions: QuestionSet) -> None:
    answers = (detail.ranking.answers if detail.ranking else None) or {}
    completions = [completion for completion, _ in detail.ranks]
    for entry in iter_unanswered(questions, answers, detail.ratings, completions):
        if entry.name != "rating":
            detail.open_questions.setdefault(entry.completion, []).append(entry.name)


def _add_rankings(db: Session, details: dict[str, SubmissionDetail], submission_ids: Select[str]) -> None:
    items = select(RankingItem).where(RankingItem.submission_id.in_(submission_ids))
    for item in db.scalars(items.order_by(RankingItem.rank, RankingItem.shown)):
        details[item.submission_id].ranks.append((item.completion_id, item.rank))
    for rating in db.scalars(select(Rating).where(Rating.submission_id.in_(submission_ids))):
        details[rating.submission_id].ratings[rating.completion_id] = rating
    for ranking in db.scalars(select(RankingRow).where(RankingRow.submission_id.in_(submission_ids))):
        details[ranking.submission_id].ranking = ranking
