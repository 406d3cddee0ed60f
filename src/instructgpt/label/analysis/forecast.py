"""How much is done, how fast, when the rest will be done and what it costs: counted in the database, foreseen from the last days."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, variance

from sqlalchemy import and_, func, literal_column, select
from sqlalchemy.orm import Session

from instructgpt.label.analysis.rankings import joined
from instructgpt.label.db.models import Assignment, Batch, Message, Person, Submission, Task, TaskCompletion
from instructgpt.label.db.models.tasks import KINDS, Kind
from instructgpt.label.tasks.batches import EVERYBODY

DAY = 86_400_000
"""Milliseconds."""
HOUR = 3_600_000
WINDOW = 14
"""Days that a forecast looks back."""
MEASURED = 20
"""Submissions from which on a speed counts as measured."""
RECENT = 2_000
"""Submissions of a kind from which its speed is taken, the latest ones."""

ASSUMED: Mapping[Kind, float] = {"rank": 60.0, "demonstrate": 600.0, "write": 300.0, "review": 60.0}
"""Active seconds a piece until there are measured ones: a completion rated and ranked, a demonstration, a prompt written, a prompt
described. Rules of thumb, named as such wherever they are used."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Active seconds that one piece of a kind takes; a piece of a rank task is one completion."""

    seconds: float
    measured: int
    """Submissions behind it; fewer than MEASURED: the rule of thumb was taken."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a batch stands. Assignments are counted as the policy wants them; hidden repeats and gold tasks come on top."""

    batch: str
    name: str
    kind: Kind
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
    wanted: int
    """Assignments of all tasks that were not withdrawn."""
    done: int
    in_hand: int
    pieces_left: int
    """Completions still to be rated and ranked; of other kinds, assignments."""
    active_ms: int
    questions: int
    """Threads that wait for an answer."""

    @property
    def left(self) -> int:
        """Assignments not yet handed in."""
        return max(0, self.wanted - self.done)

    @property
    def share(self) -> float:
        """The part that is done, 0 to 1."""
        return self.done / self.wanted if self.wanted else 1.0


@dataclass(frozen=True, slots=True)
class Workload:
    """What a batch asks of people."""

    tasks: int
    assignments: int
    pieces: int
    hours: float
    cost: float | None
    speed: Speed


@dataclass(frozen=True, slots=True)
class Day:
    """What was handed in on one day (UTC): submissions of each kind, active time, how many people."""

    start: int
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


def speeds(db: Session) -> dict[Kind, Speed]:
    """The median active time a piece, of each kind, from its latest submissions. One statement a kind."""
    sizes = select(TaskCompletion.task_id, func.count().label("k")).group_by(TaskCompletion.task_id).subquery()
    found: dict[Kind, Speed] = {}
    for kind in KINDS:
        statement = (
            select(Submission.active_ms, sizes.c.k)
            .join(Assignment, Assignment.id == Submission.assignment_id)
            .join(sizes, sizes.c.task_id == Assignment.task_id, isouter=True)
            .where(Submission.kind == kind, Submission.replaced_at.is_(None), Submission.active_ms > 0)
            .order_by(Submission.created_at.desc())
            .limit(RECENT)
        )
        times = [active / 1000 / (k or 1) for active, k in db.execute(statement)]
        found[kind] = Speed(median(times) if len(times) >= MEASURED else ASSUMED[kind], len(times))
    return found


def progress(db: Session) -> list[Progress]:
    """Every batch, newest first. Four statements."""
    alive = and_(Task.state != "withdrawn", Task.overlap < EVERYBODY)
    sizes = select(TaskCompletion.task_id, func.count().label("k")).group_by(TaskCompletion.task_id).subquery()
    left = Task.overlap - Task.n_done
    counted = (
        select(
            Task.batch_id,
            func.count(),
            *(func.count().filter(Task.state == state) for state in ("done", "review", "withdrawn")),
            *(func.coalesce(func.sum(column).filter(alive), 0) for column in (Task.overlap, Task.n_done, Task.n_open)),
            func.coalesce(func.sum(left * func.coalesce(sizes.c.k, 1)).filter(and_(alive, left > 0)), 0),
        )
        .join(sizes, sizes.c.task_id == Task.id, isouter=True)
        .group_by(Task.batch_id)
    )
    counts = {batch: tuple(map(int, numbers)) for batch, *numbers in db.execute(counted)}
    spent = joined(select(Task.batch_id, func.sum(Submission.active_ms)).select_from(Submission)).where(Submission.replaced_at.is_(None))
    active = {batch: int(total) for batch, total in db.execute(spent.group_by(Task.batch_id))}
    waiting = _questions(db)
    rows = []
    for batch in db.scalars(select(Batch).order_by(Batch.created_at.desc(), Batch.id.desc())):
        tasks, finished, review, withdrawn, wanted, done, in_hand, pieces_left = counts.get(batch.id, (0,) * 8)
        rows.append(
            Progress(
                batch.id, batch.name, batch.kind, batch.purpose, batch.screening, batch.state, batch.cohort, batch.priority,
                batch.created_at, tasks, finished, review, withdrawn, wanted, done, in_hand, pieces_left,
                active.get(batch.id, 0), waiting.get(batch.id, 0),
            )
        )  # fmt: skip
    return rows


def _questions(db: Session) -> dict[str, int]:
    """Of each batch, threads in which a labeler's question or report waits for an answer."""
    asked = select(Message.task_id, Message.about_id).where(Message.author_id == Message.about_id, Message.settled_at.is_(None))
    threads = asked.distinct().subquery()
    statement = select(Task.batch_id, func.count()).join(threads, threads.c.task_id == Task.id).group_by(Task.batch_id)
    return {row[0]: row[1] for row in db.execute(statement)}


def plan(db: Session, batch: Batch, hourly: float | None = None) -> Workload:
    """What a whole batch asks of people: its tasks with their overlap, the hidden repeats, and gold tasks at their share. Three statements.

    Gold tasks are given at the policy's share of everything a labeler gets, each of them once to each labeler of the batch's cohort.
    """
    sizes = select(TaskCompletion.task_id, func.count().label("k")).group_by(TaskCompletion.task_id).subquery()
    k = func.coalesce(sizes.c.k, 1)
    statement = (
        select(Task.gold, Task.repeat, Task.overlap, func.count(), func.sum(k))
        .join(sizes, sizes.c.task_id == Task.id, isouter=True)
        .where(Task.batch_id == batch.id, Task.state != "withdrawn")
        .group_by(Task.gold, Task.repeat, Task.overlap)
    )
    labelers = select(func.count()).where(Person.role == "labeler", Person.status == ("screening" if batch.screening else "active"))
    people = int(db.scalar(labelers.where(Person.cohort == batch.cohort) if batch.cohort else labelers) or 0)
    tasks, assignments, pieces, golds, gold_pieces = 0, 0, 0.0, 0, 0.0
    for gold, repeat, overlap, count, size in db.execute(statement):
        tasks += count
        if overlap >= EVERYBODY and not gold:
            assignments, pieces = assignments + count * people, pieces + float(size) * people
        elif gold:
            golds, gold_pieces = golds + count, gold_pieces + float(size)
        else:
            times = 2 * overlap if repeat else overlap  # everybody who did it is given it once more
            assignments, pieces = assignments + count * times, pieces + float(size) * times
    if golds:
        share = float(batch.policy.get("gold_share", 0.0))
        most = golds * people
        extra = most if batch.screening or share >= 1 else min(most, round(assignments * share / (1 - share)))
        assignments, pieces = assignments + extra, pieces + extra * gold_pieces / golds
    return workload(tasks, assignments, round(pieces), speeds(db)[batch.kind], hourly)


def workload(tasks: int, assignments: int, pieces: int, speed: Speed, hourly: float | None) -> Workload:
    """Hours and cost of so many pieces (completions to rank, or whole assignments). `hourly` is in any currency."""
    hours = pieces * speed.seconds / 3600
    return Workload(tasks, assignments, pieces, hours, None if hourly is None else hours * hourly, speed)


def daily(db: Session, at: int, days: int = WINDOW) -> list[Day]:
    """The last `days` days up to and with today, oldest first, days without work too. One statement."""
    first = at // DAY - days + 1
    day = (Submission.created_at // literal_column(str(DAY))).label("day")
    statement = (
        select(day, Submission.kind, Assignment.person_id, func.count(), func.sum(Submission.active_ms))
        .join(Assignment, Assignment.id == Submission.assignment_id)
        .where(Submission.created_at >= first * DAY, Submission.version == 1)
        .group_by(day, Submission.kind, Assignment.person_id)
    )
    counts: dict[int, dict[str, int]] = {}
    active: dict[int, int] = {}
    people: dict[int, set[str]] = {}
    for number, kind, person, count, spent in db.execute(statement):
        of_day = counts.setdefault(int(number), {})
        of_day[kind] = of_day.get(kind, 0) + count
        active[int(number)] = active.get(int(number), 0) + int(spent)
        people.setdefault(int(number), set()).add(person)
    return [Day(n * DAY, counts.get(n, {}), active.get(n, 0), len(people.get(n, ()))) for n in range(first, first + days)]


def foresee(left: int, past: Sequence[float], z: float = 1.96) -> Forecast:
    """When `left` submissions will be done, if days go on as the past ones, each (submissions) drawn from the same distribution.

    The total of n days has mean n m and variance s² (n + n² / d), the second part because m is only known from d days. `left` lies within
    z standard deviations of it exactly between the roots of (m² - z² s² / d) n² - (2 m left + z² s²) n + left² (Fieller's interval).
    Days before the first work do not count.
    """
    worked = [count for index, count in enumerate(past) if any(past[: index + 1])]
    if left <= 0:
        return Forecast(0.0, 0.0, 0.0, fmean(worked) if worked else 0.0)
    if not worked:
        return Forecast(None, None, None, 0.0)
    mean = fmean(worked)
    if len(worked) < 3:
        return Forecast(left / mean, None, None, mean)
    noise = z * z * variance(worked)
    a, b, c = mean * mean - noise / len(worked), 2 * mean * left + noise, float(left * left)
    root = math.sqrt(max(0.0, b * b - 4 * a * c))
    return Forecast(left / mean, 2 * c / (b + root), 2 * c / (b - root) if a > 0 else None, mean)
