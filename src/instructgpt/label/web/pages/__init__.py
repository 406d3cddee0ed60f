"""The HTML pages; one module a subject, each with a router."""

from __future__ import annotations

from fastapi import APIRouter

from instructgpt.label.web.pages import account, appearance, openid, playground, second_factor, sign_in
from instructgpt.label.web.pages.labeler import calibration, home, instructions, screening, task
from instructgpt.label.web.pages.labeler import red_team as attempts
from instructgpt.label.web.pages.owner import (
    adjudication,
    audit_log,
    batch_settings,
    batches,
    changes,
    data,
    integrations,
    next_round,
    overview,
    people,
    quality,
    red_team,
    results,
    search,
    task_review,
    whose_preferences,
)

_COMMON = (account, appearance, openid, playground, second_factor, sign_in)
_LABELER = (calibration, home, instructions, screening, task, attempts)
_OWNER = (
    adjudication,
    audit_log,
    batch_settings,
    batches,
    changes,
    data,
    integrations,
    next_round,
    overview,
    people,
    quality,
    red_team,
    results,
    search,
    task_review,
    whose_preferences,
)
PAGE_ROUTERS: tuple[APIRouter, ...] = tuple(module.router for module in (*_COMMON, *_LABELER, *_OWNER))
