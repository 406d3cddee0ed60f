"""Password hashing: argon2id with the library's defaults, in threads of its own, and the strength of new passwords."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from instructgpt.label.errors import SiteError

MIN_PASSWORD_LENGTH, _MAX_PASSWORD_LENGTH = 12, 1_000  # characters; the maximum only bounds the time of hashing
_MAX_CHECKED_LENGTH = 64  # characters; the time of the strength check grows with the length
_MIN_STRENGTH = 2  # of zxcvbn's 0 to 4: 0 and 1 fall within a million guesses
_HASHING_THREADS = 2  # a hash takes 64 MiB of memory
_MAX_WAITING = 6  # further calls that wait for a thread; the rest is refused at once
_RETRY_AFTER_S = 2
_HASHING_NICENESS = 10

PASSWORD_HASHER = PasswordHasher()
# Verified for unknown names, so that they take as long as known ones.
DUMMY_HASH = PASSWORD_HASHER.hash("a password that nobody has")
_ResultT = TypeVar("_ResultT")


def _lower_priority() -> None:
    """Let pages go before hashes: on Linux the niceness belongs to a thread, and argon2's own threads inherit it."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _HASHING_NICENESS)


class HashingPool:
    """Threads that hash, with a short queue; sign-ins never wait in the threads that answer other requests for long."""

    def __init__(self, threads: int = _HASHING_THREADS, waiting: int = _MAX_WAITING) -> None:
        self._executor = ThreadPoolExecutor(threads, "password", initializer=_lower_priority)
        self._places = threading.BoundedSemaphore(threads + waiting)

    def run(self, function: Callable[[], _ResultT], *, patient: bool = False) -> _ResultT:
        """Run a function in the pool and return its result.

        Args:
            patient: wait beyond the short queue, for callers with a valid link or session, who are few.

        Raises:
            SiteError: `busy` (503) when the queue is full.
        """
        if patient:
            return self._executor.submit(function).result()
        if not self._places.acquire(blocking=False):
            raise SiteError(503, "busy", retry_after=_RETRY_AFTER_S)
        try:
            return self._executor.submit(function).result()
        finally:
            self._places.release()

    def is_full(self) -> bool:
        """Return whether another call would be refused, which costs nothing to ask before a transaction."""
        if not self._places.acquire(blocking=False):
            return True
        self._places.release()
        return False


HASHING_POOL = HashingPool()


def hash_password(password: str, *, name: str = "") -> str:
    """Return the argon2id hash of a new password.

    Args:
        name: of the account; a password that consists of it is refused.

    Raises:
        SiteError: `password_length` or `password_common` (422).
    """
    check_new_password(password, name)
    return HASHING_POOL.run(partial(PASSWORD_HASHER.hash, _encode(password)), patient=True)


def check_new_password(password: str, name: str = "") -> None:
    """Raise SiteError for a password that is too short, too long or among the first million guesses."""
    if not MIN_PASSWORD_LENGTH <= len(password) <= _MAX_PASSWORD_LENGTH:
        raise SiteError(422, "password_length", least=MIN_PASSWORD_LENGTH, most=_MAX_PASSWORD_LENGTH)
    from zxcvbn import zxcvbn  # loads its lists of common passwords, which most commands do not need

    known_words = [word for word in {name, "".join(name.split()), *name.split(), "instructgpt", "labeler"} if word]
    start = password[:_MAX_CHECKED_LENGTH].encode("utf-8", "replace").decode()
    if zxcvbn(start, user_inputs=known_words)["score"] < _MIN_STRENGTH:
        raise SiteError(422, "password_common")


def verify_password(password: str, stored_hash: str | None, *, patient: bool = False) -> bool:
    """Return whether a password matches a hash. Without a hash it takes as long and returns False.

    Args:
        patient: as in `HashingPool.run`.

    Raises:
        SiteError: `busy` (503).
    """

    def verify() -> bool:
        try:
            return PASSWORD_HASHER.verify(stored_hash or DUMMY_HASH, _encode(password[: _MAX_PASSWORD_LENGTH + 1]))
        except (VerificationError, InvalidHashError):
            return False

    is_match = HASHING_POOL.run(verify, patient=patient)
    return is_match and stored_hash is not None


def rehash_if_outdated(password: str, stored_hash: str) -> str | None:
    """Return a new hash of a verified password if the stored one has weaker parameters than today's, else None."""
    if not PASSWORD_HASHER.check_needs_rehash(stored_hash):
        return None
    return HASHING_POOL.run(partial(PASSWORD_HASHER.hash, _encode(password)), patient=True)


def _encode(password: str) -> bytes:
    return password.encode("utf-8", "surrogatepass")  # JSON can contain half of a surrogate pair
