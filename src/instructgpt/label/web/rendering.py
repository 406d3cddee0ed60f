"""From a template to a response: the catalogue of sentences, the visitor, the token that protects forms."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.exceptions import HTTPException

from instructgpt.label import safe_text
from instructgpt.label.auth.dependencies import Visitor, who
from instructgpt.label.errors import Problem
from instructgpt.label.i18n import Words, languages, load, words_for

FOLDER = Path(__file__).parent
ONWARD = {"sign_in": "/sign-in", "consent_needed": "/consent", "read_instructions": "/instructions/{purpose}"}
"""Where a person must go first when something is refused."""
TEMPLATES = Environment(
    loader=FileSystemLoader(FOLDER / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
TEMPLATES.filters |= {
    "plain": safe_text.plain,
    "rendered": safe_text.rendered,
    "first_line": safe_text.first_line,
    "is_long": safe_text.is_long,
    "halves": safe_text.halves,
    "browser": safe_text.browser,
}

LANGUAGE_COOKIE, THEME_COOKIE = "language", "theme"
THEMES = ("auto", "light", "dark")


def page(request: Request, visitor: Visitor, template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """A template as a page, in the visitor's language. Templates know `t` (the catalogue), `visitor`, `csrf`, `path`, `theme`."""
    words = language(request, visitor)
    csrf = visitor.login.csrf if visitor.login else ""
    html = TEMPLATES.get_template(template).render(
        t=words, visitor=visitor, csrf=csrf, path=request.url.path, theme=theme(request, visitor), languages=named(), **values
    )
    return HTMLResponse(html, status_code=status)


def language(request: Request, visitor: Visitor) -> Words:
    """The catalogue for a visitor: the language they chose, otherwise what their browser asks for."""
    asked = request.cookies.get(LANGUAGE_COOKIE) or request.headers.get("accept-language", "")
    return words_for(visitor.person.language if visitor.person else asked)


def theme(request: Request, visitor: Visitor) -> str:
    """`light`, `dark`, or `auto`: as the system has it."""
    chosen = visitor.person.theme if visitor.person else request.cookies.get(THEME_COOKIE, "auto")
    return chosen if chosen in THEMES else "auto"


def named() -> list[tuple[str, str]]:
    """(code, own name) of every language."""
    return [(code, load(code)("site.language")) for code in languages()]


def when(at: int) -> Markup:
    """A time in milliseconds as an element; the page's script writes it in the reader's own zone."""
    moment = datetime.fromtimestamp(at / 1000, UTC)
    return Markup('<time datetime="{}">{}</time>').format(moment.isoformat(timespec="seconds"), f"{moment:%Y-%m-%d %H:%M} UTC")


def sentence(words: Words, key: str, **values: Any) -> Markup:
    """A sentence whose slots may hold elements; everything else is escaped."""
    return escape(words.sentences[key]).format(**values)


TEMPLATES.filters["when"] = when
TEMPLATES.globals["sentence"] = sentence


def answer_problem(request: Request, problem: Exception) -> Response:
    """A refusal: JSON under /api, a page elsewhere; where something else comes first, the page leads there."""
    assert isinstance(problem, Problem)
    try:
        visitor = who(request)
    except Problem:
        visitor = Visitor()
    said = language(request, visitor)(f"problem.{problem.code}", **problem.values)
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": problem.code, "message": said, "detail": problem.values}, status_code=problem.status)
    onward = ONWARD.get(problem.code, "").format(**problem.values)
    if problem.code == "sign_in" and request.method == "GET":
        onward += "?" + urlencode({"next": request.url.path + (f"?{request.url.query}" if request.url.query else "")})
    return page(request, visitor, "problem.html", status=problem.status, message=said, code=problem.code, onward=onward)


def answer_invalid(request: Request, error: Exception) -> Response:
    """A form or a body that cannot be read as what was asked for: which field, and what is wrong with it."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path", "header"))
    return answer_problem(
        request, Problem(422, "bad_field", field=field[:100], wrong=str(first["msg"]).removeprefix("Value error, ")[:300])
    )


def answer_http(request: Request, error: Exception) -> Response:
    """An address or a method that does not exist."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "no_such_method", 413: "too_large"}.get(error.status_code, "bad_request")
    return answer_problem(request, Problem(error.status_code, code))


def answer_failure(request: Request, _: Exception) -> Response:
    """A fault of ours. The log has the traceback; people read that nothing was changed."""
    return answer_problem(request, Problem(500, "failed"))


def redirect(to: str) -> RedirectResponse:
    """On to another page after a form has done its work."""
    return RedirectResponse(to, status_code=303)
