"""Transactions, migrations and schema on SQLite and PostgreSQL."""

from __future__ import annotations

import shutil
import sqlite3
import threading
import time

import pytest
from sqlalchemy import inspect, text
from support.site import add_person, make_site
from support.tasks import rank_batch, ranking

from instructgpt.errors import InputError
from instructgpt.label.context import Settings, Site
from instructgpt.label.db import migrate
from instructgpt.label.db.database import Database, sqlite_url
from instructgpt.label.db.models import Base, Person
from instructgpt.label.tasks.assignments import claim_next_task
from instructgpt.label.tasks.submissions import submit_form

HEAD = migrate.get_head_revision()
TABLES = {table.name for table in Base.metadata.sorted_tables}


def names(database):
    """Tables in a database, Alembic's own left out."""
    return set(inspect(database.engine).get_table_names()) - {"alembic_version"}


def rows(database):
    """Everything in a database."""
    with database.engine.connect() as connection:
        return {
            table: sorted(map(repr, connection.execute(text(f"SELECT * FROM {table}"))))
            for table in sorted(names(database))
        }


def add_one(database, number, pause=0.0):
    with database.write() as db:
        people = db.query(Person).count()
        time.sleep(pause)
        db.add(Person(name=f"{number}", role="labeler", pseudonym=f"{number} of {people}"))


@pytest.mark.parametrize("databases", [1, 2], ids=["one process", "two processes"])
def test_writers_wait_for_each_other(tmp_path, databases):
    make_site(tmp_path)
    connected = [Database(sqlite_url(tmp_path / "site.db")) for _ in range(databases)]
    threads = [
        threading.Thread(target=add_one, args=(connected[number % databases], number, 0.01)) for number in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with connected[0].read() as db:
        assert sorted(person.pseudonym.split()[-1] for person in db.query(Person)) == sorted(map(str, range(12)))


def test_writers_lock_at_the_start(tmp_path):
    site = make_site(tmp_path)
    with site.database.write() as db:
        db.scalar(text("SELECT 1"))
        other = sqlite3.connect(tmp_path / "site.db", timeout=0, isolation_level=None)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        assert other.execute("SELECT count(*) FROM person").fetchone() == (0,), "reading goes on"
        other.close()


def test_readers_do_not_take_the_lock(tmp_path):
    site = make_site(tmp_path)
    with site.database.read() as reader:
        assert reader.query(Person).count() == 0
        add_one(site.database, 1)
        assert reader.query(Person).count() == 0, "one reading sees one state"


def test_failed_transactions_roll_back(site):
    def work(db):
        db.add(Person(name="ada", role="labeler", pseudonym="p"))
        db.flush()
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        site.database.write_with_retry(work)
    with site.database.read() as db:
        assert db.query(Person).count() == 0


def test_deadlocks_are_retried(postgres_url, tmp_path):
    site = make_site(tmp_path, postgres_url)
    people = [add_person(site, name) for name in ("ada", "bob")]
    meeting, calls = threading.Barrier(2), []

    def rename(first, second):
        def work(db):
            calls.append(first.name)
            db.execute(text("UPDATE person SET theme = 'dark' WHERE id = :id"), {"id": first.id})
            if len(calls) <= 2:
                meeting.wait(timeout=5)
            db.execute(text("UPDATE person SET language = 'ko' WHERE id = :id"), {"id": second.id})

        return threading.Thread(target=site.database.write_with_retry, args=(work,))

    threads = [rename(*people), rename(*people[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) > 2, "one of the two had to begin again"
    with site.database.read() as db:
        assert {(person.theme, person.language) for person in db.query(Person)} == {("dark", "ko")}
    site.database.close()


def test_other_errors_are_not_retried(site):
    calls = []

    def work(db):
        calls.append(1)
        db.execute(text("SELECT * FROM nowhere"))

    with pytest.raises(Exception, match="nowhere"):
        site.database.write_with_retry(work)
    assert calls == [1]


def test_unsupported_database_urls_are_refused():
    with pytest.raises(InputError, match="mysql://x: expected sqlite"):
        Database("mysql://x")


# ---------------------------------------------------------------- structure


def test_migrations_create_all_tables_of_the_models(database_url):
    database = Database(database_url)
    assert not database.is_current()
    assert database.upgrade() is None, "an empty database needs no copy"
    assert database.is_current()
    assert names(database) == TABLES
    assert migrate.compute_schema_diff(database.engine) == []
    database.close()


def test_schema_diff_finds_differences(database_url):
    database = Database(database_url)
    database.upgrade()
    with database.engine.begin() as connection:
        connection.execute(text("DROP INDEX ix_task_queue"))
        connection.execute(text("ALTER TABLE person ADD COLUMN shoe_size INTEGER"))
    assert {operation[0] for operation in migrate.compute_schema_diff(database.engine)} == {
        "add_index",
        "remove_column",
    }
    database.close()


def structure(database):
    """Every column, key, constraint and index, including the CHECKs that Alembic does not compare."""
    inspector = inspect(database.engine)
    return {
        table: {
            "columns": [(c["name"], str(c["type"]), c["nullable"]) for c in inspector.get_columns(table)],
            "primary key": inspector.get_pk_constraint(table),
            "foreign keys": sorted(map(repr, inspector.get_foreign_keys(table))),
            "unique": sorted(map(repr, inspector.get_unique_constraints(table))),
            "checks": sorted(map(repr, inspector.get_check_constraints(table))),
            "indexes": sorted(map(repr, inspector.get_indexes(table))),
        }
        for table in sorted(names(database))
    }


def test_migrated_structure_equals_the_models(database_url):
    database = Database(database_url)
    database.upgrade()
    migrated = structure(database)
    database.downgrade("base")
    assert structure(database) == {}
    with database.engine.begin() as connection:
        connection.execute(text("DROP TABLE alembic_version"))
        Base.metadata.create_all(connection)
    created = structure(database)
    database.close()
    assert migrated == created
    assert sum(len(table["checks"]) for table in migrated.values()) == 28


def test_a_new_revision_holds_only_what_the_models_add(tmp_path, monkeypatch):
    folder = tmp_path / "migrations"
    shutil.copytree(migrate.MIGRATIONS_FOLDER, folder)
    monkeypatch.setattr(migrate, "MIGRATIONS_FOLDER", folder)
    migrate._new_revision("nothing new")
    (script,) = folder.glob("versions/*_nothing_new.py")
    assert "op." not in script.read_text()


def with_work(database_url, folder):
    """A site with somebody's ranking in it, made by the migrations."""
    database = Database(database_url)
    database.upgrade()
    site = Site(Settings(folder=folder), database)
    ada = add_person(site)
    with database.write() as db:
        rank_batch(db)
    with database.write() as db:
        mine = claim_next_task(db, site.settings, ada, None, 1)
        submit_form(db, site.settings, mine, ranking(mine.shown), "key", 2)
    return database


REVISION = '''
"""Another column, and a narrower table."""
import sqlalchemy as sa
from alembic import op
revision, down_revision, branch_labels, depends_on = "next", "HEAD", None, None

def upgrade():
    with op.batch_alter_table("submission") as table:
        table.add_column(sa.Column("seen", sa.Boolean, server_default=sa.false(), nullable=False))
        table.alter_column("note", new_column_name="remark")

def downgrade():
    with op.batch_alter_table("submission") as table:
        table.alter_column("remark", new_column_name="note")
        table.drop_column("seen")
'''.replace("HEAD", HEAD)


@pytest.fixture
def next_revision(tmp_path, monkeypatch):
    """A version of the package that has one revision more."""
    folder = tmp_path / "migrations"
    shutil.copytree(migrate.MIGRATIONS_FOLDER, folder)
    (folder / "versions" / "next.py").write_text(REVISION)
    return lambda: monkeypatch.setattr(migrate, "MIGRATIONS_FOLDER", folder)


def test_upgrade_and_downgrade_keep_data(database_url, tmp_path, next_revision):
    database = with_work(database_url, tmp_path)
    before = rows(database)
    assert len(before["ranking_item"]) == 4
    next_revision()
    assert not database.is_current()
    database.upgrade()
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT remark, seen FROM submission")).all() == [("", False)]
    assert {name: found for name, found in rows(database).items() if name != "submission"} == {
        name: found for name, found in before.items() if name != "submission"
    }
    database.downgrade(HEAD)
    assert rows(database) == before
    assert migrate.compute_schema_diff(database.engine) == []
    database.downgrade("base")
    assert names(database) == set()
    database.upgrade()
    assert names(database) == TABLES
    database.close()


def test_sqlite_files_are_copied_before_migrations(tmp_path, next_revision):
    database = with_work(sqlite_url(tmp_path / "site.db"), tmp_path)
    before = rows(database)
    assert database.upgrade() is None, "nothing to do"
    next_revision()
    copy = database.upgrade()
    assert copy == tmp_path / f"site.db.before-migration-{HEAD}-1"
    assert rows(Database(sqlite_url(copy))) == before
    assert database.downgrade(HEAD) == tmp_path / "site.db.before-migration-next-1"
    assert database.upgrade() == tmp_path / f"site.db.before-migration-{HEAD}-2", "an earlier copy is not overwritten"


def test_failed_migrations_roll_back(database_url, tmp_path, next_revision):
    database = with_work(database_url, tmp_path)
    before = rows(database)
    broken = tmp_path / "migrations" / "versions" / "next.py"
    broken.write_text(REVISION.replace("def downgrade", "    op.execute('SELECT * FROM nowhere')\n\ndef downgrade"))
    next_revision()
    with pytest.raises(Exception, match="nowhere"):
        database.upgrade()
    assert rows(database) == before
    assert migrate.get_database_revision(database.engine) == HEAD
    database.close()


def test_migrations_that_break_foreign_keys_are_refused(tmp_path, next_revision):
    database = with_work(sqlite_url(tmp_path / "site.db"), tmp_path)
    broken = tmp_path / "migrations" / "versions" / "next.py"
    broken.write_text(REVISION.replace("def downgrade", "    op.execute('DELETE FROM person')\n\ndef downgrade"))
    next_revision()
    with pytest.raises(InputError, match="would break foreign keys"):
        database.upgrade()
    with database.read() as db:
        assert db.query(Person).count() == 1


def test_newer_databases_are_refused(database_url):
    database = Database(database_url)
    database.upgrade()
    with database.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0999'"))
    for change in (database.upgrade, lambda: database.downgrade("base")):
        with pytest.raises(InputError, match="revision 0999, which this version does not know"):
            change()
    database.close()
