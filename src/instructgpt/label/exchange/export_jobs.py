"""Export jobs: exports written in a background thread and downloaded later.

A job is a folder below the site's folder, with its parameters in `job.json` and the finished export in `export`. The
filter ends at the job's creation, so that a job interrupted by a restart runs again and gives the same bytes.
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
from instructgpt.label.exchange.export_files import format_card_body, write_export
from instructgpt.label.exchange.selection import ExportFilter
from instructgpt.label.vocabulary import ExportFileName, ExportFormat

_EXPORTS_FOLDER = "exports"
_RUNNING_JOBS: dict[str, threading.Thread] = {}
"""Job id -> thread of this process."""


class ExportJob(BaseModel):
    """The contents of `job.json`. `files` are the names to download once the state is `done`."""

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
    now_ms = current_time_ms()
    export_filter = export_filter.model_copy(update={"until": min(export_filter.until or now_ms, now_ms)})
    columns = {"filter": export_filter, "format": format, "names": file_names}
    job = ExportJob(id=new_id(), by=created_by, created_at=now_ms, **columns)
    _job_folder(site, job.id).mkdir(parents=True, mode=0o700)
    _save_job(site, job)
    _start_thread(site, job)
    return job


def get_export_job(site: Site, job_id: str) -> ExportJob | None:
    """Load a job, or None; a running job without a thread, after a restart, is started again."""
    try:
        job = ExportJob.model_validate_json((_job_folder(site, job_id) / "job.json").read_text(encoding="utf-8"))
    except OSError:
        return None
    if job.state == "running" and (job_id not in _RUNNING_JOBS or not _RUNNING_JOBS[job_id].is_alive()):
        _start_thread(site, job)
    return job


def list_export_jobs(site: Site) -> list[ExportJob]:
    folder = site.settings.folder / _EXPORTS_FOLDER
    job_ids = sorted((entry.name for entry in folder.iterdir()), reverse=True) if folder.is_dir() else []
    return [job for key in job_ids if (job := get_export_job(site, key)) is not None]


def get_export_file(site: Site, job: ExportJob, name: str) -> Path | None:
    """Return the path of a finished job's file, or None."""
    is_file = job.state == "done" and name in job.files
    return _job_folder(site, job.id) / "export" / name if is_file else None


def wait_for_export_job(job_id: str) -> None:
    if job_id in _RUNNING_JOBS:
        _RUNNING_JOBS[job_id].join()


def _job_folder(site: Site, job_id: str) -> Path:
    return site.settings.folder / _EXPORTS_FOLDER / job_id


def _start_thread(site: Site, job: ExportJob) -> None:
    thread = threading.Thread(target=_run_job, args=(site, job), name=f"export {job.id}", daemon=True)
    _RUNNING_JOBS[job.id] = thread
    thread.start()


def _run_job(site: Site, job: ExportJob) -> None:
    out = _job_folder(site, job.id) / "export"
    shutil.rmtree(out, ignore_errors=True)
    try:
        card = format_card_body(site.database, job.filter)
        write_export(site.database, out, job.filter, job.format, job.names, card)
    except Exception as error:  # the job's state reports any failure: nobody reads this thread's traceback
        message = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        _save_job(site, job.model_copy(update={"state": "failed", "error": " ".join(message.split())}))
        return
    files = tuple(sorted(str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()))
    _save_job(site, job.model_copy(update={"state": "done", "files": files}))


def _save_job(site: Site, job: ExportJob) -> None:
    path = _job_folder(site, job.id) / "job.json"
    write_text_atomic(path, json.dumps(job.model_dump(mode="json"), indent=1) + "\n")
    path.chmod(0o600)
