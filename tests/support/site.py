"""Sites for tests, on SQLite in a temporary folder or on PostgreSQL.

`INSTRUCTGPT_TEST_POSTGRES` is the URL of a PostgreSQL server that allows new databases; without it one is started.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from fastapi.testclient import TestClient

from instructgpt.label.auth.dependencies import session_cookie_name
from instructgpt.label.context import Settings, Site
from instructgpt.label.db.database import Database, sqlite_url
from instructgpt.label.db.models import Base, Person, UserSession
from instructgpt.label.web.app import create_app

ORIGIN = {"Sec-Fetch-Site": "same-origin"}


def make_site(folder: Path, url: str | None = None, **settings) -> Site:
    """Create an empty site with all its tables."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "site.db"
    if url in (None, sqlite_url(path)) and not path.exists():
        path.write_bytes(empty_sqlite_file())
        path.chmod(0o600)
        return Site(Settings(folder=folder, **settings), Database(sqlite_url(path)))
    database = Database(url or sqlite_url(path))
    Base.metadata.create_all(database.engine)
    return Site(Settings(folder=folder, **settings), database)


@cache
def empty_sqlite_file() -> bytes:
    """A database with all tables and no row: copying it is faster than making the tables for each test."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "empty.db"
        database = Database(sqlite_url(path))
        Base.metadata.create_all(database.engine)
        database.close()
        assert not path.with_name("empty.db-wal").exists()
        return path.read_bytes()


def add_person(
    site: Site,
    name: str = "ada",
    role: str = "labeler",
    status: str = "active",
    cohort: str | None = "training",
    **more,
) -> Person:
    person = Person(
        name=name, role=role, status=status, cohort=cohort if role == "labeler" else None, pseudonym=f"p-{name}", **more
    )
    with site.database.write() as db:
        db.add(person)
    return person


def client_of(site: Site, person: Person | None = None) -> TestClient:
    """A browser in process, signed in as `person` or not, whose requests are same-origin."""
    address = (site.settings.public_url or "http://testserver").removesuffix(site.settings.base_path)
    client = TestClient(create_app(site), base_url=address, headers=ORIGIN, follow_redirects=False)
    if person is not None:
        token = f"token-of-{person.id}"
        hashed = hashlib.sha256(token.encode()).hexdigest()
        with site.database.write() as db:
            if db.query(UserSession).filter_by(token_hash=hashed).first() is None:
                db.add(UserSession(token_hash=hashed, csrf=f"csrf-{person.id}", person_id=person.id))
        client.cookies.set(session_cookie_name(site.settings), token)
    return client


NUMBERS = count()


def postgres_program(name: str) -> str | None:
    """Return the path of a PostgreSQL program, of the newest version installed."""
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep)] + sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name), reverse=True
    )
    return next(
        (str(folder / name) for folder in folders if (folder / "initdb").exists() and (folder / name).exists()), None
    )


@pytest.fixture(scope="session")
def postgres_server():
    """URL of a PostgreSQL server for all tests of a process, without a database name."""
    if url := os.environ.get("INSTRUCTGPT_TEST_POSTGRES"):
        yield url
        return
    initdb, pg_ctl = postgres_program("initdb"), postgres_program("pg_ctl")
    if initdb is None or pg_ctl is None:
        if os.environ.get("CI"):
            pytest.fail("PostgreSQL is not installed, and here it must be: install it or set INSTRUCTGPT_TEST_POSTGRES")
        pytest.skip("PostgreSQL is not installed and INSTRUCTGPT_TEST_POSTGRES is not set")
    root = os.geteuid() == 0
    user = "nobody" if root else None  # PostgreSQL refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    if root:
        shutil.chown(folder, user)

    def call(*command):
        subprocess.run(command, check=True, capture_output=True, user=user, cwd=folder)

    call(initdb, "-D", folder / "data", "-U", "tests", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C")
    options = f"-k {folder} -c listen_addresses='' -c fsync=off -c max_connections=120"
    call(pg_ctl, "-D", folder / "data", "-o", options, "-l", folder / "log", "-w", "start")
    try:
        yield f"postgresql://tests@/postgres?host={folder}"
    finally:
        call(pg_ctl, "-D", folder / "data", "-m", "immediate", "stop")
        shutil.rmtree(folder)


@pytest.fixture
def postgres_url(postgres_server):
    """URL of an empty database."""
    name = f"site_{os.getpid()}_{next(NUMBERS)}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield urlunsplit(urlsplit(postgres_server)._replace(path=f"/{name}"))
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


class ReusedDatabase:
    """A PostgreSQL database with all tables: making them takes a second, emptying them a thirtieth of that.

    Every test gets it under a new name, so that a thread that outlives its test reaches nothing.
    """

    def __init__(self, server: str) -> None:
        self.server = server
        self.name: str | None = None

    def prepare(self) -> str:
        """Empty the tables, or create them; return the URL."""
        name = f"tables_{os.getpid()}_{next(NUMBERS)}"
        with psycopg.connect(self.server, autocommit=True) as connection:
            if self.name is None:
                connection.execute(f"CREATE DATABASE {name}")
            else:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [self.name]
                )
                connection.execute(f"ALTER DATABASE {self.name} RENAME TO {name}")
        is_new, self.name = self.name is None, name
        url = urlunsplit(urlsplit(self.server)._replace(path=f"/{name}"))
        if is_new:
            database = Database(url)
            Base.metadata.create_all(database.engine)
            database.close()
        else:
            self._delete_rows(url)
        return url

    def _delete_rows(self, url: str) -> None:
        with psycopg.connect(url) as connection:
            connection.execute("SET session_replication_role = replica")  # no foreign keys or triggers
            tables = [
                name for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            ]
            assert set(tables) == set(Base.metadata.tables), "a test has changed the tables of its site"
            connection.execute("; ".join(f'DELETE FROM "{name}"' for name in tables))
            for (name,) in connection.execute("SELECT sequencename FROM pg_sequences").fetchall():
                connection.execute(f'ALTER SEQUENCE "{name}" RESTART')

    def drop(self) -> None:
        with psycopg.connect(self.server, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {self.name} WITH (FORCE)")


@pytest.fixture(scope="session")
def reused_database(postgres_server):
    database = ReusedDatabase(postgres_server)
    yield database
    database.drop()


@pytest.fixture
def database_url(request, tmp_path):
    """URL of an empty database; tests run on both kinds, or on those in DATABASES of their file.

    The database of a test with the fixture `site` has all tables.
    """
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "site.db")
    if "site" in request.fixturenames:
        return request.getfixturevalue("reused_database").prepare()
    return request.getfixturevalue("postgres_url")


@pytest.fixture
def site(database_url, tmp_path):
    """An empty site, on the databases of `database_url`."""
    if database_url.startswith("sqlite"):
        new_site = make_site(tmp_path, database_url)
    else:
        new_site = Site(Settings(folder=tmp_path), Database(database_url))
    yield new_site
    new_site.database.close()
