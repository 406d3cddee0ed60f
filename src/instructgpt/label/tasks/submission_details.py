"""What was handed in for one task, as researchers look it over: every kind of work whole, whoever did it, in a few statements."""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from instructgpt.label.db.models import (
    Assignment,
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


@dataclass(slots=True)
class SubmissionDetail:
    """One labeler's work that counts, with what there is of its kind."""

    assignment: Assignment
    person: Person
    submission: Submission
    ranks: list[tuple[str, int]] = field(default_factory=list)
    """(completion, rank), best first."""
    ratings: dict[str, Rating] = field(default_factory=dict)
    ranking: RankingRow | None = None
    review: PromptReview | None = None
    text: str | None = None
    """The demonstration, or the prompt, that was written."""


def list_task_submissions(db: Session, task: Task) -> list[SubmissionDetail]:
    """Everybody's work on a task that was not replaced, the oldest first. At most four statements, whatever the kind."""
    conditions = (Assignment.task_id == task.id, Submission.replaced_at.is_(None))
    rows = db.execute(
        select(Assignment, Person, Submission)
        .join(Person, Person.id == Assignment.person_id)
        .join(Submission, Submission.assignment_id == Assignment.id)
        .where(*conditions)
        .order_by(Submission.created_at, Submission.id)
    )
    details = {
        submission.id: SubmissionDetail(assignment, person, submission) for assignment, person, submission in rows
    }
    submission_ids = (
        select(Submission.id).join(Assignment, Assignment.id == Submission.assignment_id).where(*conditions)
    )
    if task.kind == "rank":
        _add_rankings(db, details, submission_ids)
    elif task.kind == "demonstrate":
        for demonstration in db.scalars(
            select(DemonstrationRow).where(DemonstrationRow.submission_id.in_(submission_ids))
        ):
            details[demonstration.submission_id].text = demonstration.text
    elif task.kind == "write":
        for prompt in db.scalars(select(PromptRow).where(PromptRow.submission_id.in_(submission_ids))):
            assert prompt.submission_id is not None
            details[prompt.submission_id].text = prompt.text
    else:
        for review in db.scalars(select(PromptReview).where(PromptReview.submission_id.in_(submission_ids))):
            details[review.submission_id].review = review
    return list(details.values())


def _add_rankings(db: Session, details: dict[str, SubmissionDetail], submission_ids: Select[str]) -> None:
    for item in db.scalars(
        select(RankingItem)
        .where(RankingItem.submission_id.in_(submission_ids))
        .order_by(RankingItem.rank, RankingItem.shown)
    ):
        details[item.submission_id].ranks.append((item.completion_id, item.rank))
    for rating in db.scalars(select(Rating).where(Rating.submission_id.in_(submission_ids))):
        details[rating.submission_id].ratings[rating.completion_id] = rating
    for ranking in db.scalars(select(RankingRow).where(RankingRow.submission_id.in_(submission_ids))):
        details[ranking.submission_id].ranking = ranking
