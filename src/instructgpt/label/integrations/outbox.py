"""The outbox: takes messages that are due, sends them, and tries again after growing delays.

A message is leased before it is sent and settled afterwards. When the site is killed in between, the lease ends and the
message is sent again: it arrives at least once, always under the same id.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from instructgpt.label.context import Site
from instructgpt.label.db.models import Delivery, Webhook, current_time_ms
from instructgpt.label.errors import SiteError
from instructgpt.label.integrations import mail, webhooks
from instructgpt.label.integrations.mail import UndeliverableError
from instructgpt.label.outgoing import OutgoingError

RETRY_DELAYS_S = (5, 60, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Delays after failed attempts: eleven attempts within three days, as Standard Webhooks suggests."""
_LEASE_MS = 20_000  # longer than an attempt
_JITTER = 0.05
_POLL_S = 1.0
_SENDERS = 4  # targets served at the same time; one target gets its messages one after the other
_MAX_ERROR_LENGTH = 300
_LOGGER = logging.getLogger(__name__)


def has_due(db: Session, now_ms: int) -> bool:
    return db.scalar(select(Delivery.id).where(Delivery.next_attempt_at <= now_ms).limit(1)) is not None


def lease_due(db: Session, now_ms: int) -> list[Delivery]:
    """Lease the oldest due message of each target, so that no other process sends it meanwhile."""
    oldest = select(func.min(Delivery.id)).where(Delivery.next_attempt_at <= now_ms).group_by(Delivery.webhook_id)
    statement = select(Delivery).where(Delivery.id.in_(oldest), Delivery.next_attempt_at <= now_ms)
    deliveries = list(db.scalars(statement.order_by(Delivery.id).with_for_update(skip_locked=True)))
    for delivery in deliveries:
        delivery.attempts += 1  # before the attempt: one that kills the site must not be repeated for ever
        delivery.next_attempt_at = now_ms + _LEASE_MS
    return deliveries


def deliver_due(site: Site, executor: ThreadPoolExecutor | None = None) -> int:
    """Send one due message to each target, and return how many were tried."""
    now_ms = current_time_ms()
    with site.database.read() as db:
        if not has_due(db, now_ms):
            return 0
    with site.database.write() as db:
        deliveries = lease_due(db, now_ms)
    if executor is None:
        for delivery in deliveries:
            _deliver(site, delivery)
    else:
        list(executor.map(lambda delivery: _deliver(site, delivery), deliveries))
    return len(deliveries)


def _deliver(site: Site, delivery: Delivery) -> None:
    """Make one attempt and store its result."""
    error, is_refused, is_final = "", False, False
    try:
        is_refused = _send(site, delivery)
    except UndeliverableError as failure:
        error, is_final = str(failure), True
    except OutgoingError as failure:
        error = str(failure)
    except Exception:  # a defect with one message must not stop the others
        _LOGGER.exception("the message %s could not be sent", delivery.id)
        error = "failed unexpectedly; the server's log has the details"
    with site.database.write() as db:
        row = db.get_one(Delivery, delivery.id)
        if is_final and mail.is_unknown_name(row):
            db.delete(row)
        else:
            settle_delivery(db, row, error, is_final=is_final)
        if is_refused:
            webhooks.revoke_webhook(db, db.get_one(Webhook, delivery.webhook_id), "site")


def _send(site: Site, delivery: Delivery) -> bool:
    """Send a message; return whether its webhook wants no more. Raises OutgoingError."""
    if delivery.webhook_id is None:
        mail.send_delivery(site, delivery)
        return False
    with site.database.read() as db:
        webhook = db.get_one(Webhook, delivery.webhook_id)
    if webhook.revoked_at is not None:
        raise OutgoingError("the webhook was removed")
    return webhooks.send_event(webhook, delivery, site.settings.allowed_networks)


def settle_delivery(db: Session, delivery: Delivery, error: str, *, is_final: bool = False) -> None:
    """Store the result of an attempt: delivered, another attempt after a delay, or given up (`is_final`)."""
    now_ms = current_time_ms()
    delivery.error = error[:_MAX_ERROR_LENGTH]
    if not error:
        delivery.delivered_at, delivery.next_attempt_at = now_ms, None
    elif is_final or delivery.attempts > len(RETRY_DELAYS_S):
        delivery.next_attempt_at = None
    else:
        delay_s = RETRY_DELAYS_S[delivery.attempts - 1] * random.uniform(1 - _JITTER, 1 + _JITTER)
        delivery.next_attempt_at = now_ms + int(delay_s * 1000)
    db.flush()


def send_again(db: Session, delivery: Delivery) -> None:
    """Make a settled or waiting message due now, with all its attempts; raise SiteError for a removed webhook."""
    if delivery.webhook_id is not None and db.get_one(Webhook, delivery.webhook_id).revoked_at is not None:
        raise SiteError(409, "webhook_removed")
    delivery.attempts, delivery.delivered_at, delivery.next_attempt_at = 0, None, current_time_ms()


def list_deliveries(db: Session, *, before: str | None, limit: int) -> Sequence[Delivery]:
    """Return messages, the newest first."""
    statement = select(Delivery).order_by(Delivery.id.desc()).limit(limit)
    return db.scalars(statement if before is None else statement.where(Delivery.id < before)).all()


class DeliveryThread:
    """A thread that empties the outbox while a site is served."""

    def __init__(self, site: Site, poll_s: float = _POLL_S) -> None:
        self.site, self.poll_s = site, poll_s
        self._stop_event = threading.Event()
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)

    def _run(self) -> None:
        with ThreadPoolExecutor(_SENDERS, "sender") as executor:
            while not self._stop_event.is_set():
                count = 0
                try:
                    count = deliver_due(self.site, executor)
                except Exception:  # a busy or unreachable database must not end the thread
                    _LOGGER.exception("the outbox could not be read")
                if not count:
                    self._stop_event.wait(self.poll_s)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_event.set()
        self._thread.join(15)
