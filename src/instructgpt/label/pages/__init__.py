"""What people see. One file a part; each has a router."""

from __future__ import annotations

from fastapi import APIRouter

from instructgpt.label.pages import instructions, look, sign_in

ROUTERS: tuple[APIRouter, ...] = (
    instructions.router,
    look.ROUTER,
    sign_in.router,
)
