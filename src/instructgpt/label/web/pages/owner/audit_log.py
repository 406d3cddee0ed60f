"""The journal, whether its chain is whole, and requests of people who are no labelers."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from sqlalchemy import select

from instructgpt.label.auth.dependencies import Principal, get_site, require
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import AuditLogEntry, Person, current_time_ms
from instructgpt.label.errors import SiteError
from instructgpt.label.people import privacy
from instructgpt.label.web.rendering import get_translator, render_page

router = APIRouter()

_OwnerUser = Annotated[Principal, require("owner")]
_ROWS_PER_PAGE = 100
_PRIVACY_ACTION_PREFIX = "privacy."


@router.get("/journal")
def show_audit_log(
    request: Request, principal: _OwnerUser, before: int | None = None, action: str = "", about: str = ""
) -> Response:
    """Rows, newest first, of an action or about an object where one is asked for."""
    statement = select(AuditLogEntry).order_by(AuditLogEntry.seq.desc()).limit(_ROWS_PER_PAGE + 1)
    if before is not None and 0 < before < 2**62:
        statement = statement.where(AuditLogEntry.seq < before)
    if action:
        statement = statement.where(AuditLogEntry.action.startswith(action, autoescape=True))
    if about:
        statement = statement.where((AuditLogEntry.object == about) | (AuditLogEntry.by == about))
    with get_site(request).database.read() as db:
        rows = db.scalars(statement).all()
        ids = {row.by for row in rows} | {row.object for row in rows}
        names = {person.id: person.name for person in db.scalars(select(Person).where(Person.id.in_(ids)))}
    last_seq = rows[_ROWS_PER_PAGE - 1].seq if len(rows) > _ROWS_PER_PAGE else None
    return render_page(
        request,
        principal,
        "journal.html",
        rows=rows[:_ROWS_PER_PAGE],
        names=names,
        last=last_seq,
        action=action,
        about=about,
    )


@router.get("/journal/check")
def show_audit_log_check(request: Request, principal: _OwnerUser) -> Response:
    """Recompute the chain."""
    with get_site(request).database.read() as db:
        invalid_row = audit_log.find_first_invalid_row(db)
        last_row = db.scalars(select(AuditLogEntry).order_by(AuditLogEntry.seq.desc()).limit(1)).first()
    return render_page(request, principal, "journal_check.html", broken=invalid_row, last=last_row)


@router.get("/privacy")
def show_privacy_requests(request: Request, principal: _OwnerUser) -> Response:
    """Who asked for what, and a form for users of a model."""
    return _render_privacy_requests(request, principal)


@router.post("/privacy/user")
def withdraw_user_from_form(
    request: Request, principal: _OwnerUser, user: Annotated[str, Form(max_length=500)]
) -> Response:
    """Take back all prompts of a user."""
    translator = get_translator(request, principal)
    try:
        with get_site(request).database.write() as db:
            prompt_count = privacy.withdraw_user_prompts(
                db, user.strip(), now_ms=current_time_ms(), initiated_by=principal.signed_in_person.id
            )
    except SiteError as problem:
        return _render_privacy_requests(
            request,
            principal,
            status=problem.status,
            error_message=translator(f"problem.{problem.code}", **problem.values),
            user=user,
        )
    return _render_privacy_requests(
        request, principal, success_message=translator("privacy.withdrawn", count=prompt_count)
    )


def _render_privacy_requests(
    request: Request,
    principal: Principal,
    status: int = 200,
    error_message: str | None = None,
    success_message: str | None = None,
    user: str = "",
) -> Response:
    """The list of requests."""
    with get_site(request).database.read() as db:
        rows = db.scalars(
            select(AuditLogEntry)
            .where(AuditLogEntry.action.startswith(_PRIVACY_ACTION_PREFIX))
            .order_by(AuditLogEntry.seq.desc())
            .limit(_ROWS_PER_PAGE)
        ).all()
        names = {
            person.id: person.name
            for person in db.scalars(select(Person).where(Person.id.in_({row.by for row in rows})))
        }
    return render_page(
        request,
        principal,
        "privacy.html",
        status=status,
        rows=rows,
        names=names,
        wrong=error_message,
        done=success_message,
        user=user,
    )
