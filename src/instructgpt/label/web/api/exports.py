"""Exports for programs: background jobs with resumable downloads, and rows as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import Field

from instructgpt.label.auth.dependencies import ExportScope, get_site
from instructgpt.label.db import audit_log
from instructgpt.label.exchange import export_jobs
from instructgpt.label.exchange.export_files import iter_export_jsonl
from instructgpt.label.exchange.export_jobs import ExportJob
from instructgpt.label.exchange.export_rows import EXPORT_FILES, iter_export_rows
from instructgpt.label.exchange.selection import ExportFilter, ExportTally, snapshot
from instructgpt.label.vocabulary import ExportFileName, ExportFormat, ExportUse
from instructgpt.label.web.api.schemas import RequestModel
from instructgpt.label.web.params import RowId, SinceMs, caller_id, or_404, send_export_file

router = APIRouter(prefix="/api/v1", tags=["service"])
_BatchNames = Annotated[list[Annotated[str, Field(max_length=200, pattern=r"^[^\x00]*$")]], Query()]


class ExportRequest(RequestModel):
    """A new export: the filter of submissions, the format, the files."""

    filter: ExportFilter = ExportFilter()
    format: ExportFormat = "jsonl"
    files: tuple[ExportFileName, ...] = tuple(EXPORT_FILES)


@router.post("/exports", status_code=202)
def create_export(request: Request, principal: ExportScope, body: ExportRequest) -> ExportJob:
    """Start an export of all submissions so far. Its files can be downloaded when its state is `done`."""
    site = get_site(request)
    job = export_jobs.start_export_job(site, body.filter, body.format, body.files, caller_id(principal))
    with site.database.write() as db:
        audit_log.append_entry(db, caller_id(principal), "export.make", job.id, use=body.filter.use)
    return job


@router.get("/exports")
def list_exports(request: Request, _: ExportScope) -> list[ExportJob]:
    """List all exports, newest first."""
    return export_jobs.list_export_jobs(get_site(request))


@router.get("/exports/{key}")
def get_export(request: Request, _: ExportScope, key: RowId) -> ExportJob:
    return or_404(export_jobs.get_export_job(get_site(request), key))


@router.get("/exports/{key}/files/{name:path}", response_class=FileResponse)
def download_export(request: Request, principal: ExportScope, key: RowId, name: str) -> FileResponse:
    """Download one file of a finished export. A `Range` header resumes a broken download."""
    return send_export_file(get_site(request), principal, key, name)


@router.get("/rows/{name}", response_class=StreamingResponse)
def stream_rows(
    request: Request,
    principal: ExportScope,
    name: ExportFileName,
    use: ExportUse = "training",
    batch: _BatchNames = [],  # noqa: B006  # read by the framework
    since: SinceMs = None,
    until: SinceMs = None,
) -> StreamingResponse:
    """Stream the rows of one export file as JSON lines while they are read."""
    site, row_filter = get_site(request), ExportFilter(use=use, batches=tuple(batch), since=since, until=until)
    with site.database.write() as db:
        audit_log.append_entry(db, caller_id(principal), "export.stream", "", file=name, use=use)

    def iter_lines() -> Iterator[str]:
        with snapshot(site.database) as db:
            yield from iter_export_jsonl(name, iter_export_rows(db, name, row_filter, ExportTally()))

    return StreamingResponse(iter_lines(), media_type="application/x-ndjson")
