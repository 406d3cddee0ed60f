"""Sign-in at an OpenID provider: the way there, the way back, and connecting an account."""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from instructgpt.label.auth import accounts, rate_limits
from instructgpt.label.auth.dependencies import AnyUser, Principal, SignedInUser, get_site
from instructgpt.label.db.models import OpenIDFlow, Person, current_time_ms
from instructgpt.label.errors import SiteError
from instructgpt.label.integrations import openid_accounts
from instructgpt.label.openid import (
    AuthorizationRequest,
    OpenIDClient,
    OpenIDError,
    OpenIDIdentity,
    ProviderUnreachableError,
)
from instructgpt.label.web.pages.account import check_own_password
from instructgpt.label.web.pages.appearance import local_path_or_root
from instructgpt.label.web.pages.sign_in import render_code_page
from instructgpt.label.web.params import check_invite_link, client_info, set_session_cookie
from instructgpt.label.web.rendering import get_translator, redirect, render_page

router = APIRouter()

_COOKIE, _SECURE_COOKIE = "labeler_openid", "__Host-labeler_openid"
_SUBPATH_COOKIE = "__Secure-labeler_openid"
_LOGGER = logging.getLogger(__name__)
_Parameter = Annotated[str, Query(max_length=4_000)]


@router.get("/sign-in/openid")
def start_openid_sign_in(request: Request, _: AnyUser, next: _Parameter = "/", invite: _Parameter = "") -> Response:
    """Send the browser to the provider. Nothing but the flow is stored, which only this browser can finish."""
    site, client = get_site(request), _openid_client(request)
    if invite:
        check_invite_link(request, invite)
    _limit_tries(request)
    authorization = _start(client)
    with site.database.write() as db:
        row = accounts.lock_invite(db, invite, current_time_ms()) if invite else None
        if row is not None and row.person_id is not None:
            raise SiteError(404, "bad_link")  # a link for a new password is for the password
        token = openid_accounts.store_flow(db, authorization, next_path=local_path_or_root(next), invite=row)
    return _with_flow_cookie(request, RedirectResponse(authorization.url, status_code=303), token)


@router.get("/sign-in/openid/callback")
def finish_openid_sign_in(
    request: Request,
    principal: AnyUser,
    state: _Parameter = "",
    code: _Parameter = "",
    iss: _Parameter | None = None,
    error: _Parameter = "",
) -> Response:
    site, client = get_site(request), _openid_client(request)
    _limit_tries(request)
    with site.database.write() as db:  # the flow is over, whatever comes of it
        flow = openid_accounts.take_flow(db, request.cookies.get(_cookie_name(request), ""), state)
    if error or not code:
        raise SiteError(401, "openid_failed", reason=f"the provider refused: {error[:60]}")
    try:
        identity = client.finish(code, nonce=flow.nonce, verifier=flow.verifier, issuer=iss)
    except OpenIDError as failure:
        raise _site_error(failure) from failure
    if flow.person_id is not None:
        return _connect(request, principal, flow, identity)
    info, now_ms, language = client_info(request), current_time_ms(), get_translator(request).language
    with site.database.write() as db:
        person = openid_accounts.find_or_create_person(db, flow, identity, client.provider, language)
        result = accounts.sign_in_verified_person(db, person, info["user_agent"], info["cookie_token"], now_ms)
    if result.challenge is not None:
        return render_code_page(request, flow.next_path, result.challenge)
    return set_session_cookie(redirect(flow.next_path), site, result.token)


@router.post("/account/openid")
def start_connecting(
    request: Request, principal: SignedInUser, password: Annotated[str, Form(max_length=10_000)] = ""
) -> Response:
    """Offer the way to the provider, whose identity then signs in to this account."""
    client = _openid_client(request)
    check_own_password(request, principal, password)
    authorization = _start(client)
    with get_site(request).database.write() as db:
        token = openid_accounts.store_flow(db, authorization, next_path="/account", person=principal.user)
    # A page with a link and not a redirect: `form-action 'self'` forbids that a form leads elsewhere.
    page = render_page(request, "openid_connect.html", url=authorization.url, name=client.provider.name)
    return _with_flow_cookie(request, page, token)


@router.post("/account/openid/end")
def end_connection(
    request: Request, principal: SignedInUser, password: Annotated[str, Form(max_length=10_000)] = ""
) -> Response:
    check_own_password(request, principal, password)
    with get_site(request).database.write() as db:
        openid_accounts.disconnect_identities(db, db.get_one(Person, principal.user.id))
    return redirect("/account")


def _connect(request: Request, principal: Principal, flow: OpenIDFlow, identity: OpenIDIdentity) -> Response:
    """Connect an identity to the account that started the flow; another one may have signed in meanwhile."""
    if principal.person is None or principal.person.id != flow.person_id:
        raise SiteError(401, "openid_over")
    with get_site(request).database.write() as db:
        person = db.get_one(Person, principal.person.id)
        openid_accounts.connect_identity(db, person, identity)
    return redirect("/account")


def _openid_client(request: Request) -> OpenIDClient:
    client = get_site(request).settings.openid
    if client is None:
        raise SiteError(404, "not_found")
    return client


def _start(client: OpenIDClient) -> AuthorizationRequest:
    try:
        return client.start()
    except OpenIDError as failure:
        raise _site_error(failure) from failure


def _site_error(failure: OpenIDError) -> SiteError:
    _LOGGER.warning("sign-in at the provider: %s", failure)
    if isinstance(failure, ProviderUnreachableError):
        return SiteError(503, "openid_unreachable", retry_after=15)
    return SiteError(401, "openid_failed", reason=str(failure))


def _limit_tries(request: Request) -> None:
    address, now_ms = client_info(request)["address"], current_time_ms()
    with get_site(request).database.write() as db:
        allowed = rate_limits.consume_token(db, rate_limits.SIGN_IN_ADDRESS_LIMIT, address, now_ms)
    if not allowed:
        raise SiteError(429, "too_often")


def _cookie_name(request: Request) -> str:
    settings = get_site(request).settings
    if not settings.secure:
        return _COOKIE
    return _SUBPATH_COOKIE if settings.base_path else _SECURE_COOKIE


def _with_flow_cookie(request: Request, answer: Response, token: str) -> Response:
    # SameSite=Lax: the way back is a navigation from the provider's page, which sends the cookie.
    secure = get_site(request).settings.secure
    answer.set_cookie(_cookie_name(request), token, max_age=600, secure=secure, httponly=True, samesite="lax", path="/")
    return answer
