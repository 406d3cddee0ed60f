"""No text where it should not be: random consent, withdrawal, requests and crashes, on both databases.

Each message has a word of its own. An independent list says after each step which words the site may hold: those that
were sent under an agreement and not taken back. At the end every file of the site, the log and a new backup is read as
bytes, and every table as text.
"""

from __future__ import annotations

import logging
import os
import random
import sqlite3
import subprocess
from dataclasses import dataclass, field

import pytest
from sqlalchemy import select
from support import playground
from support.playground import agree, feedback, open_playground, send
from support.site import make_site

from instructgpt.label.context import Settings, Site
from instructgpt.label.db.backup import back_up_database
from instructgpt.label.db.database import Database
from instructgpt.label.db.models import Base, current_time_ms
from instructgpt.label.db.models.base import DAY_MS
from instructgpt.label.playground import turns
from instructgpt.label.playground.chores import PlaygroundThread
from instructgpt.label.playground.endpoint import ModelEndpoint
from instructgpt.label.playground.erasure import erase_expired_turns
from instructgpt.label.playground.rounds import RoundSettings, collect_candidates, resume_rounds, start_round


class Killed(BaseException):
    """The process ends: what is not committed is lost."""


@dataclass
class User:
    """A user, and what the site may hold of them, kept apart from the site."""

    client: object
    agreed: bool = False
    last: dict | None = None
    context: list = field(default_factory=list)
    words: dict[str, set[str]] = field(default_factory=dict)  # key -> words of a turn
    children: dict[str, list[str]] = field(default_factory=dict)

    def forget(self, key: str) -> None:
        self.words.pop(key, None)
        for child in self.children.get(key, []):
            self.forget(child)


class Model:
    """Random steps of a few users on one site."""

    def __init__(self, site: Site, endpoint, seed: int, monkeypatch) -> None:
        self.site, self.endpoint, self.monkeypatch = site, endpoint, monkeypatch
        self.rng = random.Random(seed)
        self.users = [User(open_playground(site)) for _ in range(3)]
        self.sent: set[str] = set()

    def word(self) -> str:
        word = f"w{self.rng.getrandbits(60):015x}q"
        self.sent.add(word)
        return word

    def step(self) -> str:
        user = self.rng.choice(self.users)
        steps = ["agree", "send", "send", "follow", "follow", "end", "exclude", "erase", "edit", "report", "private"]
        name = self.rng.choice([*steps, "crash_storing", "crash_erasing", "session", "round"])
        getattr(self, name)(user)
        return name

    def agree(self, user: User) -> None:
        agree(user.client)
        user.agreed = True

    def send(self, user: User, context=(), parent=None, extra="") -> None:
        word = self.word()
        messages = [*context, {"role": "user", "content": f"tell me of {word}{extra}"}]
        may_store = user.agreed and (not context or (parent is not None and parent["key"] in user.words))
        turn = send(user.client, messages, **({"parent": parent["key"]} if parent else {}))
        assert turn["stored"] is may_store
        if may_store:
            user.words[turn["key"]] = {word}
            if parent:
                user.children.setdefault(parent["key"], []).append(turn["key"])
        answer = {"role": "assistant", "content": turn["texts"][0]}
        user.last, user.context = turn, [*messages, answer]

    def follow(self, user: User) -> None:
        if user.last is not None:
            self.send(user, user.context, user.last)

    def private(self, user: User) -> None:
        self.send(user, extra=" at john.smith@gmail.com")

    def end(self, user: User) -> None:
        assert user.client.post("/playground/end-agreement").status_code == 303
        user.agreed = False

    def session(self, user: User) -> None:
        """The browser is closed and opened again."""
        user.client.cookies.delete("playground_session")
        user.client.get("/playground")
        user.agreed = False

    def exclude(self, user: User) -> None:
        if user.words:
            key = self.rng.choice(sorted(user.words))
            assert user.client.post(f"/api/v1/playground/turns/{key}/exclude").json()["turns"] >= 1
            user.forget(key)

    def erase(self, user: User) -> None:
        assert user.client.post("/playground/erase").status_code == 303
        user.words, user.agreed = {}, False

    def edit(self, user: User) -> None:
        word = self.word()
        if user.last and "ids" in user.last:
            answer = feedback(user.client, user.last, kind="edit", answer=user.last["ids"]["0"], text=f"better {word}")
            key = user.last["key"]
            assert answer.status_code == (200 if user.agreed and key in user.words else 403 if not user.agreed else 404)
            if answer.status_code == 200:
                user.words[key].add(word)

    def report(self, user: User) -> None:
        word = self.word()
        if user.last:
            answer = feedback(user.client, user.last, kind="report", reason=word)
            if answer.status_code == 200:
                user.words[user.last["key"]].add(word)

    def crash_storing(self, user: User) -> None:
        """The process dies in the transaction that stores a turn."""
        word = self.word()

        def die(*_):
            raise Killed

        self.monkeypatch.setattr(turns.hygiene, "find_personal_data", die)
        if user.agreed:
            with pytest.raises(BaseException):  # noqa: B017, PT011  as the server's process would end
                send(user.client, f"tell me of {word}")
        self.monkeypatch.undo()
        self.restart()

    def crash_erasing(self, user: User) -> None:
        """The process dies after an erasure is committed and before the files are purged."""

        def die(*_):
            raise Killed

        self.monkeypatch.setattr(Database, "purge_deleted", die)
        with pytest.raises(BaseException):  # noqa: B017, PT011
            user.client.post("/playground/erase")
        self.monkeypatch.undo()
        user.words, user.agreed = {}, False
        self.restart()

    def restart(self) -> None:
        assert PlaygroundThread(self.site).work_once()

    def round(self, _: User) -> None:
        with self.site.database.read() as db:
            if not collect_candidates(db).turns:
                return
        with self.site.database.write() as db:
            start_round(db, RoundSettings(shares={"policy": 1, "sft": 1}, k=2), None)
        resume_rounds(self.site, ModelEndpoint(self.endpoint.url))

    def allowed(self) -> set[str]:
        return {word for user in self.users for words in user.words.values() for word in words}


def texts_of_database(database: Database) -> str:
    with database.read() as db:
        return "\n".join(str(row) for table in Base.metadata.sorted_tables for row in db.execute(select(table)))


endpoint = playground.endpoint


def run_random_steps(site, endpoint, seed, steps, monkeypatch, caplog) -> None:
    site = Site(Settings(folder=site.settings.folder, endpoint=endpoint.url), site.database)
    with caplog.at_level(logging.DEBUG):
        model = Model(site, endpoint, seed, monkeypatch)
        names = [model.step() for _ in range(steps)]
        model.restart()
    allowed, text = model.allowed(), texts_of_database(site.database)
    forbidden = model.sent - allowed
    assert not [word for word in forbidden if word in text], names
    assert not [word for word in allowed if word not in text], names
    assert not [word for word in model.sent if word in caplog.text], names
    backup = site.settings.folder / "backup"
    back_up_database(site.database, backup)
    if site.database.is_sqlite:
        files = [path for path in site.settings.folder.rglob("*") if path.is_file()]
        content = b"\n".join(path.read_bytes() for path in files)
    else:
        content = subprocess.run(["pg_restore", "--file=-", backup], check=True, capture_output=True).stdout
    assert not [word for word in forbidden if word.encode() in content], names
    assert all(word.encode() in content for word in allowed)


def test_no_text_is_where_it_should_not_be(site, endpoint, monkeypatch, caplog):
    run_random_steps(site, endpoint, 1, 40, monkeypatch, caplog)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("INSTRUCTGPT_TEST_LONG"), reason="takes minutes: make test-long")
@pytest.mark.parametrize("seed", range(10, 14))
def test_no_text_is_where_it_should_not_be_in_long_runs(site, endpoint, seed, monkeypatch, caplog):
    run_random_steps(site, endpoint, seed, 120, monkeypatch, caplog)


def test_long_texts_leave_no_pages(tmp_path, endpoint):
    """Texts of many pages, erased between others: overflow pages and free lists are overwritten, too (SQLite)."""
    site = make_site(tmp_path, endpoint=endpoint.url)
    people = [open_playground(site) for _ in range(3)]
    for number, client in enumerate(people):
        agree(client)
        for _ in range(3):
            send(client, f"secret{number}secret " * 900)
    assert people[1].post("/playground/erase").status_code == 303
    assert site.database.purge_deleted()
    content = b"".join(path.read_bytes() for path in site.settings.folder.glob("site.db*"))
    assert b"secret1secret" not in content
    assert content.count(b"secret0secret") == content.count(b"secret2secret") > 2_000
    with sqlite3.connect(site.settings.folder / "site.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    site.database.close()


def test_retention(site, endpoint):
    site = Site(Settings(folder=site.settings.folder, endpoint=endpoint.url), site.database)
    client = open_playground(site)
    agree(client)
    send(client, "an old word")
    with site.database.write() as db:
        assert erase_expired_turns(db, 30, current_time_ms() + 29 * DAY_MS) == 0
        assert erase_expired_turns(db, 30, current_time_ms() + 31 * DAY_MS) == 1
    assert "an old word" not in texts_of_database(site.database)


def test_errors_of_the_database_name_no_text(site):
    from sqlalchemy.exc import DBAPIError

    from instructgpt.label.db.models import PlaygroundCount

    with site.database.write() as db:
        db.add(PlaygroundCount(day="a private word", reason="x" * 10, count=None))
        with pytest.raises(DBAPIError) as raised:
            db.flush()
        db.rollback()
    driver_error = str(raised.value.orig)  # PostgreSQL's own message quotes the row; the site logs no such message
    assert "a private word" not in str(raised.value).replace(driver_error, "")
