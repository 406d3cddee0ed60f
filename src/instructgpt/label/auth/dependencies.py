"""Authorization: every route declares its audience; the application refuses to start with a route that does not.

@router.get("/home")
def home(principal: Annotated[Principal, require("labeler")]) -> Response: ...
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request
from sqlalchemy import bindparam, select, update

from instructgpt.label.auth import consent, rate_limits
from instructgpt.label.auth.tokens import find_api_key, hash_token
from instructgpt.label.context import Settings, Site
from instructgpt.label.db.models import ApiKey, Person, UserSession, current_time_ms
from instructgpt.label.db.models.people import PersonRole
from instructgpt.label.errors import SiteError

SESSION_COOKIE, SECURE_SESSION_COOKIE = "labeler_session", "__Host-labeler_session"
_SECURE_SUBPATH_COOKIE = (
    "__Secure-labeler_session"  # `__Host-` requires the path "/", which sites of a host would share
)
_LAST_SEEN_INTERVAL_MS = 5 * 60_000  # `seen_at` is written at most this often, not on every request


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller: anonymous, a signed-in person, or an API key."""

    person: Person | None = None
    user_session: UserSession | None = None
    api_key: ApiKey | None = None
    has_consented: bool = True  # to the newest consent text

    @property
    def user(self) -> Person:
        """The person; only for routes that allow roles."""
        assert self.person is not None
        return self.person


@dataclass(frozen=True, slots=True)
class RequireRole:
    """The dependency of a route: return the principal or raise SiteError (401, 403)."""

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
        if not self.consent_optional and needs_second_factor(get_site(request).settings, principal.person):
            raise SiteError(403, "second_factor_needed")
        return principal


def needs_second_factor(settings: Settings, person: Person) -> bool:
    """Return whether the site demands a second factor that a person has not set up yet."""
    roles = {"optional": (), "owners": ("owner",), "team": ("owner", "researcher")}[settings.second_factor]
    return person.role in roles and person.totp_secret is None


def require(*roles: PersonRole, scope: str | None = None, consent_optional: bool = False) -> Any:
    """Require a person with one of these roles or, with `scope`, an API key that has it.

    Labelers must have consented to the newest consent text unless `consent_optional`.
    """
    return Depends(RequireRole(frozenset(roles), scope, consent_optional=consent_optional))


def public_access() -> Any:
    """Admit everybody, signed in or not."""
    return Depends(RequireRole(public=True))


AnyUser = Annotated[Principal, public_access()]
SignedInUser = Annotated[Principal, require("labeler", "researcher", "owner", consent_optional=True)]
ConsentedUser = Annotated[Principal, require("labeler", "researcher", "owner")]
LabelerUser = Annotated[Principal, require("labeler")]
TeamUser = Annotated[Principal, require("researcher", "owner")]
OwnerUser = Annotated[Principal, require("owner")]
ReadScope = Annotated[Principal, require("owner", scope="read")]
WriteScope = Annotated[Principal, require("owner", scope="write")]
ExportScope = Annotated[Principal, require("owner", scope="export")]
AdminScope = Annotated[Principal, require("owner", scope="admin")]
"""The principals of routes; `...Scope` is an API key with that scope, or a signed-in owner."""


def get_site(request: Request) -> Site:
    site: Site = request.app.state.site
    return site


def get_current_principal(request: Request) -> Principal:
    """Return the principal of a request's API key or cookie; raise SiteError 401 or 429 for a key."""
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
    """Return the cookie's name; with HTTPS its prefix keeps other hosts, or sites without HTTPS, from setting it."""
    if not settings.secure:
        return SESSION_COOKIE
    return _SECURE_SUBPATH_COOKIE if settings.base_path else SECURE_SESSION_COOKIE


def _principal_from_api_key(site: Site, header: str) -> Principal:
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
    """Return whether a session is neither revoked nor idle for too long nor too old."""
    idle_ms, age_ms = now_ms - user_session.seen_at, now_ms - user_session.created_at
    return (
        user_session.revoked_at is None
        and idle_ms <= settings.idle_hours * 3_600_000
        and age_ms <= settings.absolute_days * 86_400_000
    )
