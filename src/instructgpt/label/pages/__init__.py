"""What people see. One file a part; each has a router."""

from __future__ import annotations

from fastapi import APIRouter

from instructgpt.label.pages import (
    account,
    adjudication,
    batches,
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
    home.router,
    instructions.router,
    journal.router,
    look.router,
    people.router,
    screening.router,
    sign_in.router,
    work.router,
    overview.router,
    batches.router,
    tasks.router,
    quality.router,
    adjudication.router,
    results.router,
    data.router,
)
