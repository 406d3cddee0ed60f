"""Helpers that pages and API share: parameter types, limits of anonymous requests, translation of errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

from fastapi import Path, Query, Request, Response
from fastapi.responses import FileResponse
from sqlalchemy.exc import IntegrityError

from instructgpt.errors import InputError
from instructgpt.label.auth import accounts, rate_limits
from instructgpt.label.auth.dependencies import Principal, get_site, session_cookie_name
from instructgpt.label.context import Site
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import current_time_ms
from instructgpt.label.errors import SiteError, format_user_message
from instructgpt.label.exchange import export_jobs
from instructgpt.label.playground.runtime import Playground
from instructgpt.label.playground.users import Visitor, load_visitor

_RowT = TypeVar("_RowT")
_UUID_PATTERN = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
RowId = Annotated[str, Path(pattern=_UUID_PATTERN)]
AfterCursor = Annotated[str | None, Query(pattern=_UUID_PATTERN, description="the `next` of the page before")]
PageLimit = Annotated[int, Query(ge=1, le=1000)]
SinceMs = Annotated[int | None, Query(ge=0, lt=2**53, description="milliseconds since 1970, UTC")]
MAX_ANONYMOUS_BODY_BYTES = 100_000
"""Limit of a request's body on routes that need no sign-in."""


@contextmanager
def translate_errors() -> Iterator[None]:
    """Turn invalid input into SiteError `bad_input` (422) and conflicts of unique keys into `made_meanwhile` (409)."""
    try:
        yield
    except (InputError, ValueError) as error:
        raise SiteError(422, "bad_input", reason=format_user_message(error)) from error
    except IntegrityError as error:
        raise SiteError(409, "made_meanwhile") from error


def or_404(row: _RowT | None) -> _RowT:
    """Return the row. Raises SiteError `not_found` (404) for None."""
    if row is None:
        raise SiteError(404, "not_found")
    return row


def check_invite_link(request: Request, token: str) -> None:
    """Raise SiteError `bad_link` (404) for an invalid link, or `too_often` (429) when an address tried too many.

    Valid links cost no attempt: a whole team may join from one address.
    """
    database, now_ms = get_site(request).database, current_time_ms()
    with database.read() as db:
        if accounts.find_valid_invite(db, token, now_ms) is not None:
            return
    with database.write() as db:
        allowed = rate_limits.consume_token(db, rate_limits.INVITE_LIMIT, client_info(request)["address"], now_ms)
    raise SiteError(404, "bad_link") if allowed else SiteError(429, "too_often")


def client_info(request: Request) -> dict[str, str]:
    """Return what `accounts` records of a request: address, browser, session token of an earlier sign-in."""
    return {
        "address": rate_limits.address_key(request.client.host if request.client else None),
        "user_agent": request.headers.get("user-agent", ""),
        "cookie_token": request.cookies.get(session_cookie_name(get_site(request).settings), ""),
    }


def set_session_cookie(answer: Response, site: Site, token: str) -> Response:
    # SameSite=Lax is one of the defenses against forged requests, see auth/csrf.py.
    answer.set_cookie(
        session_cookie_name(site.settings),
        token,
        max_age=site.settings.absolute_days * 86_400,
        secure=site.settings.secure,
        httponly=True,
        samesite="lax",
        path="/",
    )
    return answer


_USER_COOKIE, _USER_SESSION_COOKIE = "playground_user", "playground_session"
_USER_COOKIE_AGE_S = 365 * 86_400


def get_playground(request: Request) -> Playground:
    """Return the site's playground. Raises SiteError 404 for a site without an endpoint."""
    playground: Playground | None = request.app.state.playground
    return or_404(playground)


def find_visitor(request: Request) -> Visitor | None:
    """Return the user of the playground behind a request; None for a browser that did not open its link."""
    get_playground(request)
    site = get_site(request)
    user_token = request.cookies.get(playground_cookie_name(site, _USER_COOKIE))
    session_token = request.cookies.get(playground_cookie_name(site, _USER_SESSION_COOKIE))
    with site.database.read() as db:
        return load_visitor(db, user_token, session_token, current_time_ms())


def get_visitor(request: Request) -> Visitor:
    """Return the user of the playground. Raises SiteError 401 for a browser that did not open its link."""
    visitor = find_visitor(request)
    if visitor is None:
        raise SiteError(401, "playground_link")
    return visitor


def playground_cookie_name(site: Site, name: str) -> str:
    """Return the name of a cookie with the prefix that keeps other hosts from setting it, with HTTPS."""
    prefix = "" if not site.settings.secure else "__Secure-" if site.settings.base_path else "__Host-"
    return prefix + name


def set_playground_cookies(answer: Response, site: Site, *, user: str | None = None, session: str) -> None:
    """Set the cookies of a user, kept for a year, and of a session, which ends with the browser."""
    options: dict[str, Any] = {"secure": site.settings.secure, "httponly": True, "samesite": "lax", "path": "/"}
    if user is not None:
        answer.set_cookie(playground_cookie_name(site, _USER_COOKIE), user, max_age=_USER_COOKIE_AGE_S, **options)
    answer.set_cookie(playground_cookie_name(site, _USER_SESSION_COOKIE), session, **options)


def send_export_file(site: Site, principal: Principal, key: str, name: str) -> FileResponse:
    """Return one file of a finished export, and record the download in the audit log."""
    path = or_404(export_jobs.get_export_file(site, or_404(export_jobs.get_export_job(site, key)), name))
    with site.database.write() as db:
        audit_log.append_entry(db, caller_id(principal), "export.fetch", key, file=name)
    return FileResponse(path, filename=path.name, media_type="application/octet-stream")


def caller_id(principal: Principal) -> str:
    """Return the caller's id for the audit log: `key:<id>` of an API key, or the person's."""
    return f"key:{principal.api_key.id}" if principal.api_key else principal.user.id
