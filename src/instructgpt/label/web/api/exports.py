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
from instructgpt.label.auth.dependencies import Principal, get_site, public_access, require
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Assignment, Batch, Invite, Person, Submission, Task, current_time_ms
from instructgpt.label.db.models.people import PersonRole
from instructgpt.label.errors import SiteError
from instructgpt.label.exchange import export_jobs
from instructgpt.label.exchange.export_files import ExportFormat, iter_export_jsonl
from instructgpt.label.exchange.export_jobs import ExportJob
from instructgpt.label.exchange.export_rows import EXPORT_FILES, ExportFileName, iter_export_rows
from instructgpt.label.exchange.selection import ExportFilter, ExportTally, ExportUse, snapshot
from instructgpt.label.people import screening
from instructgpt.label.web.api.schemas import AdminScope, ReadScope, RequestModel, caller_id
from instructgpt.label.web.params import RowId, SinceMs, or_404, translate_errors
from instructgpt.records import Cohort

router = APIRouter(prefix="/api/v1", tags=["service"])
_ExportScope = Annotated[Principal, require("owner", scope="export")]
_BatchNames = Annotated[list[Annotated[str, Field(max_length=200, pattern=r"^[^\x00]*$")]], Query()]


class ExportRequest(RequestModel):
    """An export to be made: which work, in which format, which files."""

    filter: ExportFilter = ExportFilter()
    format: ExportFormat = "jsonl"
    files: tuple[ExportFileName, ...] = tuple(EXPORT_FILES)


@router.post("/exports", status_code=202)
def create_export(request: Request, principal: _ExportScope, body: ExportRequest) -> ExportJob:
    """Begin an export of everything handed in so far; its files can be fetched when its state is `done`."""
    site = get_site(request)
    job = export_jobs.start_export_job(site, body.filter, body.format, body.files, caller_id(principal))
    with site.database.write() as db:
        audit_log.append_entry(db, caller_id(principal), "export.make", job.id, use=body.filter.use)
    return job


@router.get("/exports")
def list_exports(request: Request, _: _ExportScope) -> list[ExportJob]:
    """All exports, the newest first."""
    return export_jobs.list_export_jobs(get_site(request))


@router.get("/exports/{key}")
def get_export(request: Request, _: _ExportScope, key: RowId) -> ExportJob:
    """How an export stands."""
    return or_404(export_jobs.get_export_job(get_site(request), key))


@router.get("/exports/{key}/files/{name:path}", response_class=FileResponse)
def download_export(request: Request, principal: _ExportScope, key: RowId, name: str) -> FileResponse:
    """One file of a finished export; `Range` goes on where a download broke off."""
    site = get_site(request)
    path = or_404(export_jobs.get_export_file(site, or_404(export_jobs.get_export_job(site, key)), name))
    with site.database.write() as db:
        audit_log.append_entry(db, caller_id(principal), "export.fetch", key, file=name)
    return FileResponse(path, filename=path.name, media_type="application/octet-stream")


@router.get("/rows/{name}", response_class=StreamingResponse)
def stream_rows(
    request: Request,
    principal: _ExportScope,
    name: ExportFileName,
    use: ExportUse = "training",
    batch: _BatchNames = [],  # noqa: B006  # read by the framework
    since: SinceMs = None,
    until: SinceMs = None,
) -> StreamingResponse:
    """The rows of one file of an export as JSON lines, as they are read."""
    site, row_filter = get_site(request), ExportFilter(use=use, batches=tuple(batch), since=since, until=until)
    with site.database.write() as db:
        audit_log.append_entry(db, caller_id(principal), "export.stream", "", file=name, use=use)

    def iter_lines() -> Iterator[str]:
        with snapshot(site.database) as db:
            yield from iter_export_jsonl(name, iter_export_rows(db, name, row_filter, ExportTally()))

    return StreamingResponse(iter_lines(), media_type="application/x-ndjson")


# ---------------------------------------------------------------- statistics


class EstimateOut(BaseModel):
    """An estimate with its 95 % interval; empty where nothing was measured."""

    value: float | None
    low: float | None
    high: float | None
    n: int


class AgreementOut(BaseModel):
    """Agreement of labelers under the three rules about ties (`docs/label.md`)."""

    alike: int
    opposite: int
    one_tied: int
    both_tied: int
    decided: EstimateOut
    three_way: EstimateOut
    half_credit: EstimateOut
    tie_rate: EstimateOut


def _to_agreement_out(estimates: Any) -> AgreementOut:
    """The statistics' agreement as the API shows it."""
    counts = {
        "alike": estimates.concordant,
        "opposite": estimates.discordant,
        "one_tied": estimates.one_tied,
        "both_tied": estimates.both_tied,
    }
    shares = {
        name: _to_estimate_out(getattr(estimates, name)) for name in ("decided", "three_way", "half_credit", "tie_rate")
    }
    return AgreementOut(**counts, **shares)


def _to_estimate_out(estimate: Any) -> EstimateOut:
    """An estimate as the API shows it."""
    return EstimateOut(value=estimate.value, low=estimate.low, high=estimate.high, n=estimate.n)


@router.get("/stats/agreement")
def get_agreement(request: Request, _: ReadScope, batch: RowId | None = None) -> dict[str, AgreementOut]:
    """Agreement of all labelers, and of each cohort."""
    from instructgpt.label.analysis.rankings import load_stored_rankings
    from instructgpt.statistics import agreement as agreeing

    with get_site(request).database.read() as db:
        rankings = load_stored_rankings(db, batch)
    groups = {"all": rankings} | {
        cohort: [each for each in rankings if each.cohort == cohort] for cohort in ("training", "heldout")
    }
    return {name: _to_agreement_out(agreeing.inter_labeler_agreement(group)) for name, group in groups.items()}


@router.get("/stats/win-rates/{key}")
def get_win_rates(request: Request, _: ReadScope, key: RowId) -> list[dict[str, Any]]:
    """The rows of results.json for a batch of evaluation whose names may be seen."""
    with translate_errors(), get_site(request).database.read() as db:
        batch = or_404(db.get(Batch, key))
        if results.is_blind(batch):
            raise SiteError(409, "still_blind")
        return results.to_result_rows(results.compute_results(db, batch))


# ---------------------------------------------------------------- people


class PersonOut(BaseModel):
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
def list_people(request: Request, _: AdminScope) -> list[PersonOut]:
    """All accounts."""
    with get_site(request).database.read() as db:
        people = db.scalars(select(Person).order_by(Person.id))
        return [PersonOut(**{name: getattr(person, name) for name in PersonOut.model_fields}) for person in people]


class DecisionRequest(RequestModel):
    """What was decided about a labeler, and why."""

    verdict: Annotated[str, Field(max_length=50)]
    reason: Annotated[str, Field(min_length=1, max_length=10_000)]


@router.post("/users/{key}/decide")
def decide_on_person(request: Request, principal: AdminScope, key: RowId, body: DecisionRequest) -> PersonOut:
    """Carry out a decision about a labeler (`admit`, `decline`, `pause` …) in the name of whoever made the key."""
    with get_site(request).database.write() as db:
        decider = principal.person or (
            db.get(Person, principal.api_key.created_by or "") if principal.api_key else None
        )
        if decider is None:
            raise SiteError(409, "key_of_nobody")
        person = or_404(db.get(Person, key))
        screening.record_decision(db, person, decider, body.verdict, body.reason)
        return PersonOut(**{name: getattr(person, name) for name in PersonOut.model_fields})


class InviteRequest(RequestModel):
    """An invitation to be made."""

    role: PersonRole = "labeler"
    cohort: Cohort | None = None
    note: Annotated[str, Field(max_length=500)] = ""
    max_uses: Annotated[int, Field(ge=1, le=1000)] = 1
    days: Annotated[int, Field(ge=1, le=365)] = 14


class InviteOut(BaseModel):
    """An invitation. Its token was shown once, when it was made."""

    id: str
    role: str
    cohort: str | None
    note: str
    max_uses: int
    uses: int
    expires_at: int
    revoked_at: int | None


class InviteCreated(BaseModel):
    """The token of a new invitation, and the path that uses it; neither is shown again."""

    token: str
    path: str


@router.get("/invites")
def list_invites(request: Request, _: AdminScope) -> list[InviteOut]:
    """Invitations, the newest first; links that reset passwords are not among them."""
    with get_site(request).database.read() as db:
        invites = db.scalars(select(Invite).where(Invite.person_id.is_(None)).order_by(Invite.id.desc()))
        return [InviteOut(**{name: getattr(row, name) for name in InviteOut.model_fields}) for row in invites]


@router.post("/invites", status_code=201)
def create_invite_endpoint(request: Request, principal: AdminScope, body: InviteRequest) -> InviteCreated:
    """A link that makes accounts. A program may invite labelers and researchers, never owners."""
    if body.role == "owner" and principal.api_key is not None:
        raise SiteError(403, "not_allowed")
    with get_site(request).database.write() as db:
        creator_id = (
            principal.person.id if principal.person else principal.api_key.created_by if principal.api_key else None
        )
        token = accounts.issue_invite(
            db,
            body.role,
            cohort=body.cohort,
            note=body.note,
            max_uses=body.max_uses,
            days=body.days,
            caller_id=creator_id,
        )
    return InviteCreated(token=token, path=f"/invite/{token}")


# ---------------------------------------------------------------- the site itself


@router.get("/healthz")
def healthz(_: Annotated[Principal, public_access()]) -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
def readyz(request: Request, _: Annotated[Principal, public_access()]) -> JSONResponse:
    """The database answers, and its tables are those of this version."""
    site = get_site(request)
    try:
        with site.database.read() as db:
            db.execute(text("SELECT 1"))
        current = site.database.is_current()
    except SQLAlchemyError:
        return JSONResponse({"status": "no_database"}, status_code=503)
    return JSONResponse({"status": "ok" if current else "other_version"}, status_code=200 if current else 503)


@router.get("/metrics", response_class=PlainTextResponse)
def prometheus_metrics(request: Request, _: ReadScope) -> PlainTextResponse:
    """Numbers for a monitor, in the text format that Prometheus reads."""
    with get_site(request).database.read() as db:
        task_counts = db.execute(
            select(Task.kind, Task.state, func.count()).group_by(Task.kind, Task.state).order_by(Task.kind, Task.state)
        )
        assignment_counts = db.execute(
            select(Assignment.state, func.count()).group_by(Assignment.state).order_by(Assignment.state)
        )
        people_counts = db.execute(
            select(Person.role, Person.status, func.count()).group_by(Person.role, Person.status).order_by(Person.role)
        )
        metric_lines = [
            *_format_gauge(
                "tasks", "Tasks", [({"kind": kind, "state": state}, count) for kind, state, count in task_counts]
            )
        ]
        metric_lines += _format_gauge(
            "assignments", "Assignments", [({"state": state}, count) for state, count in assignment_counts]
        )
        metric_lines += _format_gauge(
            "people", "Accounts", [({"role": role, "status": status}, count) for role, status, count in people_counts]
        )
        overdue_count = db.scalar(
            select(func.count()).where(Assignment.state == "open", Assignment.lease_until < current_time_ms())
        )
        metric_lines += _format_gauge(
            "leases_overdue", "Leases that ran out and were not taken back yet", [({}, overdue_count or 0)]
        )
        submission_count = db.scalar(
            select(func.count()).select_from(Submission).where(Submission.replaced_at.is_(None))
        )
        metric_lines += _format_gauge("submissions", "Submissions that count", [({}, submission_count or 0)])
        metric_lines += _format_gauge("threads", "Threads of this process", [({}, threading.active_count())])
    return PlainTextResponse("\n".join(metric_lines) + "\n")


def _format_gauge(name: str, help_text: str, samples: list[tuple[dict[str, str], int]]) -> list[str]:
    """One gauge with its labels."""
    header = [f"# HELP instructgpt_label_{name} {help_text}.", f"# TYPE instructgpt_label_{name} gauge"]
    label_texts = [",".join(f'{label}="{value}"' for label, value in labels.items()) for labels, _ in samples]
    return header + [
        f"instructgpt_label_{name}{{{label_text}}} {value}" if label_text else f"instructgpt_label_{name} {value}"
        for label_text, (_, value) in zip(label_texts, samples, strict=True)
    ]


@router.get("/openapi.json", include_in_schema=False)
def openapi_schema(_: Annotated[Principal, public_access()]) -> JSONResponse:
    """The description of every route under /api."""
    from instructgpt.label.web.api import API_ROUTERS

    schema = get_openapi(
        title="instructgpt labelers' site",
        version=__version__,
        routes=[route for part in API_ROUTERS for route in part.routes],
    )
    schema["components"]["securitySchemes"] = {
        "key": {
            "type": "http",
            "scheme": "bearer",
            "description": "igl_ID_SECRET, made by an owner on the site's data page",
        },
        "session": {"type": "apiKey", "in": "cookie", "name": "labeler_session"},
    }
    schema["security"] = [{"key": []}, {"session": []}]
    return JSONResponse(schema)
