"""Accounts, invites and sessions."""

from __future__ import annotations

import secrets
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from instructgpt.label.auth import rate_limits, second_factor
from instructgpt.label.auth.dependencies import is_session_valid
from instructgpt.label.auth.passwords import HASHING_POOL, hash_password, rehash_if_outdated, verify_password
from instructgpt.label.auth.tokens import generate_token, hash_token
from instructgpt.label.context import Settings, Site
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Invite, Person, SignInChallenge, UserSession, current_time_ms
from instructgpt.label.db.models.base import DAY_MS
from instructgpt.label.db.models.people import PersonRole, PersonStatus, normalize_name
from instructgpt.label.errors import SiteError
from instructgpt.records import Cohort

_SETUP_NOTE = "set-up"
SETUP_DAYS, INVITE_DAYS, RESET_DAYS = 7, 14, 2  # validity of links
_MAX_NAME_LENGTH = 100
_INVISIBLE_LETTERS = "\u115f\u1160\u3164\uffa0\u2800"  # fillers, which Unicode counts as printable
_CHALLENGE_MS, _MAX_CODE_ATTEMPTS = 5 * 60_000, 5
# Declined, paused and withdrawn people can sign in, to see their data.
_CANNOT_SIGN_IN_STATUSES: tuple[PersonStatus, ...] = ("erased",)


# --- people ----------------------------------------------------------------------------------------------------------


def create_person(
    db: Session,
    name: str,
    role: PersonRole,
    *,
    password: str | None = None,
    password_hash: str | None = None,
    email: str | None = None,
    cohort: Cohort | None = None,
    status: PersonStatus | None = None,
    language: str = "en",
    caller_id: str = "cli",
) -> Person:
    """Add an account.

    Args:
        name: sign-in name; whitespace is normalized.
        cohort: of labelers; None means `training`.
        password: None creates an account that cannot sign in before a reset link is used.
        password_hash: of a password that was hashed before the transaction.
        status: None follows the cohort: training labelers start in screening, held-out ones do not (paper, B.1).
        caller_id: for the audit log.

    Raises:
        SiteError: the name is invalid or taken, or the password has a wrong length.
    """
    name = unicodedata.normalize("NFC", " ".join(name.split()))
    if not name or len(name) > _MAX_NAME_LENGTH or any(not is_visible(character) for character in name):
        raise SiteError(422, "bad_name", most=_MAX_NAME_LENGTH)
    if find_person_by_name(db, name) is not None:
        raise SiteError(409, "name_taken")
    if role == "labeler":
        cohort = cohort or "training"
    initial_status: PersonStatus = "screening" if role == "labeler" and cohort == "training" else "active"
    person = Person(
        name=name,
        email=(email or "").strip() or None,
        password_hash=password_hash or (hash_password(password, name=name) if password is not None else None),
        role=role,
        status=status or initial_status,
        cohort=cohort if role == "labeler" else None,
        pseudonym=f"labeler-{secrets.token_hex(5)}",
        language=language,
    )
    db.add(person)
    db.flush()
    detail = {"role": role, "cohort": person.cohort, "status": person.status}
    audit_log.append_entry(db, caller_id, "person.create", person.id, **detail)
    return person


def is_visible(character: str) -> bool:
    return character.isprintable() and character not in _INVISIBLE_LETTERS


def find_person_by_name(db: Session, name: str) -> Person | None:
    return db.scalars(select(Person).where(Person.name_key == normalize_name(name))).first()


def set_person_role(db: Session, person: Person, role: PersonRole, caller_id: str) -> None:
    """Change a person's role and revoke their sessions; raise SiteError for the last owner."""
    if person.role == "owner" and role != "owner":
        check_not_last_owner(db, person)
    person.role, person.cohort = role, (person.cohort or "training") if role == "labeler" else None
    if role != "labeler":
        person.fold, person.status = None, "active"
    revoke_user_sessions(db, person)
    audit_log.append_entry(db, caller_id, "person.role", person.id, role=role)


def check_not_last_owner(db: Session, person: Person) -> None:
    """Raise SiteError if the site would have no owner without this person."""
    other_owners = select(func.count()).where(Person.role == "owner", Person.status == "active", Person.id != person.id)
    if person.role == "owner" and not db.scalar(other_owners):
        raise SiteError(409, "last_owner")


# --- links -----------------------------------------------------------------------------------------------------------


def issue_invite(
    db: Session,
    role: PersonRole,
    *,
    cohort: Cohort | None = None,
    note: str = "",
    person: Person | None = None,
    max_uses: int = 1,
    days: int = INVITE_DAYS,
    caller_id: str | None = None,
) -> str:
    """Create an invite, or with `person` a password reset link, and return its token, which is not stored.

    Args:
        note: visible to owners only.
        max_uses: accounts that the link can create.
        caller_id: id of an owner; None is the command line.
    """
    token = generate_token()
    row = Invite(
        token_hash=hash_token(token),
        role=role,
        cohort=(cohort or "training") if role == "labeler" else None,
        note=note,
        person_id=person.id if person else None,
        max_uses=max_uses,
        expires_at=current_time_ms() + days * DAY_MS,
        created_by=caller_id,
    )
    db.add(row)
    db.flush()
    action, object_id = ("person.reset_link", person.id) if person else ("invite.create", row.id)
    detail = {"role": role, "cohort": row.cohort, "max_uses": max_uses, "days": days}
    audit_log.append_entry(db, caller_id or "cli", action, object_id, **detail)
    return token


def create_owner_setup_token(db: Session, *, keep_earlier: bool = False) -> str | None:
    """Create a set-up link of the first owner and return its token; None when the site has an owner.

    Args:
        keep_earlier: earlier set-up links stay valid until one is used.
    """
    if db.scalar(select(Person.id).where(Person.role == "owner")):
        return None
    if not keep_earlier:
        _revoke_setup_links(db, current_time_ms())
    return issue_invite(db, "owner", note=_SETUP_NOTE, days=SETUP_DAYS)


def _revoke_setup_links(db: Session, now_ms: int) -> None:
    is_setup = (Invite.role == "owner", Invite.note == _SETUP_NOTE, Invite.created_by.is_(None))
    db.execute(update(Invite).where(*is_setup, Invite.revoked_at.is_(None)).values(revoked_at=now_ms))


def lock_invite(db: Session, token: str, now_ms: int) -> Invite:
    """Lock and return the invite of a token; raise SiteError `bad_link` if unknown, used up, revoked or expired."""
    row = find_valid_invite(db, token, now_ms, lock=True)
    if row is None:
        raise SiteError(404, "bad_link")
    return row


def find_valid_invite(db: Session, token: str, now_ms: int, *, lock: bool = False) -> Invite | None:
    """Return the invite of a token; None if unknown, used up, revoked or expired."""
    statement = select(Invite).where(Invite.token_hash == hash_token(token), Invite.revoked_at.is_(None))
    statement = statement.where(Invite.expires_at > now_ms, Invite.uses < Invite.max_uses)
    return db.scalars(statement.with_for_update() if lock else statement).first()


def hash_for_invite(site: Site, token: str, name: str, password: str) -> str:
    """Return the hash of the password that comes with a valid link; raise SiteError as `redeem_invite`."""
    with site.database.read() as db:
        row = find_valid_invite(db, token, current_time_ms())
        if row is None:
            raise SiteError(404, "bad_link")
        person = db.get(Person, row.person_id) if row.person_id else None
    return hash_password(password, name=person.name if person else name)


def redeem_invite(
    db: Session,
    token: str,
    name: str,
    password: str,
    *,
    password_hash: str | None = None,
    email: str | None = None,
    language: str = "en",
    now_ms: int | None = None,
) -> Person:
    """Use an invite: create its account, or set the password of a reset link's person; raise SiteError.

    Args:
        password_hash: from `hash_for_invite`, so that the transaction is short.
    """
    now_ms = current_time_ms() if now_ms is None else now_ms
    row = lock_invite(db, token, now_ms)
    if row.person_id is not None:
        row.uses += 1
        person = db.get_one(Person, row.person_id)
        _set_password(db, person, password_hash or hash_password(password, name=person.name))
        return person
    password_hash = password_hash or hash_password(password, name=name)
    return create_invited_person(db, row, name, password_hash=password_hash, email=email, language=language)


def lock_invite_by_id(db: Session, invite_id: str, now_ms: int) -> Invite:
    """Lock and return an invitation that was valid a moment ago; raise SiteError `bad_link` if it is not any more."""
    statement = select(Invite).where(Invite.id == invite_id, Invite.revoked_at.is_(None), Invite.person_id.is_(None))
    valid = statement.where(Invite.expires_at > now_ms, Invite.uses < Invite.max_uses)
    row = db.scalars(valid.with_for_update()).first()
    if row is None:
        raise SiteError(404, "bad_link")
    return row


def create_invited_person(
    db: Session,
    invite: Invite,
    name: str,
    *,
    password_hash: str | None = None,
    email: str | None = None,
    language: str = "en",
) -> Person:
    """Create the account of a locked invitation; without a password for people who sign in at a provider."""
    invite.uses += 1
    if invite.role == "owner" and invite.note == _SETUP_NOTE and invite.created_by is None:
        _revoke_setup_links(db, current_time_ms())
    person = create_person(
        db,
        name,
        invite.role,
        password_hash=password_hash,
        email=email,
        cohort=invite.cohort,
        language=language,
        caller_id=f"invite:{invite.id}",
    )
    person.invite_id = invite.id
    return person


# --- signing in and out ----------------------------------------------------------------------------------------------


def sign_in_with_password(
    site: Site,
    name: str,
    password: str,
    *,
    address: str,
    code: str | None = None,
    user_agent: str = "",
    cookie_token: str | None = None,
) -> tuple[str, UserSession]:
    """Start a session and return (token for the cookie, row).

    Args:
        address: of the client, from `rate_limits.address_key`.
        code: of the second factor, for people who have one.
        cookie_token: of the session that the new one replaces.

    Raises:
        SiteError: 429 for too many attempts; 503 when too many sign in at once; 401 for a wrong name or password, with
            the same code and duration; 401 `code_needed` (with `challenge`, for `answer_challenge`) or `wrong_code`.
    """
    if HASHING_POOL.is_full():  # before the transactions below, which an attack would make as often
        raise SiteError(503, "busy", retry_after=2)
    now_ms, key = current_time_ms(), normalize_name(name)
    by_address = (rate_limits.SIGN_IN_ADDRESS_LIMIT, address)
    by_name_and_address = (rate_limits.SIGN_IN_LIMIT, f"{key} {address}")
    by_name = (rate_limits.SIGN_IN_NAME_LIMIT, key)
    with site.database.write() as db:
        person = find_person_by_name(db, name)
        # A browser that this person has used is exempt from the limit by name, so that attacks from elsewhere cannot
        # lock the person out.
        exempt = _is_known_browser(db, person, cookie_token)
        limits = (by_address, by_name_and_address) if exempt else (by_address, by_name_and_address, by_name)
        is_allowed = all(rate_limits.consume_token(db, *limit, now_ms) for limit in limits)
    if not is_allowed:
        raise SiteError(429, "too_often")
    # Hashing is slow on purpose and runs outside of any transaction.
    stored_hash = person.password_hash if person and person.status not in _CANNOT_SIGN_IN_STATUSES else None
    is_correct = verify_password(password, stored_hash)
    new_hash = rehash_if_outdated(password, stored_hash) if is_correct and stored_hash else None
    with site.database.write() as db:
        person = find_person_by_name(db, name)
        if not is_correct or person is None or person.password_hash != stored_hash:
            error: SiteError | None = SiteError(401, "wrong_password")
        else:
            error = _check_second_factor(db, person, code, now_ms)
        if person is not None and error is not None and error.code != "code_needed":
            audit_log.append_entry(db, "nobody", "person.sign_in_failed", person.id)
        if person is not None and error is None:
            person.password_hash = new_hash or stored_hash
            for limit in (by_address, by_name_and_address, by_name):
                rate_limits.refund_token(db, *limit, now_ms)
            return _replace_user_session(db, person, user_agent, cookie_token, now_ms)
    assert error is not None
    raise error


def _check_second_factor(db: Session, person: Person, code: str | None, now_ms: int) -> SiteError | None:
    """Return the error of a missing or wrong code of a person whose password was right."""
    if person.totp_secret is None:
        return None
    if code is not None:
        return None if second_factor.use_code(person, code) else SiteError(401, "wrong_code")
    db.execute(delete(SignInChallenge).where(SignInChallenge.expires_at <= now_ms))
    token = generate_token()
    db.add(SignInChallenge(token_hash=hash_token(token), person_id=person.id, expires_at=now_ms + _CHALLENGE_MS))
    return SiteError(401, "code_needed", challenge=token)


def answer_challenge(
    site: Site, token: str, code: str, *, user_agent: str = "", cookie_token: str | None = None, **_: str
) -> tuple[str, UserSession]:
    """Start the session of a sign-in that waits for its code, and return (token for the cookie, row).

    Raises:
        SiteError: 401 `wrong_code`, or `challenge_over` after five minutes or five wrong codes.
    """
    now_ms = current_time_ms()
    with site.database.write() as db:
        statement = select(SignInChallenge).where(SignInChallenge.token_hash == hash_token(token)).with_for_update()
        challenge = db.scalars(statement).first()
        if challenge is None or challenge.expires_at <= now_ms or challenge.attempts >= _MAX_CODE_ATTEMPTS:
            raise SiteError(401, "challenge_over")
        person = db.get_one(Person, challenge.person_id, with_for_update={"key_share": True})
        if person.status not in _CANNOT_SIGN_IN_STATUSES and second_factor.use_code(person, code):
            db.delete(challenge)
            return _replace_user_session(db, person, user_agent, cookie_token, now_ms)
        challenge.attempts += 1
        audit_log.append_entry(db, "nobody", "person.sign_in_failed", person.id)
    raise SiteError(401, "wrong_code")


@dataclass(frozen=True, slots=True)
class VerifiedSignIn:
    """The token of a new session, or of a challenge for the second factor."""

    token: str = ""
    challenge: str | None = None


def sign_in_verified_person(
    db: Session, person: Person, user_agent: str, cookie_token: str | None, now_ms: int
) -> VerifiedSignIn:
    """Start the session of a person whom a provider has verified, or ask for their second factor.

    Raises:
        SiteError: `openid_not_admitted` (403) for an erased account.
    """
    if person.status in _CANNOT_SIGN_IN_STATUSES:
        raise SiteError(403, "openid_not_admitted")
    if (error := _check_second_factor(db, person, None, now_ms)) is not None:
        return VerifiedSignIn(challenge=error.values["challenge"])
    return VerifiedSignIn(token=_replace_user_session(db, person, user_agent, cookie_token, now_ms)[0])


def _replace_user_session(
    db: Session, person: Person, user_agent: str, cookie_token: str | None, now_ms: int
) -> tuple[str, UserSession]:
    replaced = UserSession.token_hash == hash_token(cookie_token or "")
    db.execute(update(UserSession).where(replaced, UserSession.revoked_at.is_(None)).values(revoked_at=now_ms))
    return create_user_session(db, person, user_agent, now_ms)


def create_user_session(
    db: Session, person: Person, user_agent: str, now_ms: int, action: str = "person.sign_in"
) -> tuple[str, UserSession]:
    """Start a session and return (token for the cookie, row)."""
    token = generate_token()
    user_session = UserSession(
        token_hash=hash_token(token),
        csrf=generate_token(),
        person_id=person.id,
        agent=user_agent[:200],
        created_at=now_ms,
        seen_at=now_ms,
    )
    db.add(user_session)
    db.flush()
    audit_log.append_entry(db, person.id, action, user_session.id)
    return token, user_session


def _is_known_browser(db: Session, person: Person | None, token: str | None) -> bool:
    """Return whether a browser has a cookie of this person, possibly expired but not revoked."""
    if person is None or not token:
        return False
    statement = select(UserSession.id).where(UserSession.person_id == person.id, UserSession.revoked_at.is_(None))
    return db.scalar(statement.where(UserSession.token_hash == hash_token(token))) is not None


def revoke_user_session(db: Session, person: Person, session_id: str, caller_id: str) -> None:
    """Revoke one session of a person; raise SiteError when it is not theirs."""
    user_session = db.get(UserSession, session_id)
    if user_session is None or user_session.person_id != person.id:
        raise SiteError(404, "not_found")
    user_session.revoked_at = user_session.revoked_at or current_time_ms()
    audit_log.append_entry(db, caller_id, "person.sign_out", user_session.id)


def revoke_user_sessions(db: Session, person: Person, except_session_id: str | None = None) -> None:
    """Revoke all sessions of a person except one."""
    statement = update(UserSession).where(UserSession.person_id == person.id, UserSession.revoked_at.is_(None))
    if except_session_id:
        statement = statement.where(UserSession.id != except_session_id)
    db.execute(statement.values(revoked_at=current_time_ms()))


def list_active_sessions(db: Session, settings: Settings, person: Person, now_ms: int) -> Sequence[UserSession]:
    """Return a person's valid sessions, the latest first."""
    rows = db.scalars(
        select(UserSession)
        .where(UserSession.person_id == person.id, UserSession.revoked_at.is_(None))
        .order_by(UserSession.seen_at.desc())
    )
    return [user_session for user_session in rows if is_session_valid(user_session, settings, now_ms)]


def _set_password(db: Session, person: Person, password_hash: str) -> None:
    """Set a password and revoke the person's sessions."""
    person.password_hash = password_hash
    revoke_user_sessions(db, person)
    audit_log.append_entry(db, person.id, "person.password", person.id)
