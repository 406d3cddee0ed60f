"""Webhooks, and the outbox of everything that the site sends."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from instructgpt.label.db.models.base import Base, current_time_ms, new_id


class Webhook(Base):
    """An address that gets events. The secret is stored, because each delivery is signed with it."""

    __tablename__ = "webhook"
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    url: Mapped[str]
    secret: Mapped[str]
    events: Mapped[list[str]]
    created_by: Mapped[str | None] = mapped_column(ForeignKey("person.id"))
    created_at: Mapped[int] = mapped_column(default=current_time_ms)
    revoked_at: Mapped[int | None]


class Delivery(Base):
    """A message of the outbox: an event for a webhook, or an e-mail (`webhook_id` is None).

    It is written in the transaction of what it reports. Its id stays the same in all attempts: receivers that know an
    id already ignore the message. No row holds a link: those of e-mails are made when they are sent.
    """

    __tablename__ = "delivery"
    __table_args__ = (Index("ix_delivery_webhook_id_id", "webhook_id", "id"),)
    id: Mapped[str] = mapped_column(primary_key=True, default=new_id)
    webhook_id: Mapped[str | None] = mapped_column(ForeignKey("webhook.id"))
    recipient: Mapped[str | None]  # e-mail: the address
    invite_id: Mapped[str | None]  # e-mail: the invitation or reset link that it brings
    event: Mapped[str]
    payload: Mapped[dict[str, Any]]
    created_at: Mapped[int] = mapped_column(default=current_time_ms)
    attempts: Mapped[int] = mapped_column(default=0)
    next_attempt_at: Mapped[int | None] = mapped_column(index=True)  # None: delivered, or given up
    delivered_at: Mapped[int | None]
    error: Mapped[str] = mapped_column(default="")  # of the last attempt


class ProviderIdentity(Base):
    """The identity of an account at an OpenID provider; people are matched by it, never by e-mail address."""

    __tablename__ = "identity"
    issuer: Mapped[str] = mapped_column(primary_key=True)
    subject: Mapped[str] = mapped_column(primary_key=True)
    person_id: Mapped[str] = mapped_column(ForeignKey("person.id"), index=True)
    created_at: Mapped[int] = mapped_column(default=current_time_ms)


class OpenIDFlow(Base):
    """A browser that is at the provider, deleted at its return: each flow ends once. Tokens are stored as SHA-256."""

    __tablename__ = "openid_flow"
    token_hash: Mapped[str] = mapped_column(primary_key=True)  # of the cookie that binds the flow to its browser
    state_hash: Mapped[str]
    nonce: Mapped[str]
    verifier: Mapped[str]
    next_path: Mapped[str]
    invite_id: Mapped[str | None]  # the invitation that is being used
    person_id: Mapped[str | None]  # who connects their account
    expires_at: Mapped[int] = mapped_column(index=True)
