"""What programs call, under /api/v1. One file a part; each has a router."""

from __future__ import annotations

from fastapi import APIRouter

from instructgpt.label.api import labeler, owner, prompts, reading, service, session

ROUTERS: tuple[APIRouter, ...] = (
    labeler.router,
    session.router,
    prompts.router,
    service.router,
    owner.router,
    reading.router,
)
