"""What people see. One file a part; each has a router."""

from __future__ import annotations

from fastapi import APIRouter

from instructgpt.label.pages import (
    account,
    adjudication,
    batches,
    data,
    calibration,
    home,
    instructions,
    journal,
    look,
    overview,
    people,
    quality,
    results,
    screening,
    sign_in,
    tasks,
    work,
)

ROUTERS: tuple[APIRouter, ...] = (
    account.router,
    instructions.router,
    journal.router,
    look.ROUTER,
    people.router,
    screening.router,
    sign_in.router,
    home.ROUTER,
    work.ROUTER,
    overview.router,
    batches.router,
    data.router,
    tasks.router,
    quality.router,
    adjudication.router,
    calibration.router,
    results.router,
)
