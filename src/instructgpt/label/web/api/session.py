"""Sign-in and redemption of invitations, for open pages and for programs that act as a person."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from instructgpt.label.auth import accounts, consent
from instructgpt.label.auth.dependencies import AnyUser, SignedInUser, get_site
from instructgpt.label.db.models import Person, UserSession, current_time_ms
from instructgpt.label.errors import SiteError
from instructgpt.label.web.params import (
    MAX_ANONYMOUS_BODY_BYTES,
    check_invite_link,
    client_info,
    set_session_cookie,
)
from instructgpt.label.web.rendering import get_translator

router = APIRouter(prefix="/api/v1", tags=["session"], max_body_size=MAX_ANONYMOUS_BODY_BYTES)


class SignInRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=2_000)
    password: str = Field(max_length=10_000)
    code: str | None = Field(None, max_length=100, description="of the second factor, for people who have one")


class RedeemRequest(BaseModel):
    """An invitation's token, the new account, and the version of the consent text the person agrees to."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=2_000)
    password: str = Field(max_length=10_000)
    token: str = Field(max_length=200)
    consent: int | None = None


class CurrentUserOut(BaseModel):
    """The signed-in person. `csrf` is unused and kept for old clients: requests are checked by their origin."""

    name: str
    role: str
    status: str
    language: str
    csrf: str


@router.post("/sign-in")
def sign_in_endpoint(request: Request, answer: Response, _: AnyUser, form: SignInRequest) -> CurrentUserOut:
    """Sign in; the answer sets the session cookie."""
    site = get_site(request)
    options = {"code": form.code} if form.code is not None else {}
    token, user_session = accounts.sign_in_with_password(
        site, form.name, form.password, **options, **client_info(request)
    )
    set_session_cookie(answer, site, token)
    with site.database.read() as db:
        return _to_current_user_out(db.get_one(Person, user_session.person_id), user_session)


@router.post("/redeem")
def redeem_invite_endpoint(request: Request, answer: Response, _: AnyUser, form: RedeemRequest) -> CurrentUserOut:
    """Create the account of an invitation and sign in."""
    site = get_site(request)
    info, now_ms = client_info(request), current_time_ms()
    check_invite_link(request, form.token)
    password_hash = accounts.hash_for_invite(site, form.token, form.name, form.password)
    with site.database.write() as db:
        language = get_translator(request).language
        person = accounts.redeem_invite(
            db, form.token, form.name, form.password, password_hash=password_hash, language=language
        )
        if person.role == "labeler" and not consent.has_consented(db, person):
            if form.consent is None:
                raise SiteError(422, "consent_missing")
            consent.record_consent(db, person, form.consent)
        if person.totp_secret is None:
            token, user_session = accounts.create_user_session(db, person, info["user_agent"], now_ms)
    if person.totp_secret is not None:  # a reset link replaces the password, not the second factor
        raise SiteError(401, "code_needed")
    set_session_cookie(answer, site, token)
    return _to_current_user_out(person, user_session)


@router.get("/me")
def get_me(principal: SignedInUser) -> CurrentUserOut:
    assert principal.user_session is not None
    return _to_current_user_out(principal.user, principal.user_session)


def _to_current_user_out(person: Person, user_session: UserSession) -> CurrentUserOut:
    account = {name: getattr(person, name) for name in ("name", "role", "status", "language")}
    return CurrentUserOut(**account, csrf=user_session.csrf)
