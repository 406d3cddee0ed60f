"""One's own account: password, language and colours, what one would rather not see, where one is signed in, one's data."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request, Response
from sqlalchemy.orm import Session

from instructgpt.label.auth import accounts, rate_limits
from instructgpt.label.auth.dependencies import Visitor, allow, site_of
from instructgpt.label.auth.passwords import MIN_LENGTH, hash_password, verify
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Person, now
from instructgpt.label.errors import Problem
from instructgpt.label.i18n import languages
from instructgpt.label.people import privacy
from instructgpt.label.tasks.assignments import put_back_sensitive
from instructgpt.label.web.params import whence, with_cookie
from instructgpt.label.web.rendering import THEMES, language, page, redirect

router = APIRouter()

Known = Annotated[Visitor, allow("labeler", "researcher", "owner", without_consent=True)]
Word = Annotated[str, Form(max_length=10_000)]


@router.get("/account")
def account(request: Request, visitor: Known) -> Response:
    """The page."""
    return account_page(request, visitor)


@router.post("/account/preferences")
def save_preferences(
    request: Request, visitor: Known, language: Word, theme: Word, email: Annotated[str, Form(max_length=300)] = "",
    sees_sensitive: Annotated[bool, Form()] = False,
) -> Response:  # fmt: skip
    """Language, colours, email, and whether sensitive tasks are shown at all. Hiding them has no price."""
    if language not in languages() or theme not in THEMES:
        raise Problem(422, "bad_field", field="language, theme", wrong="none of the choices")
    site = site_of(request)
    with site.database.write() as db:
        person = db.get_one(Person, visitor.me.id)
        person.language, person.theme, person.sees_sensitive = language, theme, sees_sensitive
        person.email = email.strip() or None
        if not sees_sensitive:
            put_back_sensitive(db, site.settings, person, now())
        audit_log.note(db, person.id, "person.preferences", person.id, sees_sensitive=sees_sensitive)
    return redirect("/account")


@router.post("/account/password")
def change_password(request: Request, visitor: Known, old: Word, password: Word, again: Word) -> Response:
    """A new password; all other sign-ins end, and this one goes on under a new cookie."""

    def change() -> Response:
        if password != again:
            raise Problem(422, "passwords_differ")
        confirm(request, visitor, old)
        fresh, at = hash_password(password), now()
        with site.database.write() as db:
            person = db.get_one(Person, visitor.me.id)
            person.password_hash = fresh
            accounts.end_logins(db, person)
            audit_log.note(db, person.id, "person.password", person.id)
            token = accounts.start_login(db, person, whence(request)["agent"], at, action="person.rotate")[0]
        return with_cookie(redirect("/account"), site, token)

    site = site_of(request)
    return attempt(request, visitor, change)


@router.post("/account/sign-ins/{login_id}/end")
def end_sign_in(request: Request, visitor: Known, login_id: str) -> Response:
    """End one of one's own sign-ins."""
    with site_of(request).database.write() as db:
        accounts.end_login(db, visitor.me, login_id, visitor.me.id)
    return redirect("/account")


@router.post("/account/sign-ins/end-others")
def end_others(request: Request, visitor: Known) -> Response:
    """End all of one's sign-ins but this one."""
    assert visitor.login is not None
    with site_of(request).database.write() as db:
        accounts.end_logins(db, visitor.me, but=visitor.login.id)
        audit_log.note(db, visitor.me.id, "person.sign_out_others", visitor.me.id)
    return redirect("/account")


@router.get("/account/data")
def my_data(request: Request, visitor: Known) -> Response:
    """Everything the site knows about oneself, as a file."""
    site = site_of(request)
    with site.database.read() as db:
        held = privacy.about(db, db.get_one(Person, visitor.me.id))
    with site.database.write() as db:
        audit_log.note(db, visitor.me.id, "privacy.read", visitor.me.id)
    text = json.dumps(held, ensure_ascii=False, indent=2)
    return Response(text, media_type="application/json", headers={"Content-Disposition": 'attachment; filename="my-data.json"'})


@router.post("/account/withdraw")
def withdraw(request: Request, visitor: Known, password: Word, labels: Annotated[bool, Form()] = False) -> Response:
    """Take back one's consent."""

    def take_back() -> Response:
        confirm(request, visitor, password)
        change(request, visitor, lambda db, person: privacy.withdraw(db, person, labels=labels, at=now(), by=person.id))
        return redirect("/account")

    return attempt(request, visitor, take_back)


@router.post("/account/erase")
def erase(request: Request, visitor: Known, password: Word, labels: Annotated[bool, Form()] = False) -> Response:
    """Erase one's account."""

    def erase_it() -> Response:
        confirm(request, visitor, password)
        change(request, visitor, lambda db, person: privacy.erase(db, person, labels=labels, at=now(), by=person.id))
        return redirect("/sign-in?erased=true")

    return attempt(request, visitor, erase_it)


def change(request: Request, visitor: Visitor, work: Callable[[Session, Person], None]) -> None:
    """Do something to one's own account in one transaction."""
    with site_of(request).database.write() as db:
        work(db, db.get_one(Person, visitor.me.id))


def confirm(request: Request, visitor: Visitor, password: str) -> None:
    """Raises Problem unless the password is this person's, or too many were tried."""
    site = site_of(request)
    with site.database.write() as db:
        allowed = rate_limits.take(db, rate_limits.PASSWORD, visitor.me.id, now())
    if not allowed:
        raise Problem(429, "too_often")
    if not verify(password, visitor.me.password_hash):
        raise Problem(422, "wrong_own_password")


def attempt(request: Request, visitor: Visitor, work: Callable[[], Response]) -> Response:
    """Do something; what is wrong with it is said on the page."""
    try:
        return work()
    except Problem as problem:
        wrong = language(request, visitor)(f"problem.{problem.code}", **problem.values)
        return account_page(request, visitor, status=problem.status, wrong=wrong)


def account_page(request: Request, visitor: Visitor, status: int = 200, wrong: str | None = None) -> Response:
    """The account as it stands."""
    site = site_of(request)
    with site.database.read() as db:
        person = db.get_one(Person, visitor.me.id)
        values: dict[str, Any] = {"person": person, "logins": accounts.live_logins(db, site.settings, person, now())}
    return page(request, visitor, "account.html", status=status, wrong=wrong, least=MIN_LENGTH, themes=THEMES, **values)
