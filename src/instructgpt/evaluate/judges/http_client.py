"""Asking a service over HTTP, JSON in and JSON out: a judge model, a scorer of toxicity. Many questions, a few at a time.

What may work a little later is asked again, with growing pauses or the pause that the service asks for, and never without end. A question
that stays unanswered is a failure the caller sees, never a number; after several in a row the service counts as down and asking stops, so
that whatever was answered before can be kept. The key comes from the environment, goes into one header, and is written nowhere.
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

from instructgpt.errors import BadInput, RunFailed

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

LATER = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""Answers after which a little later it may work."""
HOPELESS = (401, 402, 403, 404, 405, 410)
"""Answers that every other question would get as well."""
IN_A_ROW = 4
"""So many questions one after the other without an answer, and the service counts as down."""
MOST_BYTES = 8 << 20
"""A longer answer is none."""
LONGEST_PAUSE = 30.0
"""Seconds between two tries, unless the service asks for more."""


class Unanswered(Exception):
    """One question was not answered, whatever was tried. `hopeless`: nor would any other be."""

    def __init__(self, message: str, hopeless: bool = False) -> None:
        super().__init__(message)
        self.hopeless = hopeless


class _Later(Exception):
    """A try that failed; another may not. `after` is how many seconds the service asks to wait."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a service is, and how patiently it is asked.

    Args:
        url: its address; what stands after a question mark is sent along and shown nowhere.
        key: goes into the header `Authorization: Bearer`; never shown.
        timeout: seconds that one try may take, all of it.
        tries: how often a question is asked at most.
        pause: seconds before the second try; doubled each time, and a little random.
        patience: seconds the service may ask to wait (`Retry-After`); where it asks for more, it counts as down.
        at_once: questions under way at a time.
    """

    url: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 120.0
    tries: int = 5
    pause: float = 1.0
    patience: float = 120.0
    at_once: int = 4

    @classmethod
    def at(cls, url: str, key_variable: str | None = None, **how: Any) -> Self:
        """An endpoint whose key is in an environment variable.

        Raises:
            BadInput: the address is none, or holds a password; the variable is not set, or no key.
        """
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise BadInput(f"{url}: no address of an endpoint ({error}); expected http://… or https://…") from error
        if parsed.userinfo:
            raise BadInput(f"{parsed.host}: an address must hold no password, for addresses are written into results; use a key")
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise BadInput(f"{url}: no address of an endpoint; expected http://… or https://…")
        if key_variable is None:
            return cls(url, None, **how)
        key = os.environ.get(key_variable, "").strip()
        if not key:
            raise BadInput(f"the environment variable {key_variable}, which should hold the endpoint's key, is not set")
        if not (key.isascii() and key.isprintable()):
            raise BadInput(f"the environment variable {key_variable} holds no key: there are characters in it that no header may have")
        return cls(url, key, **how)

    @property
    def name(self) -> str:
        """The address as it may be shown: without anything that could be a secret."""
        return str(httpx.URL(self.url).copy_with(query=None, fragment=None)).rstrip("/")

    def address(self, path: str = "") -> httpx.URL:
        """The address of something below the endpoint."""
        url = httpx.URL(self.url)
        return url.copy_with(path="/".join(part for part in (url.path.rstrip("/"), path) if part) or "/")


def ask(endpoint: Endpoint, path: str, question: Mapping[str, Any], read: Callable[[Any], T]) -> T:
    """One question's answer. Raises Unanswered."""
    for _, found in ask_all(endpoint, path, {0: question}, read):
        if isinstance(found, Unanswered):
            raise found
        return found
    raise AssertionError("every question is answered or not")


def ask_all(
    endpoint: Endpoint, path: str, questions: Mapping[K, Mapping[str, Any]], read: Callable[[Any], T]
) -> Iterator[tuple[K, T | Unanswered]]:
    """The answers as they come, in whatever order: (which question, what was read or why there is nothing).

    Args:
        path: below the endpoint's address.
        questions: JSON objects to post, by name.
        read: the answer's JSON to what is wanted; a ValueError, KeyError, IndexError or TypeError says that it is nonsense, which is asked
            again like any other failure.

    Raises:
        RunFailed: the service is down, refuses the key, or left so many questions in a row without an answer. Everything that was
            answered has been yielded before.
    """
    lost = answered = 0
    down: Unanswered | None = None
    with httpx.Client(headers={"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {}, timeout=endpoint.timeout) as http:
        counter = _Counter(endpoint, endpoint.address(path), http)
        for which, done in _as_they_come(counter, questions, read):
            try:
                found: T | Unanswered = done.result()
                lost, answered = 0, answered + 1
            except Unanswered as problem:
                found, lost = problem, lost + 1
                if problem.hopeless or lost >= min(IN_A_ROW, len(questions)):
                    down = down or problem
                    counter.closed.set()  # who waits for another try gives up; what is on its way still counts
            yield which, found
    if down is not None:
        raise RunFailed(f"{down}; {answered} of {len(questions)} questions were answered, the same command asks the others")


def _as_they_come(counter: _Counter, questions: Mapping[K, Mapping[str, Any]], read: Callable[[Any], T]) -> Iterator[tuple[K, Future[T]]]:
    """Every question handed in, a few at a time, when it is done; none any more once the counter is closed."""
    waiting = iter(questions.items())
    under_way: dict[Future[T], K] = {}
    workers = ThreadPoolExecutor(counter.endpoint.at_once, thread_name_prefix="endpoint")
    try:
        while True:
            while not counter.closed.is_set() and len(under_way) < counter.endpoint.at_once and (new := next(waiting, None)) is not None:
                under_way[workers.submit(counter.persistently, new[1], read)] = new[0]
            if not under_way:
                return
            for done in wait(under_way, return_when=FIRST_COMPLETED).done:
                yield under_way.pop(done), done
    finally:
        counter.closed.set()
        workers.shutdown(cancel_futures=True)


@dataclass(slots=True)
class _Counter:
    """Where questions are handed in, each by a thread of its own: what they share."""

    endpoint: Endpoint
    address: httpx.URL
    http: httpx.Client
    closed: threading.Event = field(default_factory=threading.Event)
    free_at: float = 0.0
    """When the service, which asked everybody to wait, may be asked again (monotonic clock)."""

    def persistently(self, question: Mapping[str, Any], read: Callable[[Any], T]) -> T:
        """Ask until there is an answer, or no sense in asking. Raises Unanswered."""
        endpoint = self.endpoint
        for attempt in range(1, endpoint.tries + 1):
            if (early := self.free_at - time.monotonic()) > 0:
                self.closed.wait(early)
            try:
                return read(self.once(question))
            except (ValueError, KeyError, IndexError, TypeError) as error:
                problem = _Later(
                    f"{endpoint.name}: answers with something else than was expected ({type(error).__name__}: {_short(error)})"
                )
            except _Later as error:
                problem = error
            if problem.after is not None:
                if problem.after > endpoint.patience:
                    raise Unanswered(f"{problem} and asks to wait {problem.after:.0f} s; try again later", hopeless=True)
                self.free_at = max(self.free_at, time.monotonic() + problem.after)
            pause = min(LONGEST_PAUSE, endpoint.pause * 2 ** (attempt - 1)) * random.uniform(0.75, 1.25)
            if attempt == endpoint.tries or self.closed.wait(pause if problem.after is None else 0.0):
                break
        raise Unanswered(f"{problem} (tried {attempt} times)" if attempt > 1 else str(problem))

    def body(self, answer: httpx.Response) -> bytes:
        """All of an answer, within the time and the size that it may have. Raises _Later or Unanswered."""
        until, body = time.monotonic() + self.endpoint.timeout, bytearray()
        for block in answer.iter_bytes():
            body += block
            if time.monotonic() > until:
                raise _Later(f"{self.endpoint.name}: no whole answer within {self.endpoint.timeout:g} s")
            if len(body) > MOST_BYTES:
                raise Unanswered(f"{self.endpoint.name}: answers with more than {MOST_BYTES >> 20} MiB")
        return bytes(body)

    def once(self, question: Mapping[str, Any]) -> Any:
        """One try: the JSON of the answer. Raises _Later or Unanswered."""
        endpoint = self.endpoint
        try:
            with self.http.stream("POST", self.address, json=question) as answer:
                body = self.body(answer)
        except httpx.TimeoutException as error:
            raise _Later(f"{endpoint.name}: no answer within {endpoint.timeout:g} s") from error
        except httpx.HTTPError as error:
            raise _Later(f"{endpoint.name}: cannot be reached ({_short(error) or type(error).__name__})") from error
        if (status := answer.status_code) != 200:
            said = _short(body.decode("utf-8", "replace").replace(endpoint.key or "\0", "…"))  # it may repeat a key it does not like
            problem = f"{endpoint.name}: answers {status}" + (f" ({said})" if said else "")
            if status in LATER:
                raise _Later(problem, _retry_after(answer.headers.get("retry-after")))
            if 300 <= status < 400:
                raise Unanswered(f"{endpoint.name}: answers {status}: it has moved; give its new address", hopeless=True)
            hint = "; look at the address, the key and the model's name" if status in HOPELESS else ""
            raise Unanswered(problem + hint, hopeless=status in HOPELESS)
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise _Later(f"{endpoint.name}: answers with something that is not JSON") from error


def _retry_after(said: str | None) -> float | None:
    """Seconds to wait, from a number of seconds or a date; None where nothing sensible was said."""
    if said is None:
        return None
    try:
        seconds = float(said) if said.strip().isdigit() else parsedate_to_datetime(said).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return max(0.0, seconds)


def _short(said: object) -> str:
    """At most 160 characters on one line, nothing unprintable."""
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in str(said)).split())
    return text if len(text) <= 160 else text[:159] + "…"
