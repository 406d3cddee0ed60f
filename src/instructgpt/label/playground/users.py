"""Users of the playground: the link that admits them, their pseudonyms, sessions and agreements.

A user is a cookie. The site never learns a name, and stores no address with a user.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from instructgpt.label.auth import consent
from instructgpt.label.auth.tokens import generate_token, hash_token
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import (
    PlaygroundAgreement,
    PlaygroundConsentText,
    PlaygroundLink,
    PlaygroundSession,
    PlaygroundUser,
    current_time_ms,
)
from instructgpt.label.db.models.base import DAY_MS
from instructgpt.label.errors import SiteError

SESSION_MAX_AGE_MS = DAY_MS
"""After a day the consent text is shown again, even in a browser that keeps its session cookies."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """The browser behind a request. `agreement`: to the newest text, in this session; without it nothing is stored."""

    user: PlaygroundUser
    session: PlaygroundSession | None = None
    agreement: PlaygroundAgreement | None = None


def ensure_playground_link(db: Session) -> PlaygroundLink:
    """Return the newest valid link, or a new one."""
    statement = select(PlaygroundLink).where(PlaygroundLink.revoked_at.is_(None)).order_by(PlaygroundLink.id.desc())
    link = db.scalars(statement.limit(1)).first()
    if link is None:
        link = PlaygroundLink(token=secrets.token_urlsafe(12))
        db.add(link)
        db.flush()
        audit_log.append_entry(db, "site", "playground.create_link", link.id)
    return link


def renew_playground_link(db: Session, caller_id: str, now_ms: int) -> PlaygroundLink:
    """Revoke all links, so that they admit nobody new, and create another."""
    current = PlaygroundLink.revoked_at.is_(None)
    db.execute(update(PlaygroundLink).where(current).values(revoked_at=now_ms))
    audit_log.append_entry(db, caller_id, "playground.revoke_links")
    return ensure_playground_link(db)


def join_playground(db: Session, link_token: str) -> tuple[str, str]:
    """Create a user with a session and return the tokens of both cookies; raise SiteError `bad_link`."""
    statement = select(PlaygroundLink).where(PlaygroundLink.token == link_token, PlaygroundLink.revoked_at.is_(None))
    link = db.scalars(statement).first()
    if link is None:
        raise SiteError(404, "bad_link")
    token = generate_token()
    pseudonym = f"user-{secrets.token_hex(5)}"
    user = PlaygroundUser(pseudonym=pseudonym, token_hash=hash_token(token), link_id=link.id)
    db.add(user)
    db.flush()
    return token, start_playground_session(db, user)


def start_playground_session(db: Session, user: PlaygroundUser) -> str:
    """Start a session, without an agreement, and return the token of its cookie."""
    token = generate_token()
    db.add(PlaygroundSession(token_hash=hash_token(token), user_id=user.id))
    db.flush()
    return token


def load_visitor(db: Session, user_token: str | None, session_token: str | None, now_ms: int) -> Visitor | None:
    """Return who sends a request, from the two cookies; None for an unknown user."""
    if not user_token:
        return None
    user = db.scalars(select(PlaygroundUser).where(PlaygroundUser.token_hash == hash_token(user_token))).first()
    if user is None:
        return None
    by_token = select(PlaygroundSession).where(PlaygroundSession.token_hash == hash_token(session_token or ""))
    session = db.scalars(by_token).first()
    if session is None or session.user_id != user.id or now_ms - session.created_at > SESSION_MAX_AGE_MS:
        return Visitor(user)
    return Visitor(user, session, find_current_agreement(db, session.id))


def find_current_agreement(db: Session, session_id: str) -> PlaygroundAgreement | None:
    """Return the valid agreement of a session to the newest consent text; None without one."""
    text = consent.get_latest_consent_text(db, PlaygroundConsentText)
    if text is None:
        return None
    statement = select(PlaygroundAgreement).where(
        PlaygroundAgreement.session_id == session_id,
        PlaygroundAgreement.version == text.version,
        PlaygroundAgreement.withdrawn_at.is_(None),
    )
    return db.scalars(statement).first()


def agree_to_storage(db: Session, visitor: Visitor, version: int) -> PlaygroundAgreement:
    """Record the agreement of a session; raise SiteError `consent_changed` unless `version` is the newest text."""
    text = consent.get_latest_consent_text(db, PlaygroundConsentText)
    if text is None or text.version != version or visitor.session is None:
        raise SiteError(409, "consent_changed")
    agreement = find_current_agreement(db, visitor.session.id)
    if agreement is None:
        agreement = PlaygroundAgreement(user_id=visitor.user.id, session_id=visitor.session.id, version=version)
        db.add(agreement)
        db.flush()
        audit_log.append_entry(db, visitor.user.id, "playground.agree", agreement.id, version=version)
    return agreement


def end_agreements(db: Session, user: PlaygroundUser, now_ms: int) -> None:
    """Store nothing more of a user, in any session, until the user agrees again; what is stored stays."""
    statement = update(PlaygroundAgreement).where(
        PlaygroundAgreement.user_id == user.id, PlaygroundAgreement.withdrawn_at.is_(None)
    )
    db.execute(statement.values(withdrawn_at=now_ms))
    audit_log.append_entry(db, user.id, "playground.end_agreement", user.id)


def lock_user(db: Session, user_id: str) -> PlaygroundUser:
    """Lock a user's row: storing and erasing texts of one user happen one after the other (PostgreSQL)."""
    return db.scalars(select(PlaygroundUser).where(PlaygroundUser.id == user_id).with_for_update()).one()


def now_after(earlier_ms: int | None) -> int:
    """Return the present time, later than another time even within its millisecond."""
    return max(current_time_ms(), (earlier_ms or 0) + 1)
