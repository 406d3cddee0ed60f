"""The public address of a site behind a reverse proxy: check the host, and serve below a sub path.

Routes, pages and redirects use paths from the root. Below a sub path (`https://host/label/`) the middleware removes it
from requests, whether or not the proxy did, and adds it to redirects and cookies; `rendering` adds it to links.
"""

from __future__ import annotations

import json
import re
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_LINK_PATTERN = re.compile(r'(\s(?:href|src|action|formaction|data-done)=")/(?!/)')
"""Links from the root in the attributes of a tag."""
_TAG_PATTERN = re.compile(r"<[a-z][^<>]*>")
"""A tag that a template writes: in texts and attributes `<` is escaped."""
_COOKIE_PATH_PATTERN = re.compile(r"(;\s*path=)/(?=;|$)", re.IGNORECASE)


def prefix_links(html: str, base_path: str) -> str:
    """Return a page with its links from the root below `base_path`."""
    if not base_path:
        return html
    return _TAG_PATTERN.sub(lambda tag: _LINK_PATTERN.sub(rf"\g<1>{base_path}/", tag[0]), html)


class PublicAddress:
    """ASGI middleware for one public URL; None answers to every host, without a sub path."""

    def __init__(self, app: ASGIApp, public_url: str | None) -> None:
        self.app, self.public_url = app, public_url
        parts = urlsplit(public_url or "")
        self.host, self.base_path = _normalize_host(parts.netloc, parts.scheme), parts.path.rstrip("/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.public_url is None or scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        host = Headers(scope=scope).get("host", "")
        if not self._is_own_host(host):
            await _refuse_host(send, host, self.public_url)
            return
        if not self.base_path:
            await self.app(scope, receive, send)
            return

        async def send_with_base_path(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._add_base_path(message)
            await send(message)

        await self.app(self._strip_base_path(scope), receive, send_with_base_path)

    def _is_own_host(self, host: str) -> bool:
        # Proxies that do not forward the host send the address of the site itself, as checks of its health do. Pages of
        # other sites cannot: a browser sends the name that it looked up.
        return _normalize_host(host, urlsplit(self.public_url or "").scheme) == self.host or _is_loopback(host)

    def _strip_base_path(self, scope: Scope) -> Scope:
        path, raw_path = scope["path"], scope.get("raw_path") or scope["path"].encode()
        if path == self.base_path or path.startswith(f"{self.base_path}/"):
            raw_path = raw_path[len(self.base_path) :] or b"/"
            return {**scope, "path": path[len(self.base_path) :] or "/", "raw_path": raw_path}
        return scope

    def _add_base_path(self, message: Message) -> None:
        headers = MutableHeaders(scope=message)
        location = headers.get("location", "")
        if location.startswith("/") and not location.startswith("//"):
            headers["location"] = self.base_path + location
        message["headers"] = [
            (name, self._cookie_below_base_path(value) if name == b"set-cookie" else value)
            for name, value in message["headers"]
        ]

    def _cookie_below_base_path(self, value: bytes) -> bytes:
        return _COOKIE_PATH_PATTERN.sub(rf"\g<1>{self.base_path}", value.decode("latin-1")).encode("latin-1")


async def _refuse_host(send: Send, host: str, public_url: str) -> None:
    message = (
        f"this site is at {public_url}, not at the host '{host[:100]}'; let the proxy forward the host it was asked"
    )
    body = json.dumps({"error": "other_host", "message": message, "detail": {}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _normalize_host(host: str, scheme: str) -> str:
    """Return a host in lower case, without the default port of the scheme."""
    return host.lower().removesuffix({"https": ":443", "http": ":80"}.get(scheme, "")).rstrip(".")


def _is_loopback(host: str) -> bool:
    name = urlsplit(f"//{host}").hostname if host.isascii() and host.isprintable() else None
    if name is None:
        return False
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
