"""A copy of the database while people work, looked at after it is written.

SQLite: `VACUUM INTO`, one consistent state in one file that is a database itself. PostgreSQL: `pg_dump` in its own format, which
`pg_restore` reads.
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
    """Write a backup to a file that is not there yet, only for its owner to read. Returns the rows of each table in it.

    Raises:
        BadInput: the file is there already, cannot be written, or `pg_dump` is missing.
        RunFailed: what was written is not sound; it is not left behind.
    """
    if out.exists():
        raise InputError(f"--out {out}: is there already; a backup never overwrites another")
    check_writable(out)
    partial_path = out.with_name(f".{out.name}.{os.getpid()}.part")
    with translate_write_errors(out):
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(partial_path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            copy, check_copy = (
                (_copy_sqlite, check_sqlite_backup) if database.is_sqlite else (_copy_postgres, _check_postgres_dump)
            )
            copy(database, partial_path)
            counts = check_copy(partial_path)
            partial_path.replace(out)
        finally:
            partial_path.unlink(missing_ok=True)
    return counts


def _copy_sqlite(database: Database, partial_path: Path) -> None:
    with closing(database.engine.raw_connection()) as connection:
        connection.cursor().execute("VACUUM INTO ?", (str(partial_path),))  # an empty file is taken as a new one


def check_sqlite_backup(path: Path) -> dict[str, int]:
    """Whether a database file is sound: every page, every foreign key, every table. Returns the rows of each. Raises RunFailed."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            integrity = connection.execute("PRAGMA integrity_check").fetchone()[0]
            if integrity != "ok":
                raise RunError(f"{path}: the copy is damaged ({integrity}); check the disk and back up again")
            if orphans := connection.execute("PRAGMA foreign_key_check").fetchall():
                raise RunError(
                    f"{path}: {len(orphans)} rows point to nothing, first in table {orphans[0][0]}; the database is damaged"
                )
            return {
                name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]
                for name in sorted(Base.metadata.tables)
            }
    except sqlite3.Error as error:
        raise RunError(f"{path}: the copy cannot be read ({error}); check the disk and back up again") from error


def _copy_postgres(database: Database, partial_path: Path) -> None:
    url = make_url(database.url.replace("postgres://", "postgresql://", 1))
    environment = {**os.environ, **({"PGPASSWORD": str(url.password)} if url.password else {})}
    dsn = url.set(password=None, drivername="postgresql").render_as_string()
    _run_postgres_tool(
        ["pg_dump", "--format=custom", "--no-owner", f"--file={partial_path}", f"--dbname={dsn}"], environment
    )


def _check_postgres_dump(path: Path) -> dict[str, int]:
    """Whether a dump can be read to its end and has every table. Returns the rows of each. Raises RunFailed."""
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
    """What a program of PostgreSQL prints. Raises BadInput where it is not installed, RunFailed where it fails."""
    if shutil.which(command[0]) is None:
        raise InputError(
            f"{command[0]} is not installed; install PostgreSQL's client programs, or use 'label export --archive'"
        )
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    if process.returncode:
        raise RunError(f"{command[0]}: {' '.join(process.stderr.split())}")
    return process.stdout
