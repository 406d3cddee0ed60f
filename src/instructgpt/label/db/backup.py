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

from instructgpt.errors import BadInput, RunFailed
from instructgpt.io import must_be_writable, writing
from instructgpt.label.db.database import Database
from instructgpt.label.db.models import Base


def back_up(database: Database, out: Path) -> dict[str, int]:
    """Write a backup to a file that is not there yet, only for its owner to read. Returns the rows of each table in it.

    Raises:
        BadInput: the file is there already, cannot be written, or `pg_dump` is missing.
        RunFailed: what was written is not sound; it is not left behind.
    """
    if out.exists():
        raise BadInput(f"--out {out}: is there already; a backup never overwrites another")
    must_be_writable(out)
    half = out.with_name(f".{out.name}.{os.getpid()}.part")
    with writing(out):
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(half, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            copy, look = (_copy_sqlite, look_at_sqlite) if database.is_sqlite else (_copy_postgres, look_at_dump)
            copy(database, half)
            counts = look(half)
            half.replace(out)
        finally:
            half.unlink(missing_ok=True)
    return counts


def _copy_sqlite(database: Database, half: Path) -> None:
    with closing(database.engine.raw_connection()) as connection:
        connection.cursor().execute("VACUUM INTO ?", (str(half),))  # an empty file is taken as a new one


def look_at_sqlite(file: Path) -> dict[str, int]:
    """Whether a database file is sound: every page, every foreign key, every table. Returns the rows of each. Raises RunFailed."""
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
            said = connection.execute("PRAGMA integrity_check").fetchone()[0]
            if said != "ok":
                raise RunFailed(f"{file}: the copy is damaged ({said}); check the disk and back up again")
            if orphans := connection.execute("PRAGMA foreign_key_check").fetchall():
                raise RunFailed(f"{file}: {len(orphans)} rows point to nothing, first in table {orphans[0][0]}; the database is damaged")
            return {name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in sorted(Base.metadata.tables)}
    except sqlite3.Error as error:
        raise RunFailed(f"{file}: the copy cannot be read ({error}); check the disk and back up again") from error


def _copy_postgres(database: Database, half: Path) -> None:
    url = make_url(database.url.replace("postgres://", "postgresql://", 1))
    environment = {**os.environ, **({"PGPASSWORD": str(url.password)} if url.password else {})}
    address = url.set(password=None, drivername="postgresql").render_as_string()
    _call(["pg_dump", "--format=custom", "--no-owner", f"--file={half}", f"--dbname={address}"], environment)


def look_at_dump(file: Path) -> dict[str, int]:
    """Whether a dump can be read to its end and has every table. Returns the rows of each. Raises RunFailed."""
    said = _call(["pg_restore", "--data-only", "--file=-", str(file)], dict(os.environ))
    counts: dict[str, int] = {}
    table = None
    for line in said.splitlines():
        if table is None and line.startswith("COPY "):
            table = line.split()[1].rpartition(".")[2].strip('"')
            counts[table] = 0
        elif line == "\\.":
            table = None
        elif table is not None:
            counts[table] += 1
    if missing := sorted(set(Base.metadata.tables) - set(counts)):
        raise RunFailed(f"{file}: the dump lacks the tables {', '.join(missing)}; back up again")
    return dict(sorted(counts.items()))


def _call(command: list[str], environment: dict[str, str]) -> str:
    """What a program of PostgreSQL prints. Raises BadInput where it is not installed, RunFailed where it fails."""
    if shutil.which(command[0]) is None:
        raise BadInput(f"{command[0]} is not installed; install PostgreSQL's client programs, or use 'label export --archive'")
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RunFailed(f"{command[0]}: {' '.join(done.stderr.split())}")
    return done.stdout
