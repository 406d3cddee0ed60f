"""What the routes of pages and API share: parameters, limits of what strangers may send, errors as answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, TypeVar

from fastapi import Path, Query, Request, Response
from sqlalchemy.exc import IntegrityError

from instructgpt.errors import BadInput
from instructgpt.label.auth import rate_limits
from instructgpt.label.auth.dependencies import cookie_name, site_of
from instructgpt.label.context import Site
from instructgpt.label.db.models import now
from instructgpt.label.errors import Problem, in_words

T = TypeVar("T")
ID = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
Id = Annotated[str, Path(pattern=ID)]
After = Annotated[str | None, Query(pattern=ID, description="the last id of the page before; the answer's `next`")]
Limit = Annotated[int, Query(ge=1, le=1000)]
Since = Annotated[int | None, Query(ge=0, lt=2**53, description="milliseconds since 1970, UTC")]
MAX_BODY = 100_000
"""Bytes of a request of people who are not known yet."""


@contextmanager
def refusing() -> Iterator[None]:
    """Input that makes no sense is the caller's to mend (422), not a fault of the site. Raises Problem."""
    try:
        yield
    except (BadInput, ValueError) as error:
        raise Problem(422, "bad_input", reason=in_words(error)) from error
    except IntegrityError as error:
        raise Problem(409, "made_meanwhile") from error


def existing(row: T | None) -> T:
    """A row that is there. Raises Problem."""
    if row is None:
        raise Problem(404, "not_found")
    return row


def limit_links(request: Request) -> None:
    """Raises Problem when too many links were tried from one address."""
    with site_of(request).database.write() as db:
        allowed = rate_limits.take(db, rate_limits.INVITE, whence(request)["address"] or "", now())
    if not allowed:
        raise Problem(429, "too_often")


def whence(request: Request) -> dict[str, str]:
    """Where a request comes from: address, browser, and the cookie it still carries."""
    return {
        "address": rate_limits.address_of(request.client.host if request.client else None),
        "agent": request.headers.get("user-agent", ""),
        "carried": request.cookies.get(cookie_name(site_of(request).settings), ""),
    }


def with_cookie(answer: Response, site: Site, token: str) -> Response:
    """The answer, with the cookie of a new sign-in."""
    answer.set_cookie(
        cookie_name(site.settings), token, max_age=site.settings.absolute_days * 86_400, secure=site.settings.secure,
        httponly=True, samesite="lax", path="/",
    )  # fmt: skip
    return answer
