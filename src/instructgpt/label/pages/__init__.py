"""What people see. One file a part; each has a router."""

from __future__ import annotations

from fastapi import APIRouter

from instructgpt.label.pages import adjudication, batches, home, look, overview, quality, results, sign_in, tasks, work

ROUTERS: tuple[APIRouter, ...] = (
    look.ROUTER,
    sign_in.router,
    home.ROUTER,
    work.ROUTER,
    overview.router,
    batches.router,
    tasks.router,
    quality.router,
    adjudication.router,
    results.router,
)
