"""A site's folder: what is in it, and how it becomes a running site.

The folder holds `site.yaml` (where the database is; it may name a password, so only its owner can read it) and, unless the database is
elsewhere, `site.db`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from sqlalchemy.exc import SQLAlchemyError

from instructgpt.errors import InputError
from instructgpt.label.context import Settings, Site
from instructgpt.label.db.database import Database, sqlite_url

SITE_FILE_NAME, _DATABASE_FILE_NAME = "site.yaml", "site.db"
_TEMPORARY_FILESYSTEMS = ("tmpfs", "ramfs", "overlay")
"""File systems that end with the machine or the container."""


def is_site_folder(folder: Path) -> bool:
    """Whether a folder is a site already."""
    return (folder / SITE_FILE_NAME).is_file()


def create_site_folder(folder: Path, url: str | None) -> None:
    """Make a site's folder and note where its database is.

    Raises:
        BadInput: something else is there, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / SITE_FILE_NAME, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            yaml.safe_dump({"database": url}, stream)
    except FileExistsError as error:
        raise InputError(f"--site {folder}: is a site already, or a file; 'label serve' opens a site") from error
    except OSError as error:
        raise InputError(f"--site {folder}: cannot be written ({error.strerror})") from error


def open_site(folder: Path, url: str | None = None, **settings: Any) -> Site:
    """A site whose tables are there and of this version.

    Args:
        folder: made by `make_folder`.
        url: the database somebody named; it must be the one the site was made with.
        settings: of `Settings`.

    Raises:
        BadInput: the folder is no site, the database is another one, cannot be reached, or is of another version.
    """
    if not is_site_folder(folder):
        raise InputError(f"--site {folder}: no site there; 'instructgpt label init --site {folder}' makes one")
    stored_url = _read_database_url(folder)
    if url is not None and url != stored_url:
        raise InputError(
            f"--database: this site was made with {_redact_password(stored_url or 'its own file')}; leave the option out"
        )
    database = Database(stored_url or sqlite_url(folder / _DATABASE_FILE_NAME))
    try:
        copy = database.upgrade()
    except InputError:
        database.close()
        raise
    except SQLAlchemyError as error:
        database.close()
        reason = " ".join(str(getattr(error, "orig", None) or error).split())
        raise InputError(
            f"the database of {folder} cannot be opened ({reason}); is it running, and may this user use it?"
        ) from error
    if copy is not None:
        print(f"the database was brought to this version; as it was before: {copy}")
    return Site(Settings(folder=folder, **settings), database)


def iter_storage_warnings(folder: Path) -> Iterator[str]:
    """What an owner should know about where the site lies, one line each."""
    path = folder.resolve()
    is_temporary = any(
        path.is_relative_to(Path(each).resolve()) for each in (tempfile.gettempdir(), "/var/tmp", "/dev/shm", "/run")
    )
    if is_temporary or _filesystem_type(path) in _TEMPORARY_FILESYSTEMS:
        yield f"{path} is on a temporary disk: what people make there can be gone after a restart; choose another --site"


def _filesystem_type(path: Path) -> str | None:
    """The kind of file system a folder is on; None where the system does not tell."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return None
    matches = [(len(mount[1]), mount[2]) for mount in mounts if len(mount) > 2 and path.is_relative_to(mount[1])]
    return max(matches)[1] if matches else None


def _read_database_url(folder: Path) -> str | None:
    """The database noted in a site's folder; None: the file beside it."""
    try:
        record = yaml.safe_load((folder / SITE_FILE_NAME).read_text(encoding="utf-8"))
        url = record["database"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder / SITE_FILE_NAME}: cannot be read; it holds one line 'database: URL', or 'database: null' for {_DATABASE_FILE_NAME}"
        ) from error
    return None if url is None else str(url)


def _redact_password(url: str) -> str:
    """An address of a database that can be shown."""
    scheme, _, rest = url.partition("://")
    user, separator, host = rest.rpartition("@")
    return f"{scheme}://{user.partition(':')[0]}{separator}{host}" if rest else url
