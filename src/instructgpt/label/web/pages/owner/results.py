"""Results of blind evaluations: only their precision while the batch is open, win rates afterwards."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.errors import InputError
from instructgpt.label.analysis import results
from instructgpt.label.auth.dependencies import TeamUser, get_site
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Batch, current_time_ms
from instructgpt.label.errors import SiteError
from instructgpt.label.tasks.questions import load_own_questions
from instructgpt.label.web.pages.owner.batches import get_batch_or_404
from instructgpt.label.web.rendering import redirect, render_page
from instructgpt.records import LABELS

router = APIRouter()
_MAX_POOLED = 20


@router.get("/results")
def show_results(request: Request, _: TeamUser) -> Response:
    is_evaluation = (Batch.kind == "rank", Batch.purpose == "evaluation", Batch.screening.is_(None))
    with get_site(request).database.read() as db:
        batches = db.scalars(select(Batch).where(*is_evaluation).order_by(Batch.created_at.desc()))
        rows = [(batch, results.is_blind(batch)) for batch in batches]
    return render_page(request, "owner/results.html", rows=rows)


@router.get("/results/pooled")
def show_pooled_result(
    request: Request, _: TeamUser, batch: Annotated[list[str] | None, Query()] = None, baseline: str = ""
) -> Response:
    """Show several batches as one evaluation: the cohorts of the paper's Figure 3 may be batches of their own."""
    with get_site(request).database.read() as db:
        batches = _get_pool(db, batch or [])
        report = _compute_results(db, batches, baseline)
        own_questions = {name: each for row in batches for name, each in load_own_questions(db, row.id).items()}
        warnings = results.find_pool_warnings(db, batches)
    labels = tuple(dict.fromkeys((*LABELS, *own_questions)))
    context: dict[str, Any] = {"batch": batches[0], "pool": batches, "warnings": warnings}
    return render_page(request, "owner/result.html", results=report, labels=labels, own=own_questions, **context)


@router.get("/results/pooled/results.json")
def download_pooled_results(
    request: Request, _: TeamUser, batch: Annotated[list[str] | None, Query()] = None, baseline: str = ""
) -> Response:
    with get_site(request).database.read() as db:
        rows = results.to_result_rows(_compute_results(db, _get_pool(db, batch or []), baseline))
    return _results_json(rows)


def _get_pool(db: Session, batch_ids: Sequence[str]) -> list[Batch]:
    """Return the batches of a pool, oldest first. Raises SiteError for fewer than two, or hidden names (409)."""
    batches = sorted((_get_evaluation_batch(db, name) for name in set(batch_ids)), key=lambda row: row.id)
    if not 2 <= len(batches) <= _MAX_POOLED:
        raise SiteError(422, "bad_pool", most=_MAX_POOLED)
    if any(results.is_blind(row) for row in batches):
        raise SiteError(409, "names_hidden")
    return batches


@router.get("/results/{batch_id}")
def show_result(request: Request, _: TeamUser, batch_id: str, baseline: str = "") -> Response:
    with get_site(request).database.read() as db:
        batch = _get_evaluation_batch(db, batch_id)
        if results.is_blind(batch):
            precision = results.compute_precision(db, batch)
            return render_page(request, "owner/result_blind.html", batch=batch, precision=precision)
        report = _compute_results(db, [batch], baseline)
        own_questions = load_own_questions(db, batch.id)
    labels = tuple(dict.fromkeys((*LABELS, *own_questions)))
    context: dict[str, Any] = {"batch": batch, "pool": [], "warnings": []}
    return render_page(request, "owner/result.html", results=report, labels=labels, own=own_questions, **context)


@router.get("/results/{batch_id}/results.json")
def download_results_json(request: Request, _: TeamUser, batch_id: str, baseline: str = "") -> Response:
    with get_site(request).database.read() as db:
        batch = _get_evaluation_batch(db, batch_id)
        if results.is_blind(batch):
            raise SiteError(409, "names_hidden")
        rows = results.to_result_rows(_compute_results(db, [batch], baseline))
    return _results_json(rows)


def _results_json(rows: Sequence[Mapping[str, object]]) -> Response:
    content = "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows) + "\n]\n"
    headers = {"Content-Disposition": 'attachment; filename="results.json"'}
    return Response(content, media_type="application/json", headers=headers)


@router.post("/results/{batch_id}/unblind")
def unblind_batch(
    request: Request, principal: TeamUser, batch_id: str, reason: Annotated[str, Form(max_length=2000)]
) -> Response:
    """Show the names of the models before the batch is closed. The reason goes into the audit log."""
    reason = reason.strip()
    if not reason:
        raise SiteError(422, "reason_missing")
    with get_site(request).database.write() as db:
        batch = get_batch_or_404(db, batch_id)
        if batch.purpose != "evaluation":
            raise SiteError(404, "no_such_batch")
        if results.is_blind(batch):
            results.mark_unblinded(db, batch, current_time_ms())
            audit_log.append_entry(db, principal.user.id, "batch.unblinded", batch.id, reason=reason)
    return redirect(f"/results/{batch_id}")


def _get_evaluation_batch(db: Session, batch_id: str) -> Batch:
    batch = get_batch_or_404(db, batch_id)
    if batch.purpose != "evaluation" or batch.kind != "rank":
        raise SiteError(404, "no_such_batch")
    return batch


def _compute_results(db: Session, batches: Sequence[Batch], baseline: str) -> results.EvaluationResults:
    try:
        return results.compute_results(db, batches, baseline or None)
    except InputError as error:
        raise SiteError(404, "no_such_baseline") from error
