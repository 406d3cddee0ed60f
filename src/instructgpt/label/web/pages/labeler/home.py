"""A labeler's first page, and the history of their own work."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from instructgpt.label.auth.dependencies import Visitor, allow, site_of
from instructgpt.label.db.models import now
from instructgpt.label.tasks import dashboard, submission_history
from instructgpt.label.web.rendering import page

router = APIRouter()


@router.get("/home")
def home(request: Request, visitor: Annotated[Visitor, allow("labeler", "researcher", "owner")], nothing: bool = False) -> Response:
    """What is in hand, what waits, what is new. The team's first page is the overview."""
    if visitor.me.role != "labeler":
        return RedirectResponse("/overview", status_code=303)
    me, at = visitor.me, now()
    with site_of(request).database.read() as db:
        shown: dict[str, Any] = {
            "in_hand": dashboard.in_hand(db, me, "open", at),
            "returned": dashboard.in_hand(db, me, "returned", at),
            "waiting": dashboard.kinds_waiting(db, me) if me.status == "active" else [],
            "numbers": dashboard.numbers(db, me, at),
            "unread": dashboard.unread_instructions(db, me) if me.status == "active" else [],
            "answered": dashboard.answered(db, me, at),
            "rooms": dashboard.open_rooms(db) if me.status == "active" else [],
        }
    return page(request, visitor, "work/home.html", nothing=nothing, most=dashboard.MOST, **shown)


@router.get("/history")
def my_history(request: Request, visitor: Annotated[Visitor, allow("labeler")], before: str | None = None) -> Response:
    """What one handed in and skipped, the newest first."""
    site = site_of(request)
    with site.database.read() as db:
        shown = submission_history.page(db, site.settings, visitor.me, before)
    return page(request, visitor, "work/history.html", entries=shown.entries, before=shown.before, at=now())
