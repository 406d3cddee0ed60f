"""What people see. One file a part; each has a router."""

from __future__ import annotations

from fastapi import APIRouter

from instructgpt.label.pages import account, home, instructions, journal, look, people, screening, sign_in, work

ROUTERS: tuple[APIRouter, ...] = (
    account.router,
    home.ROUTER,
    instructions.router,
    journal.router,
    look.ROUTER,
    people.router,
    screening.router,
    sign_in.router,
    work.ROUTER,
)
