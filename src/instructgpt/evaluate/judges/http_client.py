"""JSON requests to an HTTP service (an LLM judge, a toxicity scorer): concurrent, with bounded retries.

A retryable failure is repeated after an exponential backoff or the service's `Retry-After`. A request that keeps
failing is returned as an error, never as a value. After several consecutive failures the service counts as down and no
more requests start; results up to then are kept. The key comes from the environment, goes into one header, and is never
written.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import Any, Self, TypeVar

import httpx

from instructgpt.errors import InputError, RunError

_K = TypeVar("_K", bound=Hashable)
_T = TypeVar("_T")

_RETRYABLE_STATUSES = (408, 409, 425, 429, 500, 502, 503, 504, 529)
_PERMANENT_STATUSES = (401, 402, 403, 404, 405, 410)
"""Every other request would fail in the same way."""
MAX_CONSECUTIVE_FAILURES = 4
_MAX_BODY_BYTES = 8 << 20
MAX_BACKOFF_S = 30.0


class EndpointError(Exception):
    """A request that failed for good. `permanent`: every other request would fail, too."""

    def __init__(self, message: str, permanent: bool = False) -> None:
        super().__init__(message)
        self.permanent = permanent


class _RetryLaterError(Exception):
    """A failed attempt worth repeating, after `retry_after_s` seconds if the service says so."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Address of a service and its retry policy. The query string of `url` and the key are sent but never shown.

    Args:
        timeout_s: limit of one attempt, including the body.
        backoff_s: delay before the second attempt; doubled each time, with jitter.
        max_retry_after_s: a `Retry-After` beyond this means that the service is down.
        max_concurrency: requests in flight.
    """

    url: str
    key: str | None = field(default=None, repr=False)
    timeout_s: float = 120.0
    max_attempts: int = 5
    backoff_s: float = 1.0
    max_retry_after_s: float = 120.0
    max_concurrency: int = 4

    @classmethod
    def from_url(cls, url: str, key_variable: str | None = None, **options: Any) -> Self:
        """Build an endpoint whose key is in an environment variable. Raise InputError if it cannot be used."""
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise InputError(f"{url}: invalid address ({error}); expected http://… or https://…") from error
        if parsed.userinfo:
            raise InputError(f"{parsed.host}: addresses are written into results and must hold no password; use a key")
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise InputError(f"{url}: invalid address; expected http://… or https://…")
        if key_variable is None:
            return cls(url, None, **options)
        key = os.environ.get(key_variable, "").strip()
        if not key:
            raise InputError(f"the environment variable {key_variable} with the endpoint's key is not set")
        if not (key.isascii() and key.isprintable()):
            raise InputError(f"the environment variable {key_variable} has characters that are invalid in a header")
        return cls(url, key, **options)

    @property
    def name(self) -> str:
        """The address without query string and fragment, which may hold secrets."""
        return str(httpx.URL(self.url).copy_with(query=None, fragment=None)).rstrip("/")

    def url_for(self, path: str = "") -> httpx.URL:
        url = httpx.URL(self.url)
        return url.copy_with(path="/".join(part for part in (url.path.rstrip("/"), path) if part) or "/")


_REJECTION_WORDS = (
    "unsupported",
    "not supported",
    "not permitted",
    "forbidden",
    "unknown",
    "unrecognized",
    "unexpected",
)


@dataclass(slots=True)
class FieldFallback:
    """A request field that some services reject. Once one has, requests carry its value as `fallback` instead."""

    name: str
    fallback: str
    rejected: bool = False

    def apply(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        return {self.fallback if self.rejected and key == self.name else key: value for key, value in payload.items()}

    def is_rejected_by(self, payload: Mapping[str, Any], status: int, body: str) -> bool:
        """Return whether an error's body says that the service does not know the field, rather than its value."""
        text = body.lower()
        if status not in (400, 422) or self.name not in payload or self.name not in text:
            return False
        return self.fallback in text or any(word in text for word in _REJECTION_WORDS)


def post_all(
    endpoint: Endpoint,
    path: str,
    payloads: Mapping[_K, Mapping[str, Any]],
    parse: Callable[[Any], _T],
    fallback: FieldFallback | None = None,
) -> Iterator[tuple[_K, _T | EndpointError]]:
    """Yield (key, parsed answer or error) of each payload as answers arrive.

    A ValueError, LookupError, TypeError or AttributeError of `parse` means a malformed answer, which is retried. Raise
    RunError if the service is down, rejects the key, or failed too often in a row; everything answered was
    yielded before.
    """
    consecutive_failures = answered_count = 0
    outage: EndpointError | None = None
    headers = {"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}
    with httpx.Client(headers=headers, timeout=endpoint.timeout_s) as http:
        client = _RetryingClient(endpoint, endpoint.url_for(path), http, fallback)
        for key, future in _iter_completed(client, payloads, parse):
            try:
                result: _T | EndpointError = future.result()
                consecutive_failures, answered_count = 0, answered_count + 1
            except EndpointError as error:
                result, consecutive_failures = error, consecutive_failures + 1
                if error.permanent or consecutive_failures >= min(MAX_CONSECUTIVE_FAILURES, len(payloads)):
                    outage = outage or error
                    client.closed.set()  # ends waits for another attempt; requests in flight still count
            yield key, result
    if outage is not None:
        raise RunError(f"{outage}; {answered_count} of {len(payloads)} requests were answered; rerun to send the rest")


def _iter_completed(
    client: _RetryingClient, payloads: Mapping[_K, Mapping[str, Any]], parse: Callable[[Any], _T]
) -> Iterator[tuple[_K, Future[_T]]]:
    """Submit payloads, `max_concurrency` at a time, and yield them when done; submit none after `client.closed`."""
    queue = iter(payloads.items())
    pending: dict[Future[_T], _K] = {}
    max_concurrency = client.endpoint.max_concurrency
    executor = ThreadPoolExecutor(max_concurrency, thread_name_prefix="endpoint")
    try:
        while True:
            # submit only what can start: a queue inside the executor could not be stopped by `closed`
            num_free = 0 if client.closed.is_set() else max_concurrency - len(pending)
            for key, payload in islice(queue, num_free):
                pending[executor.submit(client.post_with_retries, payload, parse)] = key
            if not pending:
                return
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                yield pending.pop(future), future
    finally:
        client.closed.set()
        executor.shutdown(cancel_futures=True)


@dataclass(slots=True)
class _RetryingClient:
    """The state that the request threads share."""

    endpoint: Endpoint
    url: httpx.URL
    http: httpx.Client
    fallback: FieldFallback | None = None
    closed: threading.Event = field(default_factory=threading.Event)
    blocked_until_s: float = 0.0
    """End of a `Retry-After` pause, which applies to all threads (monotonic clock)."""

    def post_with_retries(self, payload: Mapping[str, Any], parse: Callable[[Any], _T]) -> _T:
        endpoint = self.endpoint
        for attempt in range(1, endpoint.max_attempts + 1):
            if (wait_s := self.blocked_until_s - time.monotonic()) > 0:
                self.closed.wait(wait_s)
            try:
                return parse(self.post_once(payload))
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                reason = f"{type(error).__name__}: {_shorten(error)}"
                failure = _RetryLaterError(f"{endpoint.name}: malformed answer ({reason})")
            except _RetryLaterError as error:
                failure = error
            retry_after_s = failure.retry_after_s
            if retry_after_s is not None:
                if retry_after_s > endpoint.max_retry_after_s:
                    message = f"{failure} and asks to wait {retry_after_s:.0f} s; try again later"
                    raise EndpointError(message, permanent=True)
                self.blocked_until_s = max(self.blocked_until_s, time.monotonic() + retry_after_s)
            # jitter keeps threads that failed together from retrying together
            delay_s = min(MAX_BACKOFF_S, endpoint.backoff_s * 2 ** (attempt - 1)) * random.uniform(0.75, 1.25)
            if attempt == endpoint.max_attempts or self.closed.wait(delay_s if retry_after_s is None else 0.0):
                break
        raise EndpointError(f"{failure} (tried {attempt} times)" if attempt > 1 else str(failure))

    def read_body(self, answer: httpx.Response) -> bytes:
        deadline_s, body = time.monotonic() + self.endpoint.timeout_s, bytearray()
        for block in answer.iter_bytes():
            body += block
            if time.monotonic() > deadline_s:
                raise _RetryLaterError(f"{self.endpoint.name}: incomplete answer after {self.endpoint.timeout_s:g} s")
            if len(body) > _MAX_BODY_BYTES:
                raise EndpointError(f"{self.endpoint.name}: answer exceeds {_MAX_BODY_BYTES >> 20} MiB")
        return bytes(body)

    def post_once(self, payload: Mapping[str, Any]) -> Any:
        endpoint, fallback = self.endpoint, self.fallback
        payload = fallback.apply(payload) if fallback else payload
        try:
            with self.http.stream("POST", self.url, json=payload) as answer:
                body = self.read_body(answer)
        except httpx.TimeoutException as error:
            raise _RetryLaterError(f"{endpoint.name}: no answer within {endpoint.timeout_s:g} s") from error
        except httpx.HTTPError as error:
            reason = _shorten(error) or type(error).__name__
            raise _RetryLaterError(f"{endpoint.name}: cannot be reached ({reason})") from error
        if (status := answer.status_code) != 200:
            text = body.decode("utf-8", "replace")
            if fallback and fallback.is_rejected_by(payload, status, text):
                fallback.rejected = True
                return self.post_once(payload)
            excerpt = _shorten(text.replace(endpoint.key or "\0", "…"))  # an error body may quote the key
            message = f"{endpoint.name}: answers {status}" + (f" ({excerpt})" if excerpt else "")
            if status in _RETRYABLE_STATUSES:
                raise _RetryLaterError(message, _parse_retry_after(answer.headers.get("retry-after")))
            if 300 <= status < 400:
                raise EndpointError(f"{endpoint.name}: has moved ({status}); use its new address", permanent=True)
            hint = "; check the address, the key and the model's name" if status in _PERMANENT_STATUSES else ""
            raise EndpointError(message + hint, permanent=status in _PERMANENT_STATUSES)
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise _RetryLaterError(f"{endpoint.name}: the answer is not JSON") from error


def _parse_retry_after(header: str | None) -> float | None:
    """Return seconds from a number or an HTTP date; None if the header is missing or invalid."""
    if header is None:
        return None
    try:
        seconds = float(header) if header.strip().isdigit() else parsedate_to_datetime(header).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return max(0.0, seconds)


def _shorten(value: object) -> str:
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in str(value)).split())
    return text if len(text) <= 160 else text[:159] + "…"
