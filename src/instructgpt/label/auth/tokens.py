"""Random tokens and API keys; the database stores only their SHA-256."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence

from sqlalchemy.orm import Session

from instructgpt.label.db.models import ApiKey

_API_KEY_PREFIX = "igl"


def generate_token() -> str:
    """Return 256 random bits as URL-safe text."""
    return secrets.token_urlsafe(32)


def hash_token(token: str) -> str:
    """Return the SHA-256 of a token; 256 random bits need no slow hash."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def secrets_equal(first: str, second: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(first.encode("utf-8", "surrogatepass"), second.encode("utf-8", "surrogatepass"))


def issue_api_key(
    db: Session, name: str, scopes: Sequence[str], created_by: str | None = None, expires_at: int | None = None
) -> tuple[ApiKey, str]:
    """Create an API key and return it with its text `igl_<id>_<secret>`, which is not stored."""
    secret = secrets.token_hex(32)
    api_key = ApiKey(
        id=secrets.token_hex(8),
        secret_hash=hash_token(secret),
        name=name,
        scopes=list(scopes),
        created_by=created_by,
        expires_at=expires_at,
    )
    db.add(api_key)
    return api_key, f"{_API_KEY_PREFIX}_{api_key.id}_{secret}"


def find_api_key(db: Session, key_text: str, now_ms: int) -> ApiKey | None:
    """Return the key of a text; None for an unknown, revoked or expired key."""
    prefix, _, rest = key_text.partition("_")
    key_id, _, secret = rest.partition("_")
    api_key = db.get(ApiKey, key_id) if prefix == _API_KEY_PREFIX and secret else None
    if api_key is None or not secrets_equal(api_key.secret_hash, hash_token(secret)):
        return None
    if api_key.revoked_at is not None or (api_key.expires_at is not None and api_key.expires_at <= now_ms):
        return None
    return api_key
