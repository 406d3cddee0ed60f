"""Large imports beside running work: made on a copy of the database, then moved over in short transactions.

SQLite has one writer at a time, and an import of thousands of records would hold the lock for minutes. The operation
runs on a private copy, where it fails without a trace or succeeds whole; then its new rows follow in portions of a few
hundredths of a second, tasks always with everything that belongs to them. Until the last portion the batch is a draft
that no labeler gets. PostgreSQL locks rows, not the database: there the operation is one ordinary transaction.
"""

from __future__ import annotations

import fcntl
import json
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import make_url, update
from sqlalchemy.orm import Session

from instructgpt.errors import InputError
from instructgpt.label.db import audit_log
from instructgpt.label.db.database import Database, sqlite_url
from instructgpt.label.db.models import Base, Batch

_PORTION_S = 0.03  # aim of one transaction
_PAUSE_S = 0.03  # at least, between two: writers of other processes poll for the lock
_FIRST_PORTION, _MAX_PORTION = 50, 2_000  # rows
_BUSY_TIMEOUT_S = 30
_UNFINISHED = '{"unfinished": 1}'  # `Batch.intake` until the last portion
_MOVED_FIRST = ("person", "prompt", "completion", "batch")
_IN_LIST = "IN (SELECT value FROM json_each(?))"
_IDS_BY_PARENT = {
    "task": _IN_LIST,
    "assignment": f"IN (SELECT a.id FROM {{schema}}.assignment a WHERE a.task_id {_IN_LIST})",
    "submission": "IN (SELECT s.id FROM {schema}.submission s JOIN {schema}.assignment a ON a.id = s.assignment_id "
    f"WHERE a.task_id {_IN_LIST})",
}
"""The parent of a row -> the ids of all parents that belong to a list of tasks."""
_PROMPT_METADATA = ("external_id", "source", "user", "use_case", "split", "sensitive")
"""Columns that an import changes in a prompt that exists."""
_ResultT = TypeVar("_ResultT")


def _conditions_of_task_rows() -> dict[str, str]:
    """Return table -> condition of the rows that belong to a list of tasks, in the order of the foreign keys."""
    conditions = {}
    for table in Base.metadata.sorted_tables:
        columns = {key.column.table.name: key.parent.name for key in table.foreign_keys}
        parent = next((name for name in _IDS_BY_PARENT if name in columns), None)
        if table.name == "task":
            conditions["task"] = f"id {_IN_LIST}"
        elif parent is not None:
            conditions[table.name] = f"{columns[parent]} {_IDS_BY_PARENT[parent]}"
    return conditions


def _tables_of_batches() -> dict[str, str]:
    """Return table -> column for tables that belong to a batch, tasks excepted."""
    task_tables = _conditions_of_task_rows()
    return {
        table.name: key.parent.name
        for table in Base.metadata.sorted_tables
        for key in table.foreign_keys
        if key.column.table.name == "batch" and table.name not in task_tables
    }


def write_in_portions(database: Database, operation: Callable[[Session], _ResultT]) -> _ResultT:
    """Run an operation that adds prompts, completions, people, batches and finished work, and return its result.

    Raises:
        InputError: of the operation, or when something was changed meanwhile that the import contradicts; in both
            cases nothing is left of it.
    """
    if not database.is_sqlite:
        with database.write() as db:
            return operation(db)
    source = Path(str(make_url(database.url).database))
    with _one_at_a_time(source.parent), _staging_copy(database, clean=True) as (staging, path):
        journal_end = _journal_end(path)
        with staging.write() as db:
            result = operation(db)
        _Transfer(database, path, journal_end).run()
    return result


def try_out(database: Database, operation: Callable[[Session], _ResultT]) -> _ResultT:
    """Run an operation without keeping what it writes, and without a lock on SQLite."""
    if not database.is_sqlite:
        with database.write() as db:
            result = operation(db)
            db.rollback()
            return result
    with _staging_copy(database) as (staging, _), staging.write() as db:
        return operation(db)


@contextmanager
def _staging_copy(database: Database, *, clean: bool = False) -> Iterator[tuple[Database, Path]]:
    """Yield a private copy of an SQLite database; the copy reads a snapshot and keeps nobody from writing.

    Args:
        clean: first remove what a killed import left.
    """
    source = Path(str(make_url(database.url).database))
    with tempfile.TemporaryDirectory(prefix=".import-", dir=source.parent) as folder:
        path = Path(folder) / "staging.db"
        if clean:
            _Transfer(database, path, 0).remove_unfinished(source)
        staging = Database(sqlite_url(path))
        with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(path)) as new:
            old.backup(new)
        try:
            yield staging, path
        finally:
            staging.close()


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one import of a site run at a time; the lock ends with its process. Raises InputError after half a minute."""
    path = folder / ".import.lock"
    with path.open("a") as stream:
        path.chmod(0o600)
        deadline = time.monotonic() + _BUSY_TIMEOUT_S
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise InputError(
                        "another import of this site is running; wait for its end and try again"
                    ) from error
                time.sleep(0.1)
        yield


def _journal_end(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT coalesce(max(seq), 0) FROM journal").fetchone()[0])


@dataclass
class _Transfer:
    """The move of new rows from the copy to the database."""

    database: Database
    path: Path
    journal_end: int  # of the copy before the operation
    moved: list[tuple[str, list[str]]] = field(default_factory=list)  # (table, ids), to take back after a conflict
    portion: int = _FIRST_PORTION

    def run(self) -> None:
        source = str(make_url(self.database.url).database)
        with (
            closing(sqlite3.connect(source, timeout=_BUSY_TIMEOUT_S, isolation_level=None)) as connection,
        ):
            connection.execute("PRAGMA foreign_keys=ON")
            connection.execute("ATTACH DATABASE ? AS staging", (str(self.path),))
            batches = self._new_ids(connection, "batch")
            tasks = [
                row[0]
                for batch in batches
                for row in connection.execute(
                    "SELECT id FROM staging.task WHERE batch_id = ? ORDER BY position", (batch,)
                )
            ]
            try:
                for table in Base.metadata.sorted_tables:
                    self._move_table(connection, table.name)
                for ids in self._portions(tasks):
                    self._move_tasks(connection, ids)
                self._finish(connection, batches)
            except sqlite3.IntegrityError as error:
                self._take_back(connection, batches)
                raise InputError(
                    f"the site was changed during the import, which was taken back ({error}); run it again"
                ) from error

    def _new_ids(self, connection: sqlite3.Connection, table: str) -> list[str]:
        rows = connection.execute(f"SELECT id FROM staging.{table} EXCEPT SELECT id FROM main.{table} ORDER BY 1")
        return [row[0] for row in rows]

    def _move_table(self, connection: sqlite3.Connection, table: str) -> None:
        """Move the new rows of a table that does not belong to tasks."""
        if table not in _MOVED_FIRST:
            return
        for ids in self._portions(self._new_ids(connection, table)):
            self.moved.append((table, ids))
            with self._transaction(connection):
                self._copy_rows(connection, table, f"id {_IN_LIST}", ids)
                if table == "batch":
                    self._hide_batches(connection, ids)

    def _hide_batches(self, connection: sqlite3.Connection, ids: list[str]) -> None:
        """Move what belongs to new batches, and keep them from labelers until `_finish`."""
        for child, column in _tables_of_batches().items():
            self._copy_rows(connection, child, f"{column} {_IN_LIST}", ids)
        hide = f"UPDATE main.batch SET state = 'draft', intake = ? WHERE id {_IN_LIST}"
        connection.execute(hide, (_UNFINISHED, json.dumps(ids)))

    def _move_tasks(self, connection: sqlite3.Connection, ids: list[str]) -> None:
        with self._transaction(connection):
            for table, condition in _conditions_of_task_rows().items():
                self._copy_rows(connection, table, condition, ids)

    def _copy_rows(self, connection: sqlite3.Connection, table: str, condition: str, ids: list[str]) -> None:
        columns = ", ".join(f'"{column.name}"' for column in Base.metadata.tables[table].columns)
        where = condition.format(schema="staging")
        statement = f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM staging.{table} WHERE {where}"
        connection.execute(statement, (json.dumps(ids),))

    def _finish(self, connection: sqlite3.Connection, batches: list[str]) -> None:
        """Open the batches that are to be open, change the metadata of prompts, and record everything."""
        names = ", ".join(f'"{name}"' for name in ("id", *_PROMPT_METADATA))
        changed = connection.execute(
            f"SELECT {names} FROM staging.prompt EXCEPT SELECT {names} FROM main.prompt"
        ).fetchall()
        states = connection.execute(
            f"SELECT state, intake, id FROM staging.batch WHERE id {_IN_LIST}", (json.dumps(batches),)
        ).fetchall()
        columns = ("at", "by", "action", "object", "detail")
        statement = f"SELECT {', '.join(columns)} FROM staging.journal WHERE seq > ? ORDER BY seq".replace(
            "by,", '"by",'
        )
        entries = connection.execute(statement, (self.journal_end,)).fetchall()
        for start in range(0, len(changed), self.portion):
            with self._transaction(connection):
                for row in changed[start : start + self.portion]:
                    sets = ", ".join(f'"{name}" = ?' for name in _PROMPT_METADATA)
                    connection.execute(f"UPDATE main.prompt SET {sets} WHERE id = ?", (*row[1:], row[0]))
        with self.database.write() as db:
            for state, intake, batch_id in states:
                db.execute(update(Batch).where(Batch.id == batch_id).values(state=state, intake=json.loads(intake)))
            for _, caller_id, action, object_id, detail in entries:
                audit_log.append_entry(db, caller_id, action, object_id, **json.loads(detail))

    def remove_unfinished(self, source: Path) -> None:
        """Remove the batches that an import left which was killed."""
        with closing(sqlite3.connect(source, timeout=_BUSY_TIMEOUT_S, isolation_level=None)) as connection:
            connection.execute("PRAGMA foreign_keys=ON")
            rows = connection.execute("SELECT id FROM main.batch WHERE intake = ?", (_UNFINISHED,)).fetchall()
            if batches := [row[0] for row in rows]:
                self.moved = [("batch", batches)]
                self._take_back(connection, batches)

    def _take_back(self, connection: sqlite3.Connection, batches: list[str]) -> None:
        tasks = f"SELECT id FROM main.task WHERE batch_id {_IN_LIST}"
        value = json.dumps(batches)
        ids = [row[0] for row in connection.execute(tasks, (value,))]
        for chunk in self._portions(ids):
            with self._transaction(connection):
                for table, condition in reversed(_conditions_of_task_rows().items()):
                    where = condition.format(schema="main")
                    connection.execute(f"DELETE FROM main.{table} WHERE {where}", (json.dumps(chunk),))
        for table, row_ids in reversed(self.moved):
            with suppress(sqlite3.IntegrityError), self._transaction(connection):  # somebody already refers to a row
                for child, column in _tables_of_batches().items() if table == "batch" else ():
                    connection.execute(f"DELETE FROM main.{child} WHERE {column} {_IN_LIST}", (json.dumps(row_ids),))
                connection.execute(f"DELETE FROM main.{table} WHERE id {_IN_LIST}", (json.dumps(row_ids),))

    def _portions(self, ids: list[Any]) -> Iterator[list[Any]]:
        start = 0
        while start < len(ids):
            size = self.portion
            yield ids[start : start + size]
            start += size

    @contextmanager
    def _transaction(self, connection: sqlite3.Connection) -> Iterator[None]:
        """Open one short write transaction, adapt the size of the next portion, and let other writers in."""
        with self.database.lock_writers():
            connection.execute("BEGIN IMMEDIATE")
            started = time.monotonic()
            try:
                yield
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
        elapsed = time.monotonic() - started
        factor = min(2.0, max(0.25, _PORTION_S / max(elapsed, 1e-4)))
        self.portion = max(10, min(_MAX_PORTION, int(self.portion * factor)))
        time.sleep(max(_PAUSE_S, elapsed))
