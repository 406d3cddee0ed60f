"""Who may do what: every route declares it, and what declares nothing does not start.

@router.get("/home")
def home(visitor: Annotated[Visitor, allow("labeler")]) -> Response: ...
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from fastapi import Depends, Request
from sqlalchemy import select

from instructgpt.label.problem import Problem
from instructgpt.label.site import Site
from instructgpt.label.tables import ApiKey, Login, Person, now
from instructgpt.label.tables.people import Role

COOKIE, SECURE_COOKIE = "labeler_session", "__Host-labeler_session"


@dataclass(frozen=True, slots=True)
class Visitor:
    """Whoever asks: nobody known, a person who signed in, or a program with a key."""

    person: Person | None = None
    login: Login | None = None
    key: ApiKey | None = None

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
        return visitor


def allow(*roles: Role, scope: str | None = None) -> Any:
    """A person in one of these roles, or (where `scope` is given) a key with this scope."""
    return Depends(Access(frozenset(roles), scope))


def everyone() -> Any:
    """Anybody, signed in or not."""
    return Depends(Access(everyone=True))


def site_of(request: Request) -> Site:
    """The site a request came to."""
    site: Site = request.app.state.site
    return site


def who(request: Request) -> Visitor:
    """The person behind a request's cookie; nobody when it is missing, revoked or too old."""
    site = site_of(request)
    token = request.cookies.get(SECURE_COOKIE if site.settings.secure else COOKIE)
    if not token:
        return Visitor()
    with site.database.read() as db:
        login = db.scalar(select(Login).where(Login.token_hash == hashlib.sha256(token.encode()).hexdigest()))
        if login is None or login.revoked_at is not None:
            return Visitor()
        idle, age = now() - login.seen_at, now() - login.created_at
        if idle > site.settings.idle_hours * 3_600_000 or age > site.settings.absolute_days * 86_400_000:
            return Visitor()
        return Visitor(db.get(Person, login.person_id), login)
