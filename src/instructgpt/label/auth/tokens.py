"""Secrets that people carry: 256 random bits, of which the database knows only the SHA-256; and keys for programs."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence

from sqlalchemy.orm import Session

from instructgpt.label.db.models import ApiKey

KEY_PREFIX = "igl"


def new_token() -> str:
    """256 random bits, safe in an address."""
    return secrets.token_urlsafe(32)


def hashed(token: str) -> str:
    """What the database keeps of a token. Random tokens need no slow hash."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def same(one: str, other: str) -> bool:
    """Compare two secrets in a time that does not tell where they differ."""
    return hmac.compare_digest(one.encode("utf-8", "surrogatepass"), other.encode("utf-8", "surrogatepass"))


def make_key(db: Session, name: str, scopes: Sequence[str], by: str | None = None, expires_at: int | None = None) -> tuple[ApiKey, str]:
    """A new key for programs, and its text `igl_<id>_<secret>`, which is shown once and never again."""
    secret = secrets.token_hex(32)
    key = ApiKey(id=secrets.token_hex(8), secret_hash=hashed(secret), name=name, scopes=list(scopes), created_by=by, expires_at=expires_at)
    db.add(key)
    return key, f"{KEY_PREFIX}_{key.id}_{secret}"


def find_key(db: Session, text: str, at: int) -> ApiKey | None:
    """The key a program shows; None when there is none such, or it is revoked or too old."""
    prefix, _, rest = text.partition("_")
    name, _, secret = rest.partition("_")
    key = db.get(ApiKey, name) if prefix == KEY_PREFIX and secret else None
    if key is None or not same(key.secret_hash, hashed(secret)):
        return None
    if key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= at):
        return None
    return key
