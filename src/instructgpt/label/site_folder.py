"""The folder of a site: `site.yaml` names the database, which is `site.db` beside it or a PostgreSQL server."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from instructgpt.errors import InputError
from instructgpt.label.context import Settings, Site
from instructgpt.label.db.database import PRIVATE_FILE_MODE, Database, sqlite_url

SITE_FILE_NAME, _DATABASE_FILE_NAME = "site.yaml", "site.db"
PRIVATE_FOLDER_MODE = 0o700
_TEMPORARY_FILESYSTEMS = ("tmpfs", "ramfs", "overlay")  # lost with the machine or the container


def is_site_folder(folder: Path) -> bool:
    return (folder / SITE_FILE_NAME).is_file()


def create_site_folder(folder: Path, url: str | None) -> None:
    """Create a site's folder and write its database URL (None: `site.db`); raise InputError when it exists."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=PRIVATE_FOLDER_MODE)
        # Only the owner can read the file: the URL may contain a password.
        descriptor = os.open(folder / SITE_FILE_NAME, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE_MODE)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            yaml.safe_dump({"database": url}, stream)
    except FileExistsError as error:
        raise InputError(f"--site {folder}: exists already; open a site with 'label serve'") from error
    except OSError as error:
        raise InputError(f"--site {folder}: cannot write ({error.strerror})") from error


def open_site(folder: Path, url: str | None = None, **settings: Any) -> Site:
    """Open a site and upgrade its tables.

    Args:
        url: must equal the URL in `site.yaml`.
        settings: fields of `Settings`.

    Raises:
        InputError: not a site, another database, or a database that is unreachable or of a newer version.
    """
    if not is_site_folder(folder):
        raise InputError(f"--site {folder}: no site there; create one with 'instructgpt label init --site {folder}'")
    stored_url = _read_database_url(folder)
    if url is not None and url != stored_url:
        current = _redact_password(stored_url or _DATABASE_FILE_NAME)
        raise InputError(f"--database: this site uses {current}; leave the option out")
    url = stored_url or sqlite_url(folder / _DATABASE_FILE_NAME)
    for path in _restrict_access(folder, url):
        print(f"{path} was open to other accounts of this machine; now only its owner can use it")
    database = Database(url)
    try:
        copy = database.upgrade()
    except InputError:
        database.close()
        raise
    except SQLAlchemyError as error:
        database.close()
        reason = " ".join(str(getattr(error, "orig", None) or error).split())
        raise InputError(f"{folder}: cannot open the database ({reason}); does it run and admit this user?") from error
    if copy is not None:
        print(f"upgraded the database; a copy of the previous one is in {copy}")
    return Site(Settings(folder=folder, **settings), database)


def _restrict_access(folder: Path, url: str) -> list[Path]:
    """Take the rights of group and others from a site's folder and its database files; return what changed.

    The database has names, addresses, password hashes, gold answers and the names of blind models.
    """
    changed = []
    database = Path(make_url(url).database or "") if url.startswith("sqlite:") else folder / _DATABASE_FILE_NAME
    # SQLite's -wal and -shm files, and copies that migrations made
    files = [folder / SITE_FILE_NAME, *sorted(database.parent.glob(f"{database.name}*"))]
    for path, mode in [(folder, PRIVATE_FOLDER_MODE), *((file, PRIVATE_FILE_MODE) for file in files)]:
        with suppress(FileNotFoundError):  # SQLite removes its -wal and -shm files
            if stat.S_IMODE(path.stat().st_mode) & ~mode:
                try:
                    path.chmod(stat.S_IMODE(path.stat().st_mode) & mode)
                except PermissionError:
                    print(
                        f"warning: other accounts can read {path}, and it belongs to another account; run as its owner"
                    )
                else:
                    changed.append(path)
    return changed


def iter_storage_warnings(folder: Path) -> Iterator[str]:
    """Yield a line for a folder on a temporary disk."""
    path = folder.resolve()
    temporary = [Path(name).resolve() for name in (tempfile.gettempdir(), "/var/tmp", "/dev/shm", "/run")]
    is_temporary = any(path.is_relative_to(parent) for parent in temporary)
    if is_temporary or _filesystem_type(path) in _TEMPORARY_FILESYSTEMS:
        yield f"{path} is on a temporary disk and may be lost at a restart; choose another --site"


def _filesystem_type(path: Path) -> str | None:
    """Return the type of the file system that holds a path; None if unknown."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return None
    matches = [(len(mount[1]), mount[2]) for mount in mounts if len(mount) > 2 and path.is_relative_to(mount[1])]
    return max(matches)[1] if matches else None


def _read_database_url(folder: Path) -> str | None:
    try:
        record = yaml.safe_load((folder / SITE_FILE_NAME).read_text(encoding="utf-8"))
        url = record["database"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        expected = f"expected one line 'database: URL', or 'database: null' for {_DATABASE_FILE_NAME}"
        raise InputError(f"{folder / SITE_FILE_NAME}: cannot read; {expected}") from error
    return None if url is None else str(url)


def _redact_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    user, separator, host = rest.rpartition("@")
    return f"{scheme}://{user.partition(':')[0]}{separator}{host}" if rest else url
