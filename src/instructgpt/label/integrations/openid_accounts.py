"""Accounts of people who sign in at an OpenID provider: flows, matching, admission."""

from __future__ import annotations

import unicodedata

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from instructgpt.label.auth import accounts
from instructgpt.label.auth.tokens import generate_token, hash_token, secrets_equal
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Invite, OpenIDFlow, Person, ProviderIdentity, current_time_ms
from instructgpt.label.errors import SiteError
from instructgpt.label.openid import AuthorizationRequest, OpenIDIdentity, OpenIDProvider

_FLOW_MS = 10 * 60_000
_MAX_NAME_LENGTH, _MAX_SAME_NAMES = 80, 50


def store_flow(
    db: Session,
    authorization: AuthorizationRequest,
    *,
    next_path: str = "/",
    invite: Invite | None = None,
    person: Person | None = None,
) -> str:
    """Store a flow and return the token of its cookie."""
    now_ms, token = current_time_ms(), generate_token()
    db.execute(delete(OpenIDFlow).where(OpenIDFlow.expires_at <= now_ms))
    flow = OpenIDFlow(
        token_hash=hash_token(token),
        state_hash=hash_token(authorization.state),
        nonce=authorization.nonce,
        verifier=authorization.verifier,
        next_path=next_path,
        invite_id=invite.id if invite else None,
        person_id=person.id if person else None,
        expires_at=now_ms + _FLOW_MS,
    )
    db.add(flow)
    return token


def take_flow(db: Session, token: str, state: str) -> OpenIDFlow:
    """Delete and return the flow of a browser; raise SiteError `openid_over` (401) for an unknown one.

    A flow with another state stays: somebody else's callback must not end it.
    """
    statement = select(OpenIDFlow).where(OpenIDFlow.token_hash == hash_token(token)).with_for_update()
    flow = db.scalars(statement).first()
    if flow is None or flow.expires_at <= current_time_ms() or not secrets_equal(flow.state_hash, hash_token(state)):
        raise SiteError(401, "openid_over")
    db.delete(flow)
    db.flush()
    return flow


def find_or_create_person(
    db: Session, flow: OpenIDFlow, identity: OpenIDIdentity, provider: OpenIDProvider, language: str
) -> Person:
    """Return the person of an identity, admitting a new one by an invitation or a verified e-mail domain.

    Raises:
        SiteError: `openid_not_admitted` (403), `bad_link` (404) for an invitation that is over.
    """
    row = db.get(ProviderIdentity, (identity.issuer, identity.subject))
    if row is not None:
        return db.get_one(Person, row.person_id)
    if flow.invite_id is not None:
        invite = accounts.lock_invite_by_id(db, flow.invite_id, current_time_ms())
        person = accounts.create_invited_person(
            db, invite, _free_name(db, identity), email=identity.email, language=language
        )
    elif identity.email is not None and identity.email.rpartition("@")[2].lower() in provider.admitted_domains:
        name, email = _free_name(db, identity), identity.email
        person = accounts.create_person(db, name, "labeler", email=email, language=language, caller_id="openid")
    else:
        raise SiteError(403, "openid_not_admitted")
    connect_identity(db, person, identity)
    return person


def connect_identity(db: Session, person: Person, identity: OpenIDIdentity) -> None:
    """Let a person sign in with an identity; raise SiteError `openid_taken` (409) for that of another person."""
    row = db.get(ProviderIdentity, (identity.issuer, identity.subject))
    if row is not None and row.person_id != person.id:
        raise SiteError(409, "openid_taken")
    if row is None:
        db.add(ProviderIdentity(issuer=identity.issuer, subject=identity.subject, person_id=person.id))
        db.flush()
        audit_log.append_entry(db, person.id, "person.openid", person.id, connected=True)


def disconnect_identities(db: Session, person: Person) -> None:
    """End the sign-in by a provider; raise SiteError `openid_only` (409) for somebody without a password."""
    if person.password_hash is None:
        raise SiteError(409, "openid_only")
    db.execute(delete(ProviderIdentity).where(ProviderIdentity.person_id == person.id))
    audit_log.append_entry(db, person.id, "person.openid", person.id, connected=False)


def has_identity(db: Session, person: Person) -> bool:
    return (
        db.scalar(select(ProviderIdentity.subject).where(ProviderIdentity.person_id == person.id).limit(1)) is not None
    )


def _free_name(db: Session, identity: OpenIDIdentity) -> str:
    """Return a name that is visible and not taken, from what the provider says."""
    text = unicodedata.normalize("NFC", " ".join(identity.name.split()))
    visible = "".join(character for character in text if accounts.is_visible(character)).strip()
    base = visible[:_MAX_NAME_LENGTH].strip() or "labeler"
    for number in range(1, _MAX_SAME_NAMES):
        name = base if number == 1 else f"{base} {number}"
        if accounts.find_person_by_name(db, name) is None:
            return name
    raise SiteError(409, "name_taken")
