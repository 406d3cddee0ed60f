"""Results of blind evaluations: only their precision while the batch is open, win rates afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Form, Query, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.errors import InputError
from instructgpt.label.analysis import results
from instructgpt.label.analysis.rankings import has_many_rankings
from instructgpt.label.auth.dependencies import TeamUser, get_site
from instructgpt.label.context import Site
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Batch, current_time_ms
from instructgpt.label.errors import SiteError
from instructgpt.label.report_cache import CachedReport
from instructgpt.label.tasks.questions import load_own_questions
from instructgpt.label.web.pages.owner.batches import get_batch_or_404
from instructgpt.label.web.rendering import redirect, render_page
from instructgpt.records import LABELS

router = APIRouter()
_MAX_POOLED = 20
_T = TypeVar("_T")


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
        warnings = results.find_pool_warnings(db, batches)
    return _render_results(request, batches, baseline, batch=batches[0], pool=batches, warnings=warnings)


@router.get("/results/pooled/results.json")
def download_pooled_results(
    request: Request, _: TeamUser, batch: Annotated[list[str] | None, Query()] = None, baseline: str = ""
) -> Response:
    with get_site(request).database.read() as db:
        batches = _get_pool(db, batch or [])
    return _results_json(results.to_result_rows(_wait_for_results(get_site(request), batches, baseline)))


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
    if not results.is_blind(batch):
        return _render_results(request, [batch], baseline, batch=batch, pool=[], warnings=[])
    cached = _load_report(get_site(request), "precision", [batch], _compute_precision)
    if cached is None:
        return render_page(request, "owner/computing.html", title="results.title", batch_names=None)
    return render_page(request, "owner/result_blind.html", batch=batch, precision=cached.value, cached=cached)


@router.get("/results/{batch_id}/results.json")
def download_results_json(request: Request, _: TeamUser, batch_id: str, baseline: str = "") -> Response:
    with get_site(request).database.read() as db:
        batch = _get_evaluation_batch(db, batch_id)
        if results.is_blind(batch):
            raise SiteError(409, "names_hidden")
    return _results_json(results.to_result_rows(_wait_for_results(get_site(request), [batch], baseline)))


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


def _render_results(request: Request, batches: Sequence[Batch], baseline: str, **values: Any) -> Response:
    site = get_site(request)
    with _translate_baseline_error():
        cached = _load_report(site, "results", batches, _compute_results, baseline)
    if cached is None:
        return render_page(request, "owner/computing.html", title="results.title", batch_names=None)
    with site.database.read() as db:
        own_questions = {name: each for row in batches for name, each in load_own_questions(db, row.id).items()}
    labels = tuple(dict.fromkeys((*LABELS, *own_questions)))
    values |= {"results": cached.value, "cached": cached, "labels": labels, "own": own_questions}
    return render_page(request, "owner/result.html", **values)


def _wait_for_results(site: Site, batches: Sequence[Batch], baseline: str = "") -> results.EvaluationResults:
    """Return the results of batches whose names may be shown, together: those that their page shows, or new ones."""
    with _translate_baseline_error():
        cached = _load_report(site, "results", batches, _compute_results, baseline, wait=True)
    assert cached is not None
    return cached.value


@contextmanager
def _translate_baseline_error() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise SiteError(404, "no_such_baseline") from error


def _load_report(
    site: Site,
    name: str,
    batches: Sequence[Batch],
    compute: Callable[[Session, Sequence[Batch], str], _T],
    baseline: str = "",
    *,
    wait: bool = False,
) -> CachedReport[_T] | None:
    """Return a report on batches: the kept one, or None when it takes long and there is none yet."""
    ids = [row.id for row in batches]

    def compute_in_transaction() -> _T:
        with site.database.read() as db:
            return compute(db, [db.get_one(Batch, batch_id) for batch_id in ids], baseline)

    with site.database.read() as db:
        is_slow = has_many_rankings(db, ids)
    key = (name, baseline, *((row.id, row.state, row.unblinded_at, repr(row.questions)) for row in batches))
    return site.reports.load(key, compute_in_transaction, is_slow=is_slow, wait=wait)


def _compute_results(db: Session, batches: Sequence[Batch], baseline: str) -> results.EvaluationResults:
    return results.compute_results(db, batches, baseline or None)


def _compute_precision(db: Session, batches: Sequence[Batch], _: str) -> results.EvaluationPrecision:
    return results.compute_precision(db, batches[0])
