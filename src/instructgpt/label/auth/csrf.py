"""Protection against cross-site request forgery by request headers.

Threat model: `docs/explanation/site-security.md`.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import Request

from instructgpt.label.auth.dependencies import get_site
from instructgpt.label.errors import SiteError

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


def csrf_protect(request: Request) -> None:
    """Refuse a state-changing request that another site made a browser send. A dependency of the whole application.

    Raises:
        SiteError: 403 `forged_fetch` or `forged_origin`; the message names the header, and the setting to change.
    """
    # A request with an API key is not authenticated by a cookie, see get_current_principal: nothing can be forged.
    if request.method in _SAFE_METHODS or "authorization" in request.headers:
        return
    fetch_site = request.headers.get("sec-fetch-site")
    if fetch_site is not None:
        # "none": a typed address or a bookmark. "same-site" is refused: a sibling subdomain may be someone else's.
        if fetch_site not in ("same-origin", "none"):
            raise SiteError(403, "forged_fetch", value=fetch_site[:40])
        return
    # Browsers older than Fetch Metadata, and all browsers on plain http, send only Origin. Neither header: refused.
    origin, public_url = request.headers.get("origin"), get_site(request).settings.public_url
    expected = _url_origin(public_url) if public_url else f"{request.url.scheme}://{request.headers.get('host', '')}"
    if origin is None or origin.lower() != expected.lower():
        raise SiteError(403, "forged_origin", value=(origin or "-")[:200], expected=expected)


def _url_origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
