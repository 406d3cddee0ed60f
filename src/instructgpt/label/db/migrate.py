"""Alembic migrations of the site's database, forward and back, with a copy of an SQLite file before each change.

Developers add a revision with `python -m instructgpt.label.db.migrate "what changes"`.
"""

from __future__ import annotations

import os
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

from instructgpt.errors import InputError
from instructgpt.label.db.models import Base

MIGRATIONS_FOLDER = Path(__file__).parent / "migrations"


def _alembic_config(connection: Connection | None = None) -> Config:
    config = Config()  # without alembic.ini
    config.set_main_option("script_location", str(MIGRATIONS_FOLDER))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def get_head_revision() -> str:
    """Return the newest revision of this version of the package."""
    revision = ScriptDirectory.from_config(_alembic_config()).get_current_head()
    assert revision is not None
    return revision


def get_database_revision(engine: Engine) -> str | None:
    """Return the revision of a database; None for an empty database."""
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def upgrade_database(engine: Engine, target_revision: str = "head") -> Path | None:
    """Upgrade in one transaction and return the copy made first (SQLite). Raise InputError for a newer database."""
    current_revision = get_database_revision(engine)
    _check_known_revision(current_revision)
    if current_revision == (get_head_revision() if target_revision == "head" else target_revision):
        return None
    copy = _copy_before_migration(engine, current_revision) if current_revision is not None else None
    with _schema_transaction(engine) as connection:
        command.upgrade(_alembic_config(connection), target_revision)
    return copy


def downgrade_database(engine: Engine, target_revision: str) -> Path | None:
    """Downgrade a database to an earlier revision (`base`: drop all tables); otherwise as `upgrade_database`."""
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
            f"the database is at revision {current_revision}, which this version does not know; "
            "install the newer version that made it"
        )


@contextmanager
def _schema_transaction(engine: Engine) -> Iterator[Connection]:
    is_sqlite = engine.dialect.name == "sqlite"
    with engine.connect() as connection:
        # SQLite changes a table by copying it and dropping the original, which foreign keys would forbid: they are
        # off until the end of the transaction, where all rows are checked at once.
        if is_sqlite:
            _set_foreign_keys(connection, "OFF")
        try:
            connection.execution_options(writes=True)
            with connection.begin():
                yield connection
                if is_sqlite and (violations := connection.exec_driver_sql("PRAGMA foreign_key_check").all()):
                    raise InputError(f"the migration would break foreign keys: {violations[:3]}")
        finally:
            if is_sqlite:
                _set_foreign_keys(connection, "ON")


def _set_foreign_keys(connection: Connection, state: str) -> None:
    driver: Any = connection.connection.dbapi_connection  # SQLite ignores the pragma inside a transaction
    driver.execute(f"PRAGMA foreign_keys={state}")


def _copy_before_migration(engine: Engine, current_revision: str) -> Path | None:
    """Copy an SQLite file beside itself through the backup API, which is consistent while others write."""
    name = engine.url.database
    if engine.dialect.name != "sqlite" or not name or name == ":memory:":
        return None
    source = Path(name)
    number = 1
    while (copy := source.with_name(f"{source.name}.before-migration-{current_revision}-{number}")).exists():
        number += 1
    os.close(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(copy)) as new:
        old.backup(new)
    return copy


def compute_schema_diff(engine: Engine) -> list[Any]:
    """Return the differences between the models and a database as Alembic operations."""
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "render_as_batch": True})
        return list(compare_metadata(context, Base.metadata))


def _new_revision(message: str) -> None:
    """Write a revision from the difference between the models and an empty database at `head`."""
    from instructgpt.label.db.database import create_database_engine, sqlite_url

    with tempfile.TemporaryDirectory() as folder:
        engine = create_database_engine(sqlite_url(Path(folder) / "empty.db"))
        upgrade_database(engine)
        with _schema_transaction(engine) as connection:
            command.revision(_alembic_config(connection), message, autogenerate=True)
        engine.dispose()


if __name__ == "__main__":
    _new_revision(" ".join(sys.argv[1:]))
