"""The owner's pages about people: who there is, invitations, one person with their numbers, decisions, roles, requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, cast, get_args

from fastapi import APIRouter, Form, Request, Response
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from instructgpt.label.auth import accounts
from instructgpt.label.auth.dependencies import Visitor, allow, site_of
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Invite, Person, now
from instructgpt.label.db.models.people import ROLES
from instructgpt.label.errors import Problem
from instructgpt.label.people import privacy, screening
from instructgpt.label.web.rendering import language, page, redirect
from instructgpt.records import Cohort

router = APIRouter()

Owner = Annotated[Visitor, allow("owner")]
Team = Annotated[Visitor, allow("researcher", "owner")]
Word = Annotated[str, Form(max_length=100)]
Long = Annotated[str, Form(max_length=5_000)]
MAX_USES, MAX_DAYS = 1_000, 365


@router.get("/people")
def people(request: Request, visitor: Team) -> Response:
    """Everybody, and the links that are still open."""
    return people_page(request, visitor)


@router.post("/people/invites")
def invite(
    request: Request, visitor: Owner, role: Word, cohort: Word = "training", note: Annotated[str, Form(max_length=500)] = "",
    max_uses: Annotated[int, Form(ge=1, le=MAX_USES)] = 1, days: Annotated[int, Form(ge=1, le=MAX_DAYS)] = accounts.INVITE_DAYS,
) -> Response:  # fmt: skip
    """Make an invitation. Its link is on the page that comes back, and nowhere else."""
    if role not in ROLES or cohort not in get_args(Cohort):
        raise Problem(422, "bad_field", field="role, cohort", wrong="none of the choices")
    with site_of(request).database.write() as db:
        token = accounts.invite(db, role, cohort=cast(Cohort, cohort), note=note, max_uses=max_uses, days=days, by=visitor.me.id)
    return people_page(request, visitor, link=link_to(request, token))


@router.post("/people/invites/{invite_id}/revoke")
def revoke(request: Request, visitor: Owner, invite_id: str) -> Response:
    """Make a link useless."""
    with site_of(request).database.write() as db:
        row = db.get(Invite, invite_id)
        if row is None:
            raise Problem(404, "not_found")
        row.revoked_at = row.revoked_at or now()
        audit_log.note(db, visitor.me.id, "invite.revoke", row.id)
    return redirect("/people")


@router.post("/people/folds")
def fill_folds(request: Request, visitor: Owner) -> Response:
    """Put every admitted training labeler without a fold into one; those who have one stay."""
    with site_of(request).database.write() as db:
        waiting = select(Person).where(
            Person.role == "labeler", Person.cohort == "training", Person.status == "active", Person.fold.is_(None)
        )
        for person in db.scalars(waiting.order_by(Person.id)).all():
            screening.assign_fold(db, person)
            audit_log.note(db, visitor.me.id, "person.fold", person.id, fold=person.fold)
    return redirect("/people")


@router.get("/people/{person_id}")
def one(request: Request, visitor: Team, person_id: str) -> Response:
    """One person."""
    return person_page(request, visitor, person_id)


@router.post("/people/{person_id}/decision")
def decide(request: Request, visitor: Owner, person_id: str, verdict: Word, reason: Long = "") -> Response:
    """Admit, decline, pause, resume, with the reason."""
    return attempt(request, visitor, person_id, lambda db, person: screening.decide(db, person, visitor.me, verdict, reason))


@router.post("/people/{person_id}/role")
def change_role(request: Request, visitor: Owner, person_id: str, role: Word) -> Response:
    """Another role."""
    if role not in ROLES:
        raise Problem(422, "bad_field", field="role", wrong="none of the choices")
    return attempt(request, visitor, person_id, lambda db, person: accounts.change_role(db, person, role, visitor.me.id))


@router.post("/people/{person_id}/reset")
def reset(request: Request, visitor: Owner, person_id: str) -> Response:
    """A link with which this person chooses a new password; it is on the page that comes back, and nowhere else."""
    with site_of(request).database.write() as db:
        person = found(db, person_id)
        if person.status == "erased":
            raise Problem(404, "not_found")
        token = accounts.invite(db, person.role, person=person, days=accounts.RESET_DAYS, by=visitor.me.id)
    return person_page(request, visitor, person_id, link=link_to(request, token))


@router.post("/people/{person_id}/sign-out")
def sign_out(request: Request, visitor: Owner, person_id: str) -> Response:
    """End all sign-ins of a person."""

    def end(db: Session, person: Person) -> None:
        accounts.end_logins(db, person)
        audit_log.note(db, visitor.me.id, "person.signed_out", person.id)

    return attempt(request, visitor, person_id, end)


@router.post("/people/{person_id}/withdraw")
def withdraw(request: Request, visitor: Owner, person_id: str, labels: Annotated[bool, Form()] = False) -> Response:
    """Withdraw somebody's consent at their request."""
    return attempt(request, visitor, person_id, lambda db, person: privacy.withdraw(db, person, labels=labels, at=now(), by=visitor.me.id))


@router.post("/people/{person_id}/erase")
def erase(request: Request, visitor: Owner, person_id: str, name: Word = "", labels: Annotated[bool, Form()] = False) -> Response:
    """Erase somebody at their request; the name is typed once more, since there is no way back."""

    def erase_it(db: Session, person: Person) -> None:
        if name.strip() != person.name:
            raise Problem(422, "name_differs")
        privacy.erase(db, person, labels=labels, at=now(), by=visitor.me.id)

    return attempt(request, visitor, person_id, erase_it)


def attempt(request: Request, visitor: Visitor, person_id: str, work: Callable[[Session, Person], object]) -> Response:
    """Do something to a person in one transaction; what is wrong with it is said on their page."""
    try:
        with site_of(request).database.write() as db:
            work(db, found(db, person_id))
    except Problem as problem:
        if problem.status == 404:
            raise
        wrong = language(request, visitor)(f"problem.{problem.code}", **problem.values)
        return person_page(request, visitor, person_id, status=problem.status, wrong=wrong)
    return redirect(f"/people/{person_id}")


def found(db: Session, person_id: str) -> Person:
    """A person, locked until the end of the transaction. Raises Problem where there is none."""
    person = db.scalars(select(Person).where(Person.id == person_id).with_for_update()).first()
    if person is None:
        raise Problem(404, "not_found")
    return person


def link_to(request: Request, token: str) -> str:
    """A link as it is sent to somebody."""
    base = site_of(request).settings.public_url or str(request.base_url).rstrip("/")
    return f"{base}/invite/{token}"


def people_page(request: Request, visitor: Visitor, link: str | None = None) -> Response:
    """The list, with a link that was just made."""
    at = now()
    with site_of(request).database.read() as db:
        everybody = db.scalars(select(Person).order_by(Person.role, Person.status, Person.name)).all()
        still_open = select(Invite).where(Invite.revoked_at.is_(None), Invite.expires_at > at, Invite.uses < Invite.max_uses)
        invites = db.scalars(still_open.order_by(Invite.created_at.desc())).all() if visitor.me.role == "owner" else []
        folds = dict(db.execute(select(Person.fold, func.count()).where(Person.fold.is_not(None)).group_by(Person.fold)).all())
    waiting = sum(each.status == "active" and each.cohort == "training" and each.fold is None for each in everybody)
    return page(
        request, visitor, "people.html", people=everybody, invites=invites, link=link, roles=ROLES, cohorts=get_args(Cohort),
        folds=[folds.get(fold, 0) for fold in range(screening.FOLDS)], waiting=waiting, days=accounts.INVITE_DAYS,
    )  # fmt: skip


def person_page(
    request: Request, visitor: Visitor, person_id: str, status: int = 200, wrong: str | None = None, link: str | None = None
) -> Response:
    """One person: numbers, decisions, sign-ins."""
    site = site_of(request)
    with site.database.read() as db:
        person = db.get(Person, person_id)
        if person is None:
            raise Problem(404, "not_found")
        labeler = person.role == "labeler"
        names = {row.id: row.name for row in db.scalars(select(Person).where(Person.role != "labeler"))}
        values = {
            "parts": screening.progress(db, person) if labeler else [],
            "measures": screening.measures(db, person) if labeler else {},
            "decided": screening.decisions(db, person),
            "logins": accounts.live_logins(db, site.settings, person, now()),
            "verdicts": list(screening.possible(person)),
        }
    return page(request, visitor, "person.html", status=status, person=person, wrong=wrong, link=link, roles=ROLES, names=names, **values)
