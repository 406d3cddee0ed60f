"""Quality of rankings: agreement, gold and repeated tasks, habits of each labeler; every table also as CSV."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.label.analysis import quality
from instructgpt.label.analysis.adjudication import load_task_titles
from instructgpt.label.analysis.quality import TYPICAL_AGREEMENT_RANGE, QualityReport
from instructgpt.label.analysis.rankings import has_many_rankings
from instructgpt.label.analysis.results import get_hidden_model_names, redact_model_names
from instructgpt.label.auth.dependencies import TeamUser, get_site
from instructgpt.label.context import Site
from instructgpt.label.db.models import Batch, Person
from instructgpt.label.errors import SiteError
from instructgpt.label.report_cache import CachedReport
from instructgpt.label.tasks.questions import load_own_questions
from instructgpt.label.web import charts
from instructgpt.label.web.params import or_404
from instructgpt.label.web.rendering import redirect, render_page

if TYPE_CHECKING:
    from instructgpt.statistics.intervals import Estimate

router = APIRouter()
_MAX_DISAGREEMENTS = 20
_AGREEMENT_RULES = ("decided", "half_credit", "three_way", "tie_rate")
_LABELER_COLUMNS = ["labeler", "cohort", "rankings", "shared_pairs", "agreement", "agreement_shrunk", "low", "high"]
_LABELER_COLUMNS += ["gold", "repeats", "tie_rate", "seconds_a_completion", "hours", "pasted", "mean_rating"]
_LAST_LABELER_COLUMNS = ["position_p", "as_shown", "unrated", "unanswered"]


@router.get("/quality")
def show_quality(request: Request, _: TeamUser, batch: str = "", recompute: bool = False) -> Response:
    cached, batch_names = _get_quality(request, batch, recompute=recompute)
    if recompute:  # a page that is loaded again must not start another computation
        return redirect("/quality" + (f"?{urlencode({'batch': batch})}" if batch else ""))
    if cached is None:
        return render_page(request, "owner/computing.html", title="quality.title", batch=batch, batch_names=batch_names)
    report = cached.value
    disagreements = [row for row in report.disagreements if row.opposite][:_MAX_DISAGREEMENTS]
    with get_site(request).database.read() as db:
        own_questions = load_own_questions(db, batch or None)
        prompts = _load_prompts(db, [row.task for row in disagreements])
    return render_page(
        request,
        "owner/quality.html",
        report=report,
        cached=cached,
        batch_names=batch_names,
        batch=batch,
        band=TYPICAL_AGREEMENT_RANGE,
        rules=_AGREEMENT_RULES,
        people={labeler.labeler: labeler.name for labeler in report.labelers},
        disagreements=disagreements,
        own=own_questions,
        prompts=prompts,
    )


def _load_prompts(db: Session, task_ids: Sequence[str]) -> dict[str, str]:
    """Return what names each task: its prompt, or the newest turn of a conversation, without hidden model names."""
    hidden_names = get_hidden_model_names(db)
    titles = load_task_titles(db, task_ids)
    return {task: redact_model_names(text, hidden_names) for task, text in titles.items()}


def _get_quality(
    request: Request, batch: str, *, recompute: bool = False, wait: bool = False
) -> tuple[CachedReport[QualityReport] | None, list[tuple[str, str]]]:
    """Return the report, and (id, name) of every batch of rankings.

    Changes of people and batches show at once. With many rankings the report is computed in the background: the newest
    one is returned, or None before the first, unless `wait` is set.
    """
    site = get_site(request)
    batches = select(Batch.id, Batch.name, Batch.questions, Batch.screening).where(Batch.kind == "rank")
    with site.database.read() as db:
        rows = [tuple(row) for row in db.execute(batches.order_by(Batch.created_at.desc()))]
        names = [(batch_id, name) for batch_id, name, _, screening in rows if screening is None]
        if batch and batch not in dict(names):
            raise SiteError(404, "no_such_batch")
        people = [tuple(row) for row in db.execute(select(Person.id, Person.name, Person.pseudonym, Person.cohort))]
        is_slow = has_many_rankings(db, [batch] if batch else ())
    key = ("quality", batch, hash(repr(rows)), hash(repr(people)))
    compute = partial(_compute_quality, site, batch)
    if not is_slow:
        from instructgpt.statistics import agreement, categorical_agreement  # noqa: F401  # not in the report's time
    return site.reports.load(key, compute, is_slow=is_slow, recompute=recompute, wait=wait), names


def _compute_quality(site: Site, batch: str) -> QualityReport:
    with site.database.read() as db:
        return quality.compute_quality(db, batch or None)


@router.get("/quality/labelers/{labeler}")
def show_labeler_quality(request: Request, _: TeamUser, labeler: str, batch: str = "") -> Response:
    cached, batch_names = _get_quality(request, batch)
    if cached is None:
        return render_page(request, "owner/computing.html", title="quality.title", batch=batch, batch_names=batch_names)
    report = cached.value
    row = or_404(next((row for row in report.labelers if row.labeler == labeler), None))
    names = {labeler.labeler: labeler.name for labeler in report.labelers}
    matrix = report.matrix
    index = matrix.labelers.index(labeler)
    peers = [
        (names[str(peer)], float(matrix.share[index, i]), int(matrix.shared[index, i]))
        for i, peer in enumerate(matrix.labelers)
        if matrix.shared[index, i]
    ]
    return render_page(
        request,
        "owner/quality_labeler.html",
        row=row,
        batch=batch,
        band=TYPICAL_AGREEMENT_RANGE,
        overall=report.overall,
        peers=sorted(peers, key=lambda peer: peer[1]),
    )


@router.get("/quality/{name}.csv")
def download_quality_csv(request: Request, _: TeamUser, name: str, batch: str = "") -> Response:
    """Labelers are named by their pseudonyms, as in exports."""
    tables = {
        "agreement": _agreement_table,
        "labelers": _labeler_table,
        "matrix": _matrix_table,
        "labels": _label_table,
        "tasks": _disagreement_table,
    }
    if name not in tables:
        raise SiteError(404, "not_found")
    cached, _batch_names = _get_quality(request, batch, wait=True)
    assert cached is not None
    header, rows = tables[name](cached.value)
    return charts.csv_download(name, header, rows)


_CsvTable = tuple[list[str], list[list[object]]]


def _agreement_table(report: QualityReport) -> _CsvTable:
    rows: list[list[object]] = []
    groups = {"all": report.overall, **report.cohorts, "gold": report.gold, "repeats": report.repeats}
    for group, agreement in groups.items():
        if agreement is None:
            continue
        counts = [agreement.concordant, agreement.discordant, agreement.one_tied, agreement.both_tied]
        for rule in _AGREEMENT_RULES:
            estimate = getattr(agreement, rule)
            rows.append([group, rule, *_interval_cells(estimate), estimate.n, *counts, estimate.caution])
    return ["group", "rule", "value", "low", "high", "n", "alike", "opposite", "one_tied", "both_tied", "caution"], rows


def _interval_cells(estimate: Estimate | None) -> list[float | None]:
    return [None, None, None] if estimate is None else [estimate.value, estimate.low, estimate.high]


def _labeler_table(report: QualityReport) -> _CsvTable:
    rows: list[list[object]] = []
    for row in report.labelers:
        agreement = row.agreement
        shared = [agreement.shared, agreement.share] if agreement else [0, None]
        shrunk = _interval_cells(agreement.shrunk if agreement else None)
        checks = [check.decided.value if check else None for check in (row.gold, row.repeats)]
        habits = [row.report.ties.share, row.seconds, row.hours, row.pasted, row.mean_rating, *row.ratings]
        cells = [row.pseudonym, row.cohort, row.rankings, *shared, *shrunk, *checks, *habits]
        rows.append([*cells, row.report.position.p, row.report.as_shown.share, row.unrated, row.unanswered])
    counts = [f"rating_{number}" for number in range(1, report.rating_points + 1)]
    return [*_LABELER_COLUMNS, *counts, *_LAST_LABELER_COLUMNS], rows


def _matrix_table(report: QualityReport) -> _CsvTable:
    names = {row.labeler: row.pseudonym for row in report.labelers}
    matrix = report.matrix
    rows: list[list[object]] = [
        [names[str(labeler)], names[str(peer)], float(matrix.share[i, j]), int(matrix.shared[i, j])]
        for i, labeler in enumerate(matrix.labelers)
        for j, peer in enumerate(matrix.labelers)
        if i < j and not math.isnan(matrix.share[i, j])
    ]
    return ["labeler", "other", "agreement", "shared_pairs"], rows


def _label_table(report: QualityReport) -> _CsvTable:
    rows: list[list[object]] = []
    for label in report.categories:
        extra = [estimate.value if estimate else None for estimate in (label.ac1, label.positive)]
        rows.append([label.name, label.answers, label.yes, *_interval_cells(label.alpha), *extra, label.alpha.caution])
    return ["question", "answers", "yes", "alpha", "low", "high", "ac1", "positive_agreement", "caution"], rows


def _disagreement_table(report: QualityReport) -> _CsvTable:
    rows: list[list[object]] = [
        [row.task, row.labelers, row.opposite, row.decided, row.share] for row in report.disagreements
    ]
    return ["task", "labelers", "opposite", "decided", "share"], rows
