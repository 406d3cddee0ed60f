"""Which work leaves the site, and which does not, with the reason.

Two uses divide the work that counts and never share a row. `training` is work of the training cohort in batches for training; it
feeds SFT and the reward model. `evaluation` is everything done in batches for evaluation, and whatever held-out labelers did: it
measures models and validates the reward model (paper, 3.4 and 5). What is in neither is counted with its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Select, select
from sqlalchemy.orm import Session, aliased

from instructgpt.label.analysis.results import is_blind
from instructgpt.label.db.database import Database
from instructgpt.label.db.models import Assignment, Batch, Instructions, Person, PromptRow, Submission, Task
from instructgpt.label.db.models.tasks import TaskKind
from instructgpt.label.people.privacy import WITHDRAWN_BY_LABELER

ExportUse = Literal["training", "evaluation"]
SUBMISSION_CHUNK_SIZE = 500
"""Submissions held in memory together."""
EVALUATION_SPLITS = ("validation", "valid", "test")
"""Splits on which models are measured."""


class ExportFilter(BaseModel):
    """Which work is exported. Times are milliseconds since 1970, UTC; `until` is not included."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    use: ExportUse = "training"
    batches: tuple[str, ...] = Field((), description="names of batches; all of them when empty")
    since: int | None = Field(None, ge=0)
    until: int | None = Field(None, ge=0)


@dataclass(slots=True)
class ExportTally:
    """What became of the rows of one file: how many were written, how many were left out and why, and whose they are."""

    rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    labelers: dict[str, set[str]] = field(default_factory=dict)


class ExportItem(NamedTuple):
    """One submission with everything around it."""

    submission: Submission
    assignment: Assignment
    task: Task
    batch: Batch
    person: Person
    prompt: PromptRow | None
    instructions: Instructions | None


@contextmanager
def snapshot(database: Database) -> Iterator[Session]:
    """A transaction in which every statement sees the same state, however long it takes and whoever writes meanwhile."""
    with database.read() as db:
        if not database.is_sqlite:
            db.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        yield db


def exclusion_reason(export_item: ExportItem, export_filter: ExportFilter) -> str | None:
    """Why a submission is not in an export, in a word; None: it is."""
    if export_item.submission.replaced_at is not None:
        return "replaced"
    if export_item.submission.invalid_reason is not None:
        return "withdrawn_by_labeler" if export_item.submission.invalid_reason == WITHDRAWN_BY_LABELER else "invalid"
    if export_item.task.state == "withdrawn" or (
        export_item.prompt is not None and export_item.prompt.withdrawn_at is not None
    ):
        return "withdrawn_prompt"
    if export_item.batch.screening is not None:
        return "screening"
    return _use_exclusion_reason(export_item, export_filter.use)


def _use_exclusion_reason(export_item: ExportItem, use: ExportUse) -> str | None:
    if use == "training":
        if export_item.batch.purpose != "training":
            return "evaluation"
        if export_item.person.cohort != "training":
            return "heldout" if export_item.person.cohort == "heldout" else "no_cohort"
        return "repeat" if export_item.assignment.round else None
    if export_item.batch.purpose == "evaluation":
        return "blind" if is_blind(export_item.batch) else None  # the names of its models are still hidden
    return None if export_item.person.cohort == "heldout" else "training"


def _select_submissions(
    kind: TaskKind, export_filter: ExportFilter
) -> Select[Submission, Assignment, Task, Batch, Person, PromptRow, Instructions]:
    """Every submission of a kind that the filter's columns can tell, oldest first."""
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
    if export_filter.since is not None:
        statement = statement.where(Submission.created_at >= export_filter.since)
    if export_filter.until is not None:
        statement = statement.where(Submission.created_at < export_filter.until)
    return statement


def iter_export_items(
    db: Session, kind: TaskKind, export_filter: ExportFilter, tally: ExportTally
) -> Iterator[list[ExportItem]]:
    """The submissions of an export, in portions; those left out are counted."""
    for chunk in db.execute(
        _select_submissions(kind, export_filter).execution_options(yield_per=SUBMISSION_CHUNK_SIZE)
    ).partitions():
        included: list[ExportItem] = []
        for export_item in map(ExportItem._make, chunk):
            reason = exclusion_reason(export_item, export_filter)
            if reason is not None:
                tally.left_out[reason] += 1
            else:
                tally.labelers.setdefault(export_item.person.cohort or "none", set()).add(export_item.person.pseudonym)
                included.append(export_item)
        if included:
            yield included
