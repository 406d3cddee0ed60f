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

from instructgpt.errors import BadInput
from instructgpt.io import write_text
from instructgpt.label.context import Site
from instructgpt.label.db.models import new_id, now
from instructgpt.label.exchange.dataset_card import card_text
from instructgpt.label.exchange.export_files import Format, export
from instructgpt.label.exchange.export_rows import FileName
from instructgpt.label.exchange.selection import Filter

FOLDER = "exports"
LIVES: dict[str, threading.Thread] = {}
"""The jobs this process is at."""


class Job(BaseModel):
    """An export that was asked for. `files` are the names to fetch once its state is `done`."""

    model_config = ConfigDict(frozen=True)
    id: str
    by: str
    created_at: int
    filter: Filter
    format: Format
    names: tuple[FileName, ...]
    state: Literal["running", "done", "failed"] = "running"
    error: str | None = None
    files: tuple[str, ...] = ()


def start(site: Site, wanted: Filter, format: Format, names: tuple[FileName, ...], by: str) -> Job:
    """Begin an export of what has been handed in so far."""
    at = now()
    wanted = wanted.model_copy(update={"until": min(wanted.until or at, at)})
    job = Job(id=new_id(), by=by, created_at=at, filter=wanted, format=format, names=names)
    folder = site.settings.folder / FOLDER / job.id
    folder.mkdir(parents=True, mode=0o700)
    _note(site, job)
    _begin(site, job)
    return job


def look(site: Site, key: str) -> Job | None:
    """How a job stands; one that nobody is at is begun again. None where there is no such job."""
    try:
        job = Job.model_validate_json((site.settings.folder / FOLDER / key / "job.json").read_text(encoding="utf-8"))
    except OSError:
        return None
    if job.state == "running" and (key not in LIVES or not LIVES[key].is_alive()):
        _begin(site, job)
    return job


def everything(site: Site) -> list[Job]:
    """All jobs, the newest first."""
    folder = site.settings.folder / FOLDER
    keys = sorted((entry.name for entry in folder.iterdir()), reverse=True) if folder.is_dir() else []
    return [job for key in keys if (job := look(site, key)) is not None]


def file_of(site: Site, job: Job, name: str) -> Path | None:
    """A file of a finished job."""
    return site.settings.folder / FOLDER / job.id / "export" / name if job.state == "done" and name in job.files else None


def wait(key: str) -> None:
    """Until a job of this process has ended."""
    if key in LIVES:
        LIVES[key].join()


def _begin(site: Site, job: Job) -> None:
    thread = threading.Thread(target=_make, args=(site, job), name=f"export {job.id}", daemon=True)
    LIVES[job.id] = thread
    thread.start()


def _make(site: Site, job: Job) -> None:
    """Make a job's files, whatever was there of them before."""
    out = site.settings.folder / FOLDER / job.id / "export"
    shutil.rmtree(out, ignore_errors=True)
    try:
        export(site.database, out, job.filter, job.format, job.names, card=card_text(site.database, job.filter))
    except Exception as error:  # whatever it was, whoever asks is told
        said = str(error) if isinstance(error, BadInput) else f"{type(error).__name__}: {error}"
        _note(site, job.model_copy(update={"state": "failed", "error": " ".join(said.split())}))
        return
    files = tuple(sorted(str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()))
    _note(site, job.model_copy(update={"state": "done", "files": files}))


def _note(site: Site, job: Job) -> None:
    folder = site.settings.folder / FOLDER / job.id
    write_text(folder / "job.json", json.dumps(job.model_dump(mode="json"), indent=1) + "\n")
    (folder / "job.json").chmod(0o600)
