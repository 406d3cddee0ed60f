"""Verified backups of the database while the site runs.

SQLite: `VACUUM INTO` writes one consistent database file. PostgreSQL: `pg_dump --format=custom`, for `pg_restore`.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

from sqlalchemy import make_url

from instructgpt.errors import InputError, RunError
from instructgpt.io import check_writable, translate_write_errors
from instructgpt.label.db.database import Database
from instructgpt.label.db.models import Base


def back_up_database(database: Database, out: Path) -> dict[str, int]:
    """Write a backup with mode 0600 to a new file, verify it, and return the row count of each table.

    Raises:
        InputError: the file exists or cannot be written, or `pg_dump` is not installed.
        RunError: the backup is damaged; it is deleted.
    """
    if out.exists():
        raise InputError(f"--out {out}: already exists; choose another name, a backup never overwrites a file")
    check_writable(out)
    partial_path = out.with_name(f".{out.name}.{os.getpid()}.part")
    with translate_write_errors(out):
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(partial_path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            if database.is_sqlite:
                _copy_sqlite(database, partial_path)
                counts = check_sqlite_backup(partial_path)
            else:
                _copy_postgres(database, partial_path)
                counts = _check_postgres_dump(partial_path)
            partial_path.replace(out)
        finally:
            partial_path.unlink(missing_ok=True)
    return counts


def _copy_sqlite(database: Database, partial_path: Path) -> None:
    with closing(database.engine.raw_connection()) as connection:
        connection.cursor().execute("VACUUM INTO ?", (str(partial_path),))  # an empty file counts as new


def check_sqlite_backup(path: Path) -> dict[str, int]:
    """Check pages, foreign keys and tables of an SQLite file and return the row count of each table; raise RunError."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            integrity = connection.execute("PRAGMA integrity_check").fetchone()[0]
            if integrity != "ok":
                raise RunError(f"{path}: the copy is damaged ({integrity}); check the disk and back up again")
            if orphans := connection.execute("PRAGMA foreign_key_check").fetchall():
                table = orphans[0][0]
                raise RunError(f"{path}: damaged database, {len(orphans)} broken foreign keys, first in table {table}")
            tables = sorted(Base.metadata.tables)
            return {name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in tables}
    except sqlite3.Error as error:
        raise RunError(f"{path}: the copy cannot be read ({error}); check the disk and back up again") from error


def _copy_postgres(database: Database, partial_path: Path) -> None:
    url = make_url(database.url.replace("postgres://", "postgresql://", 1))
    environment = {**os.environ, **({"PGPASSWORD": str(url.password)} if url.password else {})}
    dsn = url.set(password=None, drivername="postgresql").render_as_string()
    # The password goes through the environment: arguments are visible to other users.
    command = ["pg_dump", "--format=custom", "--no-owner", f"--file={partial_path}", f"--dbname={dsn}"]
    _run_postgres_tool(command, environment)


def _check_postgres_dump(path: Path) -> dict[str, int]:
    """Read a dump to its end and return the row count of each table; raise RunError when a table is missing."""
    dump = _run_postgres_tool(["pg_restore", "--data-only", "--file=-", str(path)], dict(os.environ))
    counts: dict[str, int] = {}
    table = None
    for line in dump.splitlines():
        if table is None and line.startswith("COPY "):
            table = line.split()[1].rpartition(".")[2].strip('"')
            counts[table] = 0
        elif line == "\\.":
            table = None
        elif table is not None:
            counts[table] += 1
    if missing := sorted(set(Base.metadata.tables) - set(counts)):
        raise RunError(f"{path}: the dump lacks the tables {', '.join(missing)}; back up again")
    return dict(sorted(counts.items()))


def _run_postgres_tool(command: list[str], environment: dict[str, str]) -> str:
    if shutil.which(command[0]) is None:
        raise InputError(f"{command[0]} is not installed; install PostgreSQL's client or use 'label export --archive'")
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    if process.returncode:
        raise RunError(f"{command[0]}: {' '.join(process.stderr.split())}")
    return process.stdout
