"""The database: SQLite in the site's folder, or PostgreSQL for a crowd. Reading and writing are told apart.

On SQLite a transaction that writes takes the write lock at its start (`BEGIN IMMEDIATE`): one that began by reading could not be
upgraded after somebody else has written, however long it waited. On PostgreSQL rows are locked where they are chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from threading import RLock
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from instructgpt.errors import InputError
from instructgpt.label.db import migrate

_SQLITE_PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=NORMAL",
    "foreign_keys=ON",
    "busy_timeout=10000",
    "temp_store=MEMORY",
)
_WRITE_OPTION = "writes"
"""Option of a connection: this transaction will write."""
_RETRYABLE_SQLSTATES = ("40001", "40P01")
"""PostgreSQL's codes for a serialization failure and a deadlock: the same transaction may succeed when it is begun again."""
_MAX_ATTEMPTS = 5
_POOL_SIZE = 20
"""Connections kept; as many again when all are busy. Requests are answered by 40 threads at most."""

_ResultT = TypeVar("_ResultT")


class Database:
    """Transactions on one database."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = create_database_engine(url)
        self._write_lock: AbstractContextManager[Any] = RLock() if self.is_sqlite else nullcontext()
        """SQLite has one writer at a time; those of this process wait here, where the next one is woken at once, and not in its retries."""

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that only reads."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that writes: committed at the end, rolled back when anything is raised."""
        with (
            self._write_lock,
            self.engine.connect().execution_options(**{_WRITE_OPTION: True}) as connection,
            Session(connection, expire_on_commit=False) as session,
        ):
            yield session
            session.commit()

    def write_with_retry(self, operation: Callable[[Session], _ResultT]) -> _ResultT:
        """Work in a transaction that writes, again from the start when the database asks for that (PostgreSQL: deadlock, serialization).

        `work` may be called several times, and must do nothing that a rollback does not undo.
        """
        for attempts_left in range(_MAX_ATTEMPTS - 1, -1, -1):
            try:
                with self.write() as session:
                    return operation(session)
            except DBAPIError as error:
                if not attempts_left or getattr(error.orig, "sqlstate", None) not in _RETRYABLE_SQLSTATES:
                    raise
        raise AssertionError("unreachable")

    def upgrade(self, revision: str = "head") -> Path | None:
        """Make or renew the tables; an SQLite file that holds something is copied first. -> the copy. Raises as `migrate.upgrade`."""
        return migrate.upgrade_database(self.engine, revision)

    def downgrade(self, revision: str) -> Path | None:
        """Go back to an earlier structure (`base`: none), with a copy as `upgrade`."""
        return migrate.downgrade_database(self.engine, revision)

    def is_current(self) -> bool:
        """Whether the tables are those of this version of the package."""
        return migrate.get_database_revision(self.engine) == migrate.get_head_revision()

    @property
    def is_sqlite(self) -> bool:
        """Whether this is the embedded database."""
        return self.engine.dialect.name == "sqlite"

    def close(self) -> None:
        """Give every connection back."""
        self.engine.dispose()


def sqlite_url(path: Path) -> str:
    """The address of a database file."""
    return f"sqlite:///{path}"


def create_database_engine(url: str) -> Engine:
    """An engine for an address such as `sqlite:///site.db` or `postgresql://user@host/name`.

    Raises:
        BadInput: it is the address of neither.
    """
    if url.startswith("sqlite:"):
        engine = create_engine(
            url, connect_args={"check_same_thread": False}, pool_size=_POOL_SIZE, max_overflow=_POOL_SIZE
        )
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if url.startswith(("postgresql:", "postgres:")):
        return create_engine(
            "postgresql+psycopg:" + url.partition(":")[2],
            pool_size=_POOL_SIZE,
            max_overflow=_POOL_SIZE,
            pool_pre_ping=True,
        )
    raise InputError(f"--database {url}: expected sqlite:///FILE or postgresql://USER@HOST/NAME")


def _prepare_sqlite(connection: Any, _: Any) -> None:
    """Settings of a new connection. The driver's own transactions are off, ours begin below."""
    connection.isolation_level = None
    for pragma in _SQLITE_PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    """Begin as what the transaction is for."""
    is_write = connection.get_execution_options().get(_WRITE_OPTION, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")
