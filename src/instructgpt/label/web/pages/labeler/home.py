"""A labeler's first page, and the history of their own work."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from instructgpt.label.auth.dependencies import Principal, get_site, require
from instructgpt.label.db.models import current_time_ms
from instructgpt.label.tasks import dashboard, submission_history
from instructgpt.label.web.rendering import render_page

router = APIRouter()


@router.get("/home")
def show_home(
    request: Request, principal: Annotated[Principal, require("labeler", "researcher", "owner")], nothing: bool = False
) -> Response:
    """What is in hand, what waits, what is new. The team's first page is the overview."""
    if principal.signed_in_person.role != "labeler":
        return RedirectResponse("/overview", status_code=303)
    me, now_ms = principal.signed_in_person, current_time_ms()
    with get_site(request).database.read() as db:
        values: dict[str, Any] = {
            "in_hand": dashboard.list_active_tasks(db, me, "open", now_ms),
            "returned": dashboard.list_active_tasks(db, me, "returned", now_ms),
            "waiting": dashboard.count_available_tasks(db, me) if me.status == "active" else [],
            "numbers": dashboard.get_day_stats(db, me, now_ms),
            "unread": dashboard.list_unread_instructions(db, me) if me.status == "active" else [],
            "answered": dashboard.list_assignments_with_replies(db, me, now_ms),
            "rooms": dashboard.list_open_rooms(db) if me.status == "active" else [],
        }
    return render_page(
        request, principal, "work/home.html", nothing=nothing, most=dashboard.MAX_COUNTED_TASKS, **values
    )


@router.get("/history")
def show_history(
    request: Request, principal: Annotated[Principal, require("labeler")], before: str | None = None
) -> Response:
    """What one handed in and skipped, the newest first."""
    site = get_site(request)
    with site.database.read() as db:
        history_page = submission_history.get_history_page(db, site.settings, principal.signed_in_person, before)
    return render_page(
        request,
        principal,
        "work/history.html",
        entries=history_page.entries,
        before=history_page.before,
        at=current_time_ms(),
    )
