"""Data in and out, for owners: exports made in the background, files read in, keys for programs, a backup to take home."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Form, Request, Response, UploadFile
from fastapi.responses import FileResponse
from pydantic import Field
from sqlalchemy import select
from starlette.background import BackgroundTask

from instructgpt.label.auth.dependencies import Principal, get_site, require
from instructgpt.label.auth.tokens import issue_api_key
from instructgpt.label.context import Site
from instructgpt.label.db import audit_log
from instructgpt.label.db.backup import back_up_database
from instructgpt.label.db.models import ApiKey, Batch, current_time_ms
from instructgpt.label.errors import SiteError
from instructgpt.label.exchange import export_jobs
from instructgpt.label.exchange.export_files import ExportFormat
from instructgpt.label.exchange.export_rows import EXPORT_FILES, ExportFileName
from instructgpt.label.exchange.external_submissions import ExternalSubmissionImporter
from instructgpt.label.exchange.imports import (
    WORK_RECORD_TYPES,
    ImportReport,
    import_completion_records,
    import_prompt_records,
    read_import_file,
)
from instructgpt.label.exchange.selection import ExportFilter, ExportUse
from instructgpt.label.exchange.third_party import MAX_RATING, ThirdPartyReader
from instructgpt.label.web.params import RowId, or_404, translate_errors
from instructgpt.label.web.rendering import redirect, render_page
from instructgpt.records import Cohort, Completion, Prompt

router = APIRouter()
_OwnerUser = Annotated[Principal, require("owner")]
_KeyScope = Literal["read", "write", "export", "admin"]
_KEY_SCOPES: tuple[_KeyScope, ...] = ("read", "write", "export", "admin")
_EXPORT_FORMATS: tuple[ExportFormat, ...] = ("jsonl", "parquet", "datasets")
_DAY_MS = 86_400_000
_MAX_UPLOAD_BYTES = 500_000_000
_MAX_LISTED_JOBS = 20


@router.get("/data")
def show_data(request: Request, principal: _OwnerUser) -> Response:
    """Everything on one page."""
    return _render_data_page(request, principal)


def _render_data_page(
    request: Request,
    principal: Principal,
    status: int = 200,
    key: str = "",
    import_message: str = "",
    error_message: str = "",
) -> Response:
    """The page, with what an action gave: a new key, what came in, or what was wrong with it."""
    site = get_site(request)
    with site.database.read() as db:
        keys = db.scalars(select(ApiKey).where(ApiKey.revoked_at.is_(None)).order_by(ApiKey.created_at.desc())).all()
        batches = db.scalars(select(Batch.name).order_by(Batch.id.desc())).all()
    return render_page(
        request,
        principal,
        "data.html",
        status=status,
        jobs=export_jobs.list_export_jobs(site)[:_MAX_LISTED_JOBS],
        keys=keys,
        batches=batches,
        key=key,
        come=import_message,
        wrong=error_message,
        files=tuple(EXPORT_FILES),
        formats=_EXPORT_FORMATS,
        scopes=_KEY_SCOPES,
        at=current_time_ms(),
    )


@router.post("/data/exports")
def start_export(
    request: Request,
    principal: _OwnerUser,
    use: Annotated[ExportUse, Form()] = "training",
    format: Annotated[ExportFormat, Form()] = "jsonl",
    files: Annotated[Sequence[ExportFileName], Form()] = (),
    batch: Annotated[Sequence[str], Form()] = (),
) -> Response:
    """Begin an export; it appears in the list, and its files when it is done."""
    site = get_site(request)
    job = export_jobs.start_export_job(
        site,
        ExportFilter(use=use, batches=tuple(filter(None, batch))),
        format,
        tuple(files) or tuple(EXPORT_FILES),
        principal.signed_in_person.id,
    )
    with site.database.write() as db:
        audit_log.append_entry(db, principal.signed_in_person.id, "export.make", job.id, use=use)
    return redirect("/data")


@router.get("/data/exports/{key}/{name:path}")
def download_export_file(request: Request, principal: _OwnerUser, key: RowId, name: str) -> FileResponse:
    """One file of an export."""
    site = get_site(request)
    path = or_404(export_jobs.get_export_file(site, or_404(export_jobs.get_export_job(site, key)), name))
    with site.database.write() as db:
        audit_log.append_entry(db, principal.signed_in_person.id, "export.fetch", key, file=name)
    return FileResponse(path, filename=path.name, media_type="application/octet-stream")


@router.post("/data/imports")
def import_uploaded_file(
    request: Request,
    principal: _OwnerUser,
    file: UploadFile,
    name: Annotated[str, Form(max_length=200)] = "",
    cohort: Annotated[Cohort, Form()] = "training",
    prompt_field: Annotated[str, Form(max_length=200)] = "",
    rating_max: Annotated[int, Form(ge=2, le=1000)] = MAX_RATING,
) -> Response:
    """Read a file in, all of it or nothing; what is wrong is named with its line."""
    if (file.size or 0) > _MAX_UPLOAD_BYTES:
        raise SiteError(413, "file_too_large", most=_MAX_UPLOAD_BYTES // 1_000_000)
    third_party_reader, filename = (
        ThirdPartyReader(prompt_field=prompt_field or None, rating_max=rating_max),
        Path(file.filename or "file.jsonl").name,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("upload" + "".join(Path(filename).suffixes[-2:]))
        with path.open("wb") as target:
            while chunk := file.file.read(1 << 20):
                target.write(chunk)
        try:
            with translate_errors():
                import_report = _import_file(
                    get_site(request),
                    path,
                    third_party_reader,
                    name.strip() or filename.split(".")[0],
                    cohort,
                    principal.signed_in_person.id,
                )
        except SiteError as problem:
            if problem.code != "bad_input":
                raise
            return _render_data_page(
                request, principal, 422, error_message=str(problem.values["reason"]).replace(str(path), filename)
            )
    return _render_data_page(request, principal, import_message=import_report.format_summary())


def _import_file(
    site: Site, path: Path, third_party_reader: ThirdPartyReader, name: str, cohort: Cohort, importer_id: str
) -> ImportReport:
    """A file's records into the site, in one transaction. Raises BadInput."""
    records, import_report = (
        read_import_file(path, "auto", third_party_reader),
        ImportReport(left_out=third_party_reader.left_out),
    )
    with site.database.write() as db:
        import_prompt_records(
            db, [(place, record) for place, record in records if type(record) is Prompt], import_report
        )
        import_completion_records(
            db, [(place, record) for place, record in records if type(record) is Completion], import_report
        )
        ExternalSubmissionImporter(db, name, "training", cohort, import_report, importer_id).import_all(
            [(place, record) for place, record in records if isinstance(record, WORK_RECORD_TYPES)]
        )
        audit_log.append_entry(db, importer_id, "file.import", "", rows=len(records))
    return import_report


@router.post("/data/keys")
def create_api_key_from_form(
    request: Request,
    principal: _OwnerUser,
    name: Annotated[str, Form(min_length=1, max_length=100, pattern=r"^[^\x00]*$")],
    scopes: Annotated[Sequence[_KeyScope], Form()] = (),
    days: Annotated[int, Form(ge=0, le=3650)] = 90,
) -> Response:
    """A key for a program, shown once. 0 days: it does not expire."""
    if not scopes:
        raise SiteError(422, "no_scope")
    with get_site(request).database.write() as db:
        api_key, key_text = issue_api_key(
            db, name, list(scopes), principal.signed_in_person.id, current_time_ms() + days * _DAY_MS if days else None
        )
        audit_log.append_entry(db, principal.signed_in_person.id, "key.create", api_key.id, scopes=list(scopes))
    return _render_data_page(request, principal, key=key_text)


@router.post("/data/keys/{key}/revoke")
def revoke_key(
    request: Request, principal: _OwnerUser, key: Annotated[str, Field(pattern=r"^[0-9a-f]{1,64}$")]
) -> Response:
    """A key that works no more."""
    with get_site(request).database.write() as db:
        row = or_404(db.get(ApiKey, key))
        row.revoked_at = row.revoked_at or current_time_ms()
        audit_log.append_entry(db, principal.signed_in_person.id, "key.revoke", row.id)
    return redirect("/data")


@router.post("/data/backup")
def download_backup(request: Request, principal: _OwnerUser) -> FileResponse:
    """A copy of the database, looked at after it was written, to be kept elsewhere."""
    site = get_site(request)
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    name = f"labelers-{current_time_ms()}.{'db' if site.database.is_sqlite else 'dump'}"
    try:
        with translate_errors():
            back_up_database(site.database, Path(folder.name) / name)
    except SiteError:
        folder.cleanup()
        raise
    with site.database.write() as db:
        audit_log.append_entry(db, principal.signed_in_person.id, "backup.make")
    return FileResponse(
        Path(folder.name) / name,
        filename=name,
        media_type="application/octet-stream",
        background=BackgroundTask(folder.cleanup),
    )
