"""API keys: a file of JSON lines with name, sha256, owner, use case and consent to storage, without the keys.

{"name": "notebook", "sha256": "…", "owner": "ann", "use_case": "chat", "store": false, "created": "2026-11-30"}
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path

from instructgpt.errors import InputError, one_line
from instructgpt.io import format_json_line, write_text_atomic

KEY_PREFIX = "sk-ig-"


@dataclass(frozen=True, slots=True)
class APIKey:
    """What is known of a key."""

    name: str
    sha256: str
    owner: str
    use_case: str = ""
    store: bool = False
    """Whether the owner agreed that requests which say `store: true` are kept."""
    created: str = ""
    approved_by: str = ""
    """The person who approved the use case, where the policy asks for one."""


def hash_key(key: str) -> str:
    """Return the hash under which a key is kept: keys are long and random, so a plain hash is enough."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def read_keys(path: Path) -> list[APIKey]:
    """Read a file of keys.

    Raises:
        InputError: a line is no key; the file is then not used at all.
    """
    keys = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            key = APIKey(**row)
            texts = (key.name, key.sha256, key.owner, key.use_case, key.created, key.approved_by)
            if not all(isinstance(text, str) for text in texts) or not isinstance(key.store, bool):
                raise ValueError(
                    "name, sha256, owner, use_case, created, approved_by are texts, store is true or false"
                )
            if len(key.sha256) != 64 or not key.name:
                raise ValueError("'sha256' has 64 characters, 'name' is not empty")
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}:{number}: not a key ({one_line(error, 150)})") from error
        keys.append(key)
    return keys


class KeyFile:
    """A file of keys as the server uses it: read again when it has changed, so that a revoked key ends at once."""

    def __init__(self, path: Path) -> None:
        """Read the file. Raises InputError where it is missing or wrong."""
        if not path.is_file():
            raise InputError(f"--keys {path}: no such file; make a key with 'instructgpt serve keys add --keys {path}'")
        self.path = path
        self._version: tuple[int, ...] = ()
        self._by_hash: dict[str, APIKey] = {}
        self._refresh()

    def _refresh(self) -> None:
        status = self.path.stat()
        version = (status.st_mtime_ns, status.st_size, status.st_ino)
        if version != self._version:
            self._by_hash = {key.sha256: key for key in read_keys(self.path)}
            self._version = version

    def find(self, key: str) -> APIKey | None:
        """Return what is known of a key, or None. Raises InputError or OSError where the file cannot be read now."""
        self._refresh()
        return self._by_hash.get(hash_key(key))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one command at a time change the file."""
    with path.with_name(f".{path.name}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _write_keys(path: Path, keys: list[APIKey]) -> None:
    write_text_atomic(path, (format_json_line(asdict(key)) for key in keys))
    path.chmod(0o600)


def add_key(path: Path, name: str, owner: str, use_case: str, store: bool) -> str:
    """Make a key and append what is known of it. Returns the key, which is kept nowhere.

    Raises:
        InputError: there is a key of this name.
    """
    with _locked(path):
        keys = read_keys(path) if path.exists() else []
        if name in {key.name for key in keys}:
            raise InputError(f"{path}: there is a key '{name}' already; revoke it, or take another --name")
        key = KEY_PREFIX + secrets.token_urlsafe(32)
        added = APIKey(name, hash_key(key), owner, use_case, store, date.today().isoformat())
        _write_keys(path, [*keys, added])
    return key


def approve_key(path: Path, name: str, person: str) -> None:
    """Record that a person approved the use case of a key. Raises InputError where there is no such key."""
    with _locked(path):
        keys = read_keys(path) if path.exists() else []
        _require_key(path, keys, name)
        _write_keys(path, [replace(key, approved_by=person) if key.name == name else key for key in keys])


def _require_key(path: Path, keys: Sequence[APIKey], name: str) -> None:
    if name not in {key.name for key in keys}:
        names = ", ".join(key.name for key in keys) or "none"
        raise InputError(f"{path}: no key '{name}'; keys: {names}")


def remove_key(path: Path, name: str) -> None:
    """Remove a key. Raises InputError where there is none of this name."""
    with _locked(path):
        keys = read_keys(path) if path.exists() else []
        _require_key(path, keys, name)
        _write_keys(path, [key for key in keys if key.name != name])
