"""What people see. One file a part; each has a router."""

from __future__ import annotations

from fastapi import APIRouter

from instructgpt.label.pages import account, instructions, journal, look, people, screening, sign_in

ROUTERS: tuple[APIRouter, ...] = (
    account.router,
    instructions.router,
    journal.router,
    look.ROUTER,
    people.router,
    screening.router,
    sign_in.router,
)
