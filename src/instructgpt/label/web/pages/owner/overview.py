"""The overview: setup steps, throughput, batches, forecast of completion dates and cost."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from instructgpt.label.analysis import forecast
from instructgpt.label.analysis.forecast import (
    FORECAST_WINDOW_DAYS,
    HOUR_MS,
    BatchStatus,
    DayActivity,
    Forecast,
    Speed,
)
from instructgpt.label.auth.dependencies import TeamUser, get_site
from instructgpt.label.db.models import Instructions, Invite, Person, Submission, current_time_ms
from instructgpt.label.db.models.base import DAY_MS
from instructgpt.label.tasks.rates import add_costs
from instructgpt.label.vocabulary import TASK_KINDS, TaskKind
from instructgpt.label.web import charts
from instructgpt.label.web.rendering import render_page

router = APIRouter()


_KindForecast = tuple[int, Forecast, tuple[float | None, ...], float, dict[str, float]]
"""Assignments left, the forecast, its dates (expected, low, high; ms), hours left, cost left by currency."""
_MAX_FORECAST_DAYS = 36_500
_CSV_DAYS = 90


@router.get("/overview")
def show_overview(request: Request, principal: TeamUser) -> Response:
    now_ms = current_time_ms()
    with get_site(request).database.read() as db:
        batches, days = forecast.list_batch_statuses(db), forecast.count_daily_submissions(db, now_ms)
        speeds = forecast.compute_speeds(db)
        steps = _setup_steps(db, batches) if principal.user.role == "owner" else []
    kinds = [kind for kind in TASK_KINDS if any(batch.kind == kind for batch in batches)]
    return render_page(
        request,
        "owner/overview.html",
        rows=batches,
        days=days,
        by_kind={kind: _forecast_kind(kind, batches, days, speeds[kind], now_ms) for kind in kinds},
        speeds=speeds,
        min_samples=forecast.MIN_SPEED_SAMPLES,
        window=FORECAST_WINDOW_DAYS,
        steps=[] if all(is_done for _, _, is_done in steps) else steps,
        active_ms=sum(day.active_ms for day in days),
        total_ms=sum(batch.active_ms for batch in batches),
        questions=sum(batch.questions for batch in batches),
        in_review=sum(batch.review for batch in batches),
    )


@router.get("/overview/days.csv")
def download_days_csv(request: Request, _: TeamUser) -> Response:
    with get_site(request).database.read() as db:
        days = forecast.count_daily_submissions(db, current_time_ms(), _CSV_DAYS)
    rows = []
    for day in days:
        counts = [day.submissions.get(kind, 0) for kind in TASK_KINDS]
        rows.append([charts.date(day.start_ms), *counts, day.active_ms / HOUR_MS, day.people])
    return charts.csv_download("days", ["day", *TASK_KINDS, "active_hours", "people"], rows)


def _setup_steps(db: Session, batches: list[BatchStatus]) -> list[tuple[str, str, bool]]:
    """Return (step, its page, whether it is done) of setting up a new site, in order. One statement."""
    labeler_exists = exists().where(Person.role == "labeler")
    invited, admitted, submitted, rewritten = db.execute(
        select(
            labeler_exists | exists().where(Invite.role == "labeler"),
            exists().where(Person.role == "labeler", Person.status == "active"),
            exists().where(Submission.replaced_at.is_(None)),
            exists().where(Instructions.created_by.is_not(None)),
        )
    ).one()
    work_batches = [batch for batch in batches if batch.screening is None]
    return [
        ("instructions", "/instructions", rewritten or submitted),
        ("batch", "/batches/new", bool(work_batches)),
        ("screening", "/batches/new", admitted or len(work_batches) < len(batches)),
        ("open", "/batches", submitted or any(batch.state == "open" for batch in work_batches)),
        ("invite", "/people", invited),
        ("admit", "/people", admitted),
    ]


def _forecast_kind(
    kind: TaskKind,
    batches: list[BatchStatus],
    days: list[DayActivity],
    speed: Speed,
    now_ms: int,
) -> _KindForecast:
    open_batches = [batch for batch in batches if batch.kind == kind and batch.state == "open"]
    remaining = sum(batch.remaining for batch in open_batches)
    result = forecast.forecast_completion(remaining, [float(day.submissions.get(kind, 0)) for day in days])
    units = sum(batch.remaining_units for batch in open_batches)
    hours = units * speed.seconds / 3600
    costs = add_costs(
        {batch.rate.currency: batch.remaining_units * speed.seconds / 3600 * batch.rate.amount}
        for batch in open_batches
        if batch.rate is not None
    )
    dates = tuple(
        None if count is None or count > _MAX_FORECAST_DAYS else now_ms + count * DAY_MS
        for count in (result.days, result.low, result.high)
    )
    return remaining, result, dates, hours, costs
