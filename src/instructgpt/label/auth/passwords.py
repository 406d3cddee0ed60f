"""Passwords: argon2id with the library's defaults, and no more than two computed at a time.

A hash takes 64 MiB of memory on purpose; two slots keep a crowd at the door from taking the whole machine.
"""

from __future__ import annotations

from threading import BoundedSemaphore

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from instructgpt.label.errors import Problem

MIN_LENGTH, MAX_LENGTH = 12, 1_000
"""Characters. No rules about which ones; the upper bound only keeps a megabyte from being hashed."""

HASHER = PasswordHasher()
SLOTS = BoundedSemaphore(2)
NOBODYS = HASHER.hash("a password that nobody has")
"""Verified in place of an unknown person's, so that a name that does not exist takes as long as one that does."""


def hash_password(password: str) -> str:
    """The argon2id hash to store.

    Raises:
        Problem: the password is too short or too long.
    """
    if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
        raise Problem(422, "password_length", least=MIN_LENGTH, most=MAX_LENGTH)
    with SLOTS:
        return HASHER.hash(_bytes(password))


def verify(password: str, stored: str | None) -> bool:
    """Whether a password is the stored one's. Takes as long when nothing is stored."""
    with SLOTS:
        try:
            right = HASHER.verify(stored or NOBODYS, _bytes(password[: MAX_LENGTH + 1]))
        except (VerificationError, InvalidHashError):
            return False
    return right and stored is not None


def is_outdated(stored: str) -> bool:
    """Whether a hash was made with weaker settings than today's."""
    return HASHER.check_needs_rehash(stored)


def _bytes(password: str) -> bytes:
    """Any text at all, half characters too, as bytes."""
    return password.encode("utf-8", "surrogatepass")
