"""Exports that are made in the background and fetched when they are done, in the site's folder.

A job is a folder: what was asked for (`job.json`), and the export when it is finished. The work handed in until the job was made is what
it holds, so that one that was cut short by a restart can be made again, with the same bytes.
"""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from instructgpt.errors import InputError
from instructgpt.io import write_text_atomic
from instructgpt.label.context import Site
from instructgpt.label.db.models import current_time_ms, new_id
from instructgpt.label.exchange.dataset_card import format_card_body
from instructgpt.label.exchange.export_files import ExportFormat, write_export
from instructgpt.label.exchange.export_rows import ExportFileName
from instructgpt.label.exchange.selection import ExportFilter

_EXPORTS_FOLDER = "exports"
_RUNNING_JOBS: dict[str, threading.Thread] = {}
"""The jobs this process is at."""


class ExportJob(BaseModel):
    """An export that was asked for. `files` are the names to fetch once its state is `done`."""

    model_config = ConfigDict(frozen=True)
    id: str
    by: str
    created_at: int
    filter: ExportFilter
    format: ExportFormat
    names: tuple[ExportFileName, ...]
    state: Literal["running", "done", "failed"] = "running"
    error: str | None = None
    files: tuple[str, ...] = ()


def start_export_job(
    site: Site,
    export_filter: ExportFilter,
    format: ExportFormat,
    file_names: tuple[ExportFileName, ...],
    created_by: str,
) -> ExportJob:
    """Begin an export of what has been handed in so far."""
    now_ms = current_time_ms()
    export_filter = export_filter.model_copy(update={"until": min(export_filter.until or now_ms, now_ms)})
    job = ExportJob(
        id=new_id(), by=created_by, created_at=now_ms, filter=export_filter, format=format, names=file_names
    )
    folder = site.settings.folder / _EXPORTS_FOLDER / job.id
    folder.mkdir(parents=True, mode=0o700)
    _save_job(site, job)
    _start_thread(site, job)
    return job


def get_export_job(site: Site, job_id: str) -> ExportJob | None:
    """How a job stands; one that nobody is at is begun again. None where there is no such job."""
    try:
        job = ExportJob.model_validate_json(
            (site.settings.folder / _EXPORTS_FOLDER / job_id / "job.json").read_text(encoding="utf-8")
        )
    except OSError:
        return None
    if job.state == "running" and (job_id not in _RUNNING_JOBS or not _RUNNING_JOBS[job_id].is_alive()):
        _start_thread(site, job)
    return job


def list_export_jobs(site: Site) -> list[ExportJob]:
    """All jobs, the newest first."""
    folder = site.settings.folder / _EXPORTS_FOLDER
    job_ids = sorted((entry.name for entry in folder.iterdir()), reverse=True) if folder.is_dir() else []
    return [job for key in job_ids if (job := get_export_job(site, key)) is not None]


def get_export_file(site: Site, job: ExportJob, name: str) -> Path | None:
    """A file of a finished job."""
    return (
        site.settings.folder / _EXPORTS_FOLDER / job.id / "export" / name
        if job.state == "done" and name in job.files
        else None
    )


def wait_for_export_job(job_id: str) -> None:
    """Until a job of this process has ended."""
    if job_id in _RUNNING_JOBS:
        _RUNNING_JOBS[job_id].join()


def _start_thread(site: Site, job: ExportJob) -> None:
    thread = threading.Thread(target=_run_job, args=(site, job), name=f"export {job.id}", daemon=True)
    _RUNNING_JOBS[job.id] = thread
    thread.start()


def _run_job(site: Site, job: ExportJob) -> None:
    """Make a job's files, whatever was there of them before."""
    out = site.settings.folder / _EXPORTS_FOLDER / job.id / "export"
    shutil.rmtree(out, ignore_errors=True)
    try:
        write_export(
            site.database, out, job.filter, job.format, job.names, card=format_card_body(site.database, job.filter)
        )
    except Exception as error:  # whatever it was, whoever asks is told
        message = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        _save_job(site, job.model_copy(update={"state": "failed", "error": " ".join(message.split())}))
        return
    files = tuple(sorted(str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()))
    _save_job(site, job.model_copy(update={"state": "done", "files": files}))


def _save_job(site: Site, job: ExportJob) -> None:
    folder = site.settings.folder / _EXPORTS_FOLDER / job.id
    write_text_atomic(folder / "job.json", json.dumps(job.model_dump(mode="json"), indent=1) + "\n")
    (folder / "job.json").chmod(0o600)
