"""Archives: a whole site as a folder with one JSON lines file per table, independent of the database system.

An archive imported into an empty site and exported again gives the same bytes. A `whole` archive includes password
hashes: protect it like the site's folder. A `pseudonyms` archive omits names, addresses and passwords of accounts, and
the tables of sessions, invitations, keys, webhooks, the outbox, rate limits and the audit log.
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
from instructgpt.label.db.models.people import normalize_name
from instructgpt.label.exchange.export_files import sha256_file
from instructgpt.label.exchange.selection import SUBMISSION_CHUNK_SIZE, snapshot

_PeopleMode = Literal["pseudonyms", "whole"]
_ARCHIVE_VERSION = 1
_PERSONAL_TABLES = (
    "login",
    "challenge",
    "invite",
    "api_key",
    "rate_bucket",
    "journal",
    "webhook",
    "delivery",
    "identity",
    "openid_flow",
    "group_declaration",
)
"""Tables that a `pseudonyms` archive omits."""
_TOKEN_COLUMNS = {"playground_link": "token", "playground_user": "token_hash", "playground_session": "token_hash"}
"""Tables that it has without these tokens: the row's id stands in their place."""
_INITIAL_TABLES = (
    "invite",
    "journal",
    "instructions",
    "consent_text",
    "rate_bucket",
    "playground_consent_text",
    "playground_link",
)
"""Tables that have rows in a new site."""


def write_archive(database: Database, out: Path, people: _PeopleMode = "whole") -> dict[str, Any]:
    """Write every table into a new folder and return the manifest. Raises InputError if the folder is not usable."""
    with atomic_directory(out, mode=0o700) as folder:
        with snapshot(database) as db:
            tables = {
                table.name: _write_table(db, table, folder / f"{table.name}.jsonl", people)
                for table in Base.metadata.sorted_tables
                if people == "whole" or table.name not in _PERSONAL_TABLES
            }
        manifest = {"archive": _ARCHIVE_VERSION, "instructgpt": __version__, "people": people, "tables": tables}
        (folder / "archive.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def _write_table(db: Session, table: Table, path: Path, people: _PeopleMode) -> dict[str, Any]:
    # Both databases must sort alike, by the bytes of the primary key, or the same site would give different files.
    collation = "BINARY" if db.get_bind().dialect.name == "sqlite" else "C"
    order = [collate(column, collation) if column.type.python_type is str else column for column in table.primary_key]
    count = 0
    with path.open("wb") as stream:
        path.chmod(0o600)
        statement = select(table).order_by(*order).execution_options(yield_per=SUBMISSION_CHUNK_SIZE)
        for row in db.execute(statement).mappings():
            values = dict(row)
            if table.name == "person" and people == "pseudonyms":
                values |= {"name": values["pseudonym"], "name_key": normalize_name(values["pseudonym"]), "email": None}
                values |= {"password_hash": None, "totp_secret": None, "totp_step": None, "recovery_hashes": []}
            if table.name in _TOKEN_COLUMNS and people == "pseudonyms":
                values[_TOKEN_COLUMNS[table.name]] = values["id"]
            stream.write(format_json_line(values).encode("utf-8", "replace"))
            count += 1
        stream.flush()
        os.fsync(stream.fileno())
    return {"rows": count, "sha256": sha256_file(path), "columns": [column.name for column in table.columns]}


def read_archive(database: Database, folder: Path) -> dict[str, Any]:
    """Import an archive into an empty site in one transaction and return its manifest.

    Raises:
        InputError: not an archive, a file is missing or changed, a table's columns differ, or the site has rows.
    """
    manifest = _read_manifest(folder)
    _validate_manifest(manifest, folder)
    with database.write() as db:
        for name, table in Base.metadata.tables.items():
            if name not in _INITIAL_TABLES and db.scalar(select(func.count()).select_from(table)):
                raise InputError(f"the site is not empty (table '{name}' has rows); import an archive into a new site")
        for table in reversed(Base.metadata.sorted_tables):
            db.execute(delete(table))
        for table in Base.metadata.sorted_tables:
            if table.name in manifest["tables"]:
                _read_table(db, table, folder / f"{table.name}.jsonl")
    return manifest


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / "archive.json").read_text(encoding="utf-8"))
        if manifest["archive"] != _ARCHIVE_VERSION:
            version, package = manifest["archive"], manifest["instructgpt"]
            raise InputError(
                f"{folder}: archive version {version}, not {_ARCHIVE_VERSION}; import it with instructgpt {package}"
            )
        return dict(manifest) | {"tables": dict(manifest["tables"])}
    except OSError as error:
        raise InputError(
            f"{folder}: not an archive (cannot read 'archive.json': {error.strerror}); give the exported folder"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder / 'archive.json'}: not the manifest of an archive ({error!r})") from error


def _validate_manifest(manifest: dict[str, Any], folder: Path) -> None:
    """Check columns and file hashes before the first row is written. Raises InputError."""
    for name, entry in manifest["tables"].items():
        table, path = Base.metadata.tables.get(name), folder / f"{name}.jsonl"
        if table is None or [column.name for column in table.columns] != entry["columns"]:
            raise InputError(
                f"{folder}: the columns of table '{name}' differ from this version ({__version__}); import it with "
                f"instructgpt {manifest['instructgpt']} and let this version migrate the database"
            )
        if not path.is_file():
            raise InputError(f"{path}: missing from the archive; copy the whole folder")
        if sha256_file(path) != entry["sha256"]:
            raise InputError(f"{path}: was changed after the export (its SHA-256 differs); use another copy")


def _read_table(db: Session, table: Table, path: Path) -> None:
    rows = _iter_rows(table, path)
    while chunk := list(islice(rows, SUBMISSION_CHUNK_SIZE)):
        try:
            db.execute(insert(table), [values for _, values in chunk])
        except SQLAlchemyError as error:
            first, last = chunk[0][0], chunk[-1][0]
            reason = str(getattr(error, "orig", None) or error).split("\n")[0]
            raise InputError(f"{path}:{first}: the database rejects a row up to line {last} ({reason})") from error


def _iter_rows(table: Table, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, values) of a table's file."""
    # SQLAlchemy would store None in a JSON column as the JSON value null; null() stores the SQL NULL that was exported.
    json_columns = [column.name for column in table.columns if isinstance(column.type, JSON)]
    for line_number, line in iter_lines(path):
        try:
            values = parse_json_object(line)
        except ValueError as error:
            raise InputError(f"{path}:{line_number}: {error}") from error
        yield line_number, values | {name: null() for name in json_columns if values.get(name) is None}
