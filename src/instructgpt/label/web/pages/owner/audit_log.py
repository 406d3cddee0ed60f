"""The audit log, the check of its hash chain, and privacy requests."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

from fastapi import APIRouter, Form, Query, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.label.auth.dependencies import OwnerUser, get_site
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import AuditLogEntry, Person, current_time_ms
from instructgpt.label.errors import SiteError
from instructgpt.label.people import privacy
from instructgpt.label.playground.erasure import erase_texts_of_pseudonym
from instructgpt.label.web.rendering import get_translator, render_page, translate_error

router = APIRouter()

_ROWS_PER_PAGE = 100
_PRIVACY_ACTION_PREFIX = "privacy."


@router.get("/journal")
def show_audit_log(
    request: Request,
    _: OwnerUser,
    before: int | None = None,
    action: str = "",
    subject: Annotated[str, Query(alias="about")] = "",
) -> Response:
    statement = select(AuditLogEntry).order_by(AuditLogEntry.seq.desc()).limit(_ROWS_PER_PAGE + 1)
    if before is not None and 0 < before < 2**62:
        statement = statement.where(AuditLogEntry.seq < before)
    if action:
        statement = statement.where(AuditLogEntry.action.startswith(action, autoescape=True))
    if subject:
        statement = statement.where((AuditLogEntry.object == subject) | (AuditLogEntry.by == subject))
    with get_site(request).database.read() as db:
        rows = db.scalars(statement).all()
        names = _load_names(db, {row.by for row in rows} | {row.object for row in rows})
    last_seq = rows[_ROWS_PER_PAGE - 1].seq if len(rows) > _ROWS_PER_PAGE else None
    return render_page(
        request,
        "owner/audit_log.html",
        rows=rows[:_ROWS_PER_PAGE],
        names=names,
        last_seq=last_seq,
        action=action,
        subject=subject,
    )


@router.get("/journal/check")
def show_audit_log_check(request: Request, _: OwnerUser) -> Response:
    with get_site(request).database.read() as db:
        invalid_row = audit_log.find_first_invalid_row(db)
        last_row = db.scalars(select(AuditLogEntry).order_by(AuditLogEntry.seq.desc()).limit(1)).first()
    return render_page(request, "owner/audit_log_check.html", invalid_row=invalid_row, last_row=last_row)


@router.get("/privacy")
def show_privacy_requests(request: Request, _: OwnerUser) -> Response:
    return _render_privacy_requests(request)


@router.post("/privacy/user")
def withdraw_user(request: Request, principal: OwnerUser, user: Annotated[str, Form(max_length=500)]) -> Response:
    """Withdraw all prompts of a user of the served model; a user of the playground also loses their texts."""
    now_ms, owner_id, database = current_time_ms(), principal.user.id, get_site(request).database
    try:
        with database.write() as db:
            count = erase_texts_of_pseudonym(db, user.strip(), now_ms, owner_id)
            count = count or privacy.withdraw_user_prompts(db, user.strip(), now_ms=now_ms, initiated_by=owner_id)
        database.purge_deleted()
    except SiteError as error:
        return _render_privacy_requests(request, error.status, error=translate_error(request, error), user=user)
    return _render_privacy_requests(request, message=get_translator(request)("privacy.withdrawn", count=count))


def _render_privacy_requests(
    request: Request, status: int = 200, error: str | None = None, message: str | None = None, user: str = ""
) -> Response:
    is_request = AuditLogEntry.action.startswith(_PRIVACY_ACTION_PREFIX)
    statement = select(AuditLogEntry).where(is_request).order_by(AuditLogEntry.seq.desc()).limit(_ROWS_PER_PAGE)
    with get_site(request).database.read() as db:
        rows = db.scalars(statement).all()
        names = _load_names(db, {row.by for row in rows})
    return render_page(
        request, "owner/privacy.html", status, rows=rows, names=names, error=error, message=message, user=user
    )


def _load_names(db: Session, person_ids: Collection[str]) -> dict[str, str]:
    return {person.id: person.name for person in db.scalars(select(Person).where(Person.id.in_(person_ids)))}
