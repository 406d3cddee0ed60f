"""Coming in: sign-in, links (set-up, invitation, reset), consent."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response

from instructgpt.label.auth import accounts, consent
from instructgpt.label.auth.dependencies import Principal, get_site, public_access, require, session_cookie_name
from instructgpt.label.auth.passwords import MIN_PASSWORD_LENGTH
from instructgpt.label.db.models import Invite, Person, current_time_ms
from instructgpt.label.errors import SiteError
from instructgpt.label.safe_text import render_markdown
from instructgpt.label.web.pages.appearance import local_path_or_root
from instructgpt.label.web.params import (
    MAX_ANONYMOUS_BODY_BYTES,
    client_info,
    limit_invite_attempts,
    set_session_cookie,
)
from instructgpt.label.web.rendering import get_translator, redirect, render_page

router = APIRouter(max_body_size=MAX_ANONYMOUS_BODY_BYTES)

_AnyUser = Annotated[Principal, public_access()]
_SignedInUser = Annotated[Principal, require("labeler", "researcher", "owner", consent_optional=True)]
_ShortText = Annotated[str, Form(max_length=2_000)]


@router.get("/")
def index(principal: _AnyUser) -> Response:
    """To where a person's work is."""
    if principal.person is None:
        return redirect("/sign-in")
    if (
        principal.signed_in_person.role == "labeler"
        and not principal.has_consented
        and principal.signed_in_person.status != "withdrawn"
    ):
        return redirect("/consent")
    if principal.signed_in_person.role == "labeler":
        return redirect(
            "/screening"
            if principal.signed_in_person.status == "screening"
            else "/home"
            if principal.signed_in_person.status == "active"
            else "/account"
        )
    return redirect("/overview")


@router.get("/sign-in")
def show_sign_in(request: Request, principal: _AnyUser, next: str = "/", erased: bool = False) -> Response:
    """The form, and a last word to whoever erased their account."""
    return render_page(
        request, principal, "sign_in.html", onward=local_path_or_root(next), wrong=None, name="", erased=erased
    )


@router.post("/sign-in")
def sign_in_from_form(
    request: Request,
    principal: _AnyUser,
    name: _ShortText,
    password: Annotated[str, Form(max_length=10_000)],
    next: Annotated[str, Form()] = "/",
) -> Response:
    """Sign in and go on to where the person wanted to be."""
    try:
        token = accounts.sign_in_with_password(get_site(request), name, password, **client_info(request))[0]
    except SiteError as problem:
        error_message = get_translator(request, principal)(f"problem.{problem.code}", **problem.values)
        return render_page(
            request,
            principal,
            "sign_in.html",
            status=problem.status,
            onward=local_path_or_root(next),
            wrong=error_message,
            name=name,
            erased=False,
        )
    return set_session_cookie(redirect(local_path_or_root(next)), get_site(request), token)


@router.post("/sign-out")
def sign_out_from_form(request: Request, principal: _SignedInUser) -> Response:
    """End this sign-in."""
    site = get_site(request)
    assert principal.user_session is not None
    with site.database.write() as db:
        accounts.revoke_user_session(
            db, principal.signed_in_person, principal.user_session.id, principal.signed_in_person.id
        )
    answer = redirect("/sign-in")
    answer.delete_cookie(session_cookie_name(site.settings), secure=site.settings.secure, httponly=True, samesite="lax")
    return answer


@router.get("/invite/{token}")
def show_invite_link(request: Request, principal: _AnyUser, token: str) -> Response:
    """What a link is for, with the consent text where one is asked for."""
    return _render_invite_page(request, principal, token)


@router.post("/invite/{token}")
def redeem_invite_from_form(
    request: Request,
    principal: _AnyUser,
    token: str,
    password: Annotated[str, Form(max_length=10_000)],
    again: Annotated[str, Form(max_length=10_000)],
    name: _ShortText = "",
    email: _ShortText = "",
    version: Annotated[int | None, Form()] = None,
) -> Response:
    """Make the account, or set the new password, and sign in. What was typed stays in the form when something is wrong."""
    site, now_ms = get_site(request), current_time_ms()
    limit_invite_attempts(request)
    try:
        if password != again:
            raise SiteError(422, "passwords_differ")
        with site.database.write() as db:
            language_code = get_translator(request, principal).language
            person = accounts.redeem_invite(
                db, token, name, password, email=email, language=language_code, now_ms=now_ms
            )
            if person.role == "labeler" and not consent.has_consented(db, person):
                if version is None:
                    raise SiteError(422, "consent_missing")
                consent.record_consent(db, person, version)
            session_token = accounts.create_user_session(db, person, client_info(request)["user_agent"] or "", now_ms)[
                0
            ]
    except SiteError as problem:
        error_message = get_translator(request, principal)(f"problem.{problem.code}", **problem.values)
        return _render_invite_page(
            request, principal, token, status=problem.status, error_message=error_message, name=name, email=email
        )
    return set_session_cookie(redirect("/"), site, session_token)


@router.get("/consent")
def show_consent(request: Request, principal: _SignedInUser) -> Response:
    """The present text and whether this person agreed to it."""
    with get_site(request).database.read() as db:
        consent_text = consent.get_latest_consent_text(db)
        body = (
            render_markdown(consent.localized_consent_body(consent_text, principal.signed_in_person.language))
            if consent_text
            else ""
        )
    return render_page(request, principal, "consent.html", text=consent_text, body=body, agreed=principal.has_consented)


@router.post("/consent")
def agree_from_form(request: Request, principal: _SignedInUser, version: Annotated[int, Form()]) -> Response:
    """Agree to the text that was shown."""
    with get_site(request).database.write() as db:
        consent.record_consent(db, principal.signed_in_person, version)
    return redirect("/")


def _render_invite_page(
    request: Request,
    principal: Principal,
    token: str,
    status: int = 200,
    error_message: str | None = None,
    name: str = "",
    email: str = "",
) -> Response:
    """The page of a link: set-up, invitation or reset."""
    if status == 200:
        limit_invite_attempts(request)
    with get_site(request).database.write() as db:
        invite: Invite = accounts.lock_invite(db, token, current_time_ms())
        person = db.get(Person, invite.person_id) if invite.person_id else None
        consent_text = (
            consent.get_latest_consent_text(db)
            if invite.role == "labeler" and (person is None or not consent.has_consented(db, person))
            else None
        )
        is_setup = invite.role == "owner" and person is None and invite.created_by is None
    return render_page(
        request,
        principal,
        "link.html",
        status=status,
        link=invite,
        person=person,
        setup=is_setup,
        text=consent_text,
        body=render_markdown(consent.localized_consent_body(consent_text, get_translator(request, principal).language))
        if consent_text
        else "",
        wrong=error_message,
        name=name,
        email=email,
        least=MIN_PASSWORD_LENGTH,
    )
