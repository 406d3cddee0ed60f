"""Selection of the submissions to export, with a reason for each one left out.

The two uses never share a row. `training` is the training cohort's work in training batches; it trains SFT and reward
models. `evaluation` is all work in evaluation batches and all work of held-out labelers; it measures models and
validates the reward model (paper, sections 3.4 and 5).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Select, select
from sqlalchemy.orm import Session, aliased

from instructgpt.label.analysis.results import is_blind
from instructgpt.label.db.database import Database
from instructgpt.label.db.models.people import Instructions, Person
from instructgpt.label.db.models.submissions import Assignment, Submission
from instructgpt.label.db.models.tasks import Batch, PromptRow, Task
from instructgpt.label.people.privacy import WITHDRAWN_BY_LABELER
from instructgpt.label.tasks.red_team import get_failure_kind
from instructgpt.label.vocabulary import ExportUse, TaskKind

SUBMISSION_CHUNK_SIZE = 500
EVALUATION_SPLITS = ("validation", "valid", "test")


class ExportFilter(BaseModel):
    """The filter of an export. Times are milliseconds since 1970, UTC; `until` is exclusive."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    use: ExportUse = "training"
    batches: tuple[str, ...] = Field((), description="names of batches; empty for all")
    labelers: tuple[str, ...] = Field((), description="pseudonyms of labelers; empty for all")
    since: int | None = Field(None, ge=0)
    until: int | None = Field(None, ge=0)
    user_feedback: bool = Field(False, description="training: also users' rankings and edits, with cohort user")


@dataclass(slots=True)
class ExportTally:
    rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """Reason -> rows."""
    labelers: dict[str, set[str]] = field(default_factory=dict)
    """Cohort -> pseudonyms."""


class ExportItem(NamedTuple):
    submission: Submission
    assignment: Assignment
    task: Task
    batch: Batch
    person: Person
    prompt: PromptRow | None
    instructions: Instructions | None


@contextmanager
def snapshot(database: Database) -> Iterator[Session]:
    """Open a transaction in which every statement sees the same state of the database."""
    with database.read() as db:
        # An SQLite read transaction is a snapshot already; PostgreSQL's default is one snapshot per statement.
        if not database.is_sqlite:
            db.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        yield db


def exclusion_reason(item: ExportItem, export_filter: ExportFilter) -> str | None:
    """Return the reason to leave a submission out, or None to export it."""
    if item.submission.replaced_at is not None:
        return "replaced"
    if item.submission.invalid_reason is not None:
        return "withdrawn_by_labeler" if item.submission.invalid_reason == WITHDRAWN_BY_LABELER else "invalid"
    if item.prompt is not None and item.prompt.withdrawn_at is not None:
        return "withdrawn_prompt"
    if item.task.state == "withdrawn":
        return "excluded_task"
    if item.batch.screening is not None:
        return "screening"
    if get_failure_kind(item.task.brief) is not None:
        return "red_team"
    return _use_exclusion_reason(item, export_filter.use)


def _use_exclusion_reason(item: ExportItem, use: ExportUse) -> str | None:
    if use == "training":
        if item.batch.purpose != "training":
            return "evaluation"
        if item.person.cohort != "training":
            return "heldout" if item.person.cohort == "heldout" else "no_cohort"
        return "repeat" if item.assignment.round else None
    if item.batch.purpose == "evaluation":
        return "blind" if is_blind(item.batch) else None  # an export would reveal the models' names
    return None if item.person.cohort == "heldout" else "training"


def _select_submissions(
    kind: TaskKind, export_filter: ExportFilter
) -> Select[Submission, Assignment, Task, Batch, Person, PromptRow, Instructions]:
    written_prompt = aliased(PromptRow)
    prompt = written_prompt if kind == "write" else PromptRow
    statement = (
        select(Submission, Assignment, Task, Batch, Person, prompt, Instructions)
        .join(Assignment, Submission.assignment_id == Assignment.id)
        .join(Task, Assignment.task_id == Task.id)
        .join(Batch, Task.batch_id == Batch.id)
        .join(Person, Assignment.person_id == Person.id)
        .outerjoin(
            prompt, written_prompt.submission_id == Submission.id if kind == "write" else Task.prompt_id == PromptRow.id
        )
        .outerjoin(Instructions, Assignment.instructions_id == Instructions.id)
        .where(Submission.kind == kind)
        .order_by(Submission.id)
    )
    if export_filter.batches:
        statement = statement.where(Batch.name.in_(export_filter.batches))
    if export_filter.labelers:
        statement = statement.where(Person.pseudonym.in_(export_filter.labelers))
    if export_filter.since is not None:
        statement = statement.where(Submission.created_at >= export_filter.since)
    if export_filter.until is not None:
        statement = statement.where(Submission.created_at < export_filter.until)
    return statement


def iter_export_items(
    db: Session, kind: TaskKind, export_filter: ExportFilter, tally: ExportTally
) -> Iterator[list[ExportItem]]:
    """Yield the submissions of an export in chunks, and count the ones left out."""
    statement = _select_submissions(kind, export_filter).execution_options(yield_per=SUBMISSION_CHUNK_SIZE)
    for chunk in db.execute(statement).partitions():
        included: list[ExportItem] = []
        for item in map(ExportItem._make, chunk):
            if (reason := exclusion_reason(item, export_filter)) is not None:
                tally.left_out[reason] += 1
            else:
                tally.labelers.setdefault(item.person.cohort or "none", set()).add(item.person.pseudonym)
                included.append(item)
        if included:
            yield included
