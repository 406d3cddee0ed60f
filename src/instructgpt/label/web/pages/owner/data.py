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

from instructgpt.label.auth.dependencies import Visitor, allow, site_of
from instructgpt.label.auth.tokens import make_key
from instructgpt.label.context import Site
from instructgpt.label.db import audit_log
from instructgpt.label.db.backup import back_up
from instructgpt.label.db.models import ApiKey, Batch, now
from instructgpt.label.errors import Problem
from instructgpt.label.exchange import export_jobs
from instructgpt.label.exchange.export_files import Format
from instructgpt.label.exchange.export_rows import FILES, FileName
from instructgpt.label.exchange.external_submissions import Elsewhere
from instructgpt.label.exchange.imports import WORK, Come, read_file, take_completions, take_prompts
from instructgpt.label.exchange.selection import Filter, Use
from instructgpt.label.exchange.third_party import MOST, Reading
from instructgpt.label.web.params import Id, existing, refusing
from instructgpt.label.web.rendering import page, redirect
from instructgpt.records import Cohort, Completion, Prompt

router = APIRouter()
Owner = Annotated[Visitor, allow("owner")]
Scope = Literal["read", "write", "export", "admin"]
SCOPES: tuple[Scope, ...] = ("read", "write", "export", "admin")
FORMATS: tuple[Format, ...] = ("jsonl", "parquet", "datasets")
DAY = 86_400_000
MOST_BYTES = 500_000_000
SHOWN = 20


@router.get("/data")
def data(request: Request, visitor: Owner) -> Response:
    """Everything on one page."""
    return data_page(request, visitor)


def data_page(request: Request, visitor: Visitor, status: int = 200, key: str = "", come: str = "", wrong: str = "") -> Response:
    """The page, with what an action gave: a new key, what came in, or what was wrong with it."""
    site = site_of(request)
    with site.database.read() as db:
        keys = db.scalars(select(ApiKey).where(ApiKey.revoked_at.is_(None)).order_by(ApiKey.created_at.desc())).all()
        batches = db.scalars(select(Batch.name).order_by(Batch.id.desc())).all()
    return page(
        request, visitor, "data.html", status=status, jobs=export_jobs.everything(site)[:SHOWN], keys=keys, batches=batches, key=key,
        come=come, wrong=wrong, files=tuple(FILES), formats=FORMATS, scopes=SCOPES, at=now(),
    )  # fmt: skip


@router.post("/data/exports")
def begin_export(
    request: Request,
    visitor: Owner,
    use: Annotated[Use, Form()] = "training",
    format: Annotated[Format, Form()] = "jsonl",
    files: Annotated[Sequence[FileName], Form()] = (),
    batch: Annotated[Sequence[str], Form()] = (),
) -> Response:
    """Begin an export; it appears in the list, and its files when it is done."""
    site = site_of(request)
    job = export_jobs.start(site, Filter(use=use, batches=tuple(filter(None, batch))), format, tuple(files) or tuple(FILES), visitor.me.id)
    with site.database.write() as db:
        audit_log.note(db, visitor.me.id, "export.make", job.id, use=use)
    return redirect("/data")


@router.get("/data/exports/{key}/{name:path}")
def fetch(request: Request, visitor: Owner, key: Id, name: str) -> FileResponse:
    """One file of an export."""
    site = site_of(request)
    file = existing(export_jobs.file_of(site, existing(export_jobs.look(site, key)), name))
    with site.database.write() as db:
        audit_log.note(db, visitor.me.id, "export.fetch", key, file=name)
    return FileResponse(file, filename=file.name, media_type="application/octet-stream")


@router.post("/data/imports")
def take(
    request: Request,
    visitor: Owner,
    file: UploadFile,
    name: Annotated[str, Form(max_length=200)] = "",
    cohort: Annotated[Cohort, Form()] = "training",
    prompt_field: Annotated[str, Form(max_length=200)] = "",
    rating_max: Annotated[int, Form(ge=2, le=1000)] = MOST,
) -> Response:
    """Read a file in, all of it or nothing; what is wrong is named with its line."""
    if (file.size or 0) > MOST_BYTES:
        raise Problem(413, "file_too_large", most=MOST_BYTES // 1_000_000)
    reading, called = Reading(prompt_field=prompt_field or None, rating_max=rating_max), Path(file.filename or "file.jsonl").name
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("upload" + "".join(Path(called).suffixes[-2:]))
        with path.open("wb") as copy:
            while piece := file.file.read(1 << 20):
                copy.write(piece)
        try:
            with refusing():
                come = read_in(site_of(request), path, reading, name.strip() or called.split(".")[0], cohort, visitor.me.id)
        except Problem as problem:
            if problem.code != "bad_input":
                raise
            return data_page(request, visitor, 422, wrong=str(problem.values["reason"]).replace(str(path), called))
    return data_page(request, visitor, come=come.in_words())


def read_in(site: Site, path: Path, reading: Reading, name: str, cohort: Cohort, by: str) -> Come:
    """A file's records into the site, in one transaction. Raises BadInput."""
    found, come = read_file(path, "auto", reading), Come(left_out=reading.left_out)
    with site.database.write() as db:
        take_prompts(db, [(place, record) for place, record in found if type(record) is Prompt], come)
        take_completions(db, [(place, record) for place, record in found if type(record) is Completion], come)
        Elsewhere(db, name, "training", cohort, come, by).take([(place, record) for place, record in found if isinstance(record, WORK)])
        audit_log.note(db, by, "file.import", "", rows=len(found))
    return come


@router.post("/data/keys")
def new_key(
    request: Request,
    visitor: Owner,
    name: Annotated[str, Form(min_length=1, max_length=100, pattern=r"^[^\x00]*$")],
    scopes: Annotated[Sequence[Scope], Form()] = (),
    days: Annotated[int, Form(ge=0, le=3650)] = 90,
) -> Response:
    """A key for a program, shown once. 0 days: it does not expire."""
    if not scopes:
        raise Problem(422, "no_scope")
    with site_of(request).database.write() as db:
        made, text = make_key(db, name, list(scopes), visitor.me.id, now() + days * DAY if days else None)
        audit_log.note(db, visitor.me.id, "key.create", made.id, scopes=list(scopes))
    return data_page(request, visitor, key=text)


@router.post("/data/keys/{key}/revoke")
def revoke_key(request: Request, visitor: Owner, key: Annotated[str, Field(pattern=r"^[0-9a-f]{1,64}$")]) -> Response:
    """A key that works no more."""
    with site_of(request).database.write() as db:
        row = existing(db.get(ApiKey, key))
        row.revoked_at = row.revoked_at or now()
        audit_log.note(db, visitor.me.id, "key.revoke", row.id)
    return redirect("/data")


@router.post("/data/backup")
def backup(request: Request, visitor: Owner) -> FileResponse:
    """A copy of the database, looked at after it was written, to be kept elsewhere."""
    site = site_of(request)
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    name = f"labelers-{now()}.{'db' if site.database.is_sqlite else 'dump'}"
    try:
        with refusing():
            back_up(site.database, Path(folder.name) / name)
    except Problem:
        folder.cleanup()
        raise
    with site.database.write() as db:
        audit_log.note(db, visitor.me.id, "backup.make")
    return FileResponse(
        Path(folder.name) / name, filename=name, media_type="application/octet-stream", background=BackgroundTask(folder.cleanup)
    )  # fmt: skip
