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
from instructgpt.errors import InputError
from instructgpt.io import atomic_directory, format_json_line, iter_lines, parse_json_object
from instructgpt.label.db.database import Database
from instructgpt.label.db.models import Base
from instructgpt.label.exchange.export_files import sha256_file
from instructgpt.label.exchange.selection import SUBMISSION_CHUNK_SIZE, snapshot

_PeopleMode = Literal["pseudonyms", "whole"]
_ARCHIVE_VERSION = 1
_PERSONAL_TABLES = ("login", "invite", "api_key", "rate_bucket", "journal")
"""Tables about people and machines rather than about work."""
_INITIAL_TABLES = ("invite", "journal", "instructions", "consent_text", "rate_bucket")
"""What a new site has before anybody used it."""


def write_archive(database: Database, out: Path, people: _PeopleMode = "whole") -> dict[str, Any]:
    """Write every table into a folder that is not there yet. Returns the archive's description.

    Raises:
        BadInput: the folder is taken or cannot be written.
    """
    with atomic_directory(out, mode=0o700) as folder:
        with snapshot(database) as db:
            exported_tables = [
                table
                for table in Base.metadata.sorted_tables
                if people == "whole" or table.name not in _PERSONAL_TABLES
            ]
            tables = {
                table.name: _write_table(db, table, folder / f"{table.name}.jsonl", people) for table in exported_tables
            }
        manifest = {"archive": _ARCHIVE_VERSION, "instructgpt": __version__, "people": people, "tables": tables}
        (folder / "archive.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def _write_table(db: Session, table: Table, path: Path, people: _PeopleMode) -> dict[str, Any]:
    """One table as JSON lines, in the order of its key's bytes. Returns what the description says of it."""
    collation = "BINARY" if db.get_bind().dialect.name == "sqlite" else "C"
    order = [collate(column, collation) if column.type.python_type is str else column for column in table.primary_key]
    count = 0
    with path.open("wb") as stream:
        path.chmod(0o600)
        for row in db.execute(
            select(table).order_by(*order).execution_options(yield_per=SUBMISSION_CHUNK_SIZE)
        ).mappings():
            values = dict(row)
            if table.name == "person" and people == "pseudonyms":
                values |= {"name": values["pseudonym"], "email": None, "password_hash": None}
            stream.write(format_json_line(values).encode("utf-8", "replace"))
            count += 1
        stream.flush()
        os.fsync(stream.fileno())
    return {"rows": count, "sha256": sha256_file(path), "columns": [column.name for column in table.columns]}


def read_archive(database: Database, folder: Path) -> dict[str, Any]:
    """Fill an empty site from an archive, all of it or nothing. Returns the archive's description.

    Raises:
        BadInput: it is no archive, a file is missing or was changed, its tables are not this version's, or the site is not empty.
    """
    manifest = _read_manifest(folder)
    _validate_manifest(manifest, folder)
    with database.write() as db:
        for name, table in Base.metadata.tables.items():
            if name not in _INITIAL_TABLES and db.scalar(select(func.count()).select_from(table)):
                raise InputError(f"the site is not empty (there are rows in {name}); read an archive into a new one")
        for table in reversed(Base.metadata.sorted_tables):
            db.execute(delete(table))
        for table in Base.metadata.sorted_tables:
            if table.name in manifest["tables"]:
                _read_table(db, table, folder / f"{table.name}.jsonl")
    return manifest


def _read_manifest(folder: Path) -> dict[str, Any]:
    """What an archive says of itself."""
    try:
        manifest = json.loads((folder / "archive.json").read_text(encoding="utf-8"))
        if manifest["archive"] != _ARCHIVE_VERSION:
            raise InputError(
                f"{folder}: an archive of version {manifest['archive']}, expected {_ARCHIVE_VERSION}; read it with instructgpt {manifest['instructgpt']}"
            )
        return dict(manifest) | {"tables": dict(manifest["tables"])}
    except OSError as error:
        raise InputError(
            f"{folder}: no archive ('archive.json' cannot be read: {error.strerror}); name the folder that was exported"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / 'archive.json'}: not the description of an archive ({error!r})") from error


def _validate_manifest(manifest: dict[str, Any], folder: Path) -> None:
    """Everything that can be wrong, before the first row is written. Raises BadInput."""
    for name, entry in manifest["tables"].items():
        table, path = Base.metadata.tables.get(name), folder / f"{name}.jsonl"
        if table is None or [column.name for column in table.columns] != entry["columns"]:
            raise InputError(
                f"{folder}: table '{name}' is not as in this version ({__version__}); read it with instructgpt "
                f"{manifest['instructgpt']} and let the new version migrate the database"
            )
        if not path.is_file():
            raise InputError(f"{path}: is missing from the archive; copy the whole folder")
        if sha256_file(path) != entry["sha256"]:
            raise InputError(f"{path}: is not what was exported (its SHA-256 differs); take it from another copy")


def _read_table(db: Session, table: Table, path: Path) -> None:
    """One table's rows, in portions."""
    rows = _iter_rows(table, path)
    while chunk := list(islice(rows, SUBMISSION_CHUNK_SIZE)):
        try:
            db.execute(insert(table), [values for _, values in chunk])
        except SQLAlchemyError as error:
            first, last = chunk[0][0], chunk[-1][0]
            reason = str(getattr(error, "orig", None) or error).split("\n")[0]
            raise InputError(f"{path}:{first}: rows up to line {last} do not fit the database ({reason})") from error


def _iter_rows(table: Table, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, values) of a table's file. An empty JSON column is no value rather than the JSON word for it."""
    json_columns = [column.name for column in table.columns if isinstance(column.type, JSON)]
    for line_number, line in iter_lines(path):
        try:
            values = parse_json_object(line)
        except ValueError as error:
            raise InputError(f"{path}:{line_number}: {error}") from error
        yield line_number, values | {name: null() for name in json_columns if values.get(name) is None}
