"""What red-team tasks found: shares of attempts at which models failed, by model and kind of failure.

An attempt is an independent draw no more than its labeler is: intervals count a labeler's attempts as one cluster.
The statistics package is imported inside the functions to keep scipy out of the site's start.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.label.db.models import Assignment, Batch, Person, RedTeamAttempt, Task
from instructgpt.label.vocabulary import FAILURE_KINDS
from instructgpt.results import ResultRow, result_row_to_dict

if TYPE_CHECKING:
    from instructgpt.statistics.intervals import Estimate

RED_TEAM_EVALUATION = "red_team"
ALL_FAILURES = "all"


@dataclass(frozen=True, slots=True)
class RedTeamRow:
    """Attempts of one kind (or of all) at one model."""

    model: str
    failure: str
    attempts: int
    unjudged: int
    labelers: int
    share: Estimate
    """Judged attempts at which the model failed."""


@dataclass(frozen=True, slots=True)
class _JudgedAttempt:
    model: str
    failure: str
    success: bool | None
    labeler: str


def iter_attempt_records(db: Session) -> Iterator[dict[str, Any]]:
    """Yield all attempts that were not withdrawn as records of a file, oldest first."""
    statement = (
        select(RedTeamAttempt, Person.pseudonym, Person.cohort, Batch.name)
        .join(Assignment, Assignment.id == RedTeamAttempt.assignment_id)
        .join(Person, Person.id == Assignment.person_id)
        .join(Task, Task.id == Assignment.task_id)
        .join(Batch, Batch.id == Task.batch_id)
        .where(RedTeamAttempt.withdrawn_at.is_(None))
        .order_by(RedTeamAttempt.id)
    )
    columns = ("id", "failure", "success", "prompt", "completion", "model", "checkpoint", "finish", "sampling")
    for attempt, labeler, cohort, batch in db.execute(statement):
        fields = {name: getattr(attempt, name) for name in columns}
        yield fields | {
            "labeler": labeler,
            "cohort": cohort,
            "batch": batch,
            "source": "red_team",
            "created_at": attempt.created_at,
        }


def measure_red_team(db: Session) -> list[RedTeamRow]:
    """Return the share of successful attempts of each model, for each kind of failure and for all together."""
    attempts = [
        _JudgedAttempt(row["model"], row["failure"], row["success"], row["labeler"]) for row in iter_attempt_records(db)
    ]
    rows: list[RedTeamRow] = []
    for model in sorted({attempt.model for attempt in attempts}):
        of_model = [attempt for attempt in attempts if attempt.model == model]
        rows.append(_measure_row(model, ALL_FAILURES, of_model))
        for failure in FAILURE_KINDS:
            of_kind = [attempt for attempt in of_model if attempt.failure == failure]
            rows += [_measure_row(model, failure, of_kind)] if of_kind else []
    return rows


def _measure_row(model: str, failure: str, attempts: Sequence[_JudgedAttempt]) -> RedTeamRow:
    from instructgpt.statistics.intervals import NO_ESTIMATE, SHARE, mean

    judged = [attempt for attempt in attempts if attempt.success is not None]
    share = (
        NO_ESTIMATE
        if not judged
        else mean(
            [float(bool(attempt.success)) for attempt in judged],
            [attempt.labeler for attempt in judged],
            bounds=SHARE,
        )
    )
    labelers = len({attempt.labeler for attempt in judged})
    return RedTeamRow(model, failure, len(judged), len(attempts) - len(judged), labelers, share)


def red_team_result_rows(rows: Sequence[RedTeamRow]) -> list[dict[str, object]]:
    """Return the rows of results.json."""
    return [
        result_row_to_dict(
            ResultRow(
                RED_TEAM_EVALUATION,
                "success",
                row.model,
                row.failure,
                *(row.share.value, row.share.low, row.share.high, row.share.n),
                caution=row.share.caution,
            )
        )
        for row in rows
        if row.attempts
    ]
