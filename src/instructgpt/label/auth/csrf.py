"""Requests that another site made a browser send. Every request that changes something shows that it came from a page of ours.

Two proofs are asked for. The browser says where the request comes from (`Sec-Fetch-Site`, or `Origin` where it is too old or the
site has no https), and whoever is signed in sends the token of that sign-in along (`X-CSRF-Token`, or the form's field `csrf`). Programs
with a key carry no cookie, so nobody can borrow it: they are exempt.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from instructgpt.label.auth.dependencies import site_of, who
from instructgpt.label.auth.tokens import same
from instructgpt.label.errors import Problem

SAFE = ("GET", "HEAD", "OPTIONS")
HEADER, FIELD = "x-csrf-token", "csrf"
FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")


async def protect(request: Request) -> None:
    """Refuse a forged request. A dependency of the whole application.

    Raises:
        Problem: 403, naming the header that was wrong and the setting that may have to change.
    """
    if request.method in SAFE:
        return
    visitor = await run_in_threadpool(who, request)
    if visitor.key is not None:
        return
    check_origin(request)
    if visitor.login is None:
        return
    token = request.headers.get(HEADER)
    if token is None and request.headers.get("content-type", "").split(";")[0].strip().lower() in FORMS:
        field = (await request.form()).get(FIELD)
        token = field if isinstance(field, str) else None
    if token is None or not same(token, visitor.login.csrf):
        raise Problem(403, "forged_token")


def check_origin(request: Request) -> None:
    """Raises Problem unless the browser says that the request comes from this site."""
    fetched = request.headers.get("sec-fetch-site")
    if fetched is not None:
        if fetched not in ("same-origin", "none"):
            raise Problem(403, "forged_fetch", value=fetched[:40])
        return
    origin, public = request.headers.get("origin"), site_of(request).settings.public_url
    expected = origin_of(public) if public else f"{request.url.scheme}://{request.headers.get('host', '')}"
    if origin is None or origin.lower() != expected.lower():
        raise Problem(403, "forged_origin", value=(origin or "-")[:200], expected=expected)


def origin_of(address: str) -> str:
    """Scheme, host and port of an address, as a browser writes them."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}"
