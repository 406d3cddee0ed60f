"""Signing in from an open page, so that nothing on it is lost, and from programs that act for a person."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from instructgpt.label.auth import accounts, consent, rate_limits
from instructgpt.label.auth.dependencies import Visitor, allow, everyone, site_of
from instructgpt.label.db.models import Login, Person, now
from instructgpt.label.errors import Problem
from instructgpt.label.web.params import MAX_BODY, limit_links, whence, with_cookie
from instructgpt.label.web.rendering import language

router = APIRouter(prefix="/api/v1", tags=["session"], max_body_size=MAX_BODY)


class SignIn(BaseModel):
    """Name and password."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=2_000)
    password: str = Field(max_length=10_000)


class Redeem(SignIn):
    """An invitation to use, and the version of the consent text that was read."""

    token: str = Field(max_length=200)
    consent: int | None = None


class Me(BaseModel):
    """Who is signed in, and the token to send as `X-CSRF-Token` with everything that changes something."""

    name: str
    role: str
    status: str
    language: str
    csrf: str


@router.post("/sign-in")
def sign_in(request: Request, answer: Response, _: Annotated[Visitor, everyone()], form: SignIn) -> Me:
    """Sign in; the cookie comes with the answer."""
    site = site_of(request)
    token, login = accounts.sign_in(site, form.name, form.password, **whence(request))
    with_cookie(answer, site, token)
    with site.database.read() as db:
        return _me(db.get_one(Person, login.person_id), login)


@router.post("/redeem")
def redeem(request: Request, answer: Response, visitor: Annotated[Visitor, everyone()], form: Redeem) -> Me:
    """Use an invitation and sign in."""
    site = site_of(request)
    limit_links(request)
    with site.database.write() as db:
        rate_limits.give_back(
            db, rate_limits.INVITE, whence(request)["address"] or "", now()
        )  # kept only where the link works: a whole team may join
        person = accounts.redeem(db, form.token, form.name, form.password, language=language(request, visitor).language)
        if person.role == "labeler" and not consent.has_agreed(db, person):
            if form.consent is None:
                raise Problem(422, "consent_missing")
            consent.agree(db, person, form.consent)
        token, login = accounts.start_login(db, person, whence(request)["agent"], now())
    with_cookie(answer, site, token)
    return _me(person, login)


@router.get("/me")
def me(visitor: Annotated[Visitor, allow("labeler", "researcher", "owner", without_consent=True)]) -> Me:
    """Who is signed in."""
    assert visitor.login is not None
    return _me(visitor.me, visitor.login)


def _me(person: Person, login: Login) -> Me:
    return Me(name=person.name, role=person.role, status=person.status, language=person.language, csrf=login.csrf)
