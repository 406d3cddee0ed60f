"""What was handed in for one task, as researchers look it over: every kind of work whole, whoever did it, in a few statements."""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from instructgpt.label.db.models import (
    Assignment,
    Demonstration,
    Person,
    Prompt,
    PromptReview,
    Ranking,
    RankingItem,
    Rating,
    Submission,
    Task,
)


@dataclass(slots=True)
class HandedIn:
    """One labeler's work that counts, with what there is of its kind."""

    assignment: Assignment
    person: Person
    submission: Submission
    ranks: list[tuple[str, int]] = field(default_factory=list)
    """(completion, rank), best first."""
    ratings: dict[str, Rating] = field(default_factory=dict)
    ranking: Ranking | None = None
    review: PromptReview | None = None
    text: str | None = None
    """The demonstration, or the prompt, that was written."""


def work_on(db: Session, task: Task) -> list[HandedIn]:
    """Everybody's work on a task that was not replaced, the oldest first. At most four statements, whatever the kind."""
    mine = (Assignment.task_id == task.id, Submission.replaced_at.is_(None))
    rows = db.execute(
        select(Assignment, Person, Submission)
        .join(Person, Person.id == Assignment.person_id)
        .join(Submission, Submission.assignment_id == Assignment.id)
        .where(*mine)
        .order_by(Submission.created_at, Submission.id)
    )
    found = {sent.id: HandedIn(assignment, person, sent) for assignment, person, sent in rows}
    of_task = select(Submission.id).join(Assignment, Assignment.id == Submission.assignment_id).where(*mine)
    if task.kind == "rank":
        _rankings(db, found, of_task)
    elif task.kind == "demonstrate":
        for each in db.scalars(select(Demonstration).where(Demonstration.submission_id.in_(of_task))):
            found[each.submission_id].text = each.text
    elif task.kind == "write":
        for prompt in db.scalars(select(Prompt).where(Prompt.submission_id.in_(of_task))):
            assert prompt.submission_id is not None
            found[prompt.submission_id].text = prompt.text
    else:
        for review in db.scalars(select(PromptReview).where(PromptReview.submission_id.in_(of_task))):
            found[review.submission_id].review = review
    return list(found.values())


def _rankings(db: Session, found: dict[str, HandedIn], of_task: Select[str]) -> None:
    for item in db.scalars(select(RankingItem).where(RankingItem.submission_id.in_(of_task)).order_by(RankingItem.rank, RankingItem.shown)):
        found[item.submission_id].ranks.append((item.completion_id, item.rank))
    for rating in db.scalars(select(Rating).where(Rating.submission_id.in_(of_task))):
        found[rating.submission_id].ratings[rating.completion_id] = rating
    for whole in db.scalars(select(Ranking).where(Ranking.submission_id.in_(of_task))):
        found[whole.submission_id].ranking = whole
