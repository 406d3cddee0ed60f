"""Password hashing: argon2id with the library's defaults."""

from __future__ import annotations

from threading import BoundedSemaphore

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from instructgpt.label.errors import SiteError

MIN_PASSWORD_LENGTH, _MAX_PASSWORD_LENGTH = 12, 1_000  # characters; the maximum only bounds the time of hashing

PASSWORD_HASHER = PasswordHasher()
_HASHING_SLOTS = BoundedSemaphore(2)  # a hash takes 64 MiB of memory
# Verified for unknown names, so that they take as long as known ones.
DUMMY_HASH = PASSWORD_HASHER.hash("a password that nobody has")


def hash_password(password: str) -> str:
    """Return the argon2id hash of a password; raise SiteError if it is too short or too long."""
    if not MIN_PASSWORD_LENGTH <= len(password) <= _MAX_PASSWORD_LENGTH:
        raise SiteError(422, "password_length", least=MIN_PASSWORD_LENGTH, most=_MAX_PASSWORD_LENGTH)
    with _HASHING_SLOTS:
        return PASSWORD_HASHER.hash(_encode(password))


def verify_password(password: str, stored_hash: str | None) -> bool:
    """Return whether a password matches a hash. Without a hash it takes as long and returns False."""
    with _HASHING_SLOTS:
        try:
            is_match = PASSWORD_HASHER.verify(stored_hash or DUMMY_HASH, _encode(password[: _MAX_PASSWORD_LENGTH + 1]))
        except (VerificationError, InvalidHashError):
            return False
    return is_match and stored_hash is not None


def needs_rehash(stored_hash: str) -> bool:
    """Return whether a hash has weaker parameters than today's."""
    return PASSWORD_HASHER.check_needs_rehash(stored_hash)


def _encode(password: str) -> bytes:
    return password.encode("utf-8", "surrogatepass")  # JSON can contain half of a surrogate pair
