"""Signing in from an open page, so that nothing on it is lost, and from programs that act for a person."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from instructgpt.label.auth import accounts, consent, rate_limits
from instructgpt.label.auth.dependencies import Principal, get_site, public_access, require
from instructgpt.label.db.models import Person, UserSession, current_time_ms
from instructgpt.label.errors import SiteError
from instructgpt.label.web.params import (
    MAX_ANONYMOUS_BODY_BYTES,
    client_info,
    limit_invite_attempts,
    set_session_cookie,
)
from instructgpt.label.web.rendering import get_translator

router = APIRouter(prefix="/api/v1", tags=["session"], max_body_size=MAX_ANONYMOUS_BODY_BYTES)


class SignInRequest(BaseModel):
    """Name and password."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=2_000)
    password: str = Field(max_length=10_000)


class RedeemRequest(SignInRequest):
    """An invitation to use, and the version of the consent text that was read."""

    token: str = Field(max_length=200)
    consent: int | None = None


class CurrentUserOut(BaseModel):
    """Who is signed in, and the token to send as `X-CSRF-Token` with everything that changes something."""

    name: str
    role: str
    status: str
    language: str
    csrf: str


@router.post("/sign-in")
def sign_in_endpoint(
    request: Request, answer: Response, _: Annotated[Principal, public_access()], form: SignInRequest
) -> CurrentUserOut:
    """Sign in; the cookie comes with the answer."""
    site = get_site(request)
    token, user_session = accounts.sign_in_with_password(site, form.name, form.password, **client_info(request))
    set_session_cookie(answer, site, token)
    with site.database.read() as db:
        return _to_current_user_out(db.get_one(Person, user_session.person_id), user_session)


@router.post("/redeem")
def redeem_invite_endpoint(
    request: Request, answer: Response, principal: Annotated[Principal, public_access()], form: RedeemRequest
) -> CurrentUserOut:
    """Use an invitation and sign in."""
    site = get_site(request)
    limit_invite_attempts(request)
    with site.database.write() as db:
        rate_limits.refund_token(
            db, rate_limits.INVITE_LIMIT, client_info(request)["address"] or "", current_time_ms()
        )  # kept only where the link works: a whole team may join
        person = accounts.redeem_invite(
            db, form.token, form.name, form.password, language=get_translator(request, principal).language
        )
        if person.role == "labeler" and not consent.has_consented(db, person):
            if form.consent is None:
                raise SiteError(422, "consent_missing")
            consent.record_consent(db, person, form.consent)
        token, user_session = accounts.create_user_session(
            db, person, client_info(request)["user_agent"], current_time_ms()
        )
    set_session_cookie(answer, site, token)
    return _to_current_user_out(person, user_session)


@router.get("/me")
def get_me(
    principal: Annotated[Principal, require("labeler", "researcher", "owner", consent_optional=True)],
) -> CurrentUserOut:
    """Who is signed in."""
    assert principal.user_session is not None
    return _to_current_user_out(principal.signed_in_person, principal.user_session)


def _to_current_user_out(person: Person, user_session: UserSession) -> CurrentUserOut:
    return CurrentUserOut(
        name=person.name, role=person.role, status=person.status, language=person.language, csrf=user_session.csrf
    )
