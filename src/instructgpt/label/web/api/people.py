"""People and invitations for programs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from sqlalchemy import select

from instructgpt.label.auth import accounts
from instructgpt.label.auth.dependencies import AdminScope, get_site
from instructgpt.label.db.models import Invite, Person
from instructgpt.label.db.models.people import PersonRole
from instructgpt.label.errors import SiteError
from instructgpt.label.people import screening
from instructgpt.label.web.api.schemas import RequestModel
from instructgpt.label.web.params import RowId, or_404
from instructgpt.records import Cohort

router = APIRouter(prefix="/api/v1", tags=["service"])


class PersonOut(BaseModel):
    """An account, without its name: programs identify people by pseudonym."""

    id: str
    pseudonym: str
    role: str
    status: str
    cohort: str | None
    fold: int | None
    language: str
    created_at: int


@router.get("/users")
def list_people(request: Request, _: AdminScope) -> list[PersonOut]:
    with get_site(request).database.read() as db:
        return [_to_person_out(person) for person in db.scalars(select(Person).order_by(Person.id))]


def _to_person_out(person: Person) -> PersonOut:
    return PersonOut(**{name: getattr(person, name) for name in PersonOut.model_fields})


class DecisionRequest(RequestModel):
    verdict: Annotated[str, Field(max_length=50)]
    reason: Annotated[str, Field(min_length=1, max_length=10_000)]


@router.post("/users/{key}/decide")
def decide_on_person(request: Request, principal: AdminScope, key: RowId, body: DecisionRequest) -> PersonOut:
    """Record a decision (`admit`, `decline`, `pause` ...) in the name of the owner who made the API key."""
    with get_site(request).database.write() as db:
        decider = principal.person
        if principal.api_key is not None:
            decider = db.get(Person, principal.api_key.created_by or "")
        if decider is None:
            raise SiteError(409, "key_of_nobody")
        person = or_404(db.get(Person, key))
        screening.record_decision(db, person, decider, body.verdict, body.reason)
        return _to_person_out(person)


class InviteRequest(RequestModel):
    """A new invitation. `max_uses`: accounts that its link can create; `days`: until it expires."""

    role: PersonRole = "labeler"
    cohort: Cohort | None = None
    note: Annotated[str, Field(max_length=500)] = ""
    max_uses: Annotated[int, Field(ge=1, le=1000)] = 1
    days: Annotated[int, Field(ge=1, le=365)] = 14


class InviteOut(BaseModel):
    """An invitation, without its token."""

    id: str
    role: str
    cohort: str | None
    note: str
    max_uses: int
    uses: int
    expires_at: int
    revoked_at: int | None


class InviteCreated(BaseModel):
    """The token of a new invitation and the path that uses it. They are not shown again."""

    token: str
    path: str


@router.get("/invites")
def list_invites(request: Request, _: AdminScope) -> list[InviteOut]:
    """List invitations, newest first, without password-reset links."""
    with get_site(request).database.read() as db:
        invites = db.scalars(select(Invite).where(Invite.person_id.is_(None)).order_by(Invite.id.desc()))
        return [InviteOut(**{name: getattr(row, name) for name in InviteOut.model_fields}) for row in invites]


@router.post("/invites", status_code=201)
def create_invite_endpoint(request: Request, principal: AdminScope, body: InviteRequest) -> InviteCreated:
    """Create an invitation. An API key can invite labelers and researchers, not owners."""
    if body.role == "owner" and principal.api_key is not None:
        raise SiteError(403, "not_allowed")
    creator_id = principal.api_key.created_by if principal.api_key else principal.user.id
    with get_site(request).database.write() as db:
        token = accounts.issue_invite(db, **body.model_dump(), caller_id=creator_id)
    return InviteCreated(token=token, path=f"/invite/{token}")
