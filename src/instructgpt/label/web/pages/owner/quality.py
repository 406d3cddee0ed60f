"""How good the work is: agreement in full view, gold, repeats, habits; down to one labeler, and every table as a file."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Request, Response
from sqlalchemy import select

from instructgpt.label.analysis import quality
from instructgpt.label.analysis.quality import TYPICAL_AGREEMENT_RANGE, QualityReport
from instructgpt.label.auth.dependencies import Principal, get_site, require
from instructgpt.label.db.models import Batch, current_time_ms
from instructgpt.label.errors import SiteError
from instructgpt.label.web import charts
from instructgpt.label.web.rendering import render_page

if TYPE_CHECKING:
    from instructgpt.statistics.intervals import Estimate

router = APIRouter()
_TeamUser = Annotated[Principal, require("researcher", "owner")]
_MAX_DISAGREEMENTS = 20
"""Tasks with the largest disagreement on one page."""
_AGREEMENT_RULES = ("decided", "half_credit", "three_way", "tie_rate")


@router.get("/quality")
def show_quality(request: Request, principal: _TeamUser, batch: str = "") -> Response:
    """Quality of all work, or of one batch."""
    report, names = _load_quality(request, batch)
    people = {each.labeler: each.name for each in report.labelers}
    return render_page(
        request,
        principal,
        "quality.html",
        show=charts,
        found=report,
        names=names,
        batch=batch,
        band=TYPICAL_AGREEMENT_RANGE,
        rules=_AGREEMENT_RULES,
        people=people,
        worst=[each for each in report.disagreements if each.opposite][:_MAX_DISAGREEMENTS],
        at=current_time_ms(),
    )


def _load_quality(request: Request, batch: str) -> tuple[QualityReport, list[tuple[str, str]]]:
    """The numbers, and (id, name) of every batch of rankings."""
    with get_site(request).database.read() as db:
        statement = (
            select(Batch.id, Batch.name)
            .where(Batch.kind == "rank", Batch.screening.is_(None))
            .order_by(Batch.created_at.desc())
        )
        names = [(each, name) for each, name in db.execute(statement)]
        if batch and batch not in dict(names):
            raise SiteError(404, "no_such_batch")
        return quality.compute_quality(db, batch or None), names


@router.get("/quality/labelers/{labeler}")
def show_labeler_quality(request: Request, principal: _TeamUser, labeler: str, batch: str = "") -> Response:
    """One labeler's habits, and with whom they agree."""
    report, _ = _load_quality(request, batch)
    row = next((each for each in report.labelers if each.labeler == labeler), None)
    if row is None:
        raise SiteError(404, "not_found")
    names = {each.labeler: each.name for each in report.labelers}
    labeler_index = report.matrix.labelers.index(labeler)
    peer_agreements = [
        (
            names[str(peer)],
            float(report.matrix.share[labeler_index, peer_index]),
            int(report.matrix.shared[labeler_index, peer_index]),
        )
        for peer_index, peer in enumerate(report.matrix.labelers)
        if report.matrix.shared[labeler_index, peer_index]
    ]
    return render_page(
        request,
        principal,
        "quality_labeler.html",
        show=charts,
        row=row,
        batch=batch,
        band=TYPICAL_AGREEMENT_RANGE,
        overall=report.overall,
        beside=sorted(peer_agreements, key=lambda each: each[1]),
    )


@router.get("/quality/{name}.csv")
def download_quality_csv(request: Request, _: _TeamUser, name: str, batch: str = "") -> Response:
    """One table of the page as a file. Labelers are named by their pseudonyms, as in exports."""
    report, _names = _load_quality(request, batch)
    tables = {
        "agreement": _agreement_table,
        "labelers": _labeler_table,
        "matrix": _matrix_table,
        "labels": _label_table,
        "tasks": _disagreement_table,
    }
    if name not in tables:
        raise SiteError(404, "not_found")
    header, rows = tables[name](report)
    return charts.csv_download(name, header, rows)


_CsvTable = tuple[list[str], list[list[object]]]


def _agreement_table(report: QualityReport) -> _CsvTable:
    """Every rule for everybody, each cohort, gold and repeats."""
    rows: list[list[object]] = []
    groups = {"all": report.overall, **report.cohorts, "gold": report.gold, "repeats": report.repeats}
    for group, agreement in groups.items():
        if agreement is None:
            continue
        counts = [agreement.concordant, agreement.discordant, agreement.one_tied, agreement.both_tied]
        for rule in _AGREEMENT_RULES:
            estimate = getattr(agreement, rule)
            rows.append([group, rule, estimate.value, estimate.low, estimate.high, estimate.n, *counts])
    return ["group", "rule", "value", "low", "high", "n", "alike", "opposite", "one_tied", "both_tied"], rows


def _interval_cells(estimate: Estimate | None) -> list[float | None]:
    """A number and the ends of its interval."""
    return [None, None, None] if estimate is None else [estimate.value, estimate.low, estimate.high]


def _labeler_table(report: QualityReport) -> _CsvTable:
    """One row a labeler."""
    header = [
        "labeler",
        "cohort",
        "rankings",
        "shared_pairs",
        "agreement",
        "agreement_shrunk",
        "low",
        "high",
        "gold",
        "repeats",
        "tie_rate",
        "seconds_a_completion",
        "hours",
        "pasted",
        "mean_rating",
        *(f"rating_{n}" for n in range(1, 8)),
        "position_p",
        "as_shown",
    ]
    rows: list[list[object]] = []
    for labeler in report.labelers:
        agreement = labeler.agreement
        shrunk = agreement.shrunk if agreement else None
        agreement_cells = (
            [agreement.shared, agreement.share, *_interval_cells(shrunk)]
            if agreement
            else [0, None, *_interval_cells(None)]
        )
        check_cells = [row.decided.value if row else None for row in (labeler.gold, labeler.repeats)]
        habit_cells = [
            labeler.report.ties.share,
            labeler.seconds,
            labeler.hours,
            labeler.pasted,
            labeler.mean_rating,
            *labeler.ratings,
        ]
        rows.append(
            [
                labeler.pseudonym,
                labeler.cohort,
                labeler.rankings,
                *agreement_cells,
                *check_cells,
                *habit_cells,
                labeler.report.position.p,
                labeler.report.as_shown.share,
            ]
        )
    return header, rows


def _matrix_table(report: QualityReport) -> _CsvTable:
    """Every two labelers with shared pairs."""
    names = {each.labeler: each.pseudonym for each in report.labelers}
    matrix = report.matrix
    rows: list[list[object]] = [
        [names[str(labeler)], names[str(peer)], float(matrix.share[i, j]), int(matrix.shared[i, j])]
        for i, labeler in enumerate(matrix.labelers)
        for j, peer in enumerate(matrix.labelers)
        if i < j and not math.isnan(matrix.share[i, j])
    ]
    return ["labeler", "other", "agreement", "shared_pairs"], rows


def _label_table(report: QualityReport) -> _CsvTable:
    """Ratings and labels."""
    rows: list[list[object]] = []
    for category in report.categories:
        extra_cells = [measured.value if measured else None for measured in (category.ac1, category.positive)]
        rows.append([category.name, category.answers, category.yes, *_interval_cells(category.alpha), *extra_cells])
    return ["question", "answers", "yes", "alpha", "low", "high", "ac1", "positive_agreement"], rows


def _disagreement_table(report: QualityReport) -> _CsvTable:
    """All tasks that several labelers ranked."""
    rows: list[list[object]] = [
        [each.task, each.labelers, each.opposite, each.decided, each.share] for each in report.disagreements
    ]
    return ["task", "labelers", "opposite", "decided", "share"], rows
