"""The playground's page, its link, and the user's consent."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response

from instructgpt.label.auth import consent, rate_limits
from instructgpt.label.auth.dependencies import AnyUser, OwnerUser, get_site
from instructgpt.label.db.models import PlaygroundConsentText, current_time_ms
from instructgpt.label.errors import SiteError
from instructgpt.label.markdown import render_markdown
from instructgpt.label.playground import erasure
from instructgpt.label.playground.streaming import MAX_ANSWERS
from instructgpt.label.playground.users import (
    agree_to_storage,
    end_agreements,
    join_playground,
    start_playground_session,
)
from instructgpt.label.tasks.instructions import BUNDLED_LANGUAGES
from instructgpt.label.web.params import (
    MAX_ANONYMOUS_BODY_BYTES,
    client_info,
    find_visitor,
    get_visitor,
    set_playground_cookies,
)
from instructgpt.label.web.rendering import get_translator, redirect, render_page

router = APIRouter(prefix="/playground", max_body_size=MAX_ANONYMOUS_BODY_BYTES)
_LongText = Annotated[str, Form(max_length=50_000)]
_SCRIPT_KEYS = ("playground.", "unreachable", "close")


@router.get("/join/{token}")
def open_playground_link(request: Request, _: AnyUser, token: str) -> Response:
    """Make the browser a user of the playground, unless it is one."""
    site = get_site(request)
    if find_visitor(request) is not None:
        return redirect("/playground")
    with site.database.write() as db:
        address, now_ms = client_info(request)["address"], current_time_ms()
        is_allowed = rate_limits.consume_token(db, rate_limits.PLAYGROUND_JOIN_LIMIT, address, now_ms)
    if not is_allowed:
        raise SiteError(429, "too_often")
    with site.database.write() as db:
        user_token, session_token = join_playground(db, token)
    answer = redirect("/playground")
    set_playground_cookies(answer, site, user=user_token, session=session_token)
    return answer


@router.get("")
def show_playground(request: Request, _: AnyUser) -> Response:
    """Show the page; each new session of the browser shows the consent text again."""
    site, visitor, translator = get_site(request), get_visitor(request), get_translator(request)
    session_token = None
    with site.database.read() as db:
        text = consent.get_latest_consent_text(db, PlaygroundConsentText)
    if visitor.session is None:
        with site.database.write() as db:
            session_token = start_playground_session(db, visitor.user)
    body = render_markdown(consent.localized_consent_body(text, translator.language)) if text else None
    page = render_page(
        request,
        "playground/index.html",
        text=text,
        body=body,
        agreement=visitor.agreement,
        pseudonym=visitor.user.pseudonym,
        max_answers=MAX_ANSWERS,
        retention_days=site.settings.retention_days,
        script_messages={key: message for key, message in translator.messages.items() if key.startswith(_SCRIPT_KEYS)},
    )
    if session_token is not None:
        set_playground_cookies(page, site, session=session_token)
    return page


@router.post("/agree")
def agree(request: Request, _: AnyUser, version: Annotated[int, Form()]) -> Response:
    visitor, site = get_visitor(request), get_site(request)
    with site.database.write() as db:
        agree_to_storage(db, visitor, version)
    return redirect("/playground")


@router.post("/end-agreement")
def end_agreement(request: Request, _: AnyUser) -> Response:
    """Store nothing more; what is stored stays."""
    visitor = get_visitor(request)
    with get_site(request).database.write() as db:
        end_agreements(db, visitor.user, current_time_ms())
    return redirect("/playground")


@router.post("/erase")
def erase_everything(request: Request, _: AnyUser) -> Response:
    """Delete all of the user's texts and end the agreement."""
    visitor, site = get_visitor(request), get_site(request)
    with site.database.write() as db:
        erasure.erase_user_texts(db, visitor.user, current_time_ms())
    site.database.purge_deleted()
    return redirect("/playground?erased=true")


@router.get("/consent/edit")
def show_playground_consent_form(request: Request, _: OwnerUser) -> Response:
    with get_site(request).database.read() as db:
        text = consent.get_latest_consent_text(db, PlaygroundConsentText)
    bodies = text.bodies if text else {}
    return render_page(
        request,
        "owner/consent_edit.html",
        bodies={language: bodies.get(language, "") for language in BUNDLED_LANGUAGES},
        version=text.version if text else 0,
        action="/playground/consent/edit",
        back="/next-round",
        hint="next_round.consent_hint",
    )


@router.post("/consent/edit")
def publish_playground_consent(
    request: Request, principal: OwnerUser, body_en: _LongText = "", body_ko: _LongText = ""
) -> Response:
    """Publish a version, which every session must agree to again."""
    with get_site(request).database.write() as db:
        bodies = {"en": body_en, "ko": body_ko}
        consent.add_consent_version(db, bodies, principal.user.id, PlaygroundConsentText)
    return redirect("/next-round")
