"""A labeler's first page, and the history of their own work."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from instructgpt.label import desk, history
from instructgpt.label.access import Visitor, allow, site_of
from instructgpt.label.pages.render import page
from instructgpt.label.tables import now

router = APIRouter()


@router.get("/home")
def home(request: Request, visitor: Annotated[Visitor, allow("labeler", "researcher", "owner")], nothing: bool = False) -> Response:
    """What is in hand, what waits, what is new. The team's first page is the overview."""
    if visitor.me.role != "labeler":
        return RedirectResponse("/overview", status_code=303)
    me, at = visitor.me, now()
    with site_of(request).database.read() as db:
        shown: dict[str, Any] = {
            "in_hand": desk.in_hand(db, me, "open", at),
            "returned": desk.in_hand(db, me, "returned", at),
            "waiting": desk.kinds_waiting(db, me) if me.status == "active" else [],
            "numbers": desk.numbers(db, me, at),
            "unread": desk.unread_instructions(db, me) if me.status == "active" else [],
            "answered": desk.answered(db, me, at),
            "rooms": desk.open_rooms(db) if me.status == "active" else [],
        }
    return page(request, visitor, "work/home.html", nothing=nothing, most=desk.MOST, **shown)


@router.get("/history")
def my_history(request: Request, visitor: Annotated[Visitor, allow("labeler")], before: str | None = None) -> Response:
    """What one handed in and skipped, the newest first."""
    site = site_of(request)
    with site.database.read() as db:
        shown = history.page(db, site.settings, visitor.me, before)
    return page(request, visitor, "work/history.html", entries=shown.entries, before=shown.before, at=now())
