"""What the owner sees first: what is done and left, how fast it goes, when it will be finished and what it costs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response
from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from instructgpt.label.analysis import forecast
from instructgpt.label.analysis.forecast import (
    DAY_MS,
    FORECAST_WINDOW_DAYS,
    HOUR_MS,
    BatchStatus,
    DayActivity,
    Forecast,
    Speed,
)
from instructgpt.label.auth.dependencies import Principal, get_site, require
from instructgpt.label.db.models import Instructions, Invite, Person, Submission, current_time_ms
from instructgpt.label.db.models.tasks import TASK_KINDS, TaskKind
from instructgpt.label.web import charts
from instructgpt.label.web.rendering import render_page

router = APIRouter()
_TeamUser = Annotated[Principal, require("researcher", "owner")]


@router.get("/overview")
def show_overview(request: Request, principal: _TeamUser, hourly: str = "") -> Response:
    """Throughput, batches, forecast. `hourly` is what an hour of work costs, in any currency."""
    now_ms, hourly_rate = current_time_ms(), parse_positive(hourly)
    with get_site(request).database.read() as db:
        batch_rows, daily_rows, paces = _load_progress(db, now_ms)
        setup_steps = _setup_steps(db, batch_rows) if principal.signed_in_person.role == "owner" else []
    by_kind = {
        kind: _forecast_kind(kind, batch_rows, daily_rows, paces, hourly_rate, now_ms)
        for kind in TASK_KINDS
        if any(each.kind == kind for each in batch_rows)
    }
    return render_page(
        request,
        principal,
        "overview.html",
        show=charts,
        rows=batch_rows,
        past=daily_rows,
        by_kind=by_kind,
        speeds=paces,
        hourly=hourly,
        rate=hourly_rate,
        assumed=forecast.MIN_SPEED_SAMPLES,
        window=FORECAST_WINDOW_DAYS,
        steps=setup_steps if not all(done for _, _, done in setup_steps) else [],
        active_ms=sum(day.active_ms for day in daily_rows),
        spent_ms=sum(each.active_ms for each in batch_rows),
        questions=sum(each.questions for each in batch_rows),
        in_review=sum(each.review for each in batch_rows),
    )


@router.get("/overview/days.csv")
def download_days_csv(request: Request, _: _TeamUser) -> Response:
    """Submissions and active hours of each of the last 90 days."""
    with get_site(request).database.read() as db:
        daily_rows = forecast.count_daily_submissions(db, current_time_ms(), 90)
    rows = (
        [
            charts.date(day.start_ms),
            *(day.submissions.get(kind, 0) for kind in TASK_KINDS),
            day.active_ms / HOUR_MS,
            day.people,
        ]
        for day in daily_rows
    )
    return charts.csv_download("days", ["day", *TASK_KINDS, "active_hours", "people"], rows)


def _setup_steps(db: Session, batch_rows: list[BatchStatus]) -> list[tuple[str, str, bool]]:
    """(step, its page, whether it is done) of what a new site needs before work comes in, in order. One statement."""
    labeler_exists = exists().where(Person.role == "labeler")
    invited, admitted, submitted, rewritten = db.execute(
        select(
            labeler_exists | exists().where(Invite.role == "labeler"),
            exists().where(Person.role == "labeler", Person.status == "active"),
            exists().where(Submission.replaced_at.is_(None)),
            exists().where(Instructions.created_by.is_not(None)),
        )
    ).one()
    return [
        ("instructions", "/instructions", rewritten or submitted),
        ("batch", "/batches/new", any(each.screening is None for each in batch_rows)),
        ("screening", "/batches/new", admitted or any(each.screening is not None for each in batch_rows)),
        ("open", "/batches", submitted or any(each.state == "open" and each.screening is None for each in batch_rows)),
        ("invite", "/people", invited),
        ("admit", "/people", admitted),
    ]


def _load_progress(db: Session, now_ms: int) -> tuple[list[BatchStatus], list[DayActivity], dict[TaskKind, Speed]]:
    """Batches, the last days, speeds."""
    return forecast.list_batch_statuses(db), forecast.count_daily_submissions(db, now_ms), forecast.compute_speeds(db)


def _forecast_kind(
    kind: TaskKind,
    batch_rows: list[BatchStatus],
    daily_rows: list[DayActivity],
    paces: dict[TaskKind, Speed],
    hourly_rate: float | None,
    now_ms: int,
) -> tuple[int, Forecast, tuple[float | None, ...], float, float | None]:
    """Of the open batches of a kind: assignments left, the forecast, its three dates (ms), hours left, cost left."""
    open_batches = [each for each in batch_rows if each.kind == kind and each.state == "open"]
    assignments_left = sum(each.remaining for each in open_batches)
    kind_forecast = forecast.forecast_completion(
        assignments_left, [float(day.submissions.get(kind, 0)) for day in daily_rows]
    )
    workload = forecast.compute_workload(
        0, assignments_left, sum(each.remaining_units for each in open_batches), paces[kind], hourly_rate
    )
    dates = tuple(
        None if days is None or days > 36_500 else now_ms + days * DAY_MS
        for days in (kind_forecast.days, kind_forecast.low, kind_forecast.high)
    )
    return assignments_left, kind_forecast, dates, workload.hours, workload.cost


def parse_positive(text: str) -> float | None:
    """A number above 0 that somebody typed, with a comma or a point; None for anything else."""
    try:
        value = float(text.strip().replace(",", "."))
    except ValueError:
        return None
    return value if 0 < value < 1e6 else None
