"""What people see. One file a part; each has a router."""

from __future__ import annotations

from fastapi import APIRouter

from instructgpt.label.pages import look, sign_in

ROUTERS: tuple[APIRouter, ...] = (
    look.ROUTER,
    sign_in.router,
)
