"""The site as one ASGI application: pages for people, an API for programs, the same rules for both."""

from __future__ import annotations

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from instructgpt import __version__
from instructgpt.label.auth.csrf import protect
from instructgpt.label.auth.headers import SecurityHeaders
from instructgpt.label.context import Site
from instructgpt.label.errors import Problem
from instructgpt.label.web.api import ROUTERS as API
from instructgpt.label.web.pages import ROUTERS as PAGES
from instructgpt.label.web.rendering import FOLDER, answer_failure, answer_http, answer_invalid, answer_problem

MAX_BODY = 64 * 2**20
"""Bytes of a request; files people upload are the largest. Coming in needs much less, and says so on its routers."""


def create_app(site: Site) -> FastAPI:
    """Everything the site answers to."""
    app = FastAPI(
        title="instructgpt labelers' site",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        dependencies=[Depends(protect)],
        max_body_size=MAX_BODY,
    )
    app.state.site = site
    app.add_middleware(SecurityHeaders, secure=site.settings.secure)
    app.add_exception_handler(Problem, answer_problem)
    app.add_exception_handler(RequestValidationError, answer_invalid)
    app.add_exception_handler(HTTPException, answer_http)
    app.add_exception_handler(Exception, answer_failure)
    app.mount("/static", StaticFiles(directory=FOLDER / "static"), name="static")
    for router in (*API, *PAGES):
        app.include_router(router)
    return app
