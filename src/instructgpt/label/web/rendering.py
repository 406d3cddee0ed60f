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
from instructgpt.label.auth.dependencies import Principal, get_current_principal
from instructgpt.label.errors import SiteError
from instructgpt.label.i18n import Translator, list_languages, load_translator, negotiate_language

LABEL_FOLDER = Path(__file__).parent
_REQUIRED_PAGES = {"sign_in": "/sign-in", "consent_needed": "/consent", "read_instructions": "/instructions/{purpose}"}
"""Where a person must go first when something is refused."""
_TEMPLATES = Environment(
    loader=FileSystemLoader(LABEL_FOLDER / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= {
    "plain": safe_text.escape_text,
    "rendered": safe_text.render_markdown,
    "first_line": safe_text.one_line_preview,
    "is_long": safe_text.is_long_text,
    "halves": safe_text.split_long_text,
    "browser": safe_text.format_user_agent,
}

LANGUAGE_COOKIE, THEME_COOKIE = "language", "theme"
THEMES = ("auto", "light", "dark")


def render_page(
    request: Request, principal: Principal, template: str, status: int = 200, **values: Any
) -> HTMLResponse:
    """A template as a page, in the visitor's language. Templates know `t` (the catalogue), `visitor`, `csrf`, `path`, `theme`."""
    translator = get_translator(request, principal)
    csrf = principal.user_session.csrf if principal.user_session else ""
    html = _TEMPLATES.get_template(template).render(
        t=translator,
        visitor=principal,
        csrf=csrf,
        path=request.url.path,
        theme=get_theme(request, principal),
        languages=_language_names(),
        **values,
    )
    return HTMLResponse(html, status_code=status)


def get_translator(request: Request, principal: Principal) -> Translator:
    """The catalogue for a visitor: the language they chose, otherwise what their browser asks for."""
    requested_language = request.cookies.get(LANGUAGE_COOKIE) or request.headers.get("accept-language", "")
    return negotiate_language(principal.person.language if principal.person else requested_language)


def get_theme(request: Request, principal: Principal) -> str:
    """`light`, `dark`, or `auto`: as the system has it."""
    selected_theme = principal.person.theme if principal.person else request.cookies.get(THEME_COOKIE, "auto")
    return selected_theme if selected_theme in THEMES else "auto"


def _language_names() -> list[tuple[str, str]]:
    """(code, own name) of every language."""
    return [(code, load_translator(code)("site.language")) for code in list_languages()]


def _time_element(time_ms: int) -> Markup:
    """A time in milliseconds as an element; the page's script writes it in the reader's own zone."""
    utc_time = datetime.fromtimestamp(time_ms / 1000, UTC)
    return Markup('<time datetime="{}">{}</time>').format(
        utc_time.isoformat(timespec="seconds"), f"{utc_time:%Y-%m-%d %H:%M} UTC"
    )


def _translate_markup(translator: Translator, key: str, **values: Any) -> Markup:
    """A sentence whose slots may hold elements; everything else is escaped."""
    return escape(translator.messages[key]).format(**values)


_TEMPLATES.filters["when"] = _time_element
_TEMPLATES.globals["sentence"] = _translate_markup


def on_site_error(request: Request, problem: Exception) -> Response:
    """A refusal: JSON under /api, a page elsewhere; where something else comes first, the page leads there."""
    assert isinstance(problem, SiteError)
    try:
        principal = get_current_principal(request)
    except SiteError:
        principal = Principal()
    message = get_translator(request, principal)(f"problem.{problem.code}", **problem.values)
    if request.url.path.startswith("/api/"):
        return JSONResponse(
            {"error": problem.code, "message": message, "detail": problem.values}, status_code=problem.status
        )
    next_path = _REQUIRED_PAGES.get(problem.code, "").format(**problem.values)
    if problem.code == "sign_in" and request.method == "GET":
        next_path += "?" + urlencode(
            {"next": request.url.path + (f"?{request.url.query}" if request.url.query else "")}
        )
    return render_page(
        request, principal, "problem.html", status=problem.status, message=message, code=problem.code, onward=next_path
    )


def on_validation_error(request: Request, error: Exception) -> Response:
    """A form or a body that cannot be read as what was asked for: which field, and what is wrong with it."""
    assert isinstance(error, RequestValidationError)
    first_error = error.errors()[0]
    field = ".".join(str(part) for part in first_error["loc"] if part not in ("body", "query", "path", "header"))
    return on_site_error(
        request,
        SiteError(
            422, "bad_field", field=field[:100], wrong=str(first_error["msg"]).removeprefix("Value error, ")[:300]
        ),
    )


def on_http_error(request: Request, error: Exception) -> Response:
    """An address or a method that does not exist."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "no_such_method", 413: "too_large"}.get(error.status_code, "bad_request")
    return on_site_error(request, SiteError(error.status_code, code))


def on_server_error(request: Request, _: Exception) -> Response:
    """A fault of ours. The log has the traceback; people read that nothing was changed."""
    return on_site_error(request, SiteError(500, "failed"))


def redirect(path: str) -> RedirectResponse:
    """On to another page after a form has done its work."""
    return RedirectResponse(path, status_code=303)
