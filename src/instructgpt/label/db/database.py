"""Connections and transactions: SQLite in the site's folder, or PostgreSQL for many labelers."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from threading import RLock
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from instructgpt.errors import InputError
from instructgpt.label.db import migrate
from instructgpt.label.errors import SiteError

PRIVATE_FILE_MODE = 0o600
# `secure_delete` overwrites what is deleted with zeros, see `Database.purge_deleted`.
_PRAGMAS = (
    "journal_mode=WAL",
    "synchronous=NORMAL",
    "foreign_keys=ON",
    "busy_timeout=10000",
    "temp_store=MEMORY",
    "secure_delete=ON",
)
_WRITE_OPTION = "writes"  # execution option of a connection
_RETRYABLE_SQLSTATES = ("40001", "40P01")  # PostgreSQL: serialization failure, deadlock
_MAX_ATTEMPTS = 5
_LOCK_TIMEOUT_S, _RETRY_AFTER_S = 10, 2
_BUSY_SQLSTATES = (*_RETRYABLE_SQLSTATES, "55P03", "53300", "57P03")  # no lock, too many connections, starting up
_DUPLICATE_KEY_SQLSTATE = "23505"
_SQLITE_DUPLICATE_KEY = (sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
# 20 connections are kept and 20 more opened on demand; at most 40 threads answer requests.
# Errors name no values: they go to logs, which erasure does not reach.
_POOL_OPTIONS: dict[str, Any] = {"pool_size": 20, "max_overflow": 20, "hide_parameters": True}

_ResultT = TypeVar("_ResultT")


class Database:
    """Read and write transactions on one database."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = create_database_engine(url)
        # SQLite has one writer at a time. Writers of this process queue on a lock, which wakes the next one at once,
        # instead of polling inside SQLite's busy timeout.
        self._write_lock = RLock() if self.is_sqlite else None

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Open a transaction that only reads."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def lock_writers(self) -> Iterator[None]:
        """Queue with the writers of this process; raise SiteError `busy` (503) after ten seconds. PostgreSQL: no-op."""
        if self._write_lock is not None and not self._write_lock.acquire(timeout=_LOCK_TIMEOUT_S):
            raise SiteError(503, "busy", retry_after=_RETRY_AFTER_S)
        try:
            yield
        finally:
            if self._write_lock is not None:
                self._write_lock.release()

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Open a transaction that writes: committed at the end, rolled back on an exception."""
        with (
            self.lock_writers(),
            self.engine.connect().execution_options(**{_WRITE_OPTION: True}) as connection,
            Session(connection, expire_on_commit=False) as session,
        ):
            yield session
            session.commit()

    def write_with_retry(self, operation: Callable[[Session], _ResultT]) -> _ResultT:
        """Run an operation in a write transaction, again after a deadlock or serialization failure (PostgreSQL).

        The operation may run several times; a rollback must undo everything it does.
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
        """Create or upgrade the tables and return the path of a copy, as `migrate.upgrade_database`."""
        return migrate.upgrade_database(self.engine, revision)

    def downgrade(self, revision: str) -> Path | None:
        """Downgrade to a revision (`base`: no tables) and return the path of a copy."""
        return migrate.downgrade_database(self.engine, revision)

    def is_current(self) -> bool:
        """Return whether the tables have the newest revision of this version of the package."""
        return migrate.get_database_revision(self.engine) == migrate.get_head_revision()

    def purge_deleted(self) -> bool:
        """Remove deleted and replaced values from the files; return False while another connection keeps them.

        SQLite: the write-ahead log still holds their pages until it is emptied. PostgreSQL: VACUUM removes old rows.
        """
        if self.is_sqlite:
            with self.lock_writers(), closing(self.engine.raw_connection()) as connection:
                row = connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return row is not None and not row[0]
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM")
        return True

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    def close(self) -> None:
        self.engine.dispose()


def is_busy(error: Exception) -> bool:
    """Return whether an error of a database passes by itself: a lock that others hold, or no free connection."""
    if isinstance(error, PoolTimeoutError):
        return True
    original = getattr(error, "orig", None)
    if isinstance(original, sqlite3.OperationalError):
        return "locked" in str(original) or "busy" in str(original)
    return getattr(original, "sqlstate", None) in _BUSY_SQLSTATES


def is_duplicate_key(error: Exception) -> bool:
    """Return whether an error of a database says that a row with this key is there already."""
    original = getattr(error, "orig", None)
    if isinstance(original, sqlite3.IntegrityError):
        return original.sqlite_errorcode in _SQLITE_DUPLICATE_KEY
    return getattr(original, "sqlstate", None) == _DUPLICATE_KEY_SQLSTATE


def sqlite_url(path: Path) -> str:
    return f"sqlite:///{path}"


def create_database_engine(url: str) -> Engine:
    """Create an engine for `sqlite:///site.db` or `postgresql://user@host/name`; raise InputError for another URL."""
    if url.startswith("sqlite:"):
        _create_private_file(url)
        engine = create_engine(url, connect_args={"check_same_thread": False}, **_POOL_OPTIONS)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if url.startswith(("postgresql:", "postgres:")):
        return create_engine("postgresql+psycopg:" + url.partition(":")[2], **_POOL_OPTIONS, pool_pre_ping=True)
    raise InputError(f"--database {url}: expected sqlite:///FILE or postgresql://USER@HOST/NAME")


def _create_private_file(url: str) -> None:
    """Create a missing SQLite file that only its owner can read; SQLite gives its -wal and -shm files the same mode."""
    name = make_url(url).database
    if name and name != ":memory:" and not name.startswith("file:"):
        with suppress(OSError):  # connecting reports it
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT, PRIVATE_FILE_MODE))


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # the driver's implicit transactions are off; `_begin_sqlite` starts ours
    for pragma in _PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes the write lock at its start: a transaction that began by reading cannot be upgraded after another
    # one has written, no matter how long it waits. PostgreSQL locks the rows that a statement selects instead.
    is_write = connection.get_execution_options().get(_WRITE_OPTION, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")
