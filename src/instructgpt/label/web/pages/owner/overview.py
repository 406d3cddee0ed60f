"""What the owner sees first: what is done and left, how fast it goes, when it will be finished and what it costs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response
from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from instructgpt.label.analysis import forecast
from instructgpt.label.analysis.forecast import DAY, HOUR, WINDOW, Day, Forecast, Progress, Speed
from instructgpt.label.auth.dependencies import Visitor, allow, site_of
from instructgpt.label.db.models import Instructions, Invite, Person, Submission, now
from instructgpt.label.db.models.tasks import KINDS, Kind
from instructgpt.label.web import charts
from instructgpt.label.web.rendering import page

router = APIRouter()
Team = Annotated[Visitor, allow("researcher", "owner")]


@router.get("/overview")
def overview(request: Request, visitor: Team, hourly: str = "") -> Response:
    """Throughput, batches, forecast. `hourly` is what an hour of work costs, in any currency."""
    at, rate = now(), positive(hourly)
    with site_of(request).database.read() as db:
        rows, past, measured = read(db, at)
        steps = first_steps(db, rows) if visitor.me.role == "owner" else []
    by_kind = {kind: foreseen(kind, rows, past, measured, rate, at) for kind in KINDS if any(each.kind == kind for each in rows)}
    return page(
        request, visitor, "overview.html", show=charts, rows=rows, past=past, by_kind=by_kind, speeds=measured, hourly=hourly, rate=rate,
        assumed=forecast.MEASURED, window=WINDOW, steps=steps if not all(done for _, _, done in steps) else [],
        active_ms=sum(day.active_ms for day in past), spent_ms=sum(each.active_ms for each in rows),
        questions=sum(each.questions for each in rows),
        in_review=sum(each.review for each in rows),
    )  # fmt: skip


@router.get("/overview/days.csv")
def days_csv(request: Request, _: Team) -> Response:
    """Submissions and active hours of each of the last 90 days."""
    with site_of(request).database.read() as db:
        past = forecast.daily(db, now(), 90)
    rows = ([charts.date(day.start), *(day.submissions.get(kind, 0) for kind in KINDS), day.active_ms / HOUR, day.people] for day in past)
    return charts.table("days", ["day", *KINDS, "active_hours", "people"], rows)


def first_steps(db: Session, rows: list[Progress]) -> list[tuple[str, str, bool]]:
    """(step, its page, whether it is done) of what a new site needs before work comes in, in order. One statement."""
    labeler = exists().where(Person.role == "labeler")
    invited, admitted, submitted, rewritten = db.execute(
        select(
            labeler | exists().where(Invite.role == "labeler"), exists().where(Person.role == "labeler", Person.status == "active"),
            exists().where(Submission.replaced_at.is_(None)), exists().where(Instructions.created_by.is_not(None)),
        )
    ).one()  # fmt: skip
    return [
        ("instructions", "/instructions", rewritten or submitted),
        ("batch", "/batches/new", any(each.screening is None for each in rows)),
        ("screening", "/batches/new", admitted or any(each.screening is not None for each in rows)),
        ("open", "/batches", submitted or any(each.state == "open" and each.screening is None for each in rows)),
        ("invite", "/people", invited),
        ("admit", "/people", admitted),
    ]


def read(db: Session, at: int) -> tuple[list[Progress], list[Day], dict[Kind, Speed]]:
    """Batches, the last days, speeds."""
    return forecast.progress(db), forecast.daily(db, at), forecast.speeds(db)


def foreseen(
    kind: Kind, rows: list[Progress], past: list[Day], measured: dict[Kind, Speed], rate: float | None, at: int
) -> tuple[int, Forecast, tuple[float | None, ...], float, float | None]:
    """Of the open batches of a kind: assignments left, the forecast, its three dates (ms), hours left, cost left."""
    open_ = [each for each in rows if each.kind == kind and each.state == "open"]
    left = sum(each.left for each in open_)
    seen = forecast.foresee(left, [float(day.submissions.get(kind, 0)) for day in past])
    work = forecast.workload(0, left, sum(each.pieces_left for each in open_), measured[kind], rate)
    dates = tuple(None if days is None or days > 36_500 else at + days * DAY for days in (seen.days, seen.low, seen.high))
    return left, seen, dates, work.hours, work.cost


def positive(text: str) -> float | None:
    """A number above 0 that somebody typed, with a comma or a point; None for anything else."""
    try:
        value = float(text.strip().replace(",", "."))
    except ValueError:
        return None
    return value if 0 < value < 1e6 else None
