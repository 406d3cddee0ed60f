"""Events that webhooks can subscribe to, written to the outbox in the transaction of what they report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.label.db.models import Delivery, Webhook, current_time_ms

EventName = Literal["submission.created", "batch.completed", "person.admitted"]
EVENT_NAMES: tuple[EventName, ...] = get_args(EventName)
TEST_EVENT = "webhook.test"


def record_event(db: Session, event: EventName, build_data: Callable[[], dict[str, Any]]) -> None:
    """Add a delivery for each webhook that subscribes to an event.

    Args:
        build_data: called at most once, if there is such a webhook. No texts, names of people or names of models: the
            receiver reads those by the API, with a key that has the right to.
    """
    webhooks = db.scalars(select(Webhook).where(Webhook.revoked_at.is_(None)).order_by(Webhook.id)).all()
    if subscribers := [webhook for webhook in webhooks if event in webhook.events]:
        add_deliveries(db, subscribers, event, build_data())


def is_subscribed(db: Session, event: EventName) -> bool:
    """Return whether any webhook gets an event; for events whose condition is not free to check."""
    return any(event in events for events in db.scalars(select(Webhook.events).where(Webhook.revoked_at.is_(None))))


def add_deliveries(db: Session, webhooks: Sequence[Webhook], event: str, data: dict[str, Any]) -> None:
    """Add one delivery of an event for each webhook, due at once."""
    now_ms = current_time_ms()
    timestamp = datetime.fromtimestamp(now_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    payload = {"type": event, "timestamp": timestamp, "data": data}
    for webhook in webhooks:
        db.add(Delivery(webhook_id=webhook.id, event=event, payload=payload, next_attempt_at=now_ms))
