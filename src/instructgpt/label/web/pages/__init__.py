"""What people see. One file a part; each has a router."""

from __future__ import annotations

from fastapi import APIRouter

from instructgpt.label.web.pages import account, appearance, sign_in
from instructgpt.label.web.pages.labeler import calibration, home, instructions, screening, task
from instructgpt.label.web.pages.owner import (
    adjudication,
    audit_log,
    batches,
    data,
    overview,
    people,
    quality,
    results,
    task_review,
)

PAGE_ROUTERS: tuple[APIRouter, ...] = (
    account.router,
    adjudication.router,
    batches.router,
    calibration.router,
    data.router,
    home.router,
    instructions.router,
    audit_log.router,
    appearance.router,
    overview.router,
    people.router,
    quality.router,
    results.router,
    screening.router,
    sign_in.router,
    task_review.router,
    task.router,
)
