"""The list of submissions: which match a filter, in which order, and what a page shows of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import partial
from statistics import fmean
from typing import Any

from sqlalchemy import Case, ColumnElement, Select, and_, case, func, or_, select
from sqlalchemy.orm import Session

from instructgpt.label.analysis.results import get_hidden_model_names, redact_model_names
from instructgpt.label.db.models import (
    Assignment,
    Batch,
    DemonstrationRow,
    Person,
    PromptReview,
    PromptRow,
    RankingRow,
    Rating,
    Submission,
    Task,
)
from instructgpt.label.db.models.base import DAY_MS
from instructgpt.label.listing.filters import SubmissionFilter
from instructgpt.label.listing.tasks import (
    PREVIEW_LENGTH,
    iter_items,
    list_page_ids,
    match_prompt_fields,
    preview_prompt,
    select_labeled_submissions,
    sort_columns,
)
from instructgpt.label.listing.text_search import contains_terms, split_terms

_SORT_COLUMNS: dict[str, tuple[Any, ...]] = {
    "time": (Submission.created_at, Submission.id),
    "labeler": (func.lower(Person.name), Submission.id),
    "active": (Submission.active_ms, Submission.id),
    "rating": (
        func.coalesce(
            select(func.avg(Rating.rating)).where(Rating.submission_id == Submission.id).scalar_subquery(), 0
        ),
        Submission.id,
    ),
}


@dataclass(slots=True)
class SubmissionListItem:
    submission: Submission
    assignment: Assignment
    task: Task
    batch: Batch
    person: Person
    prompt: str
    """The beginning of the prompt."""
    text: str = ""
    """The beginning of a demonstration or of a written prompt."""
    ratings: list[int] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    """Questions answered with yes."""

    @property
    def mean_rating(self) -> float | None:
        return fmean(self.ratings) if self.ratings else None

    @property
    def state(self) -> str:
        """The state as the filter has it."""
        if self.submission.replaced_at is not None:
            return "replaced"
        if self.submission.invalid_reason is not None:
            return "excluded"
        if self.assignment.state == "returned":
            return "returned"
        return "surplus" if self.submission.surplus else "counted"


def select_submission_ids(db: Session, submission_filter: SubmissionFilter) -> Select[str]:
    """Select the ids of the submissions that match, unordered."""
    return _join(select(Submission.id)).where(*_conditions(db, submission_filter))


def _join(statement: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
    return statement.join(Assignment, Assignment.id == Submission.assignment_id).join(
        Task, Task.id == Assignment.task_id
    )


_STATE_CONDITIONS: dict[str | None, tuple[ColumnElement[bool], ...]] = {
    None: (Submission.replaced_at.is_(None),),
    "counted": (
        Submission.replaced_at.is_(None),
        Submission.invalid_reason.is_(None),
        Submission.surplus.is_(False),
        Assignment.state != "returned",
    ),
    "returned": (Submission.replaced_at.is_(None), Submission.invalid_reason.is_(None), Assignment.state == "returned"),
    "excluded": (Submission.replaced_at.is_(None), Submission.invalid_reason.is_not(None)),
    "surplus": (
        Submission.replaced_at.is_(None),
        Submission.invalid_reason.is_(None),
        Submission.surplus.is_(True),
        Assignment.state != "returned",
    ),
    "replaced": (Submission.replaced_at.is_not(None),),
}


def _conditions(db: Session, submission_filter: SubmissionFilter) -> list[ColumnElement[bool]]:
    columns = {"labeler": Assignment.person_id, "batch": Task.batch_id, "kind": Submission.kind}
    conditions = list(_STATE_CONDITIONS[submission_filter.state])
    conditions += [
        column == getattr(submission_filter, name)
        for name, column in columns.items()
        if getattr(submission_filter, name) is not None
    ]
    if prompt_conditions := match_prompt_fields(submission_filter):
        matching = select(PromptRow.id).where(*prompt_conditions)
        own_prompts = select(PromptRow.submission_id).where(*prompt_conditions, PromptRow.submission_id.is_not(None))
        conditions.append(or_(Task.prompt_id.in_(matching), Submission.id.in_(own_prompts)))
    if submission_filter.label is not None:
        conditions.append(Submission.id.in_(select_labeled_submissions(submission_filter.label)))
    if submission_filter.since is not None:
        conditions.append(Submission.created_at >= _day_start_ms(submission_filter.since))
    if submission_filter.until is not None:
        conditions.append(Submission.created_at < _day_start_ms(submission_filter.until) + DAY_MS)
    if submission_filter.text:
        conditions.append(_contains_text(submission_filter.text, db.get_bind().dialect.name))
    return conditions


def _day_start_ms(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)


def _contains_text(text: str, dialect: str) -> ColumnElement[bool]:
    """Match the prompt, what the labeler wrote, and the notes on the submission and its completions."""
    terms = split_terms(text)
    prompts = select(PromptRow.id).where(contains_terms(PromptRow.text, terms, dialect))
    own_texts = select(DemonstrationRow.submission_id).where(contains_terms(DemonstrationRow.text, terms, dialect))
    own_prompts = select(PromptRow.submission_id).where(
        PromptRow.submission_id.is_not(None), contains_terms(PromptRow.text, terms, dialect)
    )
    notes = select(Rating.submission_id).where(Rating.note != "", contains_terms(Rating.note, terms, dialect))
    return or_(
        Task.prompt_id.in_(prompts),
        Submission.id.in_(own_texts),
        Submission.id.in_(own_prompts),
        Submission.id.in_(notes),
        contains_terms(Submission.note, terms, dialect),
    )


def _ordered_ids(db: Session, submission_filter: SubmissionFilter) -> Select[str, int]:
    statement = _join(select(Submission.id, func.count().over())).where(*_conditions(db, submission_filter))
    if submission_filter.sort.endswith("labeler"):
        statement = statement.join(Person, Person.id == Assignment.person_id)
    return statement.order_by(*sort_columns(submission_filter.sort, _SORT_COLUMNS))


def list_submissions_page(
    db: Session, submission_filter: SubmissionFilter
) -> tuple[list[SubmissionListItem], int, int]:
    """Return the submissions of a page, how many match, and the page. Eight statements."""
    submission_ids, total, page = list_page_ids(db, _ordered_ids(db, submission_filter), submission_filter.page)
    return load_submission_items(db, submission_ids), total, page


def iter_submission_items(db: Session, submission_filter: SubmissionFilter) -> Iterator[SubmissionListItem]:
    """Return all submissions that match, in order."""
    load = partial(load_submission_items, hidden_names=get_hidden_model_names(db))
    return iter_items(db, _ordered_ids(db, submission_filter), load)


def load_submission_items(
    db: Session, submission_ids: Sequence[str], hidden_names: set[str] | None = None
) -> list[SubmissionListItem]:
    """Load what a list shows of submissions, in the order of the ids, without hidden model names. Seven statements.

    `hidden_names`: of `get_hidden_model_names`, which is one of the statements.
    """
    statement = _join(select(Submission, Assignment, Task, Batch, Person, PromptRow))
    statement = (
        statement.join(Batch, Batch.id == Task.batch_id)
        .join(Person, Person.id == Assignment.person_id)
        .outerjoin(PromptRow, PromptRow.id == Task.prompt_id)
        .where(Submission.id.in_(submission_ids))
    )
    if hidden_names is None:
        hidden_names = get_hidden_model_names(db)
    items = {
        submission.id: SubmissionListItem(
            submission, assignment, task, batch, person, preview_prompt(prompt, hidden_names)
        )
        for submission, assignment, task, batch, person, prompt in db.execute(statement)
    }
    _add_texts(db, items, submission_ids, hidden_names)
    _add_answers(db, items, submission_ids)
    return [items[submission_id] for submission_id in submission_ids if submission_id in items]


def _add_texts(
    db: Session, items: dict[str, SubmissionListItem], submission_ids: Sequence[str], hidden_names: set[str]
) -> None:
    demonstrations = select(DemonstrationRow.submission_id, func.substr(DemonstrationRow.text, 1, 2 * PREVIEW_LENGTH))
    for submission_id, text in db.execute(demonstrations.where(DemonstrationRow.submission_id.in_(submission_ids))):
        items[submission_id].text = redact_model_names(text, hidden_names)[:PREVIEW_LENGTH]
    for prompt in db.scalars(select(PromptRow).where(PromptRow.submission_id.in_(submission_ids))):
        items[str(prompt.submission_id)].text = preview_prompt(prompt, hidden_names)


def _add_answers(db: Session, items: dict[str, SubmissionListItem], submission_ids: Sequence[str]) -> None:
    ratings = select(Rating.submission_id, Rating.rating, Rating.labels).where(Rating.submission_id.in_(submission_ids))
    for submission_id, rating, labels in db.execute(ratings.order_by(Rating.submission_id, Rating.completion_id)):
        if rating is not None:
            items[submission_id].ratings.append(rating)
        _add_labels(items[submission_id], labels)
    for column in (RankingRow.answers, PromptReview.labels):
        table = column.class_
        answers = select(table.submission_id, column).where(table.submission_id.in_(submission_ids))
        for submission_id, labels in db.execute(answers):
            _add_labels(items[submission_id], labels or {})


def _add_labels(item: SubmissionListItem, labels: dict[str, Any]) -> None:
    item.labels += [name for name, answer in labels.items() if answer is True and name not in item.labels]


@dataclass(frozen=True, slots=True)
class WorkCount:
    """How much a person has handed in of one kind, in one state."""

    kind: str
    state: str
    submissions: int
    active_ms: int
    first_ms: int
    latest_ms: int


def submission_state_column() -> Case[str]:
    """Return the state of a submission that is joined with its assignment, as the filter has it."""
    states = {name: conditions for name, conditions in _STATE_CONDITIONS.items() if name is not None}
    return case(*((and_(*conditions), name) for name, conditions in states.items()), else_="replaced")


def count_by_state(db: Session, person_id: str) -> list[WorkCount]:
    """Count a person's submissions by kind and state. One statement."""
    state = submission_state_column().label("state")
    columns = (func.count(), func.sum(Submission.active_ms), *(f(Submission.created_at) for f in (func.min, func.max)))
    statement = _join(select(Submission.kind, state, *columns)).where(Assignment.person_id == person_id)
    return [WorkCount(*row) for row in db.execute(statement.group_by(Submission.kind, state).order_by(Submission.kind))]
