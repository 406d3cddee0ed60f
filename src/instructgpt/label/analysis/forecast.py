"""How much is done, how fast, when the rest will be done and what it costs: counted in the database, foreseen from the last days."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, variance

from sqlalchemy import and_, func, literal_column, select
from sqlalchemy.orm import Session

from instructgpt.label.analysis.rankings import join_task_and_batch
from instructgpt.label.db.models import Assignment, Batch, MessageRow, Person, Submission, Task, TaskCompletion
from instructgpt.label.db.models.tasks import TASK_KINDS, TaskKind
from instructgpt.label.tasks.batches import UNLIMITED_OVERLAP

DAY_MS = 86_400_000
"""Milliseconds."""
HOUR_MS = 3_600_000
FORECAST_WINDOW_DAYS = 14
"""Days that a forecast looks back."""
MIN_SPEED_SAMPLES = 20
"""Submissions from which on a speed counts as measured."""
_MAX_SPEED_SAMPLES = 2_000
"""Submissions of a kind from which its speed is taken, the latest ones."""

DEFAULT_SECONDS_PER_UNIT: Mapping[TaskKind, float] = {
    "rank": 60.0,
    "demonstrate": 600.0,
    "write": 300.0,
    "review": 60.0,
}
"""Active seconds a piece until there are measured ones: a completion rated and ranked, a demonstration, a prompt written, a prompt
described. Rules of thumb, named as such wherever they are used."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Active seconds that one piece of a kind takes; a piece of a rank task is one completion."""

    seconds: float
    sample_count: int
    """Submissions behind it; fewer than MEASURED: the rule of thumb was taken."""


@dataclass(frozen=True, slots=True)
class BatchStatus:
    """Where a batch stands. Assignments are counted as the policy wants them; hidden repeats and gold tasks come on top."""

    batch_id: str
    name: str
    kind: TaskKind
    purpose: str
    screening: str | None
    state: str
    cohort: str | None
    priority: int
    created_at: int
    tasks: int
    finished: int
    review: int
    withdrawn: int
    required: int
    """Assignments of all tasks that were not withdrawn."""
    completed: int
    in_progress: int
    remaining_units: int
    """Completions still to be rated and ranked; of other kinds, assignments."""
    active_ms: int
    questions: int
    """Threads that wait for an answer."""

    @property
    def remaining(self) -> int:
        """Assignments not yet handed in."""
        return max(0, self.required - self.completed)

    @property
    def share(self) -> float:
        """The part that is done, 0 to 1."""
        return self.completed / self.required if self.required else 1.0


@dataclass(frozen=True, slots=True)
class Workload:
    """What a batch asks of people."""

    tasks: int
    assignments: int
    units: int
    hours: float
    cost: float | None
    speed: Speed


@dataclass(frozen=True, slots=True)
class DayActivity:
    """What was handed in on one day (UTC): submissions of each kind, active time, how many people."""

    start_ms: int
    submissions: Mapping[str, int]
    active_ms: int
    people: int

    @property
    def total(self) -> int:
        """Submissions of all kinds."""
        return sum(self.submissions.values())


@dataclass(frozen=True, slots=True)
class Forecast:
    """Days from now until the rest is done; 95 % between `low` and `high`. None: not foreseeable at this pace."""

    days: float | None
    low: float | None
    high: float | None
    pace: float
    """Submissions a day."""


def compute_speeds(db: Session) -> dict[TaskKind, Speed]:
    """The median active time a piece, of each kind, from its latest submissions. One statement a kind."""
    completion_counts = (
        select(TaskCompletion.task_id, func.count().label("k")).group_by(TaskCompletion.task_id).subquery()
    )
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
        speed_by_kind[kind] = Speed(
            median(seconds) if len(seconds) >= MIN_SPEED_SAMPLES else DEFAULT_SECONDS_PER_UNIT[kind], len(seconds)
        )
    return speed_by_kind


def list_batch_statuses(db: Session) -> list[BatchStatus]:
    """Every batch, newest first. Four statements."""
    is_live = and_(Task.state != "withdrawn", Task.overlap < UNLIMITED_OVERLAP)
    completion_counts = (
        select(TaskCompletion.task_id, func.count().label("k")).group_by(TaskCompletion.task_id).subquery()
    )
    remaining = Task.overlap - Task.n_done
    counters = (
        select(
            Task.batch_id,
            func.count(),
            *(func.count().filter(Task.state == state) for state in ("done", "review", "withdrawn")),
            *(
                func.coalesce(func.sum(column).filter(is_live), 0)
                for column in (Task.overlap, Task.n_done, Task.n_open)
            ),
            func.coalesce(
                func.sum(remaining * func.coalesce(completion_counts.c.k, 1)).filter(and_(is_live, remaining > 0)), 0
            ),
        )
        .join(completion_counts, completion_counts.c.task_id == Task.id, isouter=True)
        .group_by(Task.batch_id)
    )
    counts = {batch: tuple(map(int, numbers)) for batch, *numbers in db.execute(counters)}
    active_statement = join_task_and_batch(
        select(Task.batch_id, func.sum(Submission.active_ms)).select_from(Submission)
    ).where(Submission.replaced_at.is_(None))
    active_ms_by_batch = {batch: int(total) for batch, total in db.execute(active_statement.group_by(Task.batch_id))}
    open_questions = _count_open_questions(db)
    rows = []
    for batch in db.scalars(select(Batch).order_by(Batch.created_at.desc(), Batch.id.desc())):
        tasks, finished, review, withdrawn, required, completed, in_progress, remaining_units = counts.get(
            batch.id, (0,) * 8
        )
        rows.append(
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
                tasks,
                finished,
                review,
                withdrawn,
                required,
                completed,
                in_progress,
                remaining_units,
                active_ms_by_batch.get(batch.id, 0),
                open_questions.get(batch.id, 0),
            )
        )
    return rows


def _count_open_questions(db: Session) -> dict[str, int]:
    """Of each batch, threads in which a labeler's question or report waits for an answer."""
    open_messages = select(MessageRow.task_id, MessageRow.about_id).where(
        MessageRow.author_id == MessageRow.about_id, MessageRow.settled_at.is_(None)
    )
    threads = open_messages.distinct().subquery()
    statement = select(Task.batch_id, func.count()).join(threads, threads.c.task_id == Task.id).group_by(Task.batch_id)
    return {row[0]: row[1] for row in db.execute(statement)}


def estimate_batch_workload(db: Session, batch: Batch, hourly_rate: float | None = None) -> Workload:
    """What a whole batch asks of people: its tasks with their overlap, the hidden repeats, and gold tasks at their share. Three statements.

    Gold tasks are given at the policy's share of everything a labeler gets, each of them once to each labeler of the batch's cohort.
    """
    completion_counts = (
        select(TaskCompletion.task_id, func.count().label("k")).group_by(TaskCompletion.task_id).subquery()
    )
    k = func.coalesce(completion_counts.c.k, 1)
    statement = (
        select(Task.gold, Task.repeat, Task.overlap, func.count(), func.sum(k))
        .join(completion_counts, completion_counts.c.task_id == Task.id, isouter=True)
        .where(Task.batch_id == batch.id, Task.state != "withdrawn")
        .group_by(Task.gold, Task.repeat, Task.overlap)
    )
    labelers = select(func.count()).where(
        Person.role == "labeler", Person.status == ("screening" if batch.screening else "active")
    )
    labeler_count = int(db.scalar(labelers.where(Person.cohort == batch.cohort) if batch.cohort else labelers) or 0)
    tasks, assignments, units, gold_tasks, gold_units = 0, 0, 0.0, 0, 0.0
    for gold, repeat, overlap, count, unit_count in db.execute(statement):
        tasks += count
        if overlap >= UNLIMITED_OVERLAP and not gold:
            assignments, units = assignments + count * labeler_count, units + float(unit_count) * labeler_count
        elif gold:
            gold_tasks, gold_units = gold_tasks + count, gold_units + float(unit_count)
        else:
            assignments_per_task = 2 * overlap if repeat else overlap  # everybody who did it is given it once more
            assignments, units = (
                assignments + count * assignments_per_task,
                units + float(unit_count) * assignments_per_task,
            )
    if gold_tasks:
        gold_share = float(batch.policy.get("gold_share", 0.0))
        max_gold_assignments = gold_tasks * labeler_count
        gold_assignments = (
            max_gold_assignments
            if batch.screening or gold_share >= 1
            else min(max_gold_assignments, round(assignments * gold_share / (1 - gold_share)))
        )
        assignments, units = assignments + gold_assignments, units + gold_assignments * gold_units / gold_tasks
    return compute_workload(tasks, assignments, round(units), compute_speeds(db)[batch.kind], hourly_rate)


def compute_workload(tasks: int, assignments: int, units: int, speed: Speed, hourly_rate: float | None) -> Workload:
    """Hours and cost of so many pieces (completions to rank, or whole assignments). `hourly` is in any currency."""
    hours = units * speed.seconds / 3600
    return Workload(tasks, assignments, units, hours, None if hourly_rate is None else hours * hourly_rate, speed)


def count_daily_submissions(db: Session, now_ms: int, days: int = FORECAST_WINDOW_DAYS) -> list[DayActivity]:
    """The last `days` days up to and with today, oldest first, days without work too. One statement."""
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
    for day_index, kind, person, count, active_time in db.execute(statement):
        day_counts = counts.setdefault(int(day_index), {})
        day_counts[kind] = day_counts.get(kind, 0) + count
        active_ms[int(day_index)] = active_ms.get(int(day_index), 0) + int(active_time)
        people.setdefault(int(day_index), set()).add(person)
    return [
        DayActivity(n * DAY_MS, counts.get(n, {}), active_ms.get(n, 0), len(people.get(n, ())))
        for n in range(first_day, first_day + days)
    ]


def forecast_completion(remaining: int, daily_counts: Sequence[float], z: float = 1.96) -> Forecast:
    """When `left` submissions will be done, if days go on as the past ones, each (submissions) drawn from the same distribution.

    The total of n days has mean n m and variance s² (n + n² / d), the second part because m is only known from d days. `left` lies within
    z standard deviations of it exactly between the roots of (m² - z² s² / d) n² - (2 m left + z² s²) n + left² (Fieller's interval).
    Days before the first work do not count.
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
