"""The account page: preferences, password, sign-ins, own data, withdrawal of consent, erasure."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Form, Request, Response

from instructgpt.label.auth import accounts, rate_limits
from instructgpt.label.auth.dependencies import Principal, SignedInUser, get_current_principal, get_site
from instructgpt.label.auth.passwords import MIN_PASSWORD_LENGTH, hash_password, verify_password
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Person, current_time_ms
from instructgpt.label.errors import SiteError
from instructgpt.label.i18n import list_languages
from instructgpt.label.integrations import openid_accounts
from instructgpt.label.people import groups, privacy
from instructgpt.label.tasks.assignments import release_sensitive_assignments
from instructgpt.label.web.params import client_info, set_session_cookie
from instructgpt.label.web.rendering import THEMES, redirect, render_page, translate_error

router = APIRouter()

_NEW_SESSION_MS = 10 * 60_000
_FormText = Annotated[str, Form(max_length=10_000)]


@router.get("/account")
def show_account(request: Request, _: SignedInUser) -> Response:
    return _render_account_page(request)


@router.post("/account/preferences")
def save_preferences(
    request: Request,
    principal: SignedInUser,
    language: _FormText,
    theme: _FormText,
    email: Annotated[str, Form(max_length=300)] = "",
    sees_sensitive: Annotated[bool, Form()] = False,
) -> Response:
    if language not in list_languages() or theme not in THEMES:
        raise SiteError(422, "bad_field", field="language, theme", wrong="not one of the choices")
    site = get_site(request)
    with site.database.write() as db:
        person = db.get_one(Person, principal.user.id)
        person.language, person.theme, person.sees_sensitive = language, theme, sees_sensitive
        person.email = email.strip() or None
        if not sees_sensitive:
            release_sensitive_assignments(db, site.settings, person, current_time_ms())
        audit_log.append_entry(db, person.id, "person.preferences", person.id, sees_sensitive=sees_sensitive)
    return redirect("/account")


@router.post("/account/group")
def save_group(request: Request, principal: SignedInUser, group: _FormText = "") -> Response:
    """Declare one's group, or forget it."""
    with get_site(request).database.write() as db:
        groups.declare_group(db, db.get_one(Person, principal.user.id), group)
    return redirect("/account")


@router.post("/account/password")
def change_password(
    request: Request,
    principal: SignedInUser,
    password: _FormText,
    repeated: Annotated[str, Form(alias="again", max_length=10_000)],
    old: _FormText = "",
) -> Response:
    """Change the password, end all sign-ins, and continue this one under a new cookie."""
    site = get_site(request)

    def store_password() -> Response:
        if password != repeated:
            raise SiteError(422, "passwords_differ")
        check_own_password(request, principal, old)
        password_hash = hash_password(
            password, name=principal.user.name
        )  # slow on purpose: before the write transaction, not inside it
        with site.database.write() as db:
            person = db.get_one(Person, principal.user.id)
            person.password_hash = password_hash
            accounts.revoke_user_sessions(db, person)
            audit_log.append_entry(db, person.id, "person.password", person.id)
            user_agent, now_ms = client_info(request)["user_agent"], current_time_ms()
            token, _ = accounts.create_user_session(db, person, user_agent, now_ms, action="person.rotate")
        return set_session_cookie(redirect("/account"), site, token)

    return _run_or_show_error(request, store_password)


@router.post("/account/sign-ins/{login_id}/end")
def end_sign_in(request: Request, principal: SignedInUser, login_id: str) -> Response:
    with get_site(request).database.write() as db:
        accounts.revoke_user_session(db, principal.user, login_id, principal.user.id)
    return redirect("/account")


@router.post("/account/sign-ins/end-others")
def end_other_sign_ins(request: Request, principal: SignedInUser) -> Response:
    assert principal.user_session is not None
    with get_site(request).database.write() as db:
        accounts.revoke_user_sessions(db, principal.user, except_session_id=principal.user_session.id)
        audit_log.append_entry(db, principal.user.id, "person.sign_out_others", principal.user.id)
    return redirect("/account")


@router.get("/account/data")
def download_own_data(request: Request, principal: SignedInUser) -> Response:
    site = get_site(request)
    with site.database.read() as db:
        personal_data = privacy.export_personal_data(db, db.get_one(Person, principal.user.id))
    with site.database.write() as db:
        audit_log.append_entry(db, principal.user.id, "privacy.read", principal.user.id)
    content = json.dumps(personal_data, ensure_ascii=False, indent=2)
    headers = {"Content-Disposition": 'attachment; filename="my-data.json"'}
    return Response(content, media_type="application/json", headers=headers)


@router.post("/account/withdraw")
def withdraw_own_consent(
    request: Request, principal: SignedInUser, password: _FormText = "", labels: Annotated[bool, Form()] = False
) -> Response:
    return _end_own_work(request, principal, password, partial(privacy.withdraw_consent, labels=labels), "/account")


@router.post("/account/erase")
def erase_own_account(
    request: Request, principal: SignedInUser, password: _FormText = "", labels: Annotated[bool, Form()] = False
) -> Response:
    erase = partial(privacy.erase_account, labels=labels)
    return _end_own_work(request, principal, password, erase, "/sign-in?erased=true")


def _end_own_work(
    request: Request, principal: Principal, password: str, action: Callable[..., None], next_path: str
) -> Response:
    """Withdraw or erase (`action`) after a check of the password."""

    def run() -> Response:
        check_own_password(request, principal, password)
        with get_site(request).database.write() as db:
            person = db.get_one(Person, principal.user.id)
            action(db, person, now_ms=current_time_ms(), initiated_by=person.id)
        return redirect(next_path)

    return _run_or_show_error(request, run)


def check_own_password(request: Request, principal: Principal, password: str) -> None:
    """Raise SiteError `wrong_own_password`, `sign_in_again` (422) or `too_often` (429)."""
    with get_site(request).database.write() as db:
        allowed = rate_limits.consume_token(db, rate_limits.PASSWORD_LIMIT, principal.user.id, current_time_ms())
        is_connected = openid_accounts.has_identity(db, principal.user)
    if not allowed:
        raise SiteError(429, "too_often")
    if (
        principal.user.password_hash is None and is_connected
    ):  # signs in at a provider only: a new sign-in stands for the password
        assert principal.user_session is not None
        if current_time_ms() - principal.user_session.created_at > _NEW_SESSION_MS:
            raise SiteError(422, "sign_in_again")
        return
    if not verify_password(password, principal.user.password_hash, patient=True):
        raise SiteError(422, "wrong_own_password")


def _run_or_show_error(request: Request, action: Callable[[], Response]) -> Response:
    try:
        return action()
    except SiteError as error:
        return _render_account_page(request, error.status, translate_error(request, error))


def _render_account_page(request: Request, status: int = 200, error: str | None = None) -> Response:
    site = get_site(request)
    with site.database.read() as db:
        person = db.get_one(Person, get_current_principal(request).user.id)
        labeler_groups = groups.list_groups(db) if person.role == "labeler" else []
        own_group = groups.get_declared_group(db, person)
        is_connected = openid_accounts.has_identity(db, person)
        sign_ins = accounts.list_active_sessions(db, site.settings, person, current_time_ms())
    return render_page(
        request,
        "account.html",
        status,
        person=person,
        labeler_groups=labeler_groups,
        own_group=own_group,
        min_group_people=groups.MIN_GROUP_PEOPLE,
        sign_ins=sign_ins,
        error=error,
        openid=site.settings.openid,
        is_connected=is_connected,
        min_password_length=MIN_PASSWORD_LENGTH,
        themes=THEMES,
    )
