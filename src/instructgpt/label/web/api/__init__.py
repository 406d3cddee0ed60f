"""What programs call, under /api/v1. One file a part; each has a router."""

from __future__ import annotations

from fastapi import APIRouter

from instructgpt.label.web.api import batches, exports, instructions, prompts, session, tasks

API_ROUTERS: tuple[APIRouter, ...] = (
    tasks.router,
    session.router,
    prompts.router,
    batches.router,
    exports.router,
    instructions.router,
)
