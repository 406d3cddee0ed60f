"""Rate limits as token buckets in the database, shared by all processes and kept across restarts.

Sign-in attempts count per name and address, so that attempts from elsewhere do not lock a labeler out.
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
    """`burst` attempts at once, then one every `refill_ms` milliseconds."""

    name: str
    burst: int
    refill_ms: int


SIGN_IN_LIMIT = RateLimit("sign-in", 10, 60_000)  # one name from one address
SIGN_IN_NAME_LIMIT = RateLimit("sign-in-name", 100, 36_000)  # one name from all addresses
SIGN_IN_ADDRESS_LIMIT = RateLimit("sign-in-address", 100, 6_000)  # one address, which a team often shares
INVITE_LIMIT = RateLimit("invite", 30, 20_000)  # tokens of links from one address
RESET_LIMIT = RateLimit("reset", 3, 20 * 60_000)  # e-mails with a link for one name
RESET_ADDRESS_LIMIT = RateLimit("reset-address", 30, 60_000)  # the same, asked for from one address
PASSWORD_LIMIT = RateLimit("password", 10, 60_000)  # a signed-in person who confirms with their password
PLAYGROUND_JOIN_LIMIT = RateLimit("playground-join", 100, 10_000)  # new users from one address
PLAYGROUND_LIMIT = RateLimit("playground", 40, 3_000)  # messages of one user
API_KEY_LIMIT = RateLimit("key", 1_200, 50)  # requests with one key


def consume_token(db: Session, limit: RateLimit, subject: str, now_ms: int) -> bool:
    """Take one token and return True; return False for an empty bucket."""
    bucket = _lock_bucket(db, limit, subject, now_ms)
    tokens = min(float(limit.burst), bucket.tokens + max(0, now_ms - bucket.updated_at) / limit.refill_ms)
    bucket.tokens, bucket.updated_at = tokens - (tokens >= 1), now_ms
    return tokens >= 1


def refund_token(db: Session, limit: RateLimit, subject: str, now_ms: int) -> None:
    """Return the token of a successful attempt."""
    bucket = _lock_bucket(db, limit, subject, now_ms)
    bucket.tokens = min(float(limit.burst), bucket.tokens + 1)


def _lock_bucket(db: Session, limit: RateLimit, subject: str, now_ms: int) -> RateBucket:
    """Return a subject's bucket, locked until the end of the transaction; its key is a hash, not a name or address."""
    key = f"{limit.name}:{hashlib.sha256(subject.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"
    insert = sqlite.insert if db.get_bind().dialect.name == "sqlite" else postgresql.insert
    db.execute(insert(RateBucket).values(key=key, tokens=limit.burst, updated_at=now_ms).on_conflict_do_nothing())
    return db.scalars(select(RateBucket).where(RateBucket.key == key).with_for_update()).one()


def address_key(host: str | None) -> str:
    """Normalize an address for rate limiting; IPv6 is truncated to its /64 prefix."""
    try:
        address = ip_address(host or "")
    except ValueError:
        return host or "unknown"
    return str(IPv6Address(int(address) >> 64 << 64)) if isinstance(address, IPv6Address) else str(address)
