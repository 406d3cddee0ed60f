"""Passwords: argon2id with the library's defaults, and no more than two computed at a time.

A hash takes 64 MiB of memory on purpose; two slots keep a crowd at the door from taking the whole machine.
"""

from __future__ import annotations

from threading import BoundedSemaphore

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from instructgpt.label.errors import SiteError

MIN_PASSWORD_LENGTH, _MAX_PASSWORD_LENGTH = 12, 1_000
"""Characters. No rules about which ones; the upper bound only keeps a megabyte from being hashed."""

PASSWORD_HASHER = PasswordHasher()
_HASHING_SLOTS = BoundedSemaphore(2)
DUMMY_HASH = PASSWORD_HASHER.hash("a password that nobody has")
"""Verified in place of an unknown person's, so that a name that does not exist takes as long as one that does."""


def hash_password(password: str) -> str:
    """The argon2id hash to store.

    Raises:
        Problem: the password is too short or too long.
    """
    if not MIN_PASSWORD_LENGTH <= len(password) <= _MAX_PASSWORD_LENGTH:
        raise SiteError(422, "password_length", least=MIN_PASSWORD_LENGTH, most=_MAX_PASSWORD_LENGTH)
    with _HASHING_SLOTS:
        return PASSWORD_HASHER.hash(_encode(password))


def verify_password(password: str, stored_hash: str | None) -> bool:
    """Whether a password is the stored one's. Takes as long when nothing is stored."""
    with _HASHING_SLOTS:
        try:
            is_match = PASSWORD_HASHER.verify(stored_hash or DUMMY_HASH, _encode(password[: _MAX_PASSWORD_LENGTH + 1]))
        except (VerificationError, InvalidHashError):
            return False
    return is_match and stored_hash is not None


def needs_rehash(stored_hash: str) -> bool:
    """Whether a hash was made with weaker settings than today's."""
    return PASSWORD_HASHER.check_needs_rehash(stored_hash)


def _encode(password: str) -> bytes:
    """Any text at all, half characters too, as bytes."""
    return password.encode("utf-8", "surrogatepass")
