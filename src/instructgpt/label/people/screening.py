"""The screening test (paper, B.1): its four parts, a labeler's progress and metrics, and a researcher's decision.

Metrics decide nothing. They are shown with an interval and the paper's "soft" cut-off.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import TYPE_CHECKING, Literal, get_args

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from instructgpt.label.db import audit_log
from instructgpt.label.db.models import (
    Assignment,
    Batch,
    Decision,
    DemonstrationRow,
    GoldAnswer,
    Grade,
    Person,
    PromptReview,
    PromptRow,
    RankingItem,
    Submission,
    Task,
)
from instructgpt.label.db.models.people import PersonStatus
from instructgpt.label.errors import SiteError
from instructgpt.label.integrations.events import record_event
from instructgpt.label.people.surveys import has_replied
from instructgpt.label.vocabulary import TaskKind

if TYPE_CHECKING:
    from instructgpt.statistics.intervals import Estimate

ScreeningPart = Literal["sensitive", "ranking", "demonstration"]
SCREENING_PARTS: tuple[ScreeningPart, ...] = get_args(ScreeningPart)
SCREENING_KINDS: dict[ScreeningPart, TaskKind] = {
    "sensitive": "review",
    "ranking": "rank",
    "demonstration": "demonstrate",
}
_CUTOFFS: dict[ScreeningPart, float] = {"sensitive": 0.75, "ranking": 0.75, "demonstration": 6.0}
"""Paper, B.1: 75 % agreement on sensitive speech and on comparisons, a mean demonstration grade of 6 of 7."""
MIN_SCREENING_ITEMS: dict[ScreeningPart, int] = {"sensitive": 60, "ranking": 20, "demonstration": 8}
"""Fewer items say little: the interval of 75 % of 20 is 53 % to 89 %."""
LABELER_FOLDS = 5

ScreeningVerdict = Literal["admit", "decline", "pause", "resume"]
VERDICT_TRANSITIONS: dict[ScreeningVerdict, tuple[tuple[PersonStatus, ...], PersonStatus]] = {
    "admit": (("screening", "declined"), "active"),
    "decline": (("screening",), "declined"),
    "pause": (("active",), "paused"),
    "resume": (("paused",), "active"),
}
"""(statuses before, status after) of each verdict."""


class ScreeningProgress(BaseModel):
    """Submitted and total tasks of one part."""

    model_config = ConfigDict(frozen=True)
    part: str
    kind: TaskKind | None
    completed: int
    total: int

    @property
    def remaining(self) -> int:
        return max(0, self.total - self.completed)


class ScreeningMetric(BaseModel):
    """One metric of the screening test; value and interval are None without items."""

    model_config = ConfigDict(frozen=True)
    value: float | None
    low: float | None
    high: float | None
    items: int  # prompts reviewed, ranked or answered
    cutoff: float
    enough: bool  # at least `MIN_SCREENING_ITEMS`


def get_screening_progress(db: Session, person: Person) -> list[ScreeningProgress]:
    """Return a labeler's progress by part; the survey of groups is the fourth part."""
    statement = (
        select(Batch.screening, func.count(Task.id))
        .join(Task, Task.batch_id == Batch.id)
        .where(Batch.screening.is_not(None), Batch.state == "open", Task.state != "withdrawn")
        .group_by(Batch.screening)
    )
    totals = dict(db.execute(statement).all())
    progress = []
    for part, kind in SCREENING_KINDS.items():
        completed = len(db.scalars(_part_submissions(person, part)).all())
        total = max(completed, totals.get(part, 0))
        progress.append(ScreeningProgress(part=part, kind=kind, completed=completed, total=total))
    replied = int(has_replied(db, person, "groups"))
    return [*progress, ScreeningProgress(part="groups", kind=None, completed=replied, total=1)]


def compute_screening_metrics(db: Session, person: Person) -> dict[ScreeningPart, ScreeningMetric]:
    return {
        "sensitive": _agreement_metric("sensitive", *_sensitive_agreement(db, person)),
        "ranking": _agreement_metric("ranking", *ranking_agreement(db, person)),
        "demonstration": _grade_metric(_demonstration_grades(db, person)),
    }


def _sensitive_agreement(db: Session, person: Person) -> tuple[float, int]:
    """Return (prompts flagged as in the gold answer, prompts); a missing answer disagrees."""
    statement = (
        _part_submissions(person, "sensitive")
        .join(PromptReview, PromptReview.submission_id == Submission.id)
        .join(GoldAnswer, GoldAnswer.task_id == Task.id)
    )
    rows = db.execute(statement.with_only_columns(PromptReview.sensitive, GoldAnswer.answer))
    matches = [flag is not None and flag == answer.get("sensitive") for flag, answer in rows]
    return float(sum(matches)), len(matches)


def ranking_agreement(db: Session, person: Person) -> tuple[float, int]:
    """Return (sum of the agreement with the researchers' ranking, prompts); pairs of a prompt are not independent."""
    ranks_by_submission: dict[str, dict[str, int]] = {}
    gold_by_submission: dict[str, dict[str, int]] = {}
    for submission, completion, rank, answer in db.execute(
        _part_submissions(person, "ranking")
        .join(RankingItem, RankingItem.submission_id == Submission.id)
        .join(GoldAnswer, GoldAnswer.task_id == Task.id)
        .with_only_columns(Submission.id, RankingItem.completion_id, RankingItem.rank, GoldAnswer.answer)
    ):
        ranks_by_submission.setdefault(submission, {})[completion] = rank
        gold_by_submission[submission] = answer
    shares = [
        share
        for submission, ranks in ranks_by_submission.items()
        if (share := pair_agreement(ranks, gold_by_submission[submission])) is not None
    ]
    return sum(shares), len(shares)


def pair_agreement(ranks: dict[str, int], gold: dict[str, int]) -> float | None:
    """Return the share of the gold ranking's decided pairs in the same order, ties counting 1/2; None without pairs."""
    pairs = [(a, b) for a, b in combinations(sorted(ranks.keys() & gold.keys()), 2) if gold[a] != gold[b]]
    agreements = [
        0.5 if ranks[a] == ranks[b] else float((ranks[a] < ranks[b]) == (gold[a] < gold[b])) for a, b in pairs
    ]
    return sum(agreements) / len(agreements) if agreements else None


def _demonstration_grades(db: Session, person: Person) -> list[float]:
    """Return the mean grade, 1–7, of each graded demonstration."""
    grades: dict[str, list[int]] = {}
    statement = _part_submissions(person, "demonstration").join(Grade, Grade.submission_id == Submission.id)
    for submission, grade_value in db.execute(statement.with_only_columns(Submission.id, Grade.score)):
        grades.setdefault(submission, []).append(grade_value)
    return [sum(scores) / len(scores) for scores in grades.values()]


def iter_ungraded_demonstrations(
    db: Session, grader: Person
) -> Iterator[tuple[Submission, str, list[dict[str, str]] | None, str]]:
    """Yield (submission, prompt, turns, demonstration) still to grade by a person, in an order unrelated to authors."""
    graded_ids = select(Grade.submission_id).where(Grade.grader_id == grader.id)
    rows = db.execute(
        _part_submissions(None, "demonstration")
        .join(DemonstrationRow, DemonstrationRow.submission_id == Submission.id)
        .join(PromptRow, PromptRow.id == Task.prompt_id)
        .where(Submission.id.not_in(graded_ids))
        .with_only_columns(Submission, PromptRow.text, PromptRow.messages, DemonstrationRow.text)
    )
    yield from sorted(rows, key=lambda row: row[0].id[::-1])


def grade_demonstration(db: Session, grader: Person, submission_id: str, grade_value: int) -> None:
    """Store a researcher's grade, 1–7, of a demonstration; raise SiteError if either is invalid."""
    if not 1 <= grade_value <= 7:
        raise SiteError(422, "bad_score")
    if db.scalar(_part_submissions(None, "demonstration").where(Submission.id == submission_id)) is None:
        raise SiteError(404, "not_found")
    row = db.get(Grade, (submission_id, grader.id))
    if row is None:
        db.add(Grade(submission_id=submission_id, grader_id=grader.id, score=grade_value))
    else:
        row.score = grade_value
    db.flush()
    audit_log.append_entry(db, grader.id, "screening.grade", submission_id, score=grade_value)


def record_decision(db: Session, person: Person, reviewer: Person, verdict: str, reason: str) -> Decision:
    """Record a decision about a labeler with the current metrics, and apply it.

    An admitted training labeler joins the smallest fold.

    Raises:
        SiteError: the verdict does not fit the labeler's status, or the reason is missing.
    """
    if verdict not in allowed_verdicts(person):
        raise SiteError(409, "no_such_verdict")
    if not reason.strip():
        raise SiteError(422, "reason_missing")
    metrics = {part: metric.model_dump() for part, metric in compute_screening_metrics(db, person).items()}
    row = Decision(person_id=person.id, by_id=reviewer.id, verdict=verdict, reason=reason.strip(), measured=metrics)
    person.status = VERDICT_TRANSITIONS[allowed_verdicts(person)[verdict]][1]
    if verdict == "admit":
        assign_fold(db, person)
    db.add(row)
    db.flush()
    audit_log.append_entry(db, reviewer.id, f"person.{verdict}", person.id, decision=row.id, measured=metrics)
    if verdict == "admit":
        data = {"person": person.id, "labeler": person.pseudonym, "cohort": person.cohort, "fold": person.fold}
        record_event(db, "person.admitted", lambda: data)
    return row


def allowed_verdicts(person: Person) -> dict[str, ScreeningVerdict]:
    """Return the verdicts that fit a labeler's status, by name."""
    if person.role != "labeler":
        return {}
    return {str(name): name for name, (before, _) in VERDICT_TRANSITIONS.items() if person.status in before}


def assign_fold(db: Session, person: Person) -> None:
    """Put a training labeler into the smallest fold, once: folds keep the labels of their members."""
    if person.cohort != "training" or person.fold is not None:
        return
    statement = select(Person.fold, func.count()).where(Person.fold.is_not(None)).group_by(Person.fold)
    sizes = dict(db.execute(statement).all())
    person.fold = min(range(LABELER_FOLDS), key=lambda fold: (sizes.get(fold, 0), fold))
    db.flush()


def list_decisions(db: Session, person: Person) -> list[Decision]:
    """Return the decisions about a person, the latest first."""
    return list(db.scalars(select(Decision).where(Decision.person_id == person.id).order_by(Decision.id.desc())))


def _part_submissions(person: Person | None, part: ScreeningPart) -> Select[Submission]:
    """Select the current valid submissions to a part, of one person or of all."""
    statement = (
        select(Submission)
        .join(Assignment, Assignment.id == Submission.assignment_id)
        .join(Task, Task.id == Assignment.task_id)
        .join(Batch, Batch.id == Task.batch_id)
        .where(
            Batch.screening == part,
            Submission.replaced_at.is_(None),
            Submission.invalid_reason.is_(None),
            Assignment.round == 0,
        )
    )
    return statement if person is None else statement.where(Assignment.person_id == person.id)


def _agreement_metric(part: ScreeningPart, agreement_sum: float, items: int) -> ScreeningMetric:
    from instructgpt.statistics.intervals import wilson_interval  # loads scipy, which the site starts without

    return _build_metric(part, wilson_interval(agreement_sum, items), items)


def _grade_metric(grades: list[float]) -> ScreeningMetric:
    """Build the metric of a mean grade from 1 to 7, with its interval over demonstrations."""
    from instructgpt.statistics.intervals import RATING, mean  # loads scipy, which the site starts without

    estimate = mean(grades, list(range(len(grades))), bounds=RATING)
    return _build_metric("demonstration", estimate, len(grades))


def _build_metric(part: ScreeningPart, estimate: Estimate, items: int) -> ScreeningMetric:
    return ScreeningMetric(
        value=estimate.value,
        low=estimate.low,
        high=estimate.high,
        items=items,
        cutoff=_CUTOFFS[part],
        enough=items >= MIN_SCREENING_ITEMS[part],
    )
