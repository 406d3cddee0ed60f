"""The HTTP API under /api/v1; one module a subject, each with a router."""

from __future__ import annotations

from fastapi import APIRouter

from instructgpt.label.web.api import (
    batches,
    exports,
    health,
    instructions,
    people,
    playground,
    prompts,
    red_team,
    session,
    stats,
    tasks,
)

_MODULES = (tasks, session, prompts, batches, exports, stats, people, health, instructions, playground, red_team)
API_ROUTERS: tuple[APIRouter, ...] = tuple(module.router for module in _MODULES)
