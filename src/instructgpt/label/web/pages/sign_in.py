"""Coming in: sign-in, links (set-up, invitation, reset), consent."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response

from instructgpt.label.auth import accounts, consent
from instructgpt.label.auth.dependencies import Visitor, allow, cookie_name, everyone, site_of
from instructgpt.label.auth.passwords import MIN_LENGTH
from instructgpt.label.db.models import Invite, Person, now
from instructgpt.label.errors import Problem
from instructgpt.label.safe_text import rendered
from instructgpt.label.web.pages.appearance import local
from instructgpt.label.web.params import MAX_BODY, limit_links, whence, with_cookie
from instructgpt.label.web.rendering import language, page, redirect

router = APIRouter(max_body_size=MAX_BODY)

Anybody = Annotated[Visitor, everyone()]
Known = Annotated[Visitor, allow("labeler", "researcher", "owner", without_consent=True)]
Text = Annotated[str, Form(max_length=2_000)]


@router.get("/")
def front(visitor: Anybody) -> Response:
    """To where a person's work is."""
    if visitor.person is None:
        return redirect("/sign-in")
    if visitor.me.role == "labeler" and not visitor.agreed and visitor.me.status != "withdrawn":
        return redirect("/consent")
    if visitor.me.role == "labeler":
        return redirect("/screening" if visitor.me.status == "screening" else "/home" if visitor.me.status == "active" else "/account")
    return redirect("/overview")


@router.get("/sign-in")
def ask_to_sign_in(request: Request, visitor: Anybody, next: str = "/", erased: bool = False) -> Response:
    """The form, and a last word to whoever erased their account."""
    return page(request, visitor, "sign_in.html", onward=local(next), wrong=None, name="", erased=erased)


@router.post("/sign-in")
def sign_in(
    request: Request, visitor: Anybody, name: Text, password: Annotated[str, Form(max_length=10_000)], next: Annotated[str, Form()] = "/"
) -> Response:
    """Sign in and go on to where the person wanted to be."""
    try:
        token = accounts.sign_in(site_of(request), name, password, **whence(request))[0]
    except Problem as problem:
        wrong = language(request, visitor)(f"problem.{problem.code}", **problem.values)
        return page(request, visitor, "sign_in.html", status=problem.status, onward=local(next), wrong=wrong, name=name, erased=False)
    return with_cookie(redirect(local(next)), site_of(request), token)


@router.post("/sign-out")
def sign_out(request: Request, visitor: Known) -> Response:
    """End this sign-in."""
    site = site_of(request)
    assert visitor.login is not None
    with site.database.write() as db:
        accounts.end_login(db, visitor.me, visitor.login.id, visitor.me.id)
    answer = redirect("/sign-in")
    answer.delete_cookie(cookie_name(site.settings), secure=site.settings.secure, httponly=True, samesite="lax")
    return answer


@router.get("/invite/{token}")
def read_link(request: Request, visitor: Anybody, token: str) -> Response:
    """What a link is for, with the consent text where one is asked for."""
    return link_page(request, visitor, token)


@router.post("/invite/{token}")
def use_link(
    request: Request,
    visitor: Anybody,
    token: str,
    password: Annotated[str, Form(max_length=10_000)],
    again: Annotated[str, Form(max_length=10_000)],
    name: Text = "",
    email: Text = "",
    version: Annotated[int | None, Form()] = None,
) -> Response:
    """Make the account, or set the new password, and sign in. What was typed stays in the form when something is wrong."""
    site, at = site_of(request), now()
    limit_links(request)
    try:
        if password != again:
            raise Problem(422, "passwords_differ")
        with site.database.write() as db:
            spoken = language(request, visitor).language
            person = accounts.redeem(db, token, name, password, email=email, language=spoken, at=at)
            if person.role == "labeler" and not consent.has_agreed(db, person):
                if version is None:
                    raise Problem(422, "consent_missing")
                consent.agree(db, person, version)
            cookie = accounts.start_login(db, person, whence(request)["agent"] or "", at)[0]
    except Problem as problem:
        wrong = language(request, visitor)(f"problem.{problem.code}", **problem.values)
        return link_page(request, visitor, token, status=problem.status, wrong=wrong, name=name, email=email)
    return with_cookie(redirect("/"), site, cookie)


@router.get("/consent")
def read_consent(request: Request, visitor: Known) -> Response:
    """The present text and whether this person agreed to it."""
    with site_of(request).database.read() as db:
        text = consent.latest(db)
        body = rendered(consent.body(text, visitor.me.language)) if text else ""
    return page(request, visitor, "consent.html", text=text, body=body, agreed=visitor.agreed)


@router.post("/consent")
def agree(request: Request, visitor: Known, version: Annotated[int, Form()]) -> Response:
    """Agree to the text that was shown."""
    with site_of(request).database.write() as db:
        consent.agree(db, visitor.me, version)
    return redirect("/")


def link_page(
    request: Request, visitor: Visitor, token: str, status: int = 200, wrong: str | None = None, name: str = "", email: str = ""
) -> Response:
    """The page of a link: set-up, invitation or reset."""
    if status == 200:
        limit_links(request)
    with site_of(request).database.write() as db:
        link: Invite = accounts.open_invite(db, token, now())
        person = db.get(Person, link.person_id) if link.person_id else None
        text = consent.latest(db) if link.role == "labeler" and (person is None or not consent.has_agreed(db, person)) else None
        setup = link.role == "owner" and person is None and link.created_by is None
    return page(
        request, visitor, "link.html", status=status, link=link, person=person, setup=setup, text=text,
        body=rendered(consent.body(text, language(request, visitor).language)) if text else "",
        wrong=wrong, name=name, email=email, least=MIN_LENGTH,
    )  # fmt: skip
