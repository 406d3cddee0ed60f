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

from instructgpt.errors import InputError
from instructgpt.label.db.models import Base

MIGRATIONS_FOLDER = Path(__file__).parent / "migrations"
_INITIAL_REVISION = "0001"


def _alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's settings; nothing is read from a file."""
    settings = Config()
    settings.set_main_option("script_location", str(MIGRATIONS_FOLDER))
    settings.set_main_option("path_separator", "os")
    settings.attributes["connection"] = connection
    return settings


def get_head_revision() -> str:
    """The newest revision this version of the package knows."""
    newest_revision = ScriptDirectory.from_config(_alembic_config()).get_current_head()
    assert newest_revision is not None
    return newest_revision


def get_database_revision(engine: Engine) -> str | None:
    """The revision a database is at; None for one that never had any."""
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def upgrade_database(engine: Engine, target_revision: str = "head") -> Path | None:
    """Bring a database forward, all or nothing. An SQLite file that holds something is copied first. -> the copy.

    Raises:
        BadInput: the database is of a newer version of this package.
    """
    current_revision = get_database_revision(engine)
    _check_known_revision(current_revision)
    if current_revision == (get_head_revision() if target_revision == "head" else target_revision):
        return None
    copy = _copy_before_migration(engine, current_revision) if current_revision is not None else None
    with _schema_transaction(engine) as connection:
        command.upgrade(_alembic_config(connection), target_revision)
    return copy


def downgrade_database(engine: Engine, target_revision: str) -> Path | None:
    """Take a database back to an earlier revision (`base`: to nothing), all or nothing. -> the copy made first (SQLite).

    Raises:
        BadInput: the database is of a newer version of this package.
    """
    current_revision = get_database_revision(engine)
    _check_known_revision(current_revision)
    copy = _copy_before_migration(engine, current_revision) if current_revision is not None else None
    with _schema_transaction(engine) as connection:
        command.downgrade(_alembic_config(connection), target_revision)
    return copy


def _check_known_revision(current_revision: str | None) -> None:
    names = {script.revision for script in ScriptDirectory.from_config(_alembic_config()).walk_revisions()}
    if current_revision is not None and current_revision not in names:
        raise InputError(
            f"the database is at revision {current_revision}, which this version does not know; install the newer version that made it"
        )


@contextmanager
def _schema_transaction(engine: Engine) -> Iterator[Connection]:
    """A transaction that changes tables. SQLite rebuilds a table by copying it, so foreign keys rest until the end and are then checked."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            _disable_foreign_keys(connection, True)
        try:
            connection.execution_options(writes=True)
            with connection.begin():
                yield connection
                if engine.dialect.name == "sqlite" and (
                    violations := connection.exec_driver_sql("PRAGMA foreign_key_check").all()
                ):
                    raise InputError(f"the migration would leave rows without what they name: {violations[:3]}")
        finally:
            if engine.dialect.name == "sqlite":
                _disable_foreign_keys(connection, False)


def _disable_foreign_keys(connection: Connection, disabled: bool) -> None:
    """Outside of a transaction, where alone SQLite heeds it."""
    driver: Any = connection.connection.dbapi_connection
    driver.execute(f"PRAGMA foreign_keys={'OFF' if disabled else 'ON'}")


def _copy_before_migration(engine: Engine, current_revision: str) -> Path | None:
    """Copy an SQLite database beside itself, whole even while others write. -> the copy; None where there is no file."""
    name = engine.url.database
    if engine.dialect.name != "sqlite" or not name or name == ":memory:":
        return None
    source = Path(name)
    number = 1
    while (copy := source.with_name(f"{source.name}.before-migration-{current_revision}-{number}")).exists():
        number += 1
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(copy)) as new:
        old.backup(new)
    return copy


def compute_schema_diff(engine: Engine) -> list[Any]:
    """What the models have and the database has not, or the other way round, as Alembic's operations; empty when all is well."""
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "render_as_batch": True})
        return list(compare_metadata(context, Base.metadata))


def _schema_statements(dialect: Dialect) -> list[str]:
    """The SQL that makes all tables and indexes of the models, in an order in which it can be run."""
    sql = []
    for table in Base.metadata.sorted_tables:
        sql.append(str(CreateTable(table).compile(dialect=dialect)).strip())
        sql += [
            str(CreateIndex(index).compile(dialect=dialect)).strip()
            for index in sorted(table.indexes, key=lambda statement: str(statement.name))
        ]
    return ["\n".join(line.rstrip() for line in statement.replace("\t", "    ").splitlines()) for statement in sql]


def write_initial_revision(folder: Path = MIGRATIONS_FOLDER / "versions") -> None:
    """Write the first revision anew from the models. Only before its first release: databases that exist are not changed by it."""
    dialects: list[Dialect] = [sqlite.dialect(), postgresql.dialect()]  # type: ignore[no-untyped-call]
    for dialect in dialects:
        text = ";\n\n".join(_schema_statements(dialect)) + ";\n"
        (folder / f"{_INITIAL_REVISION}_{dialect.name}.sql").write_text(text, encoding="utf-8")


def _new_revision(message: str) -> None:
    """A further revision: what the models have and an empty database at `head` has not."""
    from instructgpt.label.db.database import create_database_engine, sqlite_url

    with tempfile.TemporaryDirectory() as folder:
        engine = create_database_engine(sqlite_url(Path(folder) / "empty.db"))
        upgrade_database(engine)
        with _schema_transaction(engine) as connection:
            command.revision(_alembic_config(connection), message, autogenerate=True)
        engine.dispose()


if __name__ == "__main__":
    if len(sys.argv) == 1:
        write_initial_revision()
    else:
        _new_revision(" ".join(sys.argv[1:]))
