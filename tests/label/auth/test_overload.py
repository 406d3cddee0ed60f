"""A site under load: sign-in attacks, a room behind one address, locked databases, files that unpack to too much."""

from __future__ import annotations

import gzip
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, repeat

import httpx
import pytest
from support.browser import Server, browser, free_port  # noqa: F401
from support.site import ORIGIN, add_person, client_of, make_site

from instructgpt.label.auth import accounts, passwords, rate_limits
from instructgpt.label.auth.passwords import hash_password
from instructgpt.label.db import database
from instructgpt.label.errors import SiteError
from instructgpt.label.tasks import batch_requests
from instructgpt.label.web import rendering
from instructgpt.label.web.pages.labeler import home

DATABASES = ("sqlite",)
GOOD = "correct horse battery"


class Blocked:
    """A hasher that never returns before it is released."""

    def __init__(self):
        self.release = threading.Event()

    def verify(self, *_):
        self.release.wait(30)
        return True

    def check_needs_rehash(self, _):
        return False


@pytest.fixture
def blocked(monkeypatch):
    hasher = Blocked()
    monkeypatch.setattr(passwords, "PASSWORD_HASHER", hasher)
    monkeypatch.setattr(passwords, "HASHING_POOL", passwords.HashingPool())
    monkeypatch.setattr(accounts, "HASHING_POOL", passwords.HASHING_POOL)
    monkeypatch.setattr(rendering, "HASHING_POOL", passwords.HASHING_POOL)
    yield hasher
    hasher.release.set()


@pytest.fixture
def running(tmp_path):
    server = Server(make_site(tmp_path), free_port())
    server.start()
    yield server
    server.stop()
    server.site.database.close()


def test_waiting_hashes_leave_the_site_to_the_others(running, blocked):
    """Eighty sign-ins at once: eight wait for their hash, the rest gets 503 at once, and pages answer as before."""
    token = client_of(running.site, add_person(running.site)).cookies
    address, statuses, headers = f"{running.url}/sign-in", [], []

    def attack(number):
        answer = httpx.post(
            address, data={"name": f"nobody {number}", "password": "x" * 12}, headers=ORIGIN, timeout=60
        )
        statuses.append(answer.status_code)
        headers.append(answer.headers.get("retry-after"))

    with ThreadPoolExecutor(80) as pool:
        attempts = [pool.submit(attack, number) for number in range(80)]
        deadline = time.monotonic() + 30
        while len(statuses) < 72 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert statuses == [503] * 72
        assert set(headers) == {"2"}
        with httpx.Client(cookies=dict(token), timeout=30) as ada:
            assert [ada.get(f"{running.url}/home").status_code for _ in range(5)] == [200] * 5
        blocked.release.set()
        for attempt in attempts:
            attempt.result()
    assert sorted(statuses) == [401] * 8 + [503] * 72


def test_refused_sign_ins_cost_no_attempt_and_no_row(site, blocked):
    with ThreadPoolExecutor(8) as pool:
        for _ in range(8):
            pool.submit(passwords.verify_password, "x", "stored")
        while not passwords.HASHING_POOL.is_full():
            time.sleep(0.01)
        for _ in range(rate_limits.SIGN_IN_LIMIT.burst + 5):
            answer = client_of(site).post("/api/v1/sign-in", json={"name": "ada", "password": GOOD})
            assert (answer.status_code, answer.json()["error"]) == (503, "busy")
        blocked.release.set()
    assert client_of(site).post("/api/v1/sign-in", json={"name": "ada", "password": GOOD}).status_code == 401


def test_a_room_of_thirty_comes_in_behind_one_address(site):
    with site.database.write() as db:
        token = accounts.issue_invite(db, "labeler", max_uses=40)
    for number in range(40):
        browser = client_of(site)  # noqa: F811
        for _ in range(3):
            assert browser.get(f"/invite/{token}").status_code == 200
        form = {"name": f"person {number}", "password": GOOD, "again": "another"}
        assert browser.post(f"/invite/{token}", data=form).status_code == 422
    guesses = [client_of(site).post(f"/invite/guess-{n}", data={"password": GOOD, "again": GOOD}) for n in range(31)]
    assert [answer.status_code for answer in guesses] == [404] * 30 + [429]
    assert client_of(site).get(f"/invite/{token}").status_code == 200, "a valid link works beside somebody who guesses"


@pytest.mark.parametrize("path", ["/home", "/api/v1/tasks/claim"])
def test_a_database_locked_by_another_process_is_503_and_the_page_repeats(site, path, monkeypatch):
    with client_of(site, add_person(site)) as client:
        with site.database.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA busy_timeout=50")
        monkeypatch.setattr(database, "_PRAGMAS", ("busy_timeout=50",))
        site.database.engine.dispose()
        with sqlite3.connect(site.settings.folder / "site.db") as other:
            other.execute("BEGIN IMMEDIATE")
            answer = client.post(path) if path.startswith("/api") else client.post("/tasks/claim")
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "2"
        assert client.post("/api/v1/tasks/claim").status_code == 204


def test_a_writer_that_waits_too_long_in_this_process_gets_503(site, monkeypatch):
    monkeypatch.setattr(database, "_LOCK_TIMEOUT_S", 0.05)
    ready, done = threading.Event(), threading.Event()

    def hold():
        with site.database.write():
            ready.set()
            done.wait(20)

    with client_of(site, add_person(site)) as client:
        thread = threading.Thread(target=hold)
        thread.start()
        ready.wait(10)
        answer = client.post("/api/v1/tasks/claim")
    done.set()
    thread.join()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")


def test_a_busy_page_repeats_itself(site, monkeypatch):
    def busy(*_, **__):
        raise SiteError(503, "busy", retry_after=2)

    monkeypatch.setattr(home, "render_page", busy)
    with client_of(site, add_person(site)) as client:
        answer = client.get("/home")
    assert answer.status_code == 503
    assert '<meta http-equiv="refresh" content="2">' in answer.text


def bomb(kind):
    line = b'{"prompt": "' + b"a" * (40 << 20) + b'"}\n'
    lines = b'{"prompt": "Why is the sky blue?"}\n' * (1 << 20)
    return gzip.compress(line, 1) if kind == "line" else gzip.compress(lines, 1) * 8


@pytest.mark.parametrize("kind", ["line", "total"])
@pytest.mark.parametrize("page", ["/batches/preview", "/data/imports"])
def test_files_that_unpack_to_too_much_are_refused_by_name(site, kind, page):
    fields = {"name": "b", "kind": "demonstrate", "purpose": "training"} if page == "/batches/preview" else {}
    part = "prompts" if fields else "file"
    with client_of(site, add_person(site, "olga", "owner")) as client:
        answer = client.post(page, data=fields, files={part: ("bomb.jsonl.gz", bomb(kind))})
    assert answer.status_code in (200, 422)
    assert ("a line is longer than 32 MB" if kind == "line" else "unpacks to more than 256 MB") in answer.text
    assert "bomb.jsonl.gz" in answer.text
    uploads = site.settings.folder / "uploads"
    assert not uploads.is_dir() or not list(uploads.iterdir())


def test_a_file_that_takes_too_long_is_refused(site, monkeypatch):
    monkeypatch.setattr(batch_requests, "_MAX_UPLOAD_READ_S", -1)
    with client_of(site, add_person(site, "olga", "owner")) as client:
        answer = client.post("/data/imports", files={"file": ("slow.jsonl", b'{"prompt": "Why?"}\n')})
    assert "takes longer than" in answer.text


def test_an_upload_above_the_limit_is_answered_by_a_page(site):
    with client_of(site, add_person(site, "olga", "owner")) as client:
        answer = client.post("/batches/preview", files={"prompts": ("big.jsonl", b"x" * (65 << 20))})
    assert answer.status_code == 413
    assert "<!doctype html>" in answer.text.lower()
    assert "MB" in answer.text


def test_a_busy_sign_in_repeats_itself_in_a_browser(running, browser, monkeypatch):  # noqa: F811
    add_person(running.site, "ada", password_hash=hash_password(GOOD))
    refusals = chain([True, True], repeat(False))
    monkeypatch.setattr(passwords.HASHING_POOL, "is_full", lambda: next(refusals))
    page = browser.new_context().new_page()
    page.goto(f"{running.url}/sign-in")
    page.fill("[name=name]", "ada")
    page.fill("[name=password]", GOOD)
    page.keyboard.press("Enter")
    page.wait_for_url("**/home", timeout=30_000)
