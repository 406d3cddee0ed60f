"""E-mail through the outbox: invitations and links for new passwords.

Neither the outbox nor the database holds a link: its token is generated when the message is sent, and only the hash is
stored. A message that is sent a second time brings another link, and the earlier one ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from email.message import EmailMessage
from email.utils import format_datetime, localtime, parseaddr

from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.label.auth import accounts
from instructgpt.label.auth.tokens import generate_token, hash_token
from instructgpt.label.context import Settings, Site
from instructgpt.label.db.models import Delivery, Invite, Person, current_time_ms
from instructgpt.label.db.models.people import normalize_name
from instructgpt.label.i18n import load_translator
from instructgpt.label.mail_server import check_address, send_by_smtp
from instructgpt.label.outgoing import OutgoingError

INVITATION, PASSWORD_RESET = "mail.invitation", "mail.password_reset"


class UndeliverableError(OutgoingError):
    """A message that no further attempt can deliver."""


def queue_invitations(db: Session, recipients: Iterable[str], invites: Iterable[Invite], language: str) -> None:
    """Put a message for each invitation into the outbox."""
    for recipient, invite in zip(recipients, invites, strict=True):
        _queue(db, INVITATION, {"language": language}, recipient=recipient, invite_id=invite.id)


def queue_password_reset(db: Session, *, person: Person | None = None, name: str = "", owner_id: str = "") -> None:
    """Put a message with a link for a new password into the outbox.

    Args:
        name: what an anonymous visitor typed. Whether there is such a person is looked up when the message is sent, so
            that the visitor cannot tell from the time of the answer.
        owner_id: who asked for it; empty: the visitor.
    """
    payload = {"person": person.id, "owner": owner_id} if person is not None else {"name": normalize_name(name)}
    _queue(db, PASSWORD_RESET, payload, recipient=person.email if person is not None else None)


def _queue(
    db: Session, event: str, payload: dict[str, str], *, recipient: str | None, invite_id: str | None = None
) -> None:
    row = Delivery(event=event, payload=payload, recipient=recipient, invite_id=invite_id)
    row.next_attempt_at = current_time_ms()
    db.add(row)


def send_delivery(site: Site, delivery: Delivery) -> None:
    """Send a message of the outbox. Raises OutgoingError, or UndeliverableError when its link is over."""
    settings = site.settings
    if settings.mail is None or settings.public_url is None:
        raise OutgoingError("e-mail is not set up; start the site with --smtp")
    with site.database.write() as db:
        message = _build_message(db, settings, db.get_one(Delivery, delivery.id))
    send_by_smtp(settings.mail, message)


def _build_message(db: Session, settings: Settings, delivery: Delivery) -> EmailMessage:
    """Renew the link of a message and return the message; raise UndeliverableError."""
    assert settings.mail is not None
    if delivery.event == PASSWORD_RESET:
        person, token = _renew_reset_link(db, delivery)
        language, name, days = person.language, person.name, accounts.RESET_DAYS
    else:
        invite, token = _renew_token(db, delivery)
        name, language = "", str(delivery.payload["language"])
        days = max(1, round((invite.expires_at - current_time_ms()) / 86_400_000))
    kind = delivery.event.partition(".")[2]
    translator, sender = load_translator(language), settings.mail.sender
    message = EmailMessage()
    message["From"], message["To"] = sender, _check_recipient(delivery.recipient or "")
    message["Subject"] = translator(f"mail.{kind}_subject")
    message["Date"] = format_datetime(localtime())
    message["Message-ID"] = f"<{delivery.id}@{parseaddr(sender)[1].partition('@')[2]}>"
    message["Auto-Submitted"] = "auto-generated"
    link = f"{settings.public_url}/invite/{token}"
    message.set_content(translator(f"mail.{kind}_text", name=name, link=link, days=days))
    return message


def _renew_token(db: Session, delivery: Delivery) -> tuple[Invite, str]:
    """Give the link of a message a new token, and return it."""
    statement = select(Invite).where(Invite.id == (delivery.invite_id or "")).with_for_update()
    invite = db.scalars(statement).first()
    if invite is None or invite.revoked_at or invite.uses >= invite.max_uses or invite.expires_at <= current_time_ms():
        raise UndeliverableError("the link was used, revoked, or is too old")
    token = generate_token()
    invite.token_hash = hash_token(token)
    return invite, token


def _renew_reset_link(db: Session, delivery: Delivery) -> tuple[Person, str]:
    """Return the person of a message and the token of a link for a new password."""
    person = _find_person(db, delivery.payload)
    if person is None or person.status == "erased" or not person.email:
        raise UndeliverableError("nobody with this name has an e-mail address")
    delivery.recipient = _check_recipient(person.email)
    if delivery.invite_id is not None:
        return person, _renew_token(db, delivery)[1]
    owner_id = str(delivery.payload.get("owner") or person.id)
    days = accounts.RESET_DAYS
    token = accounts.issue_invite(db, person.role, person=person, days=days, caller_id=owner_id)
    delivery.invite_id = db.scalars(select(Invite.id).where(Invite.token_hash == hash_token(token))).one()
    return person, token


def _check_recipient(address: str) -> str:
    """Return an address; raise UndeliverableError, also for that of an erased person."""
    try:
        return check_address(address)
    except ValueError as error:
        raise UndeliverableError(str(error)) from error


def is_unknown_name(delivery: Delivery) -> bool:
    """Return whether a message that cannot be delivered holds only what a visitor typed, possibly a password."""
    return delivery.event == PASSWORD_RESET and "name" in delivery.payload and delivery.invite_id is None


def _find_person(db: Session, payload: dict[str, str]) -> Person | None:
    if "person" in payload:
        return db.get(Person, payload["person"])
    return db.scalars(select(Person).where(Person.name_key == payload["name"])).first()
