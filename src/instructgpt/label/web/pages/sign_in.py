"""Pages before the work: sign-in, invitation and password links, consent."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response

from instructgpt.label.auth import accounts, consent, rate_limits
from instructgpt.label.auth.dependencies import AnyUser, SignedInUser, get_site, session_cookie_name
from instructgpt.label.auth.passwords import MIN_PASSWORD_LENGTH
from instructgpt.label.db.models import Invite, Person, current_time_ms
from instructgpt.label.db.models.people import normalize_name
from instructgpt.label.errors import SiteError
from instructgpt.label.integrations import mail
from instructgpt.label.markdown import render_markdown
from instructgpt.label.web.pages.appearance import local_path_or_root
from instructgpt.label.web.params import (
    MAX_ANONYMOUS_BODY_BYTES,
    check_invite_link,
    client_info,
    set_session_cookie,
)
from instructgpt.label.web.rendering import get_translator, redirect, render_page, translate_error

router = APIRouter(max_body_size=MAX_ANONYMOUS_BODY_BYTES)

_ShortText = Annotated[str, Form(max_length=2_000)]
_PasswordText = Annotated[str, Form(max_length=10_000)]
_LABELER_START_PAGES = {"screening": "/screening", "active": "/home"}


@router.get("/")
def index(principal: AnyUser) -> Response:
    person = principal.person
    if person is None:
        return redirect("/sign-in")
    if person.role != "labeler":
        return redirect("/overview")
    if not principal.has_consented and person.status != "withdrawn":
        return redirect("/consent")
    return redirect(_LABELER_START_PAGES.get(person.status, "/account"))


@router.get("/sign-in")
def show_sign_in(request: Request, _: AnyUser, next: str = "/", erased: bool = False) -> Response:
    return _render_sign_in_page(request, next, erased=erased)


@router.post("/sign-in")
def sign_in_from_form(
    request: Request, _: AnyUser, name: _ShortText, password: _PasswordText, next: Annotated[str, Form()] = "/"
) -> Response:
    site = get_site(request)
    try:
        token, _session = accounts.sign_in_with_password(site, name, password, **client_info(request))
    except SiteError as error:
        if error.code == "code_needed":
            return render_code_page(request, next, error.values["challenge"])
        answer = _render_sign_in_page(request, next, error.status, translate_error(request, error), name)
        if "retry_after" in error.values:
            answer.headers["Retry-After"] = str(error.values["retry_after"])
        return answer
    return set_session_cookie(redirect(local_path_or_root(next)), site, token)


@router.post("/sign-in/code")
def send_second_factor(
    request: Request, _: AnyUser, challenge: _ShortText, code: _ShortText, next: Annotated[str, Form()] = "/"
) -> Response:
    """Finish a sign-in with the code of the second factor."""
    site = get_site(request)
    try:
        token, _session = accounts.answer_challenge(site, challenge, code, **client_info(request))
    except SiteError as error:
        message = translate_error(request, error)
        if error.code == "challenge_over":
            return _render_sign_in_page(request, next, error.status, message)
        return render_code_page(request, next, challenge, error.status, message)
    return set_session_cookie(redirect(local_path_or_root(next)), site, token)


def render_code_page(
    request: Request, next: str, challenge: str, status: int = 200, error: str | None = None
) -> Response:
    next = local_path_or_root(next)
    return render_page(request, "sign_in_code.html", status, next=next, challenge=challenge, error=error)


def _render_sign_in_page(
    request: Request, next: str, status: int = 200, error: str | None = None, name: str = "", erased: bool = False
) -> Response:
    next = local_path_or_root(next)
    has_mail = get_site(request).settings.mail is not None
    return render_page(
        request,
        "sign_in.html",
        status,
        next=next,
        error=error,
        name=name,
        erased=erased,
        has_mail=has_mail,
        openid=get_site(request).settings.openid,
    )


@router.get("/sign-in/forgotten")
def show_forgotten(request: Request, _: AnyUser) -> Response:
    _check_mail(request)
    return render_page(request, "forgotten.html", is_sent=False)


@router.post("/sign-in/forgotten")
def send_reset_link(request: Request, _: AnyUser, name: _ShortText) -> Response:
    """Send a link for a new password; the answer is the same whether there is such a person or not."""
    _check_mail(request)
    site, now_ms = get_site(request), current_time_ms()
    with site.database.write() as db:
        if not rate_limits.consume_token(db, rate_limits.RESET_ADDRESS_LIMIT, client_info(request)["address"], now_ms):
            raise SiteError(429, "too_often")
        if rate_limits.consume_token(db, rate_limits.RESET_LIMIT, normalize_name(name), now_ms):
            mail.queue_password_reset(db, name=name)
    return render_page(request, "forgotten.html", is_sent=True)


def _check_mail(request: Request) -> None:
    if get_site(request).settings.mail is None:
        raise SiteError(404, "not_found")


@router.post("/sign-out")
def sign_out_from_form(request: Request, principal: SignedInUser) -> Response:
    site = get_site(request)
    assert principal.user_session is not None
    with site.database.write() as db:
        accounts.revoke_user_session(db, principal.user, principal.user_session.id, principal.user.id)
    answer = redirect("/sign-in")
    answer.delete_cookie(session_cookie_name(site.settings), secure=site.settings.secure, httponly=True, samesite="lax")
    return answer


@router.get("/invite/{token}")
def show_invite_link(request: Request, _: AnyUser, token: str) -> Response:
    check_invite_link(request, token)
    return _render_invite_page(request, token)


@router.post("/invite/{token}")
def redeem_invite_from_form(
    request: Request,
    _: AnyUser,
    token: str,
    password: _PasswordText,
    repeated: Annotated[str, Form(alias="again", max_length=10_000)],
    name: _ShortText = "",
    email: _ShortText = "",
    version: Annotated[int | None, Form()] = None,
) -> Response:
    """Create the account, or set the new password, and sign in. `version`: of the consent text the person agreed to."""
    site, now_ms = get_site(request), current_time_ms()
    check_invite_link(request, token)
    try:
        if password != repeated:
            raise SiteError(422, "passwords_differ")
        language = get_translator(request).language
        options = {"password_hash": accounts.hash_for_invite(site, token, name, password), "language": language}
        with site.database.write() as db:
            person = accounts.redeem_invite(db, token, name, password, email=email, now_ms=now_ms, **options)
            if person.role == "labeler" and not consent.has_consented(db, person):
                if version is None:
                    raise SiteError(422, "consent_missing")
                consent.record_consent(db, person, version)
            if person.totp_secret is not None:  # a reset link replaces the password, not the second factor
                return redirect("/sign-in")
            user_agent = client_info(request)["user_agent"]
            session_token, _session = accounts.create_user_session(db, person, user_agent, now_ms)
    except SiteError as error:
        return _render_invite_page(request, token, error.status, translate_error(request, error), name, email)
    return set_session_cookie(redirect("/"), site, session_token)


@router.get("/consent")
def show_consent(request: Request, principal: SignedInUser) -> Response:
    with get_site(request).database.read() as db:
        newest = consent.get_latest_consent_text(db)
    body = render_markdown(consent.localized_consent_body(newest, principal.user.language)) if newest else ""
    return render_page(request, "consent.html", text=newest, body=body, agreed=principal.has_consented)


@router.post("/consent")
def agree_to_consent(request: Request, principal: SignedInUser, version: Annotated[int, Form()]) -> Response:
    with get_site(request).database.write() as db:
        consent.record_consent(db, principal.user, version)
    return redirect("/")


def _render_invite_page(
    request: Request, token: str, status: int = 200, error: str | None = None, name: str = "", email: str = ""
) -> Response:
    with get_site(request).database.write() as db:
        invite: Invite = accounts.lock_invite(db, token, current_time_ms())
        person = db.get(Person, invite.person_id) if invite.person_id else None
        needs_consent = invite.role == "labeler" and (person is None or not consent.has_consented(db, person))
        newest = consent.get_latest_consent_text(db) if needs_consent else None
    language = get_translator(request).language
    return render_page(
        request,
        "invite.html",
        status,
        openid=get_site(request).settings.openid,
        token=token,
        invite=invite,
        person=person,
        is_setup=invite.role == "owner" and person is None and invite.created_by is None,
        text=newest,
        body=render_markdown(consent.localized_consent_body(newest, language)) if newest else "",
        error=error,
        name=name,
        email=email,
        min_password_length=MIN_PASSWORD_LENGTH,
    )
