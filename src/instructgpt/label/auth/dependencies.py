"""Who may do what: every route declares it, and what declares nothing does not start.

@router.get("/home")
def home(visitor: Annotated[Visitor, allow("labeler")]) -> Response: ...
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import Depends, Request
from sqlalchemy import bindparam, select, update

from instructgpt.label.auth import consent, rate_limits
from instructgpt.label.auth.tokens import find_key, hashed
from instructgpt.label.context import Settings, Site
from instructgpt.label.db.models import ApiKey, Login, Person, now
from instructgpt.label.db.models.people import Role
from instructgpt.label.errors import Problem

COOKIE, SECURE_COOKIE = "labeler_session", "__Host-labeler_session"
SEEN_EVERY = 5 * 60_000
"""Milliseconds between two notes that somebody is still here."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """Whoever asks: nobody known, a person who signed in, or a program with a key."""

    person: Person | None = None
    login: Login | None = None
    key: ApiKey | None = None
    agreed: bool = True
    """Whether they agreed to the present consent text."""

    @property
    def me(self) -> Person:
        """The person; only for routes that allow roles."""
        assert self.person is not None
        return self.person


@dataclass(frozen=True, slots=True)
class Access:
    """What a route demands. As a dependency it gives the Visitor, or refuses."""

    roles: frozenset[Role] = frozenset()
    scope: str | None = None
    everyone: bool = False
    without_consent: bool = False

    def __call__(self, request: Request) -> Visitor:
        visitor = who(request)
        if self.everyone:
            return visitor
        if visitor.key is not None and self.scope is not None and self.scope in visitor.key.scopes:
            return visitor
        if visitor.person is None and visitor.key is None:
            raise Problem(401, "sign_in")
        if visitor.person is None or visitor.person.role not in self.roles:
            raise Problem(403, "not_allowed")
        if visitor.person.role == "labeler" and not visitor.agreed and not self.without_consent:
            raise Problem(403, "consent_needed")
        return visitor


def allow(*roles: Role, scope: str | None = None, without_consent: bool = False) -> Any:
    """A person in one of these roles, or (where `scope` is given) a key with this scope.

    Labelers are let in once they agreed to the present consent text, except where `without_consent` says otherwise.
    """
    return Depends(Access(frozenset(roles), scope, without_consent=without_consent))


def everyone() -> Any:
    """Anybody, signed in or not."""
    return Depends(Access(everyone=True))


def site_of(request: Request) -> Site:
    """The site a request came to."""
    site: Site = request.app.state.site
    return site


def who(request: Request) -> Visitor:
    """The person behind a request's cookie, or the program behind its key; nobody when either is missing, revoked or too old.

    Raises:
        Problem: 401 for a key that is none, 429 for one used too often.
    """
    if not hasattr(request.state, "visitor"):
        site, key = site_of(request), request.headers.get("authorization")
        request.state.visitor = _program(site, key) if key is not None else _person(site, request.cookies.get(cookie_name(site.settings)))
    visitor: Visitor = request.state.visitor
    return visitor


def cookie_name(settings: Settings) -> str:
    """The cookie's name; with https one that only this host can set."""
    return SECURE_COOKIE if settings.secure else COOKIE


def _program(site: Site, header: str) -> Visitor:
    """Whoever shows a key; their calls are counted."""
    kind, _, text = header.partition(" ")
    at = now()
    with site.database.write() as db:
        key = find_key(db, text.strip(), at) if kind.lower() == "bearer" else None
        if key is None:
            raise Problem(401, "bad_key")
        allowed = rate_limits.take(db, rate_limits.KEY, key.id, at)
        key.last_used_at = at
    if not allowed:
        raise Problem(429, "too_often")
    return Visitor(key=key)


SIGN_IN = select(Login, Person).join(Person, Person.id == Login.person_id).where(Login.token_hash == bindparam("token"))


def _person(site: Site, token: str | None) -> Visitor:
    """Whoever carries a cookie. Being here is noted every few minutes, so that only idle sign-ins end."""
    if not token:
        return Visitor()
    with site.database.read() as db:
        found = db.execute(SIGN_IN, {"token": hashed(token)}).first()
        if found is None or not is_alive(found[0], site.settings, now()):
            return Visitor()
        login, person = found
        agreed = person.role != "labeler" or consent.has_agreed(db, person)
    if now() - login.seen_at > SEEN_EVERY:
        with site.database.write() as db:
            db.execute(update(Login).where(Login.id == login.id).values(seen_at=now()))
    return Visitor(person, login, agreed=agreed)


def is_alive(login: Login, settings: Settings, at: int) -> bool:
    """Whether a sign-in still counts: not revoked, not idle for too long, not too old."""
    idle, age = at - login.seen_at, at - login.created_at
    return login.revoked_at is None and idle <= settings.idle_hours * 3_600_000 and age <= settings.absolute_days * 86_400_000
