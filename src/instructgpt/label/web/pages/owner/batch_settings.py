"""Settings of a batch that may change after it is made; its copies and its deletion."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from sqlalchemy.orm import Session

from instructgpt.label.auth.dependencies import TeamUser, get_site
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Batch, current_time_ms
from instructgpt.label.db.staging import write_in_portions
from instructgpt.label.tasks import batch_settings
from instructgpt.label.tasks.rates import parse_rate, set_rate
from instructgpt.label.web.pages.owner.batches import get_batch_or_404
from instructgpt.label.web.rendering import redirect
from instructgpt.records import Cohort

router = APIRouter()
_BatchName = Annotated[str, Form(max_length=120)]


@router.post("/batches/{batch_id}/settings")
def change_batch_settings(
    request: Request,
    principal: TeamUser,
    batch_id: str,
    name: _BatchName,
    overlap: Annotated[int | None, Form(ge=1, le=100)] = None,
    cohort: Annotated[Cohort | None, Form()] = None,
) -> Response:
    """Change name, overlap and cohort; no overlap keeps it. The audit log has the values before and after."""
    with get_site(request).database.write() as db:
        batch = get_batch_or_404(db, batch_id)
        before = {"overlap": batch.policy.get("overlap"), "cohort": batch.cohort}
        if name.strip() != batch.name:
            batch_settings.rename_batch(db, batch, name)
        if cohort != batch.cohort:
            batch_settings.change_cohort(db, batch, cohort)
        tasks = 0
        if overlap is not None and overlap != before["overlap"]:
            tasks = batch_settings.change_overlap(db, batch, overlap)
        after = {"overlap": batch.policy.get("overlap"), "cohort": cohort}
        detail = {"before": before, "after": after, "tasks": tasks}
        audit_log.append_entry(db, principal.user.id, "batch.settings", batch.id, **detail)
    return redirect(f"/batches/{batch_id}")


@router.post("/batches/{batch_id}/rate")
def change_hourly_rate(
    request: Request,
    principal: TeamUser,
    batch_id: str,
    hourly: Annotated[str, Form(max_length=40)],
    currency: Annotated[str, Form(max_length=10)],
) -> Response:
    """Set what work costs from now on; work that was done before keeps its cost."""
    with get_site(request).database.write() as db:
        batch = get_batch_or_404(db, batch_id)
        rate = parse_rate(hourly, currency, current_time_ms() if batch.rates else 0)
        if set_rate(db, batch, rate):
            audit_log.append_entry(db, principal.user.id, "batch.rate", batch.id, **rate.model_dump())
    return redirect(f"/batches/{batch_id}")


@router.post("/batches/{batch_id}/duplicate")
def duplicate_batch_from_form(request: Request, principal: TeamUser, batch_id: str, name: _BatchName) -> Response:
    """Copy a batch with its tasks as a draft."""

    def copy(db: Session) -> Batch:
        duplicate = batch_settings.duplicate_batch(db, get_batch_or_404(db, batch_id), name, principal.user)
        audit_log.append_entry(db, principal.user.id, "batch.duplicated", duplicate.id, original=batch_id)
        return duplicate

    duplicate = write_in_portions(get_site(request).database, copy)
    return redirect(f"/batches/{duplicate.id}")


@router.post("/batches/{batch_id}/delete")
def delete_batch(request: Request, principal: TeamUser, batch_id: str) -> Response:
    """Delete a batch of which nobody has had a task."""
    with get_site(request).database.write() as db:
        batch_settings.delete_empty_batch(db, get_batch_or_404(db, batch_id))
        audit_log.append_entry(db, principal.user.id, "batch.deleted", batch_id)
    return redirect("/batches")
