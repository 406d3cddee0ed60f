"""Accounts: how people come in (set-up, invitations), sign in and out, and what an owner changes about them."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from instructgpt.label.auth import rate_limits
from instructgpt.label.auth.dependencies import is_alive
from instructgpt.label.auth.passwords import hash_password, is_outdated, verify
from instructgpt.label.auth.tokens import hashed, new_token
from instructgpt.label.context import Settings, Site
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Invite, Login, Person, now
from instructgpt.label.db.models.people import Role, Status
from instructgpt.label.errors import Problem
from instructgpt.records import Cohort

DAY = 86_400_000
SETUP_DAYS, INVITE_DAYS, RESET_DAYS = 7, 14, 2
"""How long links work."""
MAX_NAME = 100
GONE: tuple[Status, ...] = ("erased",)
"""Those who cannot sign in. Declined, paused and withdrawn people can: their data stays theirs to see."""


# --- people ----------------------------------------------------------------------------------------------------------


def create_person(
    db: Session,
    name: str,
    role: Role,
    *,
    password: str | None = None,
    email: str | None = None,
    cohort: Cohort | None = None,
    status: Status | None = None,
    language: str = "en",
    by: str = "cli",
) -> Person:
    """A new account, flushed.

    Args:
        db: a transaction that writes.
        name: what the person signs in with; leading and trailing space is dropped.
        role, cohort: labelers belong to a cohort, `training` unless said otherwise; others to none.
        password: None makes an account that cannot sign in until it is given one by a reset link.
        email, language: as known.
        status: None follows the cohort: training labelers begin with screening, held-out ones do not (paper, B.1).
        by: who makes it, for the journal.

    Raises:
        Problem: the name is empty, too long or taken, or the password too short.
    """
    name = " ".join(name.split())
    if not name or len(name) > MAX_NAME or any(not letter.isprintable() for letter in name):
        raise Problem(422, "bad_name", most=MAX_NAME)
    if db.scalar(select(Person.id).where(func.lower(Person.name) == name.lower())):
        raise Problem(409, "name_taken")
    if role == "labeler":
        cohort = cohort or "training"
    first: Status = "screening" if role == "labeler" and cohort == "training" else "active"
    person = Person(
        name=name,
        email=(email or "").strip() or None,
        password_hash=hash_password(password) if password is not None else None,
        role=role,
        status=status or first,
        cohort=cohort if role == "labeler" else None,
        pseudonym=f"labeler-{secrets.token_hex(5)}",
        language=language,
    )
    db.add(person)
    db.flush()
    audit_log.note(db, by, "person.create", person.id, role=role, cohort=person.cohort, status=person.status)
    return person


def by_name(db: Session, name: str) -> Person | None:
    """The account with a name, however it is capitalised and spaced."""
    return db.scalars(select(Person).where(func.lower(Person.name) == " ".join(name.split()).lower())).first()


def change_role(db: Session, person: Person, role: Role, by: str) -> None:
    """Give somebody another role and end all their sign-ins, so that no old one carries the new rights.

    Raises:
        Problem: the last owner would be gone.
    """
    if person.role == "owner" and role != "owner":
        refuse_last_owner(db, person)
    person.role, person.cohort = role, (person.cohort or "training") if role == "labeler" else None
    if role != "labeler":
        person.fold, person.status = None, "active"
    end_logins(db, person)
    audit_log.note(db, by, "person.role", person.id, role=role)


def refuse_last_owner(db: Session, person: Person) -> None:
    """Raises Problem when nobody else could govern the site after this owner."""
    others = select(func.count()).where(Person.role == "owner", Person.status == "active", Person.id != person.id)
    if person.role == "owner" and not db.scalar(others):
        raise Problem(409, "last_owner")


# --- links -----------------------------------------------------------------------------------------------------------


def invite(
    db: Session,
    role: Role,
    *,
    cohort: Cohort | None = None,
    note: str = "",
    person: Person | None = None,
    max_uses: int = 1,
    days: int = INVITE_DAYS,
    by: str | None = None,
) -> str:
    """A link that makes accounts, or, with `person`, gives that person a new password. Returns its token, which is stored nowhere.

    Args:
        db: a transaction that writes.
        role, cohort: what those who use it become.
        note: for whom it is; only owners see it.
        person: whose password it resets.
        max_uses: how many accounts it makes.
        days: how long it works.
        by: the owner's id; None is the command line.
    """
    token = new_token()
    row = Invite(
        token_hash=hashed(token),
        role=role,
        cohort=(cohort or "training") if role == "labeler" else None,
        note=note,
        person_id=person.id if person else None,
        max_uses=max_uses,
        expires_at=now() + days * DAY,
        created_by=by,
    )
    db.add(row)
    db.flush()
    action, object_ = ("person.reset_link", person.id) if person else ("invite.create", row.id)
    audit_log.note(db, by or "cli", action, object_, role=role, cohort=row.cohort, max_uses=max_uses, days=days)
    return token


def setup_link(db: Session) -> str | None:
    """The token that makes the first owner, in place of any made before; None once there is an owner."""
    if db.scalar(select(Person.id).where(Person.role == "owner")):
        return None
    db.execute(update(Invite).where(Invite.role == "owner", Invite.revoked_at.is_(None)).values(revoked_at=now()))
    return invite(db, "owner", note="set-up", days=SETUP_DAYS)


def open_invite(db: Session, token: str, at: int) -> Invite:
    """The link of a token, locked until the end of the transaction.

    Raises:
        Problem: there is none such, or it is used up, revoked or too old. All of them read the same.
    """
    row = db.scalars(select(Invite).where(Invite.token_hash == hashed(token)).with_for_update()).first()
    if row is None or row.revoked_at is not None or row.expires_at <= at or row.uses >= row.max_uses:
        raise Problem(404, "bad_link")
    return row


def redeem(
    db: Session, token: str, name: str, password: str, *, email: str | None = None, language: str = "en", at: int | None = None
) -> Person:
    """Use a link: make the account it promises, or set the new password of the person it was made for.

    Raises:
        Problem: the link does not work (any more), the name is taken, the password is too short.
    """
    row = open_invite(db, token, now() if at is None else at)
    row.uses += 1
    if row.person_id is not None:
        person = db.get_one(Person, row.person_id)
        set_password(db, person, password)
        return person
    person = create_person(db, name, row.role, password=password, email=email, cohort=row.cohort, language=language, by=f"invite:{row.id}")
    person.invite_id = row.id
    return person


# --- signing in and out ----------------------------------------------------------------------------------------------


def sign_in(site: Site, name: str, password: str, *, address: str, agent: str = "", carried: str | None = None) -> tuple[str, Login]:
    """A new sign-in: (token for the cookie, row). What is slow on purpose happens outside of any transaction.

    Args:
        site: where to.
        name, password: as typed.
        address: where from, as `rates.address_of` counts it.
        agent: the browser, shown in the person's list of sign-ins.
        carried: the cookie the browser still has; that sign-in ends with the new one.

    Raises:
        Problem: 429 too many tries; 401 name or password is wrong: which of them is not said, and takes as long to find out.
    """
    at, spelled = now(), " ".join(name.split()).lower()
    with site.database.write() as db:
        person = by_name(db, name)
        allowed = rate_limits.take(db, rate_limits.SIGN_IN_ADDRESS, address, at) and rate_limits.take(
            db, rate_limits.SIGN_IN, f"{spelled} {address}", at
        )
        if allowed and not known_here(db, person, carried):
            allowed = rate_limits.take(db, rate_limits.SIGN_IN_NAME, spelled, at)
    if not allowed:
        raise Problem(429, "too_often")
    stored = person.password_hash if person and person.status not in GONE else None
    right = verify(password, stored)
    fresh = hash_password(password) if right and stored and is_outdated(stored) else None
    with site.database.write() as db:
        person = by_name(db, name)
        if not right or person is None or person.password_hash != stored:
            if person is not None:
                audit_log.note(db, "nobody", "person.sign_in_failed", person.id)
            wrong = True
        else:
            wrong, person.password_hash = False, fresh or stored
            for rate, whose in (
                (rate_limits.SIGN_IN_ADDRESS, address),
                (rate_limits.SIGN_IN, f"{spelled} {address}"),
                (rate_limits.SIGN_IN_NAME, spelled),
            ):
                rate_limits.give_back(db, rate, whose, at)
            db.execute(update(Login).where(Login.token_hash == hashed(carried or ""), Login.revoked_at.is_(None)).values(revoked_at=at))
            begun = start_login(db, person, agent, at)
    if wrong:
        raise Problem(401, "wrong_password")
    return begun


def start_login(db: Session, person: Person, agent: str, at: int, action: str = "person.sign_in") -> tuple[str, Login]:
    """Begin a sign-in: (token for the cookie, row)."""
    token = new_token()
    login = Login(token_hash=hashed(token), csrf=new_token(), person_id=person.id, agent=agent[:200], created_at=at, seen_at=at)
    db.add(login)
    db.flush()
    audit_log.note(db, person.id, action, login.id)
    return token, login


def known_here(db: Session, person: Person | None, token: str | None) -> bool:
    """Whether a browser carries a cookie of this person, alive or not, that was not revoked."""
    if person is None or not token:
        return False
    return bool(
        db.scalar(select(Login.id).where(Login.token_hash == hashed(token), Login.person_id == person.id, Login.revoked_at.is_(None)))
    )


def end_login(db: Session, person: Person, login_id: str, by: str) -> None:
    """End one sign-in of a person.

    Raises:
        Problem: the person has none with this id.
    """
    login = db.get(Login, login_id)
    if login is None or login.person_id != person.id:
        raise Problem(404, "not_found")
    login.revoked_at = login.revoked_at or now()
    audit_log.note(db, by, "person.sign_out", login.id)


def end_logins(db: Session, person: Person, but: str | None = None) -> None:
    """End all sign-ins of a person, except one."""
    others = update(Login).where(Login.person_id == person.id, Login.revoked_at.is_(None))
    db.execute((others.where(Login.id != but) if but else others).values(revoked_at=now()))


def live_logins(db: Session, settings: Settings, person: Person, at: int) -> Sequence[Login]:
    """Where somebody is signed in, latest first."""
    rows = db.scalars(select(Login).where(Login.person_id == person.id, Login.revoked_at.is_(None)).order_by(Login.seen_at.desc()))
    return [login for login in rows if is_alive(login, settings, at)]


def set_password(db: Session, person: Person, password: str, but: str | None = None) -> None:
    """Give somebody a new password and end their other sign-ins.

    Raises:
        Problem: it is too short or too long.
    """
    person.password_hash = hash_password(password)
    end_logins(db, person, but)
    audit_log.note(db, person.id, "person.password", person.id)
