"""The ASGI application: pages and API, with the same middleware, limits and error handlers."""

from __future__ import annotations

from typing import Any

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from instructgpt import __version__
from instructgpt.errors import InputError
from instructgpt.label.auth.csrf import csrf_protect
from instructgpt.label.auth.headers import SecurityHeaders
from instructgpt.label.context import Site
from instructgpt.label.errors import SiteError
from instructgpt.label.playground.runtime import Playground
from instructgpt.label.web.api import API_ROUTERS as API
from instructgpt.label.web.pages import PAGE_ROUTERS as PAGES
from instructgpt.label.web.public_address import PublicAddress
from instructgpt.label.web.rendering import (
    LABEL_FOLDER,
    BusySignIn,
    TooLargePage,
    on_database_error,
    on_http_error,
    on_server_error,
    on_site_error,
    on_validation_error,
)

_MAX_BODY_BYTES = 64 * 2**20
"""Limit of a request's body, for uploads. Routers that need no sign-in set a lower one."""


class _SiteApplication(FastAPI):
    """The application with its outer layers, which also see what the framework answers by itself (413, 500)."""

    def __init__(self, site: Site, **options: Any) -> None:
        super().__init__(**options)
        self.state.site = site
        self.state.playground = Playground(site.settings) if site.settings.endpoint is not None else None
        pages = BusySignIn(TooLargePage(super().__call__))
        self._outer_layer = SecurityHeaders(PublicAddress(pages, site.settings.public_url), site.settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._outer_layer(scope, receive, send)


def create_app(site: Site) -> FastAPI:
    """Create the application of a site."""
    app = _SiteApplication(
        site,
        title="instructgpt labelers' site",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        dependencies=[Depends(csrf_protect)],
        max_body_size=_MAX_BODY_BYTES,
    )
    app.add_exception_handler(SiteError, on_site_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(SQLAlchemyError, on_database_error)
    app.add_exception_handler(Exception, on_server_error)
    app.mount("/static", StaticFiles(directory=LABEL_FOLDER / "static"), name="static")
    for router in (*API, *PAGES):
        app.include_router(router)
    _check_base_path(site.settings.base_path)
    return app


def _check_base_path(base_path: str) -> None:
    """Raise InputError when the first part of a sub path is also one of the site's own."""
    first_parts = {"static"} | {
        str(getattr(route, "path", "/")).split("/")[1] for router in (*API, *PAGES) for route in router.routes
    }
    if base_path and base_path.split("/")[1] in first_parts:
        raise InputError(f"--public-url: the site has a page {base_path}; choose another sub path, such as /labels/")
