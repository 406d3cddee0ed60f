"""Blind evaluation: nothing but its precision until the batch is closed; then which model wins, by how much, and how sure that is."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.errors import InputError
from instructgpt.label.analysis import results
from instructgpt.label.auth.dependencies import Principal, get_site, require
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Batch, current_time_ms
from instructgpt.label.errors import SiteError
from instructgpt.label.web import charts
from instructgpt.label.web.pages.owner.batches import get_batch_or_404
from instructgpt.label.web.rendering import render_page
from instructgpt.records import LABELS

router = APIRouter()
_TeamUser = Annotated[Principal, require("researcher", "owner")]


@router.get("/results")
def show_results(request: Request, principal: _TeamUser) -> Response:
    """The evaluations there are."""
    with get_site(request).database.read() as db:
        statement = select(Batch).where(Batch.kind == "rank", Batch.purpose == "evaluation", Batch.screening.is_(None))
        rows = [(batch, results.is_blind(batch)) for batch in db.scalars(statement.order_by(Batch.created_at.desc()))]
    return render_page(request, principal, "results.html", rows=rows, show=charts)


@router.get("/results/{batch_id}")
def show_result(request: Request, principal: _TeamUser, batch_id: str, baseline: str = "") -> Response:
    """The results of one batch; while it is blind, only how precise they are."""
    with get_site(request).database.read() as db:
        batch = _get_evaluation_batch(db, batch_id)
        if results.is_blind(batch):
            return render_page(
                request,
                principal,
                "results_blind.html",
                batch=batch,
                precision=results.compute_precision(db, batch),
                show=charts,
            )
        try:
            evaluation_results = results.compute_results(db, batch, baseline or None)
        except InputError as error:
            raise SiteError(404, "no_such_baseline") from error
    return render_page(
        request, principal, "result.html", batch=batch, found=evaluation_results, labels=LABELS, show=charts
    )


@router.get("/results/{batch_id}/results.json")
def download_results_json(request: Request, _: _TeamUser, batch_id: str, baseline: str = "") -> Response:
    """The same numbers as rows of results.json. Raises Problem 409 while names are hidden."""
    with get_site(request).database.read() as db:
        batch = _get_evaluation_batch(db, batch_id)
        if results.is_blind(batch):
            raise SiteError(409, "names_hidden")
        try:
            rows = results.to_result_rows(results.compute_results(db, batch, baseline or None))
        except InputError as error:
            raise SiteError(404, "no_such_baseline") from error
    json_text = "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows) + "\n]\n"
    return Response(
        json_text, media_type="application/json", headers={"Content-Disposition": 'attachment; filename="results.json"'}
    )


@router.post("/results/{batch_id}/unblind")
def unblind_from_form(
    request: Request, principal: _TeamUser, batch_id: str, reason: Annotated[str, Form(max_length=2000)]
) -> Response:
    """Show the names before the batch is closed: a deliberate act, with a reason, in the journal."""
    if not reason.strip():
        raise SiteError(422, "reason_missing")
    with get_site(request).database.write() as db:
        batch = get_batch_or_404(db, batch_id)
        if batch.purpose != "evaluation":
            raise SiteError(404, "no_such_batch")
        if results.is_blind(batch):
            results.mark_unblinded(db, batch, current_time_ms())
            audit_log.append_entry(
                db, principal.signed_in_person.id, "batch.unblinded", batch.id, reason=reason.strip()
            )
    return RedirectResponse(f"/results/{batch_id}", status_code=303)


def _get_evaluation_batch(db: Session, batch_id: str) -> Batch:
    """A batch whose results can be looked at. Raises Problem 404."""
    batch = get_batch_or_404(db, batch_id)
    if batch.purpose != "evaluation" or batch.kind != "rank":
        raise SiteError(404, "no_such_batch")
    return batch
