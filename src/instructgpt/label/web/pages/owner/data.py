"""The data page: exports in the background, imports, API keys, database backup."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Form, Request, Response, UploadFile
from fastapi.responses import FileResponse
from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.background import BackgroundTask

from instructgpt.label.auth.dependencies import OwnerUser, get_site
from instructgpt.label.auth.tokens import issue_api_key
from instructgpt.label.context import Site
from instructgpt.label.db import audit_log
from instructgpt.label.db.backup import back_up_database
from instructgpt.label.db.models import ApiKey, Batch, current_time_ms
from instructgpt.label.db.models.base import DAY_MS
from instructgpt.label.db.staging import write_in_portions
from instructgpt.label.errors import SiteError
from instructgpt.label.exchange import export_jobs
from instructgpt.label.exchange.export_rows import EXPORT_FILES
from instructgpt.label.exchange.external_submissions import ExternalSubmissionImporter
from instructgpt.label.exchange.imports import (
    WORK_RECORD_TYPES,
    ImportReport,
    import_completion_records,
    import_prompt_records,
    read_import_file,
)
from instructgpt.label.exchange.selection import ExportFilter
from instructgpt.label.exchange.third_party import ThirdPartyReader
from instructgpt.label.playground.user_rankings import count_feedback, measure_user_agreement
from instructgpt.label.tasks.batch_requests import check_unpacked_size
from instructgpt.label.vocabulary import MAX_RATING, ExportFileName, ExportFormat, ExportUse
from instructgpt.label.web.params import RowId, or_404, send_export_file, translate_errors
from instructgpt.label.web.rendering import redirect, render_page
from instructgpt.records import Cohort, Completion, Prompt

router = APIRouter()
_KeyScope = Literal["read", "write", "export", "admin"]
_KEY_SCOPES: tuple[_KeyScope, ...] = ("read", "write", "export", "admin")
_EXPORT_FORMATS: tuple[ExportFormat, ...] = ("jsonl", "parquet", "datasets")
_MAX_UPLOAD_BYTES = 500_000_000
_MAX_LISTED_JOBS = 20


@router.get("/data")
def show_data(request: Request, _: OwnerUser) -> Response:
    return _render_data_page(request)


def _render_data_page(
    request: Request, status: int = 200, key: str = "", message: str = "", error: str = ""
) -> Response:
    """`key`: the text of a new API key, shown this once; `message`: the summary of an import."""
    site = get_site(request)
    with site.database.read() as db:
        keys = db.scalars(select(ApiKey).where(ApiKey.revoked_at.is_(None)).order_by(ApiKey.created_at.desc())).all()
        batches = db.scalars(select(Batch.name).order_by(Batch.id.desc())).all()
        has_user_feedback = sum(count_feedback(db).values()) > 0
        user_agreement = measure_user_agreement(db) if has_user_feedback else None
    return render_page(
        request,
        "owner/data.html",
        status,
        jobs=export_jobs.list_export_jobs(site)[:_MAX_LISTED_JOBS],
        keys=keys,
        batches=batches,
        key=key,
        message=message,
        error=error,
        files=tuple(EXPORT_FILES),
        formats=_EXPORT_FORMATS,
        scopes=_KEY_SCOPES,
        has_user_feedback=has_user_feedback,
        user_agreement=user_agreement,
        now_ms=current_time_ms(),
    )


@router.post("/data/exports")
def start_export(
    request: Request,
    principal: OwnerUser,
    use: Annotated[ExportUse, Form()] = "training",
    format: Annotated[ExportFormat, Form()] = "jsonl",
    files: Annotated[Sequence[ExportFileName], Form()] = (),
    batch: Annotated[Sequence[str], Form()] = (),
    user_feedback: Annotated[bool, Form()] = False,
    labeler: Annotated[Sequence[str], Form()] = (),
) -> Response:
    """Start an export in the background; the page lists it, with its files when it is done. `labeler`: pseudonyms."""
    site, user = get_site(request), principal.user
    names, labelers = tuple(filter(None, batch)), tuple(filter(None, labeler))
    export_filter = ExportFilter(use=use, batches=names, labelers=labelers, user_feedback=user_feedback)
    job = export_jobs.start_export_job(site, export_filter, format, tuple(files) or tuple(EXPORT_FILES), user.id)
    with site.database.write() as db:
        audit_log.append_entry(db, user.id, "export.make", job.id, use=use)
    return redirect("/data")


@router.get("/data/exports/{key}/{name:path}")
def download_export_file(request: Request, principal: OwnerUser, key: RowId, name: str) -> FileResponse:
    return send_export_file(get_site(request), principal, key, name)


@router.post("/data/imports")
def import_uploaded_file(
    request: Request,
    principal: OwnerUser,
    file: UploadFile,
    name: Annotated[str, Form(max_length=200)] = "",
    cohort: Annotated[Cohort, Form()] = "training",
    prompt_field: Annotated[str, Form(max_length=200)] = "",
    rating_max: Annotated[int, Form(ge=2, le=1000)] = MAX_RATING,
) -> Response:
    """Import a file, all or nothing; the error names the line. `rating_max`: the top of the file's rating scale."""
    if (file.size or 0) > _MAX_UPLOAD_BYTES:
        raise SiteError(413, "file_too_large", most=_MAX_UPLOAD_BYTES // 1_000_000)
    reader = ThirdPartyReader(prompt_field=prompt_field or None, rating_max=rating_max)
    filename = Path(file.filename or "file.jsonl").name
    name = name.strip() or filename.split(".")[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("upload" + "".join(Path(filename).suffixes[-2:]))  # suffixes say the format: .jsonl.gz
        with path.open("wb") as target:
            shutil.copyfileobj(file.file, target, 1 << 20)
        try:
            with translate_errors():
                check_unpacked_size(path, filename)
                report = _import_file(get_site(request), path, reader, name, cohort, principal.user.id)
        except SiteError as error:
            if error.code != "bad_input":
                raise
            return _render_data_page(request, 422, error=str(error.values["reason"]).replace(str(path), filename))
    return _render_data_page(request, message=report.format_summary())


def _import_file(
    site: Site, path: Path, reader: ThirdPartyReader, name: str, cohort: Cohort, importer_id: str
) -> ImportReport:
    """Import a file's records beside running work. Raises InputError and imports nothing."""
    records = read_import_file(path, "auto", reader)
    report = ImportReport(left_out=reader.left_out)
    prompts = [(place, record) for place, record in records if type(record) is Prompt]
    completions = [(place, record) for place, record in records if type(record) is Completion]
    work = [(place, record) for place, record in records if isinstance(record, WORK_RECORD_TYPES)]

    def import_all(db: Session) -> None:
        import_prompt_records(db, prompts, report)
        import_completion_records(db, completions, report)
        ExternalSubmissionImporter(db, name, "training", cohort, report, importer_id).import_all(work)
        audit_log.append_entry(db, importer_id, "file.import", "", rows=len(records))

    write_in_portions(site.database, import_all)
    return report


@router.post("/data/keys")
def create_api_key_from_form(
    request: Request,
    principal: OwnerUser,
    name: Annotated[str, Form(min_length=1, max_length=100, pattern=r"^[^\x00]*$")],
    scopes: Annotated[Sequence[_KeyScope], Form()] = (),
    days: Annotated[int, Form(ge=0, le=3650)] = 90,
) -> Response:
    """Create an API key. The answer is the only page that shows it. 0 days: it does not expire."""
    if not scopes:
        raise SiteError(422, "no_scope")
    expires_at = current_time_ms() + days * DAY_MS if days else None
    with get_site(request).database.write() as db:
        api_key, key_text = issue_api_key(db, name, list(scopes), principal.user.id, expires_at)
        audit_log.append_entry(db, principal.user.id, "key.create", api_key.id, scopes=list(scopes))
    return _render_data_page(request, key=key_text)


@router.post("/data/keys/{key}/revoke")
def revoke_key(
    request: Request, principal: OwnerUser, key: Annotated[str, Field(pattern=r"^[0-9a-f]{1,64}$")]
) -> Response:
    with get_site(request).database.write() as db:
        api_key = or_404(db.get(ApiKey, key))
        api_key.revoked_at = api_key.revoked_at or current_time_ms()
        audit_log.append_entry(db, principal.user.id, "key.revoke", api_key.id)
    return redirect("/data")


@router.post("/data/backup")
def download_backup(request: Request, principal: OwnerUser) -> FileResponse:
    """Download a copy of the database that was verified after it was written."""
    site = get_site(request)
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    path = Path(folder.name) / f"labelers-{current_time_ms()}.{'db' if site.database.is_sqlite else 'dump'}"
    try:
        with translate_errors():
            back_up_database(site.database, path)
    except SiteError:
        folder.cleanup()
        raise
    with site.database.write() as db:
        audit_log.append_entry(db, principal.user.id, "backup.make")
    return FileResponse(
        path,
        filename=path.name,
        media_type="application/octet-stream",
        background=BackgroundTask(folder.cleanup),  # the file must outlive this function: it is streamed afterwards
    )
