"""Requests that another site made a browser send. Every request that changes something shows that it came from a page of ours.

Two proofs are asked for. The browser says where the request comes from (`Sec-Fetch-Site`, or `Origin` where it is too old or the
site has no https), and whoever is signed in sends the token of that sign-in along (`X-CSRF-Token`, or the form's field `csrf`). Programs
with a key carry no cookie, so nobody can borrow it: they are exempt.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from instructgpt.label.auth.dependencies import get_current_principal, get_site
from instructgpt.label.auth.tokens import secrets_equal
from instructgpt.label.errors import SiteError

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_CSRF_HEADER, _CSRF_FIELD = "x-csrf-token", "csrf"
_FORM_CONTENT_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data")


async def csrf_protect(request: Request) -> None:
    """Refuse a forged request. A dependency of the whole application.

    Raises:
        Problem: 403, naming the header that was wrong and the setting that may have to change.
    """
    if request.method in _SAFE_METHODS:
        return
    principal = await run_in_threadpool(get_current_principal, request)
    if principal.api_key is not None:
        return
    _check_origin(request)
    if principal.user_session is None:
        return
    token = request.headers.get(_CSRF_HEADER)
    if token is None and request.headers.get("content-type", "").split(";")[0].strip().lower() in _FORM_CONTENT_TYPES:
        field = (await request.form()).get(_CSRF_FIELD)
        token = field if isinstance(field, str) else None
    if token is None or not secrets_equal(token, principal.user_session.csrf):
        raise SiteError(403, "forged_token")


def _check_origin(request: Request) -> None:
    """Raises Problem unless the browser says that the request comes from this site."""
    fetch_site = request.headers.get("sec-fetch-site")
    if fetch_site is not None:
        if fetch_site not in ("same-origin", "none"):
            raise SiteError(403, "forged_fetch", value=fetch_site[:40])
        return
    origin, public_url = request.headers.get("origin"), get_site(request).settings.public_url
    expected = _url_origin(public_url) if public_url else f"{request.url.scheme}://{request.headers.get('host', '')}"
    if origin is None or origin.lower() != expected.lower():
        raise SiteError(403, "forged_origin", value=(origin or "-")[:200], expected=expected)


def _url_origin(url: str) -> str:
    """Scheme, host and port of an address, as a browser writes them."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
