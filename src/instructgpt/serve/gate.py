"""Who may send a request: key, rate, host, and no pages of other sites."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from instructgpt.errors import InputError, one_line
from instructgpt.network import is_loopback
from instructgpt.serve.errors import APIError
from instructgpt.serve.keys import APIKey, KeyFile
from instructgpt.serve.metrics import RequestCounts
from instructgpt.serve.rate_limit import RateLimiter

_OPEN_PATHS = frozenset({"/health"})


@dataclass(slots=True)
class Gate:
    """What is checked before a request is read.

    Attributes:
        keys: without it requests need no key, and must name a loopback host.
    """

    keys: KeyFile | None = None
    limiter: RateLimiter | None = None
    max_body_bytes: int = 4 * 2**20

    def check_origin(self, request: Request) -> None:
        """Raise APIError for what a browser sends for the page of another site.

        Without keys, a page could also reach a loopback address under a name of its own.
        """
        host = request.headers.get("host", "")
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise APIError(403, "requests from pages of other sites are refused", code="cross_origin")
        if self.keys is None and not is_loopback(_host_name(host)):
            message = "without keys only loopback addresses are served; make a key with 'instructgpt serve keys add'"
            raise APIError(403, message, code="not_loopback")

    def find_key(self, request: Request) -> APIKey | None:
        """Return the key of a request, None where the server needs none.

        Raises:
            APIError: the key is missing or unknown, or the file of keys cannot be read now.
        """
        if self.keys is None or request.url.path in _OPEN_PATHS:
            return None
        scheme, _, value = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not value.strip():
            raise APIError(401, "send your key as 'Authorization: Bearer KEY'", code="missing_api_key", headers=_BEARER)
        try:
            key = self.keys.find(value.strip())
        except (InputError, OSError) as error:
            raise APIError(
                503, f"the keys cannot be read now ({one_line(error, 200)})", code="keys_unreadable"
            ) from error
        if key is None:
            raise APIError(401, "the key is unknown or revoked", code="invalid_api_key", headers=_BEARER)
        return key

    def check_rate(self, key: APIKey | None) -> None:
        """Count a request. Raises APIError where the key has sent too many within a minute."""
        wait_s = self.limiter.take(key.name if key else "") if self.limiter else 0
        if wait_s:
            assert self.limiter is not None
            message = f"more than {self.limiter.requests_per_minute} requests a minute; try again in {wait_s} s"
            raise APIError(429, message, code="rate_limit_exceeded", headers={"Retry-After": str(wait_s)})

    async def read_body(self, request: Request) -> Any:
        """Return the JSON of a request.

        Raises:
            APIError: it is too large, or no JSON.
        """
        limit = self.max_body_bytes
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > limit:
                raise APIError(413, f"the request is larger than {limit} bytes", code="request_too_large")
        try:
            value = json.loads(body, parse_constant=_refuse_constant)
            if b"\\ud" in body.lower():
                json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no text
        except (ValueError, RecursionError) as error:
            raise APIError(400, f"the body is not valid JSON ({one_line(error, 100)})", code="invalid_json") from error
        return value


_BEARER = {"WWW-Authenticate": "Bearer"}


def format_error(error: APIError) -> JSONResponse:
    return JSONResponse(error.body, error.status, headers=error.headers)


class GateMiddleware:
    """Checks a request before it reaches its route; `request.state.key` is then its key. Counts answers by status."""

    def __init__(self, app: ASGIApp, gate: Gate, counts: RequestCounts, paths: Collection[str]) -> None:
        self.app, self.gate, self.counts, self.paths = app, gate, counts, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def counting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in self.paths else "other"
                self.counts[path, message["status"]] += 1
            await send(message)

        request = Request(scope)
        try:
            self.gate.check_origin(request)
            request.state.key = self.gate.find_key(request)
        except APIError as error:
            await format_error(error)(scope, receive, counting_send)
            return
        await self.app(scope, receive, counting_send)


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
