"""Stored rankings and ratings, loaded for the statistics.

Each function executes a fixed number of SQL statements, independent of the number of labelers and rankings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Select, Text, and_, cast, func, select
from sqlalchemy.orm import Session

from instructgpt.label.db.models.people import Person
from instructgpt.label.db.models.submissions import Assignment, RankingItem, Rating, Submission
from instructgpt.label.db.models.tasks import Batch, PromptRow, Task, TaskCompletion
from instructgpt.label.errors import SiteError
from instructgpt.label.vocabulary import TaskKind

MAX_QUICK_RANKINGS = 1_000
"""Rankings of a report that a page waits for: a fifth of a second."""


@dataclass(frozen=True, slots=True)
class StoredRanking:
    """The current version of one ranking. Satisfies the `HasRanks` protocol of the statistics package."""

    submission: str
    task: str
    batch: str
    prompt: str
    labeler: str
    cohort: str
    """`training` or `heldout`; the role of a person without a cohort."""
    round: int
    """1 for the hidden repeat of a task, 0 otherwise."""
    gold: bool
    use_case: str | None
    active_ms: int
    wall_ms: int
    pasted: float | None
    created_at: int
    completions: tuple[str, ...]
    """Ids in the order of presentation."""
    ranks: tuple[int, ...]
    models: tuple[str, ...] | None = None
    """Set by `attach_models`; a completion that several models produced is listed once per model."""


@dataclass(frozen=True, slots=True)
class StoredRating:
    submission: str
    completion: str
    rating: float | None
    labels: Mapping[str, bool | None]


def _is_current(
    kind: TaskKind, batch: str | None = None, only: ColumnElement[bool] | None = None
) -> ColumnElement[bool]:
    condition = and_(
        Submission.kind == kind,
        Submission.replaced_at.is_(None),
        Submission.invalid_reason.is_(None),
        Task.state != "withdrawn",
        Batch.screening.is_(None),
    )
    condition = condition if batch is None else and_(condition, Task.batch_id == batch)
    return condition if only is None else and_(condition, only)


def join_task_and_batch(statement: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
    return (
        statement.join(Assignment, Assignment.id == Submission.assignment_id)
        .join(Task, Task.id == Assignment.task_id)
        .join(Batch, Batch.id == Task.batch_id)
    )


def load_stored_rankings(
    db: Session, batch: str | None = None, only: ColumnElement[bool] | None = None
) -> list[StoredRanking]:
    """Return the current rankings of one batch, or of all batches, oldest first. Two statements.

    `only`: a condition on tasks.
    """
    items: dict[str, list[tuple[str, int]]] = {}
    statement = select(RankingItem.submission_id, RankingItem.completion_id, RankingItem.rank).select_from(Submission)
    statement = join_task_and_batch(statement).join(RankingItem, RankingItem.submission_id == Submission.id)
    statement = statement.where(_is_current("rank", batch, only)).order_by(RankingItem.submission_id, RankingItem.shown)
    for submission, completion, rank in db.execute(statement):
        items.setdefault(submission, []).append((completion, rank))
    rankings_statement = join_task_and_batch(
        select(
            Submission.id,
            Task.id,
            Task.batch_id,
            Task.prompt_id,
            Person.id,
            func.coalesce(Person.cohort, Person.role),
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
        .where(_is_current("rank", batch, only))
    )
    rows = db.execute(rankings_statement.order_by(Submission.created_at, Submission.id))
    # The columns and (completions, ranks) follow the order of StoredRanking's fields.
    return [StoredRanking(*row, *zip(*items[row[0]], strict=True)) for row in rows if row[0] in items]


def has_many_rankings(db: Session, batches: Sequence[str] = ()) -> bool:
    """Return whether a report on the current rankings of some batches, or of all, takes long. One statement."""
    condition = _is_current("rank", only=Task.batch_id.in_(batches) if batches else None)
    statement = join_task_and_batch(select(Submission.id)).where(condition).limit(MAX_QUICK_RANKINGS + 1)
    return (db.scalar(select(func.count()).select_from(statement.subquery())) or 0) > MAX_QUICK_RANKINGS


def load_stored_ratings(
    db: Session, batch: str | None = None, only: ColumnElement[bool] | None = None
) -> list[StoredRating]:
    """Return the ratings of the current rankings, ordered by submission. One statement.

    `only`: a condition on tasks. Equal labels are one object: most completions have few different ones, and reading
    JSON would take most of the time.
    """
    columns = (Rating.submission_id, Rating.completion_id, Rating.rating, cast(Rating.labels, Text))
    statement = join_task_and_batch(select(*columns).select_from(Submission))
    statement = statement.join(Rating, Rating.submission_id == Submission.id).where(_is_current("rank", batch, only))
    labels_by_text: dict[str, dict[str, bool | None]] = {}
    ratings = []
    for submission, completion, rating, text in db.execute(
        statement.order_by(Rating.submission_id, Rating.completion_id)
    ):
        if (labels := labels_by_text.get(text)) is None:
            labels = labels_by_text[text] = json.loads(text)
        ratings.append(StoredRating(submission, completion, rating, labels))
    return ratings


def load_completion_models(db: Session, batch: str | None = None) -> dict[tuple[str, str], tuple[str, ...]]:
    """Return (task, completion) -> models; several when they produced the same text. One statement.

    Tasks that nobody was assigned have no ranking and are left out: a large batch begins with thousands of them.
    Equal names are one object, read once: there are few of them.
    """
    columns = (TaskCompletion.task_id, TaskCompletion.completion_id, cast(TaskCompletion.models, Text))
    statement = select(*columns)
    statement = statement.where(TaskCompletion.task_id.in_(select(Assignment.task_id)))
    if batch is not None:
        statement = statement.join(Task, Task.id == TaskCompletion.task_id).where(Task.batch_id == batch)
    read_models = cache(lambda text: tuple(json.loads(text)))
    return {(task, completion): read_models(text) for task, completion, text in db.execute(statement)}


def attach_models(
    rankings: Sequence[StoredRanking], models: Mapping[tuple[str, str], Sequence[str]]
) -> list[StoredRanking]:
    """Return the rankings with model names. A completion of several models is repeated with the same rank, as a tie."""
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


def ranks_from_tiers(db: Session, task_id: str, tiers: Mapping[str, int]) -> dict[str, int]:
    """Return completion -> dense rank. Raises SiteError `bad_ranking` unless each completion of the task has a tier."""
    completions = set(db.scalars(select(TaskCompletion.completion_id).where(TaskCompletion.task_id == task_id)))
    if set(tiers) != completions or min(tiers.values(), default=0) < 1:
        raise SiteError(422, "bad_ranking")
    levels = sorted(set(tiers.values()))
    return {completion: 1 + levels.index(tiers[completion]) for completion in sorted(tiers, key=tiers.__getitem__)}
