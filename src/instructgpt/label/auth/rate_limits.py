"""Who may try how often: token buckets in the database, so that a restart forgets nothing and several processes count together.

Whoever attacks is stopped at the door. Labelers are not locked out by somebody else's attempts: tries are counted for a name *from an
address*, and a browser in which that person has signed in before is not held up by what came from elsewhere.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from instructgpt.label.db.models import RateBucket


@dataclass(frozen=True, slots=True)
class RateLimit:
    """`burst` tries at once, then one more every `refill_ms` milliseconds."""

    name: str
    burst: int
    refill_ms: int


SIGN_IN_LIMIT = RateLimit("sign-in", 10, 60_000)
"""One name from one address."""
SIGN_IN_NAME_LIMIT = RateLimit("sign-in-name", 100, 36_000)
"""One name from everywhere."""
SIGN_IN_ADDRESS_LIMIT = RateLimit("sign-in-address", 100, 6_000)
"""One address, whatever the names; a team often shares one."""
INVITE_LIMIT = RateLimit("invite", 30, 20_000)
"""Links tried from one address: invitations, set-up and resets."""
PASSWORD_LIMIT = RateLimit("password", 10, 60_000)
"""A signed-in person who gives their password again."""
API_KEY_LIMIT = RateLimit("key", 1_200, 50)
"""Calls with one key."""


def consume_token(db: Session, limit: RateLimit, subject: str, now_ms: int) -> bool:
    """Take one token. False when there is none left; then nothing is taken."""
    bucket = _lock_bucket(db, limit, subject, now_ms)
    tokens = min(float(limit.burst), bucket.tokens + max(0, now_ms - bucket.updated_at) / limit.refill_ms)
    bucket.tokens, bucket.updated_at = tokens - (tokens >= 1), now_ms
    return tokens >= 1


def refund_token(db: Session, limit: RateLimit, subject: str, now_ms: int) -> None:
    """Return a token: what was tried was right."""
    bucket = _lock_bucket(db, limit, subject, now_ms)
    bucket.tokens = min(float(limit.burst), bucket.tokens + 1)


def _lock_bucket(db: Session, limit: RateLimit, subject: str, now_ms: int) -> RateBucket:
    """The bucket of somebody, full when new, locked until the end of the transaction. Its key does not tell names or addresses."""
    key = f"{limit.name}:{hashlib.sha256(subject.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"
    insert = sqlite.insert if db.get_bind().dialect.name == "sqlite" else postgresql.insert
    db.execute(insert(RateBucket).values(key=key, tokens=limit.burst, updated_at=now_ms).on_conflict_do_nothing())
    return db.scalars(select(RateBucket).where(RateBucket.key == key).with_for_update()).one()


def address_key(host: str | None) -> str:
    """An address as the buckets count it: one household has 2^64 of the sixth version's."""
    try:
        address = ip_address(host or "")
    except ValueError:
        return host or "unknown"
    return str(IPv6Address(int(address) >> 64 << 64)) if isinstance(address, IPv6Address) else str(address)
