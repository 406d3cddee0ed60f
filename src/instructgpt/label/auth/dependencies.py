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
from instructgpt.label.auth.tokens import find_api_key, hash_token
from instructgpt.label.context import Settings, Site
from instructgpt.label.db.models import ApiKey, Person, UserSession, current_time_ms
from instructgpt.label.db.models.people import PersonRole
from instructgpt.label.errors import SiteError

SESSION_COOKIE, SECURE_SESSION_COOKIE = "labeler_session", "__Host-labeler_session"
_LAST_SEEN_INTERVAL_MS = 5 * 60_000
"""Milliseconds between two notes that somebody is still here."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever asks: nobody known, a person who signed in, or a program with a key."""

    person: Person | None = None
    user_session: UserSession | None = None
    api_key: ApiKey | None = None
    has_consented: bool = True
    """Whether they agreed to the present consent text."""

    @property
    def signed_in_person(self) -> Person:
        """The person; only for routes that allow roles."""
        assert self.person is not None
        return self.person


@dataclass(frozen=True, slots=True)
class RequireRole:
    """What a route demands. As a dependency it gives the Visitor, or refuses."""

    roles: frozenset[PersonRole] = frozenset()
    scope: str | None = None
    public: bool = False
    consent_optional: bool = False

    def __call__(self, request: Request) -> Principal:
        principal = get_current_principal(request)
        if self.public:
            return principal
        if principal.api_key is not None and self.scope is not None and self.scope in principal.api_key.scopes:
            return principal
        if principal.person is None and principal.api_key is None:
            raise SiteError(401, "sign_in")
        if principal.person is None or principal.person.role not in self.roles:
            raise SiteError(403, "not_allowed")
        if principal.person.role == "labeler" and not principal.has_consented and not self.consent_optional:
            raise SiteError(403, "consent_needed")
        return principal


def require(*roles: PersonRole, scope: str | None = None, consent_optional: bool = False) -> Any:
    """A person in one of these roles, or (where `scope` is given) a key with this scope.

    Labelers are let in once they agreed to the present consent text, except where `without_consent` says otherwise.
    """
    return Depends(RequireRole(frozenset(roles), scope, consent_optional=consent_optional))


def public_access() -> Any:
    """Anybody, signed in or not."""
    return Depends(RequireRole(public=True))


def get_site(request: Request) -> Site:
    """The site a request came to."""
    site: Site = request.app.state.site
    return site


def get_current_principal(request: Request) -> Principal:
    """The person behind a request's cookie, or the program behind its key; nobody when either is missing, revoked or too old.

    Raises:
        Problem: 401 for a key that is none, 429 for one used too often.
    """
    if not hasattr(request.state, "principal"):
        site, authorization = get_site(request), request.headers.get("authorization")
        request.state.principal = (
            _principal_from_api_key(site, authorization)
            if authorization is not None
            else _principal_from_cookie(site, request.cookies.get(session_cookie_name(site.settings)))
        )
    principal: Principal = request.state.principal
    return principal


def session_cookie_name(settings: Settings) -> str:
    """The cookie's name; with https one that only this host can set."""
    return SECURE_SESSION_COOKIE if settings.secure else SESSION_COOKIE


def _principal_from_api_key(site: Site, header: str) -> Principal:
    """Whoever shows a key; their calls are counted."""
    scheme, _, key_text = header.partition(" ")
    now_ms = current_time_ms()
    with site.database.write() as db:
        api_key = find_api_key(db, key_text.strip(), now_ms) if scheme.lower() == "bearer" else None
        if api_key is None:
            raise SiteError(401, "bad_key")
        is_allowed = rate_limits.consume_token(db, rate_limits.API_KEY_LIMIT, api_key.id, now_ms)
        api_key.last_used_at = now_ms
    if not is_allowed:
        raise SiteError(429, "too_often")
    return Principal(api_key=api_key)


_SESSION_STATEMENT = (
    select(UserSession, Person)
    .join(Person, Person.id == UserSession.person_id)
    .where(UserSession.token_hash == bindparam("token"))
)


def _principal_from_cookie(site: Site, token: str | None) -> Principal:
    """Whoever carries a cookie. Being here is noted every few minutes, so that only idle sign-ins end."""
    if not token:
        return Principal()
    with site.database.read() as db:
        row = db.execute(_SESSION_STATEMENT, {"token": hash_token(token)}).first()
        if row is None or not is_session_valid(row[0], site.settings, current_time_ms()):
            return Principal()
        user_session, person = row
        has_consented = person.role != "labeler" or consent.has_consented(db, person)
    if current_time_ms() - user_session.seen_at > _LAST_SEEN_INTERVAL_MS:
        with site.database.write() as db:
            db.execute(update(UserSession).where(UserSession.id == user_session.id).values(seen_at=current_time_ms()))
    return Principal(person, user_session, has_consented=has_consented)


def is_session_valid(user_session: UserSession, settings: Settings, now_ms: int) -> bool:
    """Whether a sign-in still counts: not revoked, not idle for too long, not too old."""
    idle_ms, age_ms = now_ms - user_session.seen_at, now_ms - user_session.created_at
    return (
        user_session.revoked_at is None
        and idle_ms <= settings.idle_hours * 3_600_000
        and age_ms <= settings.absolute_days * 86_400_000
    )
