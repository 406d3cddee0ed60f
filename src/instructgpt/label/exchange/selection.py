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
from instructgpt.label.db.models import Assignment, Batch, Instructions, Person, Prompt, Submission, Task
from instructgpt.label.db.models.tasks import Kind
from instructgpt.label.people.privacy import WITHDRAWN

Use = Literal["training", "evaluation"]
AT_ONCE = 500
"""Submissions held in memory together."""
HELD_OUT = ("validation", "valid", "test")
"""Splits on which models are measured."""


class Filter(BaseModel):
    """Which work is exported. Times are milliseconds since 1970, UTC; `until` is not included."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    use: Use = "training"
    batches: tuple[str, ...] = Field((), description="names of batches; all of them when empty")
    since: int | None = Field(None, ge=0)
    until: int | None = Field(None, ge=0)


@dataclass(slots=True)
class Tally:
    """What became of the rows of one file: how many were written, how many were left out and why, and whose they are."""

    rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    labelers: dict[str, set[str]] = field(default_factory=dict)


class Work(NamedTuple):
    """One submission with everything around it."""

    submission: Submission
    assignment: Assignment
    task: Task
    batch: Batch
    person: Person
    prompt: Prompt | None
    instructions: Instructions | None


@contextmanager
def snapshot(database: Database) -> Iterator[Session]:
    """A transaction in which every statement sees the same state, however long it takes and whoever writes meanwhile."""
    with database.read() as db:
        if not database.is_sqlite:
            db.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        yield db


def why_not(work: Work, wanted: Filter) -> str | None:
    """Why a submission is not in an export, in a word; None: it is."""
    if work.submission.replaced_at is not None:
        return "replaced"
    if work.submission.invalid_reason is not None:
        return "withdrawn_by_labeler" if work.submission.invalid_reason == WITHDRAWN else "invalid"
    if work.task.state == "withdrawn" or (work.prompt is not None and work.prompt.withdrawn_at is not None):
        return "withdrawn_prompt"
    if work.batch.screening is not None:
        return "screening"
    return _other_use(work, wanted.use)


def _other_use(work: Work, use: Use) -> str | None:
    if use == "training":
        if work.batch.purpose != "training":
            return "evaluation"
        if work.person.cohort != "training":
            return "heldout" if work.person.cohort == "heldout" else "no_cohort"
        return "repeat" if work.assignment.round else None
    if work.batch.purpose == "evaluation":
        return "blind" if is_blind(work.batch) else None  # the names of its models are still hidden
    return None if work.person.cohort == "heldout" else "training"


def _submissions(kind: Kind, wanted: Filter) -> Select[Submission, Assignment, Task, Batch, Person, Prompt, Instructions]:
    """Every submission of a kind that the filter's columns can tell, oldest first."""
    written = aliased(Prompt)
    prompt = written if kind == "write" else Prompt
    chosen = (
        select(Submission, Assignment, Task, Batch, Person, prompt, Instructions)
        .join(Assignment, Submission.assignment_id == Assignment.id)
        .join(Task, Assignment.task_id == Task.id)
        .join(Batch, Task.batch_id == Batch.id)
        .join(Person, Assignment.person_id == Person.id)
        .outerjoin(prompt, written.submission_id == Submission.id if kind == "write" else Task.prompt_id == Prompt.id)
        .outerjoin(Instructions, Assignment.instructions_id == Instructions.id)
        .where(Submission.kind == kind)
        .order_by(Submission.id)
    )
    if wanted.batches:
        chosen = chosen.where(Batch.name.in_(wanted.batches))
    if wanted.since is not None:
        chosen = chosen.where(Submission.created_at >= wanted.since)
    if wanted.until is not None:
        chosen = chosen.where(Submission.created_at < wanted.until)
    return chosen


def works(db: Session, kind: Kind, wanted: Filter, tally: Tally) -> Iterator[list[Work]]:
    """The submissions of an export, in portions; those left out are counted."""
    for portion in db.execute(_submissions(kind, wanted).execution_options(yield_per=AT_ONCE)).partitions():
        chosen: list[Work] = []
        for work in map(Work._make, portion):
            reason = why_not(work, wanted)
            if reason is not None:
                tally.left_out[reason] += 1
            else:
                tally.labelers.setdefault(work.person.cohort or "none", set()).add(work.person.pseudonym)
                chosen.append(work)
        if chosen:
            yield chosen
