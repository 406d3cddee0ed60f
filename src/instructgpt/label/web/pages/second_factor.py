"""The page that sets up and ends the second factor of an owner or researcher."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response

from instructgpt.label.auth import second_factor
from instructgpt.label.auth.dependencies import Principal, get_site, require
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Person
from instructgpt.label.errors import SiteError
from instructgpt.label.web.pages.account import check_own_password
from instructgpt.label.web.rendering import redirect, render_page, translate_error

router = APIRouter(prefix="/account/second-factor")

_TeamMember = Annotated[Principal, require("researcher", "owner", consent_optional=True)]
_FormText = Annotated[str, Form(max_length=10_000)]


@router.get("")
def show_second_factor(request: Request, principal: _TeamMember) -> Response:
    return _render_second_factor_page(request, principal.user)


@router.post("")
def enable_from_form(
    request: Request, principal: _TeamMember, secret: _FormText, code: _FormText, password: _FormText = ""
) -> Response:
    """Store the secret that the page proposed, and show the recovery codes once."""
    site = get_site(request)
    try:
        check_own_password(request, principal, password)
        with site.database.write() as db:
            person = db.get_one(Person, principal.user.id)
            recovery_codes = second_factor.enable_second_factor(person, secret, code)
            audit_log.append_entry(db, person.id, "person.second_factor", person.id, enabled=True)
    except SiteError as error:
        message = translate_error(request, error)
        return _render_second_factor_page(request, principal.user, error.status, message, secret=secret)
    return _render_second_factor_page(request, person, recovery_codes=recovery_codes)


@router.post("/end")
def disable_from_form(request: Request, principal: _TeamMember, password: _FormText = "") -> Response:
    site = get_site(request)
    try:
        check_own_password(request, principal, password)
    except SiteError as error:
        return _render_second_factor_page(request, principal.user, error.status, translate_error(request, error))
    with site.database.write() as db:
        person = db.get_one(Person, principal.user.id)
        second_factor.disable_second_factor(person)
        audit_log.append_entry(db, person.id, "person.second_factor", person.id, enabled=False)
    return redirect("/account/second-factor")


def _render_second_factor_page(
    request: Request,
    person: Person,
    status: int = 200,
    error: str | None = None,
    *,
    secret: str | None = None,
    recovery_codes: list[str] | None = None,
) -> Response:
    secret = secret or second_factor.generate_secret()
    uri = second_factor.provisioning_uri(person, secret)
    return render_page(
        request,
        "second_factor.html",
        status,
        person=person,
        error=error,
        secret=secret,
        uri=uri,
        image=second_factor.qr_code_image(uri),
        recovery_codes=recovery_codes,
    )
