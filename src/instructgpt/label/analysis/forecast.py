"""Progress, pace, cost and completion forecasts of batches, computed from database counts and recent days."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, variance

from sqlalchemy import Subquery, and_, func, literal_column, select
from sqlalchemy.orm import Session

from instructgpt.label.analysis.rankings import join_task_and_batch
from instructgpt.label.db.models.base import DAY_MS
from instructgpt.label.db.models.people import Person
from instructgpt.label.db.models.submissions import Assignment, MessageRow, Submission
from instructgpt.label.db.models.tasks import Batch, Task, TaskCompletion
from instructgpt.label.tasks.batches import UNLIMITED_OVERLAP
from instructgpt.label.tasks.rates import HourlyRate, get_current_rate
from instructgpt.label.vocabulary import TASK_KINDS, TaskKind

HOUR_MS = 3_600_000
FORECAST_WINDOW_DAYS = 14
MIN_SPEED_SAMPLES = 20
"""Below this many submissions, DEFAULT_SECONDS_PER_UNIT replaces the measured speed."""
_MAX_SPEED_SAMPLES = 2_000
"""The latest submissions of a kind from which its speed is measured."""

DEFAULT_SECONDS_PER_UNIT: Mapping[TaskKind, float] = {"rank": 60, "demonstrate": 600, "write": 300, "review": 60}
"""Rules of thumb: active seconds per ranked completion, demonstration, written prompt, or reviewed prompt."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Active seconds per unit of work; a unit of a rank task is one completion."""

    seconds: float
    sample_count: int
    """Submissions measured; below MIN_SPEED_SAMPLES, `seconds` is a rule of thumb."""


@dataclass(frozen=True, slots=True)
class BatchStatus:
    """A batch's progress, counted in assignments of its overlap policy, without hidden repeats and gold tasks."""

    batch_id: str
    name: str
    kind: TaskKind
    purpose: str
    screening: str | None
    state: str
    cohort: str | None
    priority: int
    created_at: int
    rate: HourlyRate | None
    tasks: int
    finished: int
    review: int
    withdrawn: int
    required: int
    """Assignments of all tasks except withdrawn ones."""
    completed: int
    in_progress: int
    remaining_units: int
    """Completions still to be ranked; for other kinds, remaining assignments."""
    active_ms: int
    questions: int
    """Threads without an answer."""

    @property
    def remaining(self) -> int:
        return max(0, self.required - self.completed)

    @property
    def share(self) -> float:
        return self.completed / self.required if self.required else 1.0


@dataclass(frozen=True, slots=True)
class Workload:
    tasks: int
    assignments: int
    units: int
    hours: float
    cost: float | None
    speed: Speed


@dataclass(frozen=True, slots=True)
class DayActivity:
    """The submissions of one UTC day."""

    start_ms: int
    submissions: Mapping[str, int]
    """Task kind -> submissions."""
    active_ms: int
    people: int

    @property
    def total(self) -> int:
        return sum(self.submissions.values())


@dataclass(frozen=True, slots=True)
class Forecast:
    """Days until completion with a 95 % interval; None: not predictable at this pace."""

    days: float | None
    low: float | None
    high: float | None
    pace: float
    """Submissions per day."""


def compute_speeds(db: Session) -> dict[TaskKind, Speed]:
    """Return the median active time per unit of each kind. One statement per kind."""
    completion_counts = _completion_counts()
    speed_by_kind: dict[TaskKind, Speed] = {}
    for kind in TASK_KINDS:
        statement = (
            select(Submission.active_ms, completion_counts.c.k)
            .join(Assignment, Assignment.id == Submission.assignment_id)
            .join(completion_counts, completion_counts.c.task_id == Assignment.task_id, isouter=True)
            .where(Submission.kind == kind, Submission.replaced_at.is_(None), Submission.active_ms > 0)
            .order_by(Submission.created_at.desc())
            .limit(_MAX_SPEED_SAMPLES)
        )
        seconds = [active / 1000 / (k or 1) for active, k in db.execute(statement)]
        is_measured = len(seconds) >= MIN_SPEED_SAMPLES
        speed_by_kind[kind] = Speed(median(seconds) if is_measured else DEFAULT_SECONDS_PER_UNIT[kind], len(seconds))
    return speed_by_kind


def _completion_counts() -> Subquery:
    return select(TaskCompletion.task_id, func.count().label("k")).group_by(TaskCompletion.task_id).subquery()


def list_batch_statuses(db: Session) -> list[BatchStatus]:
    """Return the status of every batch, newest first. Four statements."""
    is_live = and_(Task.state != "withdrawn", Task.overlap < UNLIMITED_OVERLAP)
    completion_counts = _completion_counts()
    remaining = Task.overlap - Task.n_done
    remaining_units = func.sum(remaining * func.coalesce(completion_counts.c.k, 1))
    counters = (
        select(
            Task.batch_id,
            func.count(),
            *(func.count().filter(Task.state == state) for state in ("done", "review", "withdrawn")),
            *(
                func.coalesce(func.sum(column).filter(is_live), 0)
                for column in (Task.overlap, Task.n_done, Task.n_open)
            ),
            func.coalesce(remaining_units.filter(and_(is_live, remaining > 0)), 0),
        )
        .join(completion_counts, completion_counts.c.task_id == Task.id, isouter=True)
        .group_by(Task.batch_id)
    )
    counts = {batch: tuple(map(int, numbers)) for batch, *numbers in db.execute(counters)}
    statement = join_task_and_batch(select(Task.batch_id, func.sum(Submission.active_ms)).select_from(Submission))
    statement = statement.where(Submission.replaced_at.is_(None)).group_by(Task.batch_id)
    active_ms_by_batch = {batch: int(total) for batch, total in db.execute(statement)}
    questions = _count_open_questions(db)
    return [
        BatchStatus(
            batch.id,
            batch.name,
            batch.kind,
            batch.purpose,
            batch.screening,
            batch.state,
            batch.cohort,
            batch.priority,
            batch.created_at,
            get_current_rate(batch),
            *(*counts.get(batch.id, (0,) * 8), active_ms_by_batch.get(batch.id, 0), questions.get(batch.id, 0)),
        )
        for batch in db.scalars(select(Batch).order_by(Batch.created_at.desc(), Batch.id.desc()))
    ]


def _count_open_questions(db: Session) -> dict[str, int]:
    is_open = and_(MessageRow.author_id == MessageRow.about_id, MessageRow.settled_at.is_(None))
    threads = select(MessageRow.task_id, MessageRow.about_id).where(is_open).distinct().subquery()
    statement = select(Task.batch_id, func.count()).join(threads, threads.c.task_id == Task.id).group_by(Task.batch_id)
    return {row[0]: row[1] for row in db.execute(statement)}


def estimate_batch_workload(db: Session, batch: Batch) -> Workload:
    """Estimate the work of a whole batch, with overlap, hidden repeats and gold tasks. Three statements.

    A labeler's assignments contain gold tasks at the policy's share, and every gold task at most once.
    """
    completion_counts = _completion_counts()
    k = func.coalesce(completion_counts.c.k, 1)
    statement = (
        select(Task.gold, Task.repeat, Task.overlap, func.count(), func.sum(k))
        .join(completion_counts, completion_counts.c.task_id == Task.id, isouter=True)
        .where(Task.batch_id == batch.id, Task.state != "withdrawn")
        .group_by(Task.gold, Task.repeat, Task.overlap)
    )
    status = "screening" if batch.screening else "active"
    labelers = select(func.count()).where(Person.role == "labeler", Person.status == status)
    labeler_count = int(db.scalar(labelers.where(Person.cohort == batch.cohort) if batch.cohort else labelers) or 0)
    tasks, assignments, units, gold_tasks, gold_units = 0, 0, 0.0, 0, 0.0
    for gold, repeat, overlap, count, unit_count in db.execute(statement):
        tasks += count
        if overlap >= UNLIMITED_OVERLAP and not gold:
            assignments, units = assignments + count * labeler_count, units + float(unit_count) * labeler_count
        elif gold:
            gold_tasks, gold_units = gold_tasks + count, gold_units + float(unit_count)
        else:
            per_task = 2 * overlap if repeat else overlap  # each labeler of a repeat task gets it twice
            assignments, units = assignments + count * per_task, units + float(unit_count) * per_task
    if gold_tasks:
        gold_share = float(batch.policy.get("gold_share", 0.0))
        gold_assignments = gold_tasks * labeler_count
        if not batch.screening and gold_share < 1:
            gold_assignments = min(gold_assignments, round(assignments * gold_share / (1 - gold_share)))
        assignments, units = assignments + gold_assignments, units + gold_assignments * gold_units / gold_tasks
    rate = get_current_rate(batch)
    return compute_workload(
        tasks, assignments, round(units), compute_speeds(db)[batch.kind], rate.amount if rate else None
    )


def compute_workload(tasks: int, assignments: int, units: int, speed: Speed, hourly_rate: float | None) -> Workload:
    """Return the hours and the cost of some units of work."""
    hours = units * speed.seconds / 3600
    return Workload(tasks, assignments, units, hours, None if hourly_rate is None else hours * hourly_rate, speed)


def count_daily_submissions(db: Session, now_ms: int, days: int = FORECAST_WINDOW_DAYS) -> list[DayActivity]:
    """Return the activity of the last days including today, oldest first. One statement."""
    first_day = now_ms // DAY_MS - days + 1
    day = (Submission.created_at // literal_column(str(DAY_MS))).label("day")
    statement = (
        select(day, Submission.kind, Assignment.person_id, func.count(), func.sum(Submission.active_ms))
        .join(Assignment, Assignment.id == Submission.assignment_id)
        .where(Submission.created_at >= first_day * DAY_MS, Submission.version == 1)
        .group_by(day, Submission.kind, Assignment.person_id)
    )
    counts: dict[int, dict[str, int]] = {}
    active_ms: dict[int, int] = {}
    people: dict[int, set[str]] = {}
    for index, kind, person, count, active_time in db.execute(statement):
        day_counts = counts.setdefault(int(index), {})
        day_counts[kind] = day_counts.get(kind, 0) + count
        active_ms[int(index)] = active_ms.get(int(index), 0) + int(active_time)
        people.setdefault(int(index), set()).add(person)
    return [
        DayActivity(n * DAY_MS, counts.get(n, {}), active_ms.get(n, 0), len(people.get(n, ())))
        for n in range(first_day, first_day + days)
    ]


def forecast_completion(remaining: int, daily_counts: Sequence[float], z: float = 1.96) -> Forecast:
    """Forecast the days until `remaining` submissions are done, with Fieller's interval.

    Days from the first submission on are assumed independent and identically distributed, with mean m and variance s²
    estimated from d days. The total of n future days then has mean n m and variance s² (n + n² / d). `remaining` lies
    within z standard deviations between the roots of (m² - z² s² / d) n² - (2 m remaining + z² s²) n + remaining².
    """
    working_days = [count for index, count in enumerate(daily_counts) if any(daily_counts[: index + 1])]
    if remaining <= 0:
        return Forecast(0.0, 0.0, 0.0, fmean(working_days) if working_days else 0.0)
    if not working_days:
        return Forecast(None, None, None, 0.0)
    mean = fmean(working_days)
    if len(working_days) < 3:
        return Forecast(remaining / mean, None, None, mean)
    noise = z * z * variance(working_days)
    a, b, c = mean * mean - noise / len(working_days), 2 * mean * remaining + noise, float(remaining * remaining)
    root = math.sqrt(max(0.0, b * b - 4 * a * c))
    return Forecast(remaining / mean, 2 * c / (b + root), 2 * c / (b - root) if a > 0 else None, mean)
