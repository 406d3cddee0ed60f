"""What an owner's programs do: exports, statistics, people and invitations, and whether the site is well."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import BaseModel, Field
from sqlalchemy import func, select, text
from sqlalchemy.exc import SQLAlchemyError

from instructgpt import __version__
from instructgpt.label.analysis import results
from instructgpt.label.auth import accounts
from instructgpt.label.auth.dependencies import Visitor, allow, everyone, site_of
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Assignment, Batch, Invite, Person, Submission, Task, now
from instructgpt.label.db.models.people import Role
from instructgpt.label.errors import Problem
from instructgpt.label.exchange import export_jobs
from instructgpt.label.exchange.export_files import Format, lines
from instructgpt.label.exchange.export_jobs import Job
from instructgpt.label.exchange.export_rows import FILES, FileName, rows
from instructgpt.label.exchange.selection import Filter, Tally, Use, snapshot
from instructgpt.label.people import screening
from instructgpt.label.web.api.schemas import Given, Governs, Reads, caller
from instructgpt.label.web.params import Id, Since, existing, refusing
from instructgpt.records import Cohort

router = APIRouter(prefix="/api/v1", tags=["service"])
Exports = Annotated[Visitor, allow("owner", scope="export")]
Names = Annotated[list[Annotated[str, Field(max_length=200, pattern=r"^[^\x00]*$")]], Query()]


class ExportGiven(Given):
    """An export to be made: which work, in which format, which files."""

    filter: Filter = Filter()
    format: Format = "jsonl"
    files: tuple[FileName, ...] = tuple(FILES)


@router.post("/exports", status_code=202)
def begin_export(request: Request, visitor: Exports, given: ExportGiven) -> Job:
    """Begin an export of everything handed in so far; its files can be fetched when its state is `done`."""
    site = site_of(request)
    job = export_jobs.start(site, given.filter, given.format, given.files, caller(visitor))
    with site.database.write() as db:
        audit_log.note(db, caller(visitor), "export.make", job.id, use=given.filter.use)
    return job


@router.get("/exports")
def list_exports(request: Request, _: Exports) -> list[Job]:
    """All exports, the newest first."""
    return export_jobs.everything(site_of(request))


@router.get("/exports/{key}")
def look_at_export(request: Request, _: Exports, key: Id) -> Job:
    """How an export stands."""
    return existing(export_jobs.look(site_of(request), key))


@router.get("/exports/{key}/files/{name:path}", response_class=FileResponse)
def fetch_export(request: Request, visitor: Exports, key: Id, name: str) -> FileResponse:
    """One file of a finished export; `Range` goes on where a download broke off."""
    site = site_of(request)
    file = existing(export_jobs.file_of(site, existing(export_jobs.look(site, key)), name))
    with site.database.write() as db:
        audit_log.note(db, caller(visitor), "export.fetch", key, file=name)
    return FileResponse(file, filename=file.name, media_type="application/octet-stream")


@router.get("/rows/{name}", response_class=StreamingResponse)
def stream_rows(
    request: Request,
    visitor: Exports,
    name: FileName,
    use: Use = "training",
    batch: Names = [],  # noqa: B006  # read by the framework
    since: Since = None,
    until: Since = None,
) -> StreamingResponse:
    """The rows of one file of an export as JSON lines, as they are read."""
    site, wanted = site_of(request), Filter(use=use, batches=tuple(batch), since=since, until=until)
    with site.database.write() as db:
        audit_log.note(db, caller(visitor), "export.stream", "", file=name, use=use)

    def told() -> Iterator[str]:
        with snapshot(site.database) as db:
            yield from lines(name, rows(db, name, wanted, Tally()))

    return StreamingResponse(told(), media_type="application/x-ndjson")


# ---------------------------------------------------------------- statistics


class Number(BaseModel):
    """An estimate with its 95 % interval; empty where nothing was measured."""

    value: float | None
    low: float | None
    high: float | None
    n: int


class AgreementShown(BaseModel):
    """Agreement of labelers under the three rules about ties (`docs/label.md`)."""

    alike: int
    opposite: int
    one_tied: int
    both_tied: int
    decided: Number
    three_way: Number
    half_credit: Number
    tie_rate: Number


def agreement_shown(found: Any) -> AgreementShown:
    """The statistics' agreement as the API shows it."""
    counts = {name: getattr(found, name) for name in ("alike", "opposite", "one_tied", "both_tied")}
    shares = {name: number(getattr(found, name)) for name in ("decided", "three_way", "half_credit", "tie_rate")}
    return AgreementShown(**counts, **shares)


def number(found: Any) -> Number:
    """An estimate as the API shows it."""
    return Number(value=found.value, low=found.low, high=found.high, n=found.n)


@router.get("/stats/agreement")
def agreement(request: Request, _: Reads, batch: Id | None = None) -> dict[str, AgreementShown]:
    """Agreement of all labelers, and of each cohort."""
    from instructgpt.label.analysis.rankings import read_rankings
    from instructgpt.statistics import agreement as agreeing

    with site_of(request).database.read() as db:
        found = read_rankings(db, batch)
    groups = {"all": found} | {cohort: [each for each in found if each.cohort == cohort] for cohort in ("training", "heldout")}
    return {name: agreement_shown(agreeing.agreement(group)) for name, group in groups.items()}


@router.get("/stats/win-rates/{key}")
def win_rates(request: Request, _: Reads, key: Id) -> list[dict[str, Any]]:
    """The rows of results.json for a batch of evaluation whose names may be seen."""
    with refusing(), site_of(request).database.read() as db:
        batch = existing(db.get(Batch, key))
        if results.is_blind(batch):
            raise Problem(409, "still_blind")
        return results.as_rows(results.results(db, batch))


# ---------------------------------------------------------------- people


class PersonShown(BaseModel):
    """An account, without its name: programs know people by pseudonym."""

    id: str
    pseudonym: str
    role: str
    status: str
    cohort: str | None
    fold: int | None
    language: str
    created_at: int


@router.get("/users")
def list_people(request: Request, _: Governs) -> list[PersonShown]:
    """All accounts."""
    with site_of(request).database.read() as db:
        people = db.scalars(select(Person).order_by(Person.id))
        return [PersonShown(**{name: getattr(person, name) for name in PersonShown.model_fields}) for person in people]


class DecisionGiven(Given):
    """What was decided about a labeler, and why."""

    verdict: Annotated[str, Field(max_length=50)]
    reason: Annotated[str, Field(min_length=1, max_length=10_000)]


@router.post("/users/{key}/decide")
def decide(request: Request, visitor: Governs, key: Id, given: DecisionGiven) -> PersonShown:
    """Carry out a decision about a labeler (`admit`, `decline`, `pause` …) in the name of whoever made the key."""
    with site_of(request).database.write() as db:
        by = visitor.person or (db.get(Person, visitor.key.created_by or "") if visitor.key else None)
        if by is None:
            raise Problem(409, "key_of_nobody")
        person = existing(db.get(Person, key))
        screening.decide(db, person, by, given.verdict, given.reason)
        return PersonShown(**{name: getattr(person, name) for name in PersonShown.model_fields})


class InviteGiven(Given):
    """An invitation to be made."""

    role: Role = "labeler"
    cohort: Cohort | None = None
    note: Annotated[str, Field(max_length=500)] = ""
    max_uses: Annotated[int, Field(ge=1, le=1000)] = 1
    days: Annotated[int, Field(ge=1, le=365)] = 14


class InviteShown(BaseModel):
    """An invitation. Its token was shown once, when it was made."""

    id: str
    role: str
    cohort: str | None
    note: str
    max_uses: int
    uses: int
    expires_at: int
    revoked_at: int | None


class InviteMade(BaseModel):
    """The token of a new invitation, and the path that uses it; neither is shown again."""

    token: str
    path: str


@router.get("/invites")
def list_invites(request: Request, _: Governs) -> list[InviteShown]:
    """Invitations, the newest first; links that reset passwords are not among them."""
    with site_of(request).database.read() as db:
        found = db.scalars(select(Invite).where(Invite.person_id.is_(None)).order_by(Invite.id.desc()))
        return [InviteShown(**{name: getattr(row, name) for name in InviteShown.model_fields}) for row in found]


@router.post("/invites", status_code=201)
def make_invite(request: Request, visitor: Governs, given: InviteGiven) -> InviteMade:
    """A link that makes accounts. A program may invite labelers and researchers, never owners."""
    if given.role == "owner" and visitor.key is not None:
        raise Problem(403, "not_allowed")
    with site_of(request).database.write() as db:
        by = visitor.person.id if visitor.person else visitor.key.created_by if visitor.key else None
        token = accounts.invite(db, given.role, cohort=given.cohort, note=given.note, max_uses=given.max_uses, days=given.days, by=by)
    return InviteMade(token=token, path=f"/invite/{token}")


# ---------------------------------------------------------------- the site itself


@router.get("/healthz")
def alive(_: Annotated[Visitor, everyone()]) -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
def ready(request: Request, _: Annotated[Visitor, everyone()]) -> JSONResponse:
    """The database answers, and its tables are those of this version."""
    site = site_of(request)
    try:
        with site.database.read() as db:
            db.execute(text("SELECT 1"))
        current = site.database.is_current()
    except SQLAlchemyError:
        return JSONResponse({"status": "no_database"}, status_code=503)
    return JSONResponse({"status": "ok" if current else "other_version"}, status_code=200 if current else 503)


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(request: Request, _: Reads) -> PlainTextResponse:
    """Numbers for a monitor, in the text format that Prometheus reads."""
    with site_of(request).database.read() as db:
        tasks = db.execute(select(Task.kind, Task.state, func.count()).group_by(Task.kind, Task.state).order_by(Task.kind, Task.state))
        held = db.execute(select(Assignment.state, func.count()).group_by(Assignment.state).order_by(Assignment.state))
        people = db.execute(select(Person.role, Person.status, func.count()).group_by(Person.role, Person.status).order_by(Person.role))
        lines = [*_metric("tasks", "Tasks", [({"kind": kind, "state": state}, count) for kind, state, count in tasks])]
        lines += _metric("assignments", "Assignments", [({"state": state}, count) for state, count in held])
        lines += _metric("people", "Accounts", [({"role": role, "status": status}, count) for role, status, count in people])
        overdue = db.scalar(select(func.count()).where(Assignment.state == "open", Assignment.lease_until < now()))
        lines += _metric("leases_overdue", "Leases that ran out and were not taken back yet", [({}, overdue or 0)])
        handed_in = db.scalar(select(func.count()).select_from(Submission).where(Submission.replaced_at.is_(None)))
        lines += _metric("submissions", "Submissions that count", [({}, handed_in or 0)])
        lines += _metric("threads", "Threads of this process", [({}, threading.active_count())])
    return PlainTextResponse("\n".join(lines) + "\n")


def _metric(name: str, about: str, values: list[tuple[dict[str, str], int]]) -> list[str]:
    """One gauge with its labels."""
    head = [f"# HELP instructgpt_label_{name} {about}.", f"# TYPE instructgpt_label_{name} gauge"]
    named = [",".join(f'{label}="{value}"' for label, value in labels.items()) for labels, _ in values]
    return head + [
        f"instructgpt_label_{name}{{{said}}} {value}" if said else f"instructgpt_label_{name} {value}"
        for said, (_, value) in zip(named, values, strict=True)
    ]


@router.get("/openapi.json", include_in_schema=False)
def openapi(_: Annotated[Visitor, everyone()]) -> JSONResponse:
    """The description of every route under /api."""
    from instructgpt.label.web.api import ROUTERS

    described = get_openapi(
        title="instructgpt labelers' site", version=__version__, routes=[route for part in ROUTERS for route in part.routes]
    )
    described["components"]["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "igl_ID_SECRET, made by an owner on the site's data page"},
        "session": {"type": "apiKey", "in": "cookie", "name": "labeler_session"},
    }
    described["security"] = [{"key": []}, {"session": []}]
    return JSONResponse(described)
