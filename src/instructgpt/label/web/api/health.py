"""Health checks, metrics, and the OpenAPI description."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from fastapi import APIRouter, Request
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, PlainTextResponse
from sqlalchemy import func, select, text
from sqlalchemy.exc import SQLAlchemyError

from instructgpt import __version__
from instructgpt.label.auth.dependencies import AnyUser, ReadScope, get_site
from instructgpt.label.db.models import Assignment, Person, Submission, Task, current_time_ms

router = APIRouter(prefix="/api/v1", tags=["service"])


@router.get("/healthz")
def healthz(_: AnyUser) -> dict[str, str]:
    """Return 200: the process answers."""
    return {"status": "ok"}


@router.get("/readyz")
def readyz(request: Request, _: AnyUser) -> JSONResponse:
    """Return 200 if the database answers and has the schema of this version, else 503."""
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
    """Return gauges in the text format of Prometheus."""
    is_overdue = (Assignment.state == "open", Assignment.lease_until < current_time_ms())
    with get_site(request).database.read() as db:
        grouped = (
            ("tasks", "Tasks", Task, ("kind", "state")),
            ("assignments", "Assignments", Assignment, ("state",)),
            ("people", "Accounts", Person, ("role", "status")),
        )
        lines: list[str] = []
        for name, help_text, table, labels in grouped:
            columns = [getattr(table, label) for label in labels]
            rows = db.execute(select(*columns, func.count()).group_by(*columns).order_by(*columns)).all()
            samples = [(dict(zip(labels, values, strict=True)), count) for *values, count in rows]
            lines += _format_gauge(name, help_text, samples)
        overdue = db.scalar(select(func.count()).where(*is_overdue)) or 0
        is_current = Submission.replaced_at.is_(None)
        submissions = db.scalar(select(func.count()).select_from(Submission).where(is_current)) or 0
    lines += _format_gauge("leases_overdue", "Leases that ran out and were not taken back yet", [({}, overdue)])
    lines += _format_gauge("submissions", "Submissions that count", [({}, submissions)])
    lines += _format_gauge("threads", "Threads of this process", [({}, threading.active_count())])
    return PlainTextResponse("\n".join(lines) + "\n")


def _format_gauge(name: str, help_text: str, samples: Iterable[tuple[dict[str, str], int]]) -> list[str]:
    lines = [f"# HELP instructgpt_label_{name} {help_text}.", f"# TYPE instructgpt_label_{name} gauge"]
    for labels, value in samples:
        label_text = ",".join(f'{label}="{text}"' for label, text in labels.items())
        lines.append(f"instructgpt_label_{name}{f'{{{label_text}}}' if label_text else ''} {value}")
    return lines


@router.get("/openapi.json", include_in_schema=False)
def openapi_schema(_: AnyUser) -> JSONResponse:
    """Return the description of every route under /api."""
    from instructgpt.label.web.api import API_ROUTERS  # this module is part of that package

    routes = [route for api_router in API_ROUTERS for route in api_router.routes]
    schema = get_openapi(title="instructgpt labelers' site", version=__version__, routes=routes)
    key_description = "igl_ID_SECRET, created by an owner on the data page"
    schema["components"]["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": key_description},
        "session": {"type": "apiKey", "in": "cookie", "name": "labeler_session"},
    }
    schema["security"] = [{"key": []}, {"session": []}]
    return JSONResponse(schema)
