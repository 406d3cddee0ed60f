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

from instructgpt.errors import BadInput
from instructgpt.label.context import Settings, Site
from instructgpt.label.db.database import Database, sqlite_url

RECORD, FILE = "site.yaml", "site.db"
FLEETING = ("tmpfs", "ramfs", "overlay")
"""File systems that end with the machine or the container."""


def is_made(folder: Path) -> bool:
    """Whether a folder is a site already."""
    return (folder / RECORD).is_file()


def make_folder(folder: Path, url: str | None) -> None:
    """Make a site's folder and note where its database is.

    Raises:
        BadInput: something else is there, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(folder / RECORD, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(file, "w", encoding="utf-8") as record:
            yaml.safe_dump({"database": url}, record)
    except FileExistsError as error:
        raise BadInput(f"--site {folder}: is a site already, or a file; 'label serve' opens a site") from error
    except OSError as error:
        raise BadInput(f"--site {folder}: cannot be written ({error.strerror})") from error


def open_site(folder: Path, url: str | None = None, **settings: Any) -> Site:
    """A site whose tables are there and of this version.

    Args:
        folder: made by `make_folder`.
        url: the database somebody named; it must be the one the site was made with.
        settings: of `Settings`.

    Raises:
        BadInput: the folder is no site, the database is another one, cannot be reached, or is of another version.
    """
    if not is_made(folder):
        raise BadInput(f"--site {folder}: no site there; 'instructgpt label init --site {folder}' makes one")
    stored = _stored_url(folder)
    if url is not None and url != stored:
        raise BadInput(f"--database: this site was made with {_without_password(stored or 'its own file')}; leave the option out")
    database = Database(stored or sqlite_url(folder / FILE))
    try:
        copy = database.upgrade()
    except BadInput:
        database.close()
        raise
    except SQLAlchemyError as error:
        database.close()
        said = " ".join(str(getattr(error, "orig", None) or error).split())
        raise BadInput(f"the database of {folder} cannot be opened ({said}); is it running, and may this user use it?") from error
    if copy is not None:
        print(f"the database was brought to this version; as it was before: {copy}")
    return Site(Settings(folder=folder, **settings), database)


def warnings(folder: Path) -> Iterator[str]:
    """What an owner should know about where the site lies, one line each."""
    place = folder.resolve()
    temporary = any(place.is_relative_to(Path(each).resolve()) for each in (tempfile.gettempdir(), "/var/tmp", "/dev/shm", "/run"))
    if temporary or file_system(place) in FLEETING:
        yield f"{place} is on a temporary disk: what people make there can be gone after a restart; choose another --site"


def file_system(place: Path) -> str | None:
    """The kind of file system a folder is on; None where the system does not tell."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return None
    holding = [(len(mount[1]), mount[2]) for mount in mounts if len(mount) > 2 and place.is_relative_to(mount[1])]
    return max(holding)[1] if holding else None


def _stored_url(folder: Path) -> str | None:
    """The database noted in a site's folder; None: the file beside it."""
    try:
        record = yaml.safe_load((folder / RECORD).read_text(encoding="utf-8"))
        url = record["database"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise BadInput(f"{folder / RECORD}: cannot be read; it holds one line 'database: URL', or 'database: null' for {FILE}") from error
    return None if url is None else str(url)


def _without_password(url: str) -> str:
    """An address of a database that can be shown."""
    scheme, _, rest = url.partition("://")
    person, at, host = rest.rpartition("@")
    return f"{scheme}://{person.partition(':')[0]}{at}{host}" if rest else url
