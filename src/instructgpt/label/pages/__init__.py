"""What people see. One file a part; each has a router."""

from __future__ import annotations

from fastapi import APIRouter

from instructgpt.label.pages import home, look, work

ROUTERS: tuple[APIRouter, ...] = (look.ROUTER, home.ROUTER, work.ROUTER)
