"""The journal, whether its chain is whole, and requests of people who are no labelers."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from sqlalchemy import select

from instructgpt.label.auth.dependencies import Visitor, allow, site_of
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Journal, Person, now
from instructgpt.label.errors import Problem
from instructgpt.label.people import privacy
from instructgpt.label.web.rendering import language, page

router = APIRouter()

Owner = Annotated[Visitor, allow("owner")]
ROWS = 100
REQUESTS = "privacy."


@router.get("/journal")
def read(request: Request, visitor: Owner, before: int | None = None, action: str = "", about: str = "") -> Response:
    """Rows, newest first, of an action or about an object where one is asked for."""
    chosen = select(Journal).order_by(Journal.seq.desc()).limit(ROWS + 1)
    if before is not None and 0 < before < 2**62:
        chosen = chosen.where(Journal.seq < before)
    if action:
        chosen = chosen.where(Journal.action.startswith(action, autoescape=True))
    if about:
        chosen = chosen.where((Journal.object == about) | (Journal.by == about))
    with site_of(request).database.read() as db:
        rows = db.scalars(chosen).all()
        ids = {row.by for row in rows} | {row.object for row in rows}
        names = {person.id: person.name for person in db.scalars(select(Person).where(Person.id.in_(ids)))}
    last = rows[ROWS - 1].seq if len(rows) > ROWS else None
    return page(request, visitor, "journal.html", rows=rows[:ROWS], names=names, last=last, action=action, about=about)


@router.get("/journal/check")
def check(request: Request, visitor: Owner) -> Response:
    """Recompute the chain."""
    with site_of(request).database.read() as db:
        broken = audit_log.first_broken(db)
        last = db.scalars(select(Journal).order_by(Journal.seq.desc()).limit(1)).first()
    return page(request, visitor, "journal_check.html", broken=broken, last=last)


@router.get("/privacy")
def requests(request: Request, visitor: Owner) -> Response:
    """Who asked for what, and a form for users of a model."""
    return requests_page(request, visitor)


@router.post("/privacy/user")
def withdraw_user(request: Request, visitor: Owner, user: Annotated[str, Form(max_length=500)]) -> Response:
    """Take back all prompts of a user."""
    words = language(request, visitor)
    try:
        with site_of(request).database.write() as db:
            number = privacy.withdraw_user(db, user.strip(), at=now(), by=visitor.me.id)
    except Problem as problem:
        return requests_page(request, visitor, status=problem.status, wrong=words(f"problem.{problem.code}", **problem.values), user=user)
    return requests_page(request, visitor, done=words("privacy.withdrawn", count=number))


def requests_page(
    request: Request, visitor: Visitor, status: int = 200, wrong: str | None = None, done: str | None = None, user: str = ""
) -> Response:
    """The list of requests."""
    with site_of(request).database.read() as db:
        rows = db.scalars(select(Journal).where(Journal.action.startswith(REQUESTS)).order_by(Journal.seq.desc()).limit(ROWS)).all()
        names = {person.id: person.name for person in db.scalars(select(Person).where(Person.id.in_({row.by for row in rows})))}
    return page(request, visitor, "privacy.html", status=status, rows=rows, names=names, wrong=wrong, done=done, user=user)
