"""One's own account: password, language and colours, what one would rather not see, where one is signed in, one's data."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request, Response
from sqlalchemy.orm import Session

from instructgpt.label.auth import accounts, rate_limits
from instructgpt.label.auth.dependencies import Principal, get_site, require
from instructgpt.label.auth.passwords import MIN_PASSWORD_LENGTH, hash_password, verify_password
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Person, current_time_ms
from instructgpt.label.errors import SiteError
from instructgpt.label.i18n import list_languages
from instructgpt.label.people import privacy
from instructgpt.label.tasks.assignments import release_sensitive_assignments
from instructgpt.label.web.params import client_info, set_session_cookie
from instructgpt.label.web.rendering import THEMES, get_translator, redirect, render_page

router = APIRouter()

_SignedInUser = Annotated[Principal, require("labeler", "researcher", "owner", consent_optional=True)]
_FormText = Annotated[str, Form(max_length=10_000)]


@router.get("/account")
def show_account(request: Request, principal: _SignedInUser) -> Response:
    """The page."""
    return _render_account_page(request, principal)


@router.post("/account/preferences")
def save_preferences(
    request: Request,
    principal: _SignedInUser,
    language: _FormText,
    theme: _FormText,
    email: Annotated[str, Form(max_length=300)] = "",
    sees_sensitive: Annotated[bool, Form()] = False,
) -> Response:
    """Language, colours, email, and whether sensitive tasks are shown at all. Hiding them has no price."""
    if language not in list_languages() or theme not in THEMES:
        raise SiteError(422, "bad_field", field="language, theme", wrong="none of the choices")
    site = get_site(request)
    with site.database.write() as db:
        person = db.get_one(Person, principal.signed_in_person.id)
        person.language, person.theme, person.sees_sensitive = language, theme, sees_sensitive
        person.email = email.strip() or None
        if not sees_sensitive:
            release_sensitive_assignments(db, site.settings, person, current_time_ms())
        audit_log.append_entry(db, person.id, "person.preferences", person.id, sees_sensitive=sees_sensitive)
    return redirect("/account")


@router.post("/account/password")
def change_password(
    request: Request, principal: _SignedInUser, old: _FormText, password: _FormText, again: _FormText
) -> Response:
    """A new password; all other sign-ins end, and this one goes on under a new cookie."""

    def store_password() -> Response:
        if password != again:
            raise SiteError(422, "passwords_differ")
        _check_password(request, principal, old)
        password_hash, now_ms = hash_password(password), current_time_ms()
        with site.database.write() as db:
            person = db.get_one(Person, principal.signed_in_person.id)
            person.password_hash = password_hash
            accounts.revoke_user_sessions(db, person)
            audit_log.append_entry(db, person.id, "person.password", person.id)
            token = accounts.create_user_session(
                db, person, client_info(request)["user_agent"], now_ms, action="person.rotate"
            )[0]
        return set_session_cookie(redirect("/account"), site, token)

    site = get_site(request)
    return _run_or_show_error(request, principal, store_password)


@router.post("/account/sign-ins/{login_id}/end")
def end_sign_in(request: Request, principal: _SignedInUser, login_id: str) -> Response:
    """End one of one's own sign-ins."""
    with get_site(request).database.write() as db:
        accounts.revoke_user_session(db, principal.signed_in_person, login_id, principal.signed_in_person.id)
    return redirect("/account")


@router.post("/account/sign-ins/end-others")
def end_other_sign_ins(request: Request, principal: _SignedInUser) -> Response:
    """End all of one's sign-ins but this one."""
    assert principal.user_session is not None
    with get_site(request).database.write() as db:
        accounts.revoke_user_sessions(db, principal.signed_in_person, except_session_id=principal.user_session.id)
        audit_log.append_entry(
            db, principal.signed_in_person.id, "person.sign_out_others", principal.signed_in_person.id
        )
    return redirect("/account")


@router.get("/account/data")
def download_own_data(request: Request, principal: _SignedInUser) -> Response:
    """Everything the site knows about oneself, as a file."""
    site = get_site(request)
    with site.database.read() as db:
        personal_data = privacy.export_personal_data(db, db.get_one(Person, principal.signed_in_person.id))
    with site.database.write() as db:
        audit_log.append_entry(db, principal.signed_in_person.id, "privacy.read", principal.signed_in_person.id)
    json_text = json.dumps(personal_data, ensure_ascii=False, indent=2)
    return Response(
        json_text, media_type="application/json", headers={"Content-Disposition": 'attachment; filename="my-data.json"'}
    )


@router.post("/account/withdraw")
def withdraw_own_consent(
    request: Request, principal: _SignedInUser, password: _FormText, labels: Annotated[bool, Form()] = False
) -> Response:
    """Take back one's consent."""

    def withdraw_and_redirect() -> Response:
        _check_password(request, principal, password)
        _update_own_account(
            request,
            principal,
            lambda db, person: privacy.withdraw_consent(
                db, person, labels=labels, now_ms=current_time_ms(), initiated_by=person.id
            ),
        )
        return redirect("/account")

    return _run_or_show_error(request, principal, withdraw_and_redirect)


@router.post("/account/erase")
def erase_own_account(
    request: Request, principal: _SignedInUser, password: _FormText, labels: Annotated[bool, Form()] = False
) -> Response:
    """Erase one's account."""

    def erase_and_redirect() -> Response:
        _check_password(request, principal, password)
        _update_own_account(
            request,
            principal,
            lambda db, person: privacy.erase_account(
                db, person, labels=labels, now_ms=current_time_ms(), initiated_by=person.id
            ),
        )
        return redirect("/sign-in?erased=true")

    return _run_or_show_error(request, principal, erase_and_redirect)


def _update_own_account(request: Request, principal: Principal, update: Callable[[Session, Person], None]) -> None:
    """Do something to one's own account in one transaction."""
    with get_site(request).database.write() as db:
        update(db, db.get_one(Person, principal.signed_in_person.id))


def _check_password(request: Request, principal: Principal, password: str) -> None:
    """Raises Problem unless the password is this person's, or too many were tried."""
    site = get_site(request)
    with site.database.write() as db:
        allowed = rate_limits.consume_token(
            db, rate_limits.PASSWORD_LIMIT, principal.signed_in_person.id, current_time_ms()
        )
    if not allowed:
        raise SiteError(429, "too_often")
    if not verify_password(password, principal.signed_in_person.password_hash):
        raise SiteError(422, "wrong_own_password")


def _run_or_show_error(request: Request, principal: Principal, action: Callable[[], Response]) -> Response:
    """Do something; what is wrong with it is said on the page."""
    try:
        return action()
    except SiteError as problem:
        error_message = get_translator(request, principal)(f"problem.{problem.code}", **problem.values)
        return _render_account_page(request, principal, status=problem.status, error_message=error_message)


def _render_account_page(
    request: Request, principal: Principal, status: int = 200, error_message: str | None = None
) -> Response:
    """The account as it stands."""
    site = get_site(request)
    with site.database.read() as db:
        person = db.get_one(Person, principal.signed_in_person.id)
        values: dict[str, Any] = {
            "person": person,
            "logins": accounts.list_active_sessions(db, site.settings, person, current_time_ms()),
        }
    return render_page(
        request,
        principal,
        "account.html",
        status=status,
        wrong=error_message,
        least=MIN_PASSWORD_LENGTH,
        themes=THEMES,
        **values,
    )
