"""Language and color theme: stored in the account, and in cookies for visitors who are not signed in."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from instructgpt.label.auth.dependencies import AnyUser, get_site
from instructgpt.label.db.models import Person
from instructgpt.label.i18n import list_languages
from instructgpt.label.web.rendering import LANGUAGE_COOKIE, THEME_COOKIE, THEMES

router = APIRouter()
_YEAR_S = 365 * 24 * 3600


@router.post("/look")
def set_appearance(
    request: Request,
    principal: AnyUser,
    back: Annotated[str, Form()] = "/",
    language: Annotated[str | None, Form()] = None,
    theme: Annotated[str | None, Form()] = None,
) -> Response:
    """Store a language or theme and return to the page `back`. Unknown choices are ignored."""
    site = get_site(request)
    language = language if language in list_languages() else None
    theme = theme if theme in THEMES else None
    answer = RedirectResponse(local_path_or_root(back), status_code=303)
    for cookie, value in ((LANGUAGE_COOKIE, language), (THEME_COOKIE, theme)):
        if value is not None:
            secure = site.settings.secure
            answer.set_cookie(cookie, value, max_age=_YEAR_S, httponly=True, samesite="lax", secure=secure)
    if principal.person is not None:
        with site.database.write() as db:
            person = db.get_one(Person, principal.person.id)
            person.language, person.theme = language or person.language, theme or person.theme
    return answer


def local_path_or_root(path: str) -> str:
    """Return `path` if it is a path on this site, else "/": prevents open redirects through `next` and `back`."""
    is_local = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return path if is_local else "/"
