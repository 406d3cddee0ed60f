"""What people see. One file a part; each has a router."""

from __future__ import annotations

from fastapi import APIRouter

from instructgpt.label.pages import (
    account,
    adjudication,
    batches,
    calibration,
    data,
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
    adjudication.router,
    batches.router,
    calibration.router,
    data.router,
    home.router,
    instructions.router,
    journal.router,
    look.router,
    overview.router,
    people.router,
    quality.router,
    results.router,
    screening.router,
    sign_in.router,
    tasks.router,
    work.router,
)
