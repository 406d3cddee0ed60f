"""What the routes of pages and API share: parameters, limits of what strangers may send, errors as answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, TypeVar

from fastapi import Path, Query, Request, Response
from sqlalchemy.exc import IntegrityError

from instructgpt.errors import InputError
from instructgpt.label.auth import rate_limits
from instructgpt.label.auth.dependencies import get_site, session_cookie_name
from instructgpt.label.context import Site
from instructgpt.label.db.models import current_time_ms
from instructgpt.label.errors import SiteError, format_user_message

_RowT = TypeVar("_RowT")
_UUID_PATTERN = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
RowId = Annotated[str, Path(pattern=_UUID_PATTERN)]
AfterCursor = Annotated[
    str | None, Query(pattern=_UUID_PATTERN, description="the last id of the page before; the answer's `next`")
]
PageLimit = Annotated[int, Query(ge=1, le=1000)]
SinceMs = Annotated[int | None, Query(ge=0, lt=2**53, description="milliseconds since 1970, UTC")]
MAX_ANONYMOUS_BODY_BYTES = 100_000
"""Bytes of a request of people who are not known yet."""


@contextmanager
def translate_errors() -> Iterator[None]:
    """Input that makes no sense is the caller's to mend (422), not a fault of the site. Raises Problem."""
    try:
        yield
    except (InputError, ValueError) as error:
        raise SiteError(422, "bad_input", reason=format_user_message(error)) from error
    except IntegrityError as error:
        raise SiteError(409, "made_meanwhile") from error


def or_404(row: _RowT | None) -> _RowT:
    """A row that is there. Raises Problem."""
    if row is None:
        raise SiteError(404, "not_found")
    return row


def limit_invite_attempts(request: Request) -> None:
    """Raises Problem when too many links were tried from one address."""
    with get_site(request).database.write() as db:
        allowed = rate_limits.consume_token(
            db, rate_limits.INVITE_LIMIT, client_info(request)["address"] or "", current_time_ms()
        )
    if not allowed:
        raise SiteError(429, "too_often")


def client_info(request: Request) -> dict[str, str]:
    """Where a request comes from: address, browser, and the cookie it still carries."""
    return {
        "address": rate_limits.address_key(request.client.host if request.client else None),
        "user_agent": request.headers.get("user-agent", ""),
        "cookie_token": request.cookies.get(session_cookie_name(get_site(request).settings), ""),
    }


def set_session_cookie(answer: Response, site: Site, token: str) -> Response:
    """The answer, with the cookie of a new sign-in."""
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
