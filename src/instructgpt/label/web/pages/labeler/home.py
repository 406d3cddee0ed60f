"""A labeler's home page and history of work."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from instructgpt.label.auth.dependencies import ConsentedUser, LabelerUser, get_site
from instructgpt.label.db.models import current_time_ms
from instructgpt.label.tasks import dashboard, submission_history
from instructgpt.label.web.rendering import redirect, render_page

router = APIRouter()


@router.get("/home")
def show_home(request: Request, principal: ConsentedUser, nothing: bool = False) -> Response:
    """`nothing`: the labeler asked for a task and none was available."""
    user, now_ms = principal.user, current_time_ms()
    if user.role != "labeler":
        return redirect("/overview")
    is_active = user.status == "active"
    with get_site(request).database.read() as db:
        return render_page(
            request,
            "labeler/home.html",
            open_tasks=dashboard.list_active_tasks(db, user, "open", now_ms),
            returned_tasks=dashboard.list_active_tasks(db, user, "returned", now_ms),
            available=dashboard.count_available_tasks(db, user) if is_active else [],
            day=dashboard.get_day_stats(db, user, now_ms),
            unread=dashboard.list_unread_instructions(db, user) if is_active else [],
            replies=dashboard.list_assignments_with_replies(db, user, now_ms),
            rooms=dashboard.list_open_rooms(db) if is_active else [],
            nothing=nothing,
            max_count=dashboard.MAX_COUNTED_TASKS,
        )


@router.get("/history")
def show_history(request: Request, principal: LabelerUser, before: str | None = None) -> Response:
    site = get_site(request)
    with site.database.read() as db:
        page = submission_history.get_history_page(db, site.settings, principal.user, before)
    return render_page(request, "labeler/history.html", page=page, now_ms=current_time_ms())
