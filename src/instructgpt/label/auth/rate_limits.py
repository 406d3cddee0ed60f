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
class Rate:
    """`burst` tries at once, then one more every `refill_ms` milliseconds."""

    name: str
    burst: int
    refill_ms: int


SIGN_IN = Rate("sign-in", 10, 60_000)
"""One name from one address."""
SIGN_IN_NAME = Rate("sign-in-name", 100, 36_000)
"""One name from everywhere."""
SIGN_IN_ADDRESS = Rate("sign-in-address", 100, 6_000)
"""One address, whatever the names; a team often shares one."""
INVITE = Rate("invite", 30, 20_000)
"""Links tried from one address: invitations, set-up and resets."""
PASSWORD = Rate("password", 10, 60_000)
"""A signed-in person who gives their password again."""
KEY = Rate("key", 1_200, 50)
"""Calls with one key."""


def take(db: Session, rate: Rate, whose: str, at: int) -> bool:
    """Take one token. False when there is none left; then nothing is taken."""
    bucket = _bucket(db, rate, whose, at)
    filled = min(float(rate.burst), bucket.tokens + max(0, at - bucket.updated_at) / rate.refill_ms)
    bucket.tokens, bucket.updated_at = filled - (filled >= 1), at
    return filled >= 1


def give_back(db: Session, rate: Rate, whose: str, at: int) -> None:
    """Return a token: what was tried was right."""
    bucket = _bucket(db, rate, whose, at)
    bucket.tokens = min(float(rate.burst), bucket.tokens + 1)


def _bucket(db: Session, rate: Rate, whose: str, at: int) -> RateBucket:
    """The bucket of somebody, full when new, locked until the end of the transaction. Its key does not tell names or addresses."""
    key = f"{rate.name}:{hashlib.sha256(whose.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"
    insert = sqlite.insert if db.get_bind().dialect.name == "sqlite" else postgresql.insert
    db.execute(insert(RateBucket).values(key=key, tokens=rate.burst, updated_at=at).on_conflict_do_nothing())
    return db.scalars(select(RateBucket).where(RateBucket.key == key).with_for_update()).one()


def address_of(host: str | None) -> str:
    """An address as the buckets count it: one household has 2^64 of the sixth version's."""
    try:
        address = ip_address(host or "")
    except ValueError:
        return host or "unknown"
    return str(IPv6Address(int(address) >> 64 << 64)) if isinstance(address, IPv6Address) else str(address)
