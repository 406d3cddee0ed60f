"""A whole site as a folder of text, and back: one JSON-lines file a table, so that nothing depends on a database or its version.

Read into an empty site and written again, an archive is the same bytes. `whole` archives hold everything, hashes of passwords too, and
belong where the site's folder belongs; in `pseudonyms` archives accounts have no name, address or password, and sign-ins, invitations,
keys, rate limits and the journal are left out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import JSON, Table, collate, delete, func, insert, null, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from instructgpt import __version__
from instructgpt.errors import BadInput
from instructgpt.io import json_line, parse_row, read_lines, whole_folder
from instructgpt.label.db.database import Database
from instructgpt.label.db.models import Base
from instructgpt.label.exchange.export_files import sha256_of
from instructgpt.label.exchange.selection import AT_ONCE, snapshot

People = Literal["pseudonyms", "whole"]
VERSION = 1
PERSONAL = ("login", "invite", "api_key", "rate_bucket", "journal")
"""Tables about people and machines rather than about work."""
MADE_AT_START = ("invite", "journal", "instructions", "consent_text", "rate_bucket")
"""What a new site has before anybody used it."""


def write_archive(database: Database, out: Path, people: People = "whole") -> dict[str, Any]:
    """Write every table into a folder that is not there yet. Returns the archive's description.

    Raises:
        BadInput: the folder is taken or cannot be written.
    """
    with whole_folder(out, mode=0o700) as folder:
        with snapshot(database) as db:
            kept = [table for table in Base.metadata.sorted_tables if people == "whole" or table.name not in PERSONAL]
            tables = {table.name: _write_table(db, table, folder / f"{table.name}.jsonl", people) for table in kept}
        about = {"archive": VERSION, "instructgpt": __version__, "people": people, "tables": tables}
        (folder / "archive.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return about


def _write_table(db: Session, table: Table, file: Path, people: People) -> dict[str, Any]:
    """One table as JSON lines, in the order of its key's bytes. Returns what the description says of it."""
    binary = "BINARY" if db.get_bind().dialect.name == "sqlite" else "C"
    order = [collate(column, binary) if column.type.python_type is str else column for column in table.primary_key]
    count = 0
    with file.open("wb") as opened:
        file.chmod(0o600)
        for row in db.execute(select(table).order_by(*order).execution_options(yield_per=AT_ONCE)).mappings():
            values = dict(row)
            if table.name == "person" and people == "pseudonyms":
                values |= {"name": values["pseudonym"], "email": None, "password_hash": None}
            opened.write(json_line(values).encode("utf-8", "replace"))
            count += 1
        opened.flush()
        os.fsync(opened.fileno())
    return {"rows": count, "sha256": sha256_of(file), "columns": [column.name for column in table.columns]}


def read_archive(database: Database, folder: Path) -> dict[str, Any]:
    """Fill an empty site from an archive, all of it or nothing. Returns the archive's description.

    Raises:
        BadInput: it is no archive, a file is missing or was changed, its tables are not this version's, or the site is not empty.
    """
    about = _describe(folder)
    _check(about, folder)
    with database.write() as db:
        for name, table in Base.metadata.tables.items():
            if name not in MADE_AT_START and db.scalar(select(func.count()).select_from(table)):
                raise BadInput(f"the site is not empty (there are rows in {name}); read an archive into a new one")
        for table in reversed(Base.metadata.sorted_tables):
            db.execute(delete(table))
        for table in Base.metadata.sorted_tables:
            if table.name in about["tables"]:
                _read_table(db, table, folder / f"{table.name}.jsonl")
    return about


def _describe(folder: Path) -> dict[str, Any]:
    """What an archive says of itself."""
    try:
        about = json.loads((folder / "archive.json").read_text(encoding="utf-8"))
        if about["archive"] != VERSION:
            raise BadInput(
                f"{folder}: an archive of version {about['archive']}, expected {VERSION}; read it with instructgpt {about['instructgpt']}"
            )
        return dict(about) | {"tables": dict(about["tables"])}
    except OSError as error:
        raise BadInput(
            f"{folder}: no archive ('archive.json' cannot be read: {error.strerror}); name the folder that was exported"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{folder / 'archive.json'}: not the description of an archive ({error!r})") from error


def _check(about: dict[str, Any], folder: Path) -> None:
    """Everything that can be wrong, before the first row is written. Raises BadInput."""
    for name, facts in about["tables"].items():
        table, file = Base.metadata.tables.get(name), folder / f"{name}.jsonl"
        if table is None or [column.name for column in table.columns] != facts["columns"]:
            raise BadInput(
                f"{folder}: table '{name}' is not as in this version ({__version__}); read it with instructgpt "
                f"{about['instructgpt']} and let the new version migrate the database"
            )
        if not file.is_file():
            raise BadInput(f"{file}: is missing from the archive; copy the whole folder")
        if sha256_of(file) != facts["sha256"]:
            raise BadInput(f"{file}: is not what was exported (its SHA-256 differs); take it from another copy")


def _read_table(db: Session, table: Table, file: Path) -> None:
    """One table's rows, in portions."""
    rows = _rows(table, file)
    while portion := list(islice(rows, AT_ONCE)):
        try:
            db.execute(insert(table), [values for _, values in portion])
        except SQLAlchemyError as error:
            first, last = portion[0][0], portion[-1][0]
            reason = str(getattr(error, "orig", None) or error).split("\n")[0]
            raise BadInput(f"{file}:{first}: rows up to line {last} do not fit the database ({reason})") from error


def _rows(table: Table, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, values) of a table's file. An empty JSON column is no value rather than the JSON word for it."""
    documents = [column.name for column in table.columns if isinstance(column.type, JSON)]
    for number, line in read_lines(file):
        try:
            values = parse_row(line)
        except ValueError as error:
            raise BadInput(f"{file}:{number}: {error}") from error
        yield number, values | {name: null() for name in documents if values.get(name) is None}
