"""A site for tests: on SQLite in a temporary folder, or on a PostgreSQL that is there (`INSTRUCTGPT_TEST_POSTGRES`)."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fastapi.testclient import TestClient

from instructgpt.label.access import COOKIE
from instructgpt.label.app import create_app
from instructgpt.label.database import Database, sqlite_url
from instructgpt.label.site import Settings, Site
from instructgpt.label.tables import Base, Login, Person

ORIGIN = {"Sec-Fetch-Site": "same-origin"}


def make_site(folder: Path, url: str | None = None, **settings) -> Site:
    """An empty site with all its tables."""
    folder.mkdir(parents=True, exist_ok=True)
    database = Database(url or sqlite_url(folder / "site.db"))
    Base.metadata.create_all(database.engine)
    return Site(Settings(folder=folder, **settings), database)


def add_person(
    site: Site, name: str = "ada", role: str = "labeler", status: str = "active", cohort: str | None = "training", **more
) -> Person:
    """An account without a password."""
    person = Person(name=name, role=role, status=status, cohort=cohort if role == "labeler" else None, pseudonym=f"p-{name}", **more)
    with site.database.write() as db:
        db.add(person)
    return person


def client_of(site: Site, person: Person | None = None) -> TestClient:
    """A browser in process, signed in as somebody or not; it sends the token that forms need with every request."""
    client = TestClient(create_app(site), headers=ORIGIN, follow_redirects=False)
    if person is not None:
        token = f"token-of-{person.id}"
        hashed = hashlib.sha256(token.encode()).hexdigest()
        with site.database.write() as db:
            if db.query(Login).filter_by(token_hash=hashed).first() is None:
                db.add(Login(token_hash=hashed, csrf=f"csrf-{person.id}", person_id=person.id))
        client.cookies.set(COOKIE, token)
        client.headers["X-CSRF-Token"] = f"csrf-{person.id}"
    return client
