"""The list of people with invitations, and one person: screening, decisions, sign-ins, role, privacy requests."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, cast, get_args

from fastapi import APIRouter, Form, Query, Request, Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from instructgpt.label.auth import accounts
from instructgpt.label.auth.dependencies import OwnerUser, Principal, TeamUser, get_current_principal, get_site
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Invite, Person, current_time_ms
from instructgpt.label.db.models.people import PERSON_ROLES, PERSON_STATUSES
from instructgpt.label.errors import SiteError
from instructgpt.label.integrations import mail
from instructgpt.label.listing import people
from instructgpt.label.listing.filters import PersonFilter, count_pages
from instructgpt.label.mail_server import check_address
from instructgpt.label.people import privacy, screening
from instructgpt.label.web.params import or_404
from instructgpt.label.web.rendering import redirect, render_page, translate_error
from instructgpt.records import Cohort

router = APIRouter()

_ShortText = Annotated[str, Form(max_length=100)]
_LongText = Annotated[str, Form(max_length=5_000)]
_MAX_INVITE_USES, _MAX_INVITE_DAYS, _MAX_EMAILS = 1_000, 365, 100


@router.get("/people")
def show_people(request: Request, _: TeamUser, list_filter: Annotated[PersonFilter, Query()]) -> Response:
    return _render_people_page(request, list_filter)


@router.post("/people/invites")
def create_invite_link(
    request: Request,
    principal: OwnerUser,
    role: _ShortText,
    cohort: _ShortText = "training",
    note: Annotated[str, Form(max_length=500)] = "",
    max_uses: Annotated[int, Form(ge=1, le=_MAX_INVITE_USES)] = 1,
    days: Annotated[int, Form(ge=1, le=_MAX_INVITE_DAYS)] = accounts.INVITE_DAYS,
    emails: _LongText = "",
) -> Response:
    """Create an invitation. The answer is the only page that shows its link: the database has a hash of the token.

    With `emails`, each address gets a link of its own, for one account, by e-mail; no page shows those.
    """
    if role not in PERSON_ROLES or cohort not in get_args(Cohort):
        raise SiteError(422, "bad_field", field="role, cohort", wrong="not one of the choices")
    if emails.strip():
        invite = {"role": role, "cohort": cast(Cohort, cohort), "note": note, "days": days}
        return _send_invitations(request, principal, emails, invite)
    with get_site(request).database.write() as db:
        token = accounts.issue_invite(
            db, role, cohort=cast(Cohort, cohort), note=note, max_uses=max_uses, days=days, caller_id=principal.user.id
        )
    return _render_people_page(request, link=_invite_url(request, token))


def _send_invitations(request: Request, principal: Principal, emails: str, invite: dict[str, Any]) -> Response:
    """Create an invitation for each address and put it into the outbox."""
    site = get_site(request)
    if site.settings.mail is None:
        raise SiteError(422, "no_mail")
    try:
        recipients = list(dict.fromkeys(check_address(part) for part in re.split(r"[\s,;]+", emails.strip())))
    except ValueError as error:
        raise SiteError(422, "bad_field", field="emails", wrong=str(error)) from error
    if len(recipients) > _MAX_EMAILS:
        raise SiteError(422, "bad_field", field="emails", wrong=f"more than {_MAX_EMAILS} addresses")
    with site.database.write() as db:
        tokens = []
        for recipient in recipients:
            row_note = f"{invite['note']} {recipient}".strip()
            tokens.append(accounts.issue_invite(db, **invite | {"note": row_note}, caller_id=principal.user.id))
        rows = [accounts.lock_invite(db, token, current_time_ms()) for token in tokens]
        mail.queue_invitations(db, recipients, rows, principal.user.language)
    return _render_people_page(request, mailed=len(recipients))


@router.post("/people/invites/{invite_id}/revoke")
def revoke_invite(request: Request, principal: OwnerUser, invite_id: str) -> Response:
    with get_site(request).database.write() as db:
        invite = or_404(db.get(Invite, invite_id))
        invite.revoked_at = invite.revoked_at or current_time_ms()
        audit_log.append_entry(db, principal.user.id, "invite.revoke", invite.id)
    return redirect("/people")


@router.post("/people/folds")
def assign_missing_folds(request: Request, principal: OwnerUser) -> Response:
    """Assign a fold to every active training labeler who has none."""
    is_active = (Person.role == "labeler") & (Person.cohort == "training") & (Person.status == "active")
    with get_site(request).database.write() as db:
        statement = select(Person).where(is_active, Person.fold.is_(None)).order_by(Person.id)
        for person in db.scalars(statement).all():
            screening.assign_fold(db, person)
            audit_log.append_entry(db, principal.user.id, "person.fold", person.id, fold=person.fold)
    return redirect("/people")


@router.get("/people/{person_id}")
def show_person(request: Request, _: TeamUser, person_id: str) -> Response:
    return _render_person_page(request, person_id)


@router.post("/people/{person_id}/decision")
def decide_person(
    request: Request, principal: OwnerUser, person_id: str, verdict: _ShortText, reason: _LongText = ""
) -> Response:
    def decide(db: Session, person: Person) -> None:
        screening.record_decision(db, person, principal.user, verdict, reason)

    return _update_person(request, person_id, decide)


@router.post("/people/{person_id}/role")
def change_role_from_form(request: Request, principal: OwnerUser, person_id: str, role: _ShortText) -> Response:
    if role not in PERSON_ROLES:
        raise SiteError(422, "bad_field", field="role", wrong="not one of the choices")

    def change_role(db: Session, person: Person) -> None:
        accounts.set_person_role(db, person, role, principal.user.id)

    return _update_person(request, person_id, change_role)


@router.post("/people/{person_id}/reset")
def create_reset_link(
    request: Request, principal: OwnerUser, person_id: str, by_email: Annotated[bool, Form()] = False
) -> Response:
    """Create a link with which the person sets a new password, and show it this once or (`by_email`) send it."""
    site = get_site(request)
    with site.database.write() as db:
        person = _get_locked_person(db, person_id)
        if person.status == "erased":
            raise SiteError(404, "not_found")
        if by_email:
            if site.settings.mail is None or not person.email:
                raise SiteError(422, "no_mail")
            mail.queue_password_reset(db, person=person, owner_id=principal.user.id)
            return redirect("/integrations")
        days, owner_id = accounts.RESET_DAYS, principal.user.id
        token = accounts.issue_invite(db, person.role, person=person, days=days, caller_id=owner_id)
    return _render_person_page(request, person_id, link=_invite_url(request, token))


@router.post("/people/{person_id}/sign-out")
def sign_out_person(request: Request, principal: OwnerUser, person_id: str) -> Response:
    def end_sign_ins(db: Session, person: Person) -> None:
        accounts.revoke_user_sessions(db, person)
        audit_log.append_entry(db, principal.user.id, "person.signed_out", person.id)

    return _update_person(request, person_id, end_sign_ins)


@router.post("/people/{person_id}/withdraw")
def withdraw_person(
    request: Request, principal: OwnerUser, person_id: str, labels: Annotated[bool, Form()] = False
) -> Response:
    def withdraw(db: Session, person: Person) -> None:
        privacy.withdraw_consent(db, person, labels=labels, now_ms=current_time_ms(), initiated_by=principal.user.id)

    return _update_person(request, person_id, withdraw)


@router.post("/people/{person_id}/erase")
def erase_person(
    request: Request,
    principal: OwnerUser,
    person_id: str,
    name: _ShortText = "",
    labels: Annotated[bool, Form()] = False,
) -> Response:
    """Erase an account. The owner types its name to confirm, because this cannot be undone."""

    def erase_if_confirmed(db: Session, person: Person) -> None:
        if name.strip() != person.name:
            raise SiteError(422, "name_differs")
        privacy.erase_account(db, person, labels=labels, now_ms=current_time_ms(), initiated_by=principal.user.id)

    return _update_person(request, person_id, erase_if_confirmed)


def _update_person(request: Request, person_id: str, update: Callable[[Session, Person], None]) -> Response:
    """Run `update` in a transaction; errors are shown on the person's page."""
    try:
        with get_site(request).database.write() as db:
            update(db, _get_locked_person(db, person_id))
    except SiteError as error:
        if error.status == 404:
            raise
        return _render_person_page(request, person_id, error.status, translate_error(request, error))
    return redirect(f"/people/{person_id}")


def _get_locked_person(db: Session, person_id: str) -> Person:
    return or_404(db.scalars(select(Person).where(Person.id == person_id).with_for_update()).first())


def _invite_url(request: Request, token: str) -> str:
    base = get_site(request).settings.public_url or str(request.base_url).rstrip("/")
    return f"{base}/invite/{token}"


def _render_people_page(
    request: Request, list_filter: PersonFilter | None = None, link: str | None = None, mailed: int = 0
) -> Response:
    list_filter = list_filter or PersonFilter()
    is_open = (Invite.revoked_at.is_(None), Invite.expires_at > current_time_ms(), Invite.uses < Invite.max_uses)
    is_owner = get_current_principal(request).user.role == "owner"
    is_training = (Person.status == "active", Person.role == "labeler", Person.cohort == "training")
    with get_site(request).database.read() as db:
        rows, total, page = people.list_people_page(db, list_filter)
        folds = dict(db.execute(select(Person.fold, func.count()).group_by(Person.fold)).all())
        unassigned = db.scalar(select(func.count()).where(*is_training, Person.fold.is_(None)))
        invites = (
            db.scalars(select(Invite).where(*is_open).order_by(Invite.created_at.desc())).all() if is_owner else []
        )
    return render_page(
        request,
        "owner/people.html",
        filter=list_filter,
        rows=rows,
        total=total,
        page=page,
        pages=count_pages(total),
        invites=invites,
        link=link,
        mailed=mailed,
        has_mail=get_site(request).settings.mail is not None,
        roles=PERSON_ROLES,
        statuses=PERSON_STATUSES,
        cohorts=get_args(Cohort),
        folds=[folds.get(fold, 0) for fold in range(screening.LABELER_FOLDS)],
        unassigned=unassigned,
        days=accounts.INVITE_DAYS,
    )


def _render_person_page(
    request: Request, person_id: str, status: int = 200, error: str | None = None, link: str | None = None
) -> Response:
    site = get_site(request)
    with site.database.read() as db:
        person = or_404(db.get(Person, person_id))
        is_screened = person.role == "labeler" and person.cohort == "training"
        return render_page(
            request,
            "owner/person.html",
            status,
            person=person,
            error=error,
            link=link,
            has_mail=site.settings.mail is not None,
            roles=PERSON_ROLES,
            names={row.id: row.name for row in db.scalars(select(Person).where(Person.role != "labeler"))},
            parts=screening.get_screening_progress(db, person) if is_screened else [],
            metrics=screening.compute_screening_metrics(db, person) if is_screened else {},
            decisions=screening.list_decisions(db, person),
            sign_ins=accounts.list_active_sessions(db, site.settings, person, current_time_ms()),
            verdicts=list(screening.allowed_verdicts(person)),
        )
