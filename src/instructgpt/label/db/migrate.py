"""The database's structure over time: forwards and backwards along the revisions under `migrations/`, with a copy made first.

The first revision is the tables as SQL, one file for each database, written from the models by `write_initial` (developers: `python -m
instructgpt.label.db.migrate`). Later ones are Alembic's: `python -m instructgpt.label.db.migrate "what changes"`.
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.schema import CreateIndex, CreateTable

from instructgpt.errors import BadInput
from instructgpt.label.db.models import Base

FOLDER = Path(__file__).parent / "migrations"
INITIAL = "0001"


def config(connection: Connection | None = None) -> Config:
    """Alembic's settings; nothing is read from a file."""
    settings = Config()
    settings.set_main_option("script_location", str(FOLDER))
    settings.set_main_option("path_separator", "os")
    settings.attributes["connection"] = connection
    return settings


def head() -> str:
    """The newest revision this version of the package knows."""
    newest = ScriptDirectory.from_config(config()).get_current_head()
    assert newest is not None
    return newest


def revision(engine: Engine) -> str | None:
    """The revision a database is at; None for one that never had any."""
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def upgrade(engine: Engine, goal: str = "head") -> Path | None:
    """Bring a database forward, all or nothing. An SQLite file that holds something is copied first. -> the copy.

    Raises:
        BadInput: the database is of a newer version of this package.
    """
    there = revision(engine)
    _known(there)
    if there == (head() if goal == "head" else goal):
        return None
    copy = backup_file(engine, there) if there is not None else None
    with _structure(engine) as connection:
        command.upgrade(config(connection), goal)
    return copy


def downgrade(engine: Engine, goal: str) -> Path | None:
    """Take a database back to an earlier revision (`base`: to nothing), all or nothing. -> the copy made first (SQLite).

    Raises:
        BadInput: the database is of a newer version of this package.
    """
    there = revision(engine)
    _known(there)
    copy = backup_file(engine, there) if there is not None else None
    with _structure(engine) as connection:
        command.downgrade(config(connection), goal)
    return copy


def _known(there: str | None) -> None:
    names = {script.revision for script in ScriptDirectory.from_config(config()).walk_revisions()}
    if there is not None and there not in names:
        raise BadInput(f"the database is at revision {there}, which this version does not know; install the newer version that made it")


@contextmanager
def _structure(engine: Engine) -> Iterator[Connection]:
    """A transaction that changes tables. SQLite rebuilds a table by copying it, so foreign keys rest until the end and are then checked."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            _rest_foreign_keys(connection, True)
        try:
            connection.execution_options(writes=True)
            with connection.begin():
                yield connection
                if engine.dialect.name == "sqlite" and (broken := connection.exec_driver_sql("PRAGMA foreign_key_check").all()):
                    raise BadInput(f"the migration would leave rows without what they name: {broken[:3]}")
        finally:
            if engine.dialect.name == "sqlite":
                _rest_foreign_keys(connection, False)


def _rest_foreign_keys(connection: Connection, rest: bool) -> None:
    """Outside of a transaction, where alone SQLite heeds it."""
    driver: Any = connection.connection.dbapi_connection
    driver.execute(f"PRAGMA foreign_keys={'OFF' if rest else 'ON'}")


def backup_file(engine: Engine, there: str) -> Path | None:
    """Copy an SQLite database beside itself, whole even while others write. -> the copy; None where there is no file."""
    name = engine.url.database
    if engine.dialect.name != "sqlite" or not name or name == ":memory:":
        return None
    source = Path(name)
    number = 1
    while (copy := source.with_name(f"{source.name}.before-migration-{there}-{number}")).exists():
        number += 1
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(copy)) as new:
        old.backup(new)
    return copy


def differences(engine: Engine) -> list[Any]:
    """What the models have and the database has not, or the other way round, as Alembic's operations; empty when all is well."""
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "render_as_batch": True})
        return list(compare_metadata(context, Base.metadata))


def statements(dialect: Dialect) -> list[str]:
    """The SQL that makes all tables and indexes of the models, in an order in which it can be run."""
    made = []
    for table in Base.metadata.sorted_tables:
        made.append(str(CreateTable(table).compile(dialect=dialect)).strip())
        made += [
            str(CreateIndex(index).compile(dialect=dialect)).strip() for index in sorted(table.indexes, key=lambda each: str(each.name))
        ]
    return ["\n".join(line.rstrip() for line in each.replace("\t", "    ").splitlines()) for each in made]


def write_initial(folder: Path = FOLDER / "versions") -> None:
    """Write the first revision anew from the models. Only before its first release: databases that exist are not changed by it."""
    dialects: list[Dialect] = [sqlite.dialect(), postgresql.dialect()]  # type: ignore[no-untyped-call]
    for dialect in dialects:
        text = ";\n\n".join(statements(dialect)) + ";\n"
        (folder / f"{INITIAL}_{dialect.name}.sql").write_text(text, encoding="utf-8")


def _new_revision(message: str) -> None:
    """A further revision: what the models have and an empty database at `head` has not."""
    from instructgpt.label.db.database import connect, sqlite_url

    with tempfile.TemporaryDirectory() as folder:
        engine = connect(sqlite_url(Path(folder) / "empty.db"))
        upgrade(engine)
        with _structure(engine) as connection:
            command.revision(config(connection), message, autogenerate=True)
        engine.dispose()


if __name__ == "__main__":
    if len(sys.argv) == 1:
        write_initial()
    else:
        _new_revision(" ".join(sys.argv[1:]))
