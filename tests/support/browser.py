"""A real browser (Debian's Chromium, driven by playwright) and a real server.

Without Chromium the tests are skipped; with CI=true they fail.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import uvicorn
from support.site import make_site

from instructgpt import records
from instructgpt.label.auth.dependencies import SESSION_COOKIE
from instructgpt.label.context import Site
from instructgpt.label.db.models import Person, UserSession
from instructgpt.label.tasks.batches import OverlapPolicy, create_batch_with_tasks, mark_batch_open
from instructgpt.label.web.app import create_app

LETTERS = "ABCDEFGHI"


@dataclass
class Server:
    """A site on a port, which can be stopped and started again."""

    site: Site
    port: int
    running: uvicorn.Server | None = None
    thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        config = uvicorn.Config(
            create_app(self.site),
            host="127.0.0.1",
            port=self.port,
            log_level="error",
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        self.running = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.running.run, daemon=True)
        self.thread.start()
        deadline = time.monotonic() + 20
        while not self.running.started:
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)

    def stop(self) -> None:
        assert self.running is not None
        assert self.thread is not None
        self.running.should_exit = self.running.force_exit = True
        self.thread.join(20)


@dataclass
class Watched:
    """Collects policy violations, script errors and requests to other hosts."""

    wrong: list[str] = field(default_factory=list)
    contexts: list = field(default_factory=list)

    def watch(self, context, url: str) -> None:
        self.contexts.append(context)
        context.on(
            "request",
            lambda request: (
                None if request.url.startswith((url, "data:", "about:")) else self.wrong.append(request.url)
            ),
        )
        context.on("weberror", lambda error: self.wrong.append(str(error.error)))
        context.on("console", self.on_console)

    def on_console(self, message) -> None:
        if "Content Security Policy" in message.text or (
            message.type == "error" and "Failed to load resource" not in message.text
        ):
            self.wrong.append(message.text)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(site: Site) -> Iterator[Server]:
    server = Server(site, free_port())
    server.start()
    try:
        yield server
    finally:
        server.stop()
        site.database.close()


@pytest.fixture(scope="module")
def browser():
    """One browser for all tests of a file; each file that imports this has its own."""
    with chromium() as running:
        yield running


@pytest.fixture
def server(tmp_path):
    """An empty site on a real port."""
    with serving(make_site(tmp_path)) as running:
        yield running


@pytest.fixture
def watched():
    """Fail the test if a watched browser context had a violation, an error or a foreign request."""
    what = Watched()
    yield what
    for context in what.contexts:  # pages that stay open go on working beside the next test
        context.close()
    assert not what.wrong


@contextmanager
def chromium() -> Iterator:
    """Start a headless browser, or skip (fail with CI=true)."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        skip_without("playwright is not installed")
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        skip_without("there is no chromium on the path")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=executable, args=arguments)
        yield browser
        browser.close()


def skip_without(reason: str) -> None:
    """Skip with a reason; fail with CI=true."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def sign_in(context, server: Server, person: Person, token: str = "a-token") -> None:
    """Set the session cookie of a person."""
    token = f"{token}-{person.id}"
    hashed = hashlib.sha256(token.encode()).hexdigest()
    with server.site.database.write() as db:
        if db.query(UserSession).filter_by(token_hash=hashed).first() is None:
            db.add(UserSession(token_hash=hashed, csrf=f"csrf-{token}", person_id=person.id))
    context.add_cookies([{"name": SESSION_COOKIE, "value": token, "url": server.url}])


def add_ranking(site: Site, prompt: str, texts: list[str], name: str = "ranking", **more) -> str:
    """Create an open batch of one ranking task. -> the batch's id."""
    completions = [
        records.Completion(prompt=prompt, completion=text, model=f"secret-model-{at}") for at, text in enumerate(texts)
    ]
    asked = records.Prompt(id=f"{name}-1", prompt=prompt)
    with site.database.write() as db:
        batch = create_batch_with_tasks(
            db,
            name,
            "rank",
            "training",
            [asked],
            completions,
            OverlapPolicy(gold_share=0, repeat_share=0, cohort_share=0),
            **more,
        )
        mark_batch_open(db, batch)
        return batch.id


def add_batch(site: Site, kind: str, prompts: list[str], name: str | None = None, **more) -> str:
    """Create an open batch of another kind. -> the batch's id."""
    name = name or kind
    asked = [records.Prompt(id=f"{name}-{at}", prompt=text) for at, text in enumerate(prompts)]
    with site.database.write() as db:
        batch = create_batch_with_tasks(
            db, name, kind, "training", asked, [], OverlapPolicy(gold_share=0, repeat_share=0, cohort_share=0), **more
        )
        mark_batch_open(db, batch)
        return batch.id
