"""Blind evaluation: nothing but its precision until the batch is closed; then which model wins, by how much, and how sure that is."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.errors import BadInput
from instructgpt.label.analysis import results
from instructgpt.label.auth.dependencies import Visitor, allow, site_of
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Batch, now
from instructgpt.label.errors import Problem
from instructgpt.label.web import charts
from instructgpt.label.web.pages.owner.batches import batch_of
from instructgpt.label.web.rendering import page
from instructgpt.records import LABELS

router = APIRouter()
Team = Annotated[Visitor, allow("researcher", "owner")]


@router.get("/results")
def list_results(request: Request, visitor: Team) -> Response:
    """The evaluations there are."""
    with site_of(request).database.read() as db:
        chosen = select(Batch).where(Batch.kind == "rank", Batch.purpose == "evaluation", Batch.screening.is_(None))
        rows = [(batch, results.is_blind(batch)) for batch in db.scalars(chosen.order_by(Batch.created_at.desc()))]
    return page(request, visitor, "results.html", rows=rows, show=charts)


@router.get("/results/{batch_id}")
def one_result(request: Request, visitor: Team, batch_id: str, baseline: str = "") -> Response:
    """The results of one batch; while it is blind, only how precise they are."""
    with site_of(request).database.read() as db:
        batch = evaluation(db, batch_id)
        if results.is_blind(batch):
            return page(request, visitor, "results_blind.html", batch=batch, precision=results.precision(db, batch), show=charts)
        try:
            found = results.results(db, batch, baseline or None)
        except BadInput as error:
            raise Problem(404, "no_such_baseline") from error
    return page(request, visitor, "result.html", batch=batch, found=found, labels=LABELS, show=charts)


@router.get("/results/{batch_id}/results.json")
def as_json(request: Request, _: Team, batch_id: str, baseline: str = "") -> Response:
    """The same numbers as rows of results.json. Raises Problem 409 while names are hidden."""
    with site_of(request).database.read() as db:
        batch = evaluation(db, batch_id)
        if results.is_blind(batch):
            raise Problem(409, "names_hidden")
        try:
            rows = results.as_rows(results.results(db, batch, baseline or None))
        except BadInput as error:
            raise Problem(404, "no_such_baseline") from error
    text = "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows) + "\n]\n"
    return Response(text, media_type="application/json", headers={"Content-Disposition": 'attachment; filename="results.json"'})


@router.post("/results/{batch_id}/unblind")
def unblind(request: Request, visitor: Team, batch_id: str, reason: Annotated[str, Form(max_length=2000)]) -> Response:
    """Show the names before the batch is closed: a deliberate act, with a reason, in the journal."""
    if not reason.strip():
        raise Problem(422, "reason_missing")
    with site_of(request).database.write() as db:
        batch = batch_of(db, batch_id)
        if batch.purpose != "evaluation":
            raise Problem(404, "no_such_batch")
        if results.is_blind(batch):
            results.unblind(db, batch, now())
            audit_log.note(db, visitor.me.id, "batch.unblinded", batch.id, reason=reason.strip())
    return RedirectResponse(f"/results/{batch_id}", status_code=303)


def evaluation(db: Session, batch_id: str) -> Batch:
    """A batch whose results can be looked at. Raises Problem 404."""
    batch = batch_of(db, batch_id)
    if batch.purpose != "evaluation" or batch.kind != "rank":
        raise Problem(404, "no_such_batch")
    return batch
