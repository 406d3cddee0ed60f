"""JSON requests to an HTTP service (an LLM judge, a toxicity scorer): concurrent, with bounded retries.

A retryable failure is repeated after an exponential backoff or the service's `Retry-After`. A request that keeps failing is
returned as an error, never as a value. After several consecutive failures the service counts as down and no more requests start;
results up to then are kept. The key comes from the environment, goes into one header, and is never written.
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
        """Build an endpoint whose key is in an environment variable. Raise InputError if address or key are unusable."""
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise InputError(f"{url}: no address of an endpoint ({error}); expected http://… or https://…") from error
        if parsed.userinfo:
            raise InputError(
                f"{parsed.host}: an address must hold no password, for addresses are written into results; use a key"
            )
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise InputError(f"{url}: no address of an endpoint; expected http://… or https://…")
        if key_variable is None:
            return cls(url, None, **options)
        key = os.environ.get(key_variable, "").strip()
        if not key:
            raise InputError(
                f"the environment variable {key_variable}, which should hold the endpoint's key, is not set"
            )
        if not (key.isascii() and key.isprintable()):
            raise InputError(
                f"the environment variable {key_variable} holds no key: there are characters in it that no header may have"
            )
        return cls(url, key, **options)

    @property
    def name(self) -> str:
        """The address without query string and fragment, which may hold secrets."""
        return str(httpx.URL(self.url).copy_with(query=None, fragment=None)).rstrip("/")

    def url_for(self, path: str = "") -> httpx.URL:
        url = httpx.URL(self.url)
        return url.copy_with(path="/".join(part for part in (url.path.rstrip("/"), path) if part) or "/")


def post_json(endpoint: Endpoint, path: str, payload: Mapping[str, Any], parse: Callable[[Any], _T]) -> _T:
    for _, result in post_all(endpoint, path, {0: payload}, parse):
        if isinstance(result, EndpointError):
            raise result
        return result
    raise AssertionError("every question is answered or not")


def post_all(
    endpoint: Endpoint, path: str, payloads: Mapping[_K, Mapping[str, Any]], parse: Callable[[Any], _T]
) -> Iterator[tuple[_K, _T | EndpointError]]:
    """Yield (key, parsed answer or error) of each payload as answers arrive.

    An exception of `parse` (ValueError, KeyError, IndexError, TypeError) means a malformed answer, which is retried. Raise RunError if
    the service is down, rejects the key, or failed too often in a row; everything answered was yielded before.
    """
    consecutive_failures = answered_count = 0
    outage: EndpointError | None = None
    with httpx.Client(
        headers={"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}, timeout=endpoint.timeout_s
    ) as http:
        client = _RetryingClient(endpoint, endpoint.url_for(path), http)
        for key, future in _iter_completed(client, payloads, parse):
            try:
                result: _T | EndpointError = future.result()
                consecutive_failures, answered_count = 0, answered_count + 1
            except EndpointError as error:
                result, consecutive_failures = error, consecutive_failures + 1
                if error.permanent or consecutive_failures >= min(MAX_CONSECUTIVE_FAILURES, len(payloads)):
                    outage = outage or error
                    client.closed.set()  # who waits for another try gives up; what is on its way still counts
            yield key, result
    if outage is not None:
        raise RunError(
            f"{outage}; {answered_count} of {len(payloads)} questions were answered, the same command asks the others"
        )


def _iter_completed(
    client: _RetryingClient, payloads: Mapping[_K, Mapping[str, Any]], parse: Callable[[Any], _T]
) -> Iterator[tuple[_K, Future[_T]]]:
    """Submit payloads, at most `max_concurrency` at a time, and yield them when done; submit none after `client.closed`."""
    queue = iter(payloads.items())
    pending: dict[Future[_T], _K] = {}
    executor = ThreadPoolExecutor(client.endpoint.max_concurrency, thread_name_prefix="endpoint")
    try:
        while True:
            while (
                not client.closed.is_set()
                and len(pending) < client.endpoint.max_concurrency
                and (item := next(queue, None)) is not None
            ):
                pending[executor.submit(client.post_with_retries, item[1], parse)] = item[0]
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
            except (ValueError, KeyError, IndexError, TypeError) as error:
                failure = _RetryLaterError(
                    f"{endpoint.name}: answers with something else than was expected ({type(error).__name__}: {_shorten(error)})"
                )
            except _RetryLaterError as error:
                failure = error
            if failure.retry_after_s is not None:
                if failure.retry_after_s > endpoint.max_retry_after_s:
                    raise EndpointError(
                        f"{failure} and asks to wait {failure.retry_after_s:.0f} s; try again later", permanent=True
                    )
                self.blocked_until_s = max(self.blocked_until_s, time.monotonic() + failure.retry_after_s)
            delay_s = min(MAX_BACKOFF_S, endpoint.backoff_s * 2 ** (attempt - 1)) * random.uniform(0.75, 1.25)
            if attempt == endpoint.max_attempts or self.closed.wait(delay_s if failure.retry_after_s is None else 0.0):
                break
        raise EndpointError(f"{failure} (tried {attempt} times)" if attempt > 1 else str(failure))

    def read_body(self, answer: httpx.Response) -> bytes:
        deadline_s, body = time.monotonic() + self.endpoint.timeout_s, bytearray()
        for block in answer.iter_bytes():
            body += block
            if time.monotonic() > deadline_s:
                raise _RetryLaterError(f"{self.endpoint.name}: no whole answer within {self.endpoint.timeout_s:g} s")
            if len(body) > _MAX_BODY_BYTES:
                raise EndpointError(f"{self.endpoint.name}: answers with more than {_MAX_BODY_BYTES >> 20} MiB")
        return bytes(body)

    def post_once(self, payload: Mapping[str, Any]) -> Any:
        endpoint = self.endpoint
        try:
            with self.http.stream("POST", self.url, json=payload) as answer:
                body = self.read_body(answer)
        except httpx.TimeoutException as error:
            raise _RetryLaterError(f"{endpoint.name}: no answer within {endpoint.timeout_s:g} s") from error
        except httpx.HTTPError as error:
            raise _RetryLaterError(
                f"{endpoint.name}: cannot be reached ({_shorten(error) or type(error).__name__})"
            ) from error
        if (status := answer.status_code) != 200:
            excerpt = _shorten(
                body.decode("utf-8", "replace").replace(endpoint.key or "\0", "…")
            )  # it may repeat a key it does not like
            message = f"{endpoint.name}: answers {status}" + (f" ({excerpt})" if excerpt else "")
            if status in _RETRYABLE_STATUSES:
                raise _RetryLaterError(message, _parse_retry_after(answer.headers.get("retry-after")))
            if 300 <= status < 400:
                raise EndpointError(
                    f"{endpoint.name}: answers {status}: it has moved; give its new address", permanent=True
                )
            hint = "; look at the address, the key and the model's name" if status in _PERMANENT_STATUSES else ""
            raise EndpointError(message + hint, permanent=status in _PERMANENT_STATUSES)
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise _RetryLaterError(f"{endpoint.name}: answers with something that is not JSON") from error


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
