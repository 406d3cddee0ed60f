"""The list of tasks: which match a filter, in which order, and what a page shows of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import Session

from instructgpt.label.analysis.results import get_hidden_model_names, redact_model_names
from instructgpt.label.db.models import (
    Assignment,
    Batch,
    CompletionRow,
    Person,
    PromptReview,
    PromptRow,
    RankingRow,
    Rating,
    Submission,
    Task,
    TaskCompletion,
)
from instructgpt.label.listing.filters import ROWS_PER_PAGE, ListFilter, TaskFilter, count_pages
from instructgpt.label.listing.text_search import contains_terms, split_terms
from instructgpt.label.tasks.batches import UNLIMITED_OVERLAP
from instructgpt.label.tasks.task_view import newest_turn

PREVIEW_LENGTH = 160
"""Characters of a text in a list."""
CSV_CHUNK_SIZE = 500
_T = TypeVar("_T")
_SORT_COLUMNS: dict[str, tuple[Any, ...]] = {
    "position": (Batch.created_at, Task.batch_id, Task.position),
    "prompt": (func.lower(PromptRow.text), Task.id),
    "submissions": (Task.n_done, Task.id),
    "skips": (Task.n_skipped, Task.id),
}


@dataclass(frozen=True, slots=True)
class TaskListItem:
    id: str
    batch_id: str
    batch_name: str
    kind: str
    state: str
    text: str
    overlap: int | None
    """None for gold and screening tasks, which everybody gets."""
    n_done: int
    n_open: int
    n_skipped: int
    source: str | None
    use_case: str | None
    language: str | None
    labelers: tuple[tuple[str, str], ...]
    """(id, name) of who works or has worked on it."""


def select_task_ids(db: Session, task_filter: TaskFilter) -> Select[str]:
    """Select the ids of the tasks that match, unordered."""
    return select(Task.id).where(*_conditions(db, task_filter))


def _conditions(db: Session, task_filter: TaskFilter) -> list[ColumnElement[bool]]:
    columns = {"batch": Task.batch_id, "kind": Task.kind, "state": Task.state}
    conditions: list[ColumnElement[bool]] = [
        column == getattr(task_filter, name)
        for name, column in columns.items()
        if getattr(task_filter, name) is not None
    ]
    if prompt_conditions := match_prompt_fields(task_filter):
        conditions.append(Task.prompt_id.in_(select(PromptRow.id).where(*prompt_conditions)))
    if task_filter.labeler is not None:
        conditions.append(Task.id.in_(select(Assignment.task_id).where(Assignment.person_id == task_filter.labeler)))
    if task_filter.label is not None:
        labeled = select_labeled_submissions(task_filter.label)
        statement = select(Assignment.task_id).join(Submission, Submission.assignment_id == Assignment.id)
        conditions.append(Task.id.in_(statement.where(Submission.replaced_at.is_(None), Submission.id.in_(labeled))))
    if task_filter.text:
        terms, dialect = split_terms(task_filter.text), db.get_bind().dialect.name
        if task_filter.scope == "prompt":
            prompts = select(PromptRow.id).where(contains_terms(PromptRow.text, terms, dialect))
            conditions.append(Task.prompt_id.in_(prompts))
        else:
            completions = select(TaskCompletion.task_id).join(
                CompletionRow, CompletionRow.id == TaskCompletion.completion_id
            )
            conditions.append(Task.id.in_(completions.where(contains_terms(CompletionRow.text, terms, dialect))))
    return conditions


def match_prompt_fields(list_filter: ListFilter) -> list[ColumnElement[bool]]:
    """Return the conditions on prompts of a filter's source, use case and language."""
    return [
        getattr(PromptRow, name) == value
        for name in ("source", "use_case", "language")
        if (value := getattr(list_filter, name, None)) is not None
    ]


def select_labeled_submissions(label: str) -> Select[str]:
    """Select the submissions that answer a question with yes, for a completion, a task or a prompt."""
    return (
        select(Rating.submission_id)
        .where(Rating.labels[label].as_boolean())
        .union(  # type: ignore[return-value]
            select(RankingRow.submission_id).where(RankingRow.answers[label].as_boolean()),
            select(PromptReview.submission_id).where(PromptReview.labels[label].as_boolean()),
        )
    )


def _ordered_ids(db: Session, task_filter: TaskFilter) -> Select[str, int]:
    name = task_filter.sort.removeprefix("-")
    statement = select(Task.id, func.count().over()).where(*_conditions(db, task_filter))
    if name == "position":
        statement = statement.join(Batch, Batch.id == Task.batch_id)
    elif name == "prompt":
        statement = statement.outerjoin(PromptRow, PromptRow.id == Task.prompt_id)
    return statement.order_by(*sort_columns(task_filter.sort, _SORT_COLUMNS))


def sort_columns(sort: str, columns: dict[str, tuple[Any, ...]]) -> list[ColumnElement[Any]]:
    """Return the columns of a sort key; a minus reverses all of them."""
    ordered = columns[sort.removeprefix("-")]
    return [column.desc() if sort.startswith("-") else column.asc() for column in ordered]


def list_page_ids(db: Session, statement: Select[str, int], page: int) -> tuple[list[str], int, int]:
    """Return the ids of a page, how many rows match, and the page, the last one instead of a page behind it."""
    rows = db.execute(statement.limit(ROWS_PER_PAGE).offset((page - 1) * ROWS_PER_PAGE)).all()
    if not rows and page > 1:
        total = db.scalar(select(func.count()).select_from(statement.order_by(None).subquery())) or 0
        return list_page_ids(db, statement, count_pages(total))
    return [row[0] for row in rows], rows[0][1] if rows else 0, page


def iter_items(
    db: Session, statement: Select[str, int], load: Callable[[Session, Sequence[str]], Iterable[_T]]
) -> Iterator[_T]:
    """Yield what `load` returns for all ids of a statement, a chunk of them at a time."""
    ids = list(db.scalars(statement))
    for start in range(0, len(ids), CSV_CHUNK_SIZE):
        yield from load(db, ids[start : start + CSV_CHUNK_SIZE])


def list_tasks_page(db: Session, task_filter: TaskFilter) -> tuple[list[TaskListItem], int, int]:
    """Return the tasks of a page, how many match, and the page. Four statements."""
    task_ids, total, page = list_page_ids(db, _ordered_ids(db, task_filter), task_filter.page)
    return load_task_items(db, task_ids), total, page


def iter_task_items(db: Session, task_filter: TaskFilter) -> Iterator[TaskListItem]:
    """Return all tasks that match, in order."""
    load = partial(load_task_items, hidden_names=get_hidden_model_names(db))
    return iter_items(db, _ordered_ids(db, task_filter), load)


def load_task_items(db: Session, task_ids: Sequence[str], hidden_names: set[str] | None = None) -> list[TaskListItem]:
    """Load what a list shows of tasks, in the order of the ids, without hidden model names. Three statements.

    `hidden_names`: of `get_hidden_model_names`, which is one of the statements.
    """
    statement = (
        select(Task, Batch.name, PromptRow)
        .join(Batch, Batch.id == Task.batch_id)
        .outerjoin(PromptRow, PromptRow.id == Task.prompt_id)
        .where(Task.id.in_(task_ids))
    )
    if hidden_names is None:
        hidden_names = get_hidden_model_names(db)
    workers: dict[str, dict[str, str]] = {}
    assigned = select(Assignment.task_id, Person.id, Person.name).join(Person, Person.id == Assignment.person_id)
    for task_id, person_id, name in db.execute(assigned.where(Assignment.task_id.in_(task_ids)).order_by(Person.name)):
        workers.setdefault(task_id, {})[person_id] = name
    items = {}
    for task, batch_name, prompt in db.execute(statement):
        items[task.id] = TaskListItem(
            task.id,
            task.batch_id,
            batch_name,
            task.kind,
            task.state,
            preview_prompt(prompt, hidden_names),
            task.overlap if task.overlap < UNLIMITED_OVERLAP else None,
            task.n_done,
            task.n_open,
            task.n_skipped,
            *((prompt.source, prompt.use_case, prompt.language) if prompt else (None, None, None)),
            tuple(workers.get(task.id, {}).items()),
        )
    return [items[task_id] for task_id in task_ids if task_id in items]


def preview_prompt(prompt: PromptRow | None, hidden_names: set[str]) -> str:
    """Return the beginning of a prompt, or of the last turn of a conversation."""
    if prompt is None:
        return ""
    # A name is cut by neither end: the text is redacted before it is shortened.
    excerpt = newest_turn(prompt.text, prompt.messages)[: 2 * PREVIEW_LENGTH]
    return redact_model_names(excerpt, hidden_names)[:PREVIEW_LENGTH]
