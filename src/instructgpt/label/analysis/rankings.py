"""Rankings as the site keeps them, read for the statistics: who ranked what, in which order it was shown, who wrote what.

Everything here takes a fixed number of SQL statements, however many labelers and rankings there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, select
from sqlalchemy.orm import Session

from instructgpt.label.db.models import (
    Assignment,
    Batch,
    Person,
    PromptRow,
    RankingItem,
    Rating,
    Submission,
    Task,
    TaskCompletion,
)
from instructgpt.label.db.models.tasks import TaskKind


@dataclass(frozen=True, slots=True)
class StoredRanking:
    """One ranking as it counts now. It is what the statistics package calls `Ranks`: prompt, labeler, completions, ranks, models."""

    submission: str
    task: str
    batch: str
    prompt: str
    labeler: str
    cohort: str
    """`training` or `heldout`; of somebody without a cohort, the role."""
    round: int
    """1 for the hidden repeat of a task that the same labeler did before."""
    gold: bool
    use_case: str | None
    active_ms: int
    wall_ms: int
    pasted: float | None
    created_at: int
    completions: tuple[str, ...]
    """Ids, in the order in which they stood on the page."""
    ranks: tuple[int, ...]
    models: tuple[str, ...] | None = None
    """Where `with_models` filled it in. A text that several models gave stands once for each of them."""


@dataclass(frozen=True, slots=True)
class StoredRating:
    """One completion's rating and labels by one labeler."""

    submission: str
    completion: str
    rating: int | None
    labels: Mapping[str, bool | None]


def _is_current(kind: TaskKind, batch: str | None = None) -> ColumnElement[bool]:
    """What counts: handed in, not replaced, not given back, of a task that was not withdrawn, no part of a screening test."""
    condition = and_(
        Submission.kind == kind,
        Submission.replaced_at.is_(None),
        Submission.invalid_reason.is_(None),
        Task.state != "withdrawn",
        Batch.screening.is_(None),
    )
    return condition if batch is None else and_(condition, Task.batch_id == batch)


def join_task_and_batch(statement: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
    """A selection from submissions together with their assignment, task and batch."""
    return (
        statement.join(Assignment, Assignment.id == Submission.assignment_id)
        .join(Task, Task.id == Assignment.task_id)
        .join(Batch, Batch.id == Task.batch_id)
    )


def load_stored_rankings(db: Session, batch: str | None = None) -> list[StoredRanking]:
    """All rankings that count, oldest first; those of one batch where it is given. Two statements."""
    items: dict[str, list[tuple[str, int]]] = {}
    items_statement = join_task_and_batch(
        select(RankingItem.submission_id, RankingItem.completion_id, RankingItem.rank).select_from(Submission)
    )
    items_statement = items_statement.join(RankingItem, RankingItem.submission_id == Submission.id).where(
        _is_current("rank", batch)
    )
    for submission, completion, rank in db.execute(
        items_statement.order_by(RankingItem.submission_id, RankingItem.shown)
    ):
        items.setdefault(submission, []).append((completion, rank))
    rankings_statement = join_task_and_batch(
        select(
            Submission.id,
            Task.id,
            Task.batch_id,
            Task.prompt_id,
            Person.id,
            Person.cohort,
            Person.role,
            Assignment.round,
            Task.gold,
            PromptRow.use_case,
            Submission.active_ms,
            Submission.wall_ms,
            Submission.pasted,
            Submission.created_at,
        ).select_from(Submission)
    )
    rankings_statement = (
        rankings_statement.join(Person, Person.id == Assignment.person_id)
        .join(PromptRow, PromptRow.id == Task.prompt_id)
        .where(_is_current("rank", batch))
    )
    rankings = []
    for row in db.execute(rankings_statement.order_by(Submission.created_at, Submission.id)):
        (
            submission,
            task,
            batch_id,
            prompt,
            labeler,
            cohort,
            role,
            round_index,
            gold,
            use_case,
            active_ms,
            wall_ms,
            pasted,
            created_at,
        ) = row
        if submission in items:
            completions, ranks = zip(*items[submission], strict=True)
            columns = (
                submission,
                task,
                batch_id,
                prompt,
                labeler,
                cohort or role,
                round_index,
                gold,
                use_case,
                active_ms,
                wall_ms,
                pasted,
                created_at,
            )
            rankings.append(StoredRanking(*columns, completions, ranks))
    return rankings


def load_stored_ratings(db: Session, batch: str | None = None) -> list[StoredRating]:
    """All ratings of rankings that count, in the order of their submissions. One statement."""
    statement = join_task_and_batch(
        select(Rating.submission_id, Rating.completion_id, Rating.rating, Rating.labels).select_from(Submission)
    )
    statement = statement.join(Rating, Rating.submission_id == Submission.id).where(_is_current("rank", batch))
    return [StoredRating(*row) for row in db.execute(statement.order_by(Rating.submission_id, Rating.completion_id))]


def load_completion_models(db: Session, batch: str | None = None) -> dict[tuple[str, str], tuple[str, ...]]:
    """Who wrote each completion: (task, completion) -> models, several where they gave the same text. One statement."""
    statement = select(TaskCompletion.task_id, TaskCompletion.completion_id, TaskCompletion.models)
    if batch is not None:
        statement = statement.join(Task, Task.id == TaskCompletion.task_id).where(Task.batch_id == batch)
    return {(task, completion): tuple(models) for task, completion, models in db.execute(statement)}


def attach_models(
    rankings: Sequence[StoredRanking], models: Mapping[tuple[str, str], Sequence[str]]
) -> list[StoredRanking]:
    """The same rankings with the names of the models: a text that several models gave ties with itself."""
    attached = []
    for ranking in rankings:
        rows = [
            (completion, rank, model)
            for completion, rank in zip(ranking.completions, ranking.ranks, strict=True)
            for model in models[ranking.task, completion]
        ]
        completions, ranks, model_names = zip(*rows, strict=True)
        attached.append(replace(ranking, completions=completions, ranks=ranks, models=model_names))
    return attached
