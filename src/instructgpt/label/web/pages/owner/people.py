"""The owner's pages about people: who there is, invitations, one person with their numbers, decisions, roles, requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, cast, get_args

from fastapi import APIRouter, Form, Request, Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from instructgpt.label.auth import accounts
from instructgpt.label.auth.dependencies import Principal, get_site, require
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Invite, Person, current_time_ms
from instructgpt.label.db.models.people import PERSON_ROLES
from instructgpt.label.errors import SiteError
from instructgpt.label.people import privacy, screening
from instructgpt.label.web.rendering import get_translator, redirect, render_page
from instructgpt.records import Cohort

router = APIRouter()

_OwnerUser = Annotated[Principal, require("owner")]
_TeamUser = Annotated[Principal, require("researcher", "owner")]
_ShortText = Annotated[str, Form(max_length=100)]
_LongText = Annotated[str, Form(max_length=5_000)]
_MAX_INVITE_USES, _MAX_INVITE_DAYS = 1_000, 365


@router.get("/people")
def show_people(request: Request, principal: _TeamUser) -> Response:
    """Everybody, and the links that are still open."""
    return _render_people_page(request, principal)


@router.post("/people/invites")
def create_invite_link(
    request: Request,
    principal: _OwnerUser,
    role: _ShortText,
    cohort: _ShortText = "training",
    note: Annotated[str, Form(max_length=500)] = "",
    max_uses: Annotated[int, Form(ge=1, le=_MAX_INVITE_USES)] = 1,
    days: Annotated[int, Form(ge=1, le=_MAX_INVITE_DAYS)] = accounts.INVITE_DAYS,
) -> Response:
    """Make an invitation. Its link is on the page that comes back, and nowhere else."""
    if role not in PERSON_ROLES or cohort not in get_args(Cohort):
        raise SiteError(422, "bad_field", field="role, cohort", wrong="none of the choices")
    with get_site(request).database.write() as db:
        token = accounts.issue_invite(
            db,
            role,
            cohort=cast(Cohort, cohort),
            note=note,
            max_uses=max_uses,
            days=days,
            caller_id=principal.signed_in_person.id,
        )
    return _render_people_page(request, principal, link=_invite_url(request, token))


@router.post("/people/invites/{invite_id}/revoke")
def revoke_invite(request: Request, principal: _OwnerUser, invite_id: str) -> Response:
    """Make a link useless."""
    with get_site(request).database.write() as db:
        row = db.get(Invite, invite_id)
        if row is None:
            raise SiteError(404, "not_found")
        row.revoked_at = row.revoked_at or current_time_ms()
        audit_log.append_entry(db, principal.signed_in_person.id, "invite.revoke", row.id)
    return redirect("/people")


@router.post("/people/folds")
def assign_missing_folds(request: Request, principal: _OwnerUser) -> Response:
    """Put every admitted training labeler without a fold into one; those who have one stay."""
    with get_site(request).database.write() as db:
        statement = select(Person).where(
            Person.role == "labeler", Person.cohort == "training", Person.status == "active", Person.fold.is_(None)
        )
        for person in db.scalars(statement.order_by(Person.id)).all():
            screening.assign_fold(db, person)
            audit_log.append_entry(db, principal.signed_in_person.id, "person.fold", person.id, fold=person.fold)
    return redirect("/people")


@router.get("/people/{person_id}")
def show_person(request: Request, principal: _TeamUser, person_id: str) -> Response:
    """One person."""
    return _render_person_page(request, principal, person_id)


@router.post("/people/{person_id}/decision")
def decide_from_form(
    request: Request, principal: _OwnerUser, person_id: str, verdict: _ShortText, reason: _LongText = ""
) -> Response:
    """Admit, decline, pause, resume, with the reason."""
    return _update_person(
        request,
        principal,
        person_id,
        lambda db, person: screening.record_decision(db, person, principal.signed_in_person, verdict, reason),
    )


@router.post("/people/{person_id}/role")
def change_role_from_form(request: Request, principal: _OwnerUser, person_id: str, role: _ShortText) -> Response:
    """Another role."""
    if role not in PERSON_ROLES:
        raise SiteError(422, "bad_field", field="role", wrong="none of the choices")
    return _update_person(
        request,
        principal,
        person_id,
        lambda db, person: accounts.set_person_role(db, person, role, principal.signed_in_person.id),
    )


@router.post("/people/{person_id}/reset")
def create_reset_link(request: Request, principal: _OwnerUser, person_id: str) -> Response:
    """A link with which this person chooses a new password; it is on the page that comes back, and nowhere else."""
    with get_site(request).database.write() as db:
        person = _get_locked_person(db, person_id)
        if person.status == "erased":
            raise SiteError(404, "not_found")
        token = accounts.issue_invite(
            db, person.role, person=person, days=accounts.RESET_DAYS, caller_id=principal.signed_in_person.id
        )
    return _render_person_page(request, principal, person_id, link=_invite_url(request, token))


@router.post("/people/{person_id}/sign-out")
def sign_out_person(request: Request, principal: _OwnerUser, person_id: str) -> Response:
    """End all sign-ins of a person."""

    def end_sign_ins(db: Session, person: Person) -> None:
        accounts.revoke_user_sessions(db, person)
        audit_log.append_entry(db, principal.signed_in_person.id, "person.signed_out", person.id)

    return _update_person(request, principal, person_id, end_sign_ins)


@router.post("/people/{person_id}/withdraw")
def withdraw_person_consent(
    request: Request, principal: _OwnerUser, person_id: str, labels: Annotated[bool, Form()] = False
) -> Response:
    """Withdraw somebody's consent at their request."""
    return _update_person(
        request,
        principal,
        person_id,
        lambda db, person: privacy.withdraw_consent(
            db, person, labels=labels, now_ms=current_time_ms(), initiated_by=principal.signed_in_person.id
        ),
    )


@router.post("/people/{person_id}/erase")
def erase_person(
    request: Request,
    principal: _OwnerUser,
    person_id: str,
    name: _ShortText = "",
    labels: Annotated[bool, Form()] = False,
) -> Response:
    """Erase somebody at their request; the name is typed once more, since there is no way back."""

    def erase_if_confirmed(db: Session, person: Person) -> None:
        if name.strip() != person.name:
            raise SiteError(422, "name_differs")
        privacy.erase_account(
            db, person, labels=labels, now_ms=current_time_ms(), initiated_by=principal.signed_in_person.id
        )

    return _update_person(request, principal, person_id, erase_if_confirmed)


def _update_person(
    request: Request, principal: Principal, person_id: str, update: Callable[[Session, Person], object]
) -> Response:
    """Do something to a person in one transaction; what is wrong with it is said on their page."""
    try:
        with get_site(request).database.write() as db:
            update(db, _get_locked_person(db, person_id))
    except SiteError as problem:
        if problem.status == 404:
            raise
        error_message = get_translator(request, principal)(f"problem.{problem.code}", **problem.values)
        return _render_person_page(request, principal, person_id, status=problem.status, error_message=error_message)
    return redirect(f"/people/{person_id}")


def _get_locked_person(db: Session, person_id: str) -> Person:
    """A person, locked until the end of the transaction. Raises Problem where there is none."""
    person = db.scalars(select(Person).where(Person.id == person_id).with_for_update()).first()
    if person is None:
        raise SiteError(404, "not_found")
    return person


def _invite_url(request: Request, token: str) -> str:
    """A link as it is sent to somebody."""
    base = get_site(request).settings.public_url or str(request.base_url).rstrip("/")
    return f"{base}/invite/{token}"


def _render_people_page(request: Request, principal: Principal, link: str | None = None) -> Response:
    """The list, with a link that was just made."""
    now_ms = current_time_ms()
    with get_site(request).database.read() as db:
        all_people = db.scalars(select(Person).order_by(Person.role, Person.status, Person.name)).all()
        open_invites = select(Invite).where(
            Invite.revoked_at.is_(None), Invite.expires_at > now_ms, Invite.uses < Invite.max_uses
        )
        invites = (
            db.scalars(open_invites.order_by(Invite.created_at.desc())).all()
            if principal.signed_in_person.role == "owner"
            else []
        )
        folds = dict(
            db.execute(select(Person.fold, func.count()).where(Person.fold.is_not(None)).group_by(Person.fold)).all()
        )
    unassigned_count = sum(
        each.status == "active" and each.cohort == "training" and each.fold is None for each in all_people
    )
    return render_page(
        request,
        principal,
        "people.html",
        people=all_people,
        invites=invites,
        link=link,
        roles=PERSON_ROLES,
        cohorts=get_args(Cohort),
        folds=[folds.get(fold, 0) for fold in range(screening.LABELER_FOLDS)],
        waiting=unassigned_count,
        days=accounts.INVITE_DAYS,
    )


def _render_person_page(
    request: Request,
    principal: Principal,
    person_id: str,
    status: int = 200,
    error_message: str | None = None,
    link: str | None = None,
) -> Response:
    """One person: numbers, decisions, sign-ins."""
    site = get_site(request)
    with site.database.read() as db:
        person = db.get(Person, person_id)
        if person is None:
            raise SiteError(404, "not_found")
        is_labeler = person.role == "labeler"
        names = {row.id: row.name for row in db.scalars(select(Person).where(Person.role != "labeler"))}
        values = {
            "parts": screening.get_screening_progress(db, person) if is_labeler else [],
            "measures": screening.compute_screening_metrics(db, person) if is_labeler else {},
            "decided": screening.list_decisions(db, person),
            "logins": accounts.list_active_sessions(db, site.settings, person, current_time_ms()),
            "verdicts": list(screening.allowed_verdicts(person)),
        }
    return render_page(
        request,
        principal,
        "person.html",
        status=status,
        person=person,
        wrong=error_message,
        link=link,
        roles=PERSON_ROLES,
        names=names,
        **values,
    )
