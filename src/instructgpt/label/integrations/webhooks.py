"""Webhooks as of Standard Webhooks 1.0: creation, signature, and one attempt to deliver.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import Sequence
from urllib.parse import urlsplit

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from instructgpt import __version__
from instructgpt.label import outgoing
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Delivery, Webhook, current_time_ms
from instructgpt.label.errors import SiteError
from instructgpt.label.integrations.events import EVENT_NAMES
from instructgpt.label.outgoing import Network, OutgoingError

_SECRET_PREFIX, _SECRET_BYTES = "whsec_", 32
MAX_URL_LENGTH = 1_000
_MAX_WEBHOOKS = 10
_RESOLVE_SECONDS = 5.0
_STATUS_410 = 410


def create_webhook(db: Session, url: str, events: Sequence[str], owner_id: str) -> Webhook:
    """Add a webhook with a new secret, after `check_target`; raise SiteError `no_event` or `too_many_webhooks`."""
    if not events or not set(events) <= set(EVENT_NAMES):
        raise SiteError(422, "no_event")
    if (db.scalar(select(func.count()).where(Webhook.revoked_at.is_(None))) or 0) >= _MAX_WEBHOOKS:
        raise SiteError(409, "too_many_webhooks", most=_MAX_WEBHOOKS)
    secret = _SECRET_PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()
    webhook = Webhook(url=url, secret=secret, events=[name for name in EVENT_NAMES if name in events])
    webhook.created_by = owner_id
    db.add(webhook)
    db.flush()
    # The address may hold a secret of the receiver: the audit log gets the host only.
    audit_log.append_entry(db, owner_id, "webhook.create", webhook.id, host=urlsplit(url).hostname, events=list(events))
    return webhook


def check_target(url: str, allowed_networks: Sequence[Network]) -> None:
    """Resolve the address of a new webhook; raise SiteError `bad_webhook` (422). Every delivery checks it again."""
    try:
        outgoing.check_url(url)
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
        outgoing.resolve_target(parts.hostname or "", port, allowed_networks, secure=secure, timeout=_RESOLVE_SECONDS)
    except OutgoingError as error:
        raise SiteError(422, "bad_webhook", reason=str(error)) from error


def revoke_webhook(db: Session, webhook: Webhook, caller_id: str) -> None:
    """End a webhook; what it has not got yet is given up and can be seen in the outbox."""
    now_ms = current_time_ms()
    webhook.revoked_at = webhook.revoked_at or now_ms
    waiting = select(Delivery).where(Delivery.webhook_id == webhook.id, Delivery.next_attempt_at.is_not(None))
    for delivery in db.scalars(waiting):
        delivery.next_attempt_at, delivery.error = None, delivery.error or "the webhook was removed"
    audit_log.append_entry(db, caller_id, "webhook.revoke", webhook.id)


def compute_signature(secret: str, delivery_id: str, timestamp: int, body: bytes) -> str:
    """Return the header `webhook-signature`: HMAC-SHA256 of `id.timestamp.body` under the secret's bytes."""
    key = base64.b64decode(secret.removeprefix(_SECRET_PREFIX))
    signature = hmac.new(key, f"{delivery_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(signature).decode()}"


def send_event(webhook: Webhook, delivery: Delivery, allowed_networks: Sequence[Network]) -> bool:
    """Send an event once; return whether the receiver wants no further events (410).

    Raises:
        OutgoingError: no answer, or one without a status of 200 to 299. Nothing of an answer but its status is kept:
            its text could show the owner what the site can read and they cannot.
    """
    body = json.dumps(delivery.payload, ensure_ascii=False, separators=(",", ":")).encode()
    timestamp = current_time_ms() // 1000
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"instructgpt/{__version__}",
        "webhook-id": delivery.id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": compute_signature(webhook.secret, delivery.id, timestamp, body),
    }
    answer = outgoing.send_request("POST", webhook.url, headers=headers, body=body, allowed_networks=allowed_networks)
    if answer.status != _STATUS_410 and not 200 <= answer.status <= 299:
        hint = " (redirects are not followed)" if 300 <= answer.status <= 399 else ""
        raise OutgoingError(f"status {answer.status}{hint}")
    return answer.status == _STATUS_410
