"""Rendering of templates, redirects, and the application's error handlers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from instructgpt.label import safe_text
from instructgpt.label.auth.dependencies import Principal, get_current_principal, get_site
from instructgpt.label.auth.passwords import HASHING_POOL
from instructgpt.label.db.database import is_busy, is_duplicate_key
from instructgpt.label.errors import SiteError
from instructgpt.label.i18n import Translator, list_languages, load_translator, negotiate_language
from instructgpt.label.markdown import render_markdown
from instructgpt.label.tasks.forms import PROMPT_LABELS
from instructgpt.label.tasks.questions import LabelQuestion
from instructgpt.label.tasks.task_view import QuestionView
from instructgpt.label.web import charts
from instructgpt.label.web.public_address import prefix_links

_LOGGER = logging.getLogger(__name__)
LABEL_FOLDER = Path(__file__).parent
_REQUIRED_PAGES = {
    "sign_in": "/sign-in",
    "consent_needed": "/consent",
    "second_factor_needed": "/account/second-factor",
    "read_instructions": "/instructions/{purpose}",
}
"""Error code to the page where the visitor can do what is missing."""
_TEMPLATES = Environment(
    loader=FileSystemLoader(LABEL_FOLDER / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= {
    "plain": safe_text.escape_text,
    "rendered": render_markdown,
    "first_line": safe_text.one_line_preview,
    "is_long": safe_text.is_long_text,
    "halves": safe_text.split_long_text,
    "browser": safe_text.format_user_agent,
}

_RETRY_AFTER_S = 2
_SIGN_IN_PATHS = ("/sign-in", "/api/v1/sign-in")
LANGUAGE_COOKIE, THEME_COOKIE = "language", "theme"
THEMES = ("auto", "light", "dark")


def render_page(request: Request, template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """Render a template in the visitor's language.

    Besides `values`, templates see `t` (the catalogue), `visitor` (a Principal), `path`, `theme` and `languages`.
    """
    principal = get_current_principal(request)
    theme = principal.person.theme if principal.person else request.cookies.get(THEME_COOKIE, "auto")
    html = _TEMPLATES.get_template(template).render(
        t=get_translator(request),
        visitor=principal,
        path=request.url.path,
        theme=theme if theme in THEMES else "auto",
        languages=[(code, load_translator(code)("site.language")) for code in list_languages()],
        **values,
    )
    return HTMLResponse(prefix_links(html, get_site(request).settings.base_path), status_code=status)


def get_translator(request: Request) -> Translator:
    """Return the catalogue of the account's language, or else of the language cookie or the Accept-Language header."""
    person = get_current_principal(request).person
    accepted = request.cookies.get(LANGUAGE_COOKIE) or request.headers.get("accept-language", "")
    return negotiate_language(person.language if person else accepted)


def translate_error(request: Request, error: SiteError) -> str:
    """Return the sentence of the catalogue for an error."""
    return get_translator(request)(f"problem.{error.code}", **error.values)


def _time_element(time_ms: int) -> Markup:
    # page.js rewrites the text in the reader's time zone
    utc_time = datetime.fromtimestamp(time_ms / 1000, UTC)
    attribute, text = utc_time.isoformat(timespec="seconds"), f"{utc_time:%Y-%m-%d %H:%M} UTC"
    return Markup('<time datetime="{}">{}</time>').format(attribute, text)


def _day_element(time_ms: int) -> Markup:
    # page.js writes the day, which is one of UTC, in the page's language
    return Markup('<time datetime="{0}">{0}</time>').format(f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d}")


def _translate_markup(translator: Translator, key: str, **values: Any) -> Markup:
    """Fill a sentence's slots with HTML elements; strings are escaped."""
    return escape(translator.messages[key]).format(**values)


def localize(texts: Mapping[str, str], language: str) -> str:
    """Return the text of a language, else the English or the first one; empty without any."""
    return texts.get(language) or texts.get("en") or next(iter(texts.values()), "")


def question_text(
    translator: Translator, question: QuestionView | LabelQuestion | str, *, is_short: bool = False
) -> str:
    """Return a question's text: the batch's own, or that of the catalogue; an unknown name stays."""
    if not isinstance(question, str) and question.text:
        texts = question.short if is_short and question.short else question.text
        return localize(texts, translator.language)
    name = question.name if isinstance(question, QuestionView) else str(question)
    suffix = "_short" if is_short else ""
    sections = (f"labels{suffix}", f"questions{suffix}")
    return next(
        (translator.messages[key] for key in (f"{part}.{name}" for part in sections) if key in translator.messages),
        name,
    )


def catalog_name(translator: Translator, section: str, name: str) -> str:
    """Return the catalog's word for a value that data may choose freely; an unknown value stays, without odd signs."""
    return translator.messages.get(f"{section}.{name}") or safe_text.show_invisible(name)


def label_name(translator: Translator, name: str, questions: Mapping[str, LabelQuestion | str]) -> str:
    """Return the short text of a question about a completion, a task or a prompt."""
    if name in PROMPT_LABELS:
        return catalog_name(translator, "prompt_labels", name)
    return question_text(translator, questions.get(name, name), is_short=True)


_TEMPLATES.filters |= {"when": _time_element, "day": _day_element}
_TEMPLATES.globals |= {
    "sentence": _translate_markup,
    "charts": charts,
    "question_text": question_text,
    "catalog_name": catalog_name,
    "label_name": label_name,
    "localize": localize,
}


def on_site_error(request: Request, error: Exception) -> Response:
    """Answer with JSON under /api/, with a page elsewhere, which links to a required step (sign-in, consent)."""
    assert isinstance(error, SiteError)
    try:
        get_current_principal(request)
    except SiteError:  # a bad API key must not raise again while its own error is rendered
        request.state.principal = Principal()
    message = translate_error(request, error)
    headers = {"Retry-After": str(error.values["retry_after"])} if "retry_after" in error.values else {}
    if request.url.path.startswith("/api/"):
        content = {"error": error.code, "message": message, "detail": error.values}
        return JSONResponse(content, status_code=error.status, headers=headers)
    next_path = _REQUIRED_PAGES.get(error.code, "").format(**error.values)
    if error.code == "sign_in" and request.method == "GET":
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        next_path += "?" + urlencode({"next": path})
    is_repeated = error.status == 503 and request.method == "GET"
    page = render_page(
        request,
        "error.html",
        status=error.status,
        message=message,
        code=error.code,
        next_path=next_path,
        repeat_after=error.values.get("retry_after") if is_repeated else None,
    )
    page.headers.update(headers)
    return page


def on_validation_error(request: Request, error: Exception) -> Response:
    """Answer 422 with the first invalid field and what is wrong with it."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path", "header"))
    reason = str(first["msg"]).removeprefix("Value error, ")
    return on_site_error(request, SiteError(422, "bad_field", field=field[:100], wrong=reason[:300]))


def on_http_error(request: Request, error: Exception) -> Response:
    """Answer the framework's own errors (404, 405, 413 ...) as those of the site."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "no_such_method", 413: "too_large"}.get(error.status_code, "bad_request")
    return on_site_error(request, SiteError(error.status_code, code))


def on_database_error(request: Request, error: Exception) -> Response:
    """Answer 503 for a database that is busy for a moment and 409 for a race to the same key; other errors are 500."""
    if is_busy(error):
        return on_site_error(request, SiteError(503, "busy", retry_after=_RETRY_AFTER_S))
    if is_duplicate_key(error):
        _LOGGER.warning("%s %s: another request stored the same key", request.method, request.url.path)
        return on_site_error(request, SiteError(409, "made_meanwhile"))
    raise error


class BusySignIn:
    """ASGI middleware that refuses sign-ins beyond the queue of hashes before a thread or the database is used."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_sign_in = scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in _SIGN_IN_PATHS
        if not (is_sign_in and HASHING_POOL.is_full()):
            await self.app(scope, receive, send)
            return
        headers = {"Retry-After": str(_RETRY_AFTER_S)}
        message = negotiate_language(Headers(scope=scope).get("accept-language", ""))("problem.busy")
        answer: Response = HTMLResponse(
            f"<!doctype html><main><p role=alert>{escape(message)}</p></main>", 503, headers
        )
        if scope["path"].startswith("/api/"):
            detail = {"retry_after": _RETRY_AFTER_S}
            answer = JSONResponse({"error": "busy", "message": message, "detail": detail}, 503, headers)
        await answer(scope, receive, send)


class TooLargePage:
    """ASGI middleware that answers a body above the limit with the site's own page instead of the framework's text."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_replaced = False

        async def replace_plain_answer(message: Message) -> None:
            nonlocal is_replaced
            if message["type"] == "http.response.start" and message["status"] == 413:
                content_type = Headers(raw=message["headers"]).get("content-type", "")
                is_replaced = content_type.startswith("text/plain")
                if is_replaced:
                    page = await run_in_threadpool(on_site_error, Request(scope), SiteError(413, "too_large"))
                    await page(scope, receive, send)
            if not is_replaced:
                await send(message)

        await self.app(scope, receive, replace_plain_answer)


def on_server_error(request: Request, _: Exception) -> Response:
    """Answer 500 without details; the log has the traceback."""
    return on_site_error(request, SiteError(500, "failed"))


def redirect(path: str) -> RedirectResponse:
    """Redirect with 303: the browser follows with GET, so reloading does not post again."""
    return RedirectResponse(path, status_code=303)
