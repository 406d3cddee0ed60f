"""How good the work is: agreement in full view, gold, repeats, habits; down to one labeler, and every table as a file."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Request, Response
from sqlalchemy import select

from instructgpt.label.analysis import quality
from instructgpt.label.analysis.quality import BAND, Quality
from instructgpt.label.auth.dependencies import Visitor, allow, site_of
from instructgpt.label.db.models import Batch, now
from instructgpt.label.errors import Problem
from instructgpt.label.web import charts
from instructgpt.label.web.rendering import page

if TYPE_CHECKING:
    from instructgpt.statistics.intervals import Estimate

router = APIRouter()
Team = Annotated[Visitor, allow("researcher", "owner")]
SHOWN = 20
"""Tasks with the largest disagreement on one page."""
RULES = ("decided", "half_credit", "three_way", "tie_rate")


@router.get("/quality")
def all_quality(request: Request, visitor: Team, batch: str = "") -> Response:
    """Quality of all work, or of one batch."""
    found, names = read(request, batch)
    people = {each.labeler: each.name for each in found.labelers}
    return page(
        request, visitor, "quality.html", show=charts, found=found, names=names, batch=batch, band=BAND, rules=RULES, people=people,
        worst=[each for each in found.disagreements if each.opposite][:SHOWN], at=now(),
    )  # fmt: skip


def read(request: Request, batch: str) -> tuple[Quality, list[tuple[str, str]]]:
    """The numbers, and (id, name) of every batch of rankings."""
    with site_of(request).database.read() as db:
        statement = select(Batch.id, Batch.name).where(Batch.kind == "rank", Batch.screening.is_(None)).order_by(Batch.created_at.desc())
        names = [(each, name) for each, name in db.execute(statement)]
        if batch and batch not in dict(names):
            raise Problem(404, "no_such_batch")
        return quality.quality(db, batch or None), names


@router.get("/quality/labelers/{labeler}")
def one_labeler(request: Request, visitor: Team, labeler: str, batch: str = "") -> Response:
    """One labeler's habits, and with whom they agree."""
    found, _ = read(request, batch)
    row = next((each for each in found.labelers if each.labeler == labeler), None)
    if row is None:
        raise Problem(404, "not_found")
    names = {each.labeler: each.name for each in found.labelers}
    number = found.matrix.labelers.index(labeler)
    beside = [
        (names[str(other)], float(found.matrix.share[number, place]), int(found.matrix.shared[number, place]))
        for place, other in enumerate(found.matrix.labelers)
        if found.matrix.shared[number, place]
    ]
    return page(
        request, visitor, "quality_labeler.html", show=charts, row=row, batch=batch, band=BAND, overall=found.overall,
        beside=sorted(beside, key=lambda each: each[1]),
    )  # fmt: skip


@router.get("/quality/{name}.csv")
def as_csv(request: Request, _: Team, name: str, batch: str = "") -> Response:
    """One table of the page as a file. Labelers are named by their pseudonyms, as in exports."""
    found, _names = read(request, batch)
    tables = {"agreement": agreement_rows, "labelers": labeler_rows, "matrix": matrix_rows, "labels": label_rows, "tasks": task_rows}
    if name not in tables:
        raise Problem(404, "not_found")
    head, rows = tables[name](found)
    return charts.table(name, head, rows)


Table = tuple[list[str], list[list[object]]]


def agreement_rows(found: Quality) -> Table:
    """Every rule for everybody, each cohort, gold and repeats."""
    rows: list[list[object]] = []
    groups = {"all": found.overall, **found.cohorts, "gold": found.gold, "repeats": found.repeats}
    for group, measured in groups.items():
        if measured is None:
            continue
        counts = [measured.alike, measured.opposite, measured.one_tied, measured.both_tied]
        for rule in RULES:
            value = getattr(measured, rule)
            rows.append([group, rule, value.value, value.low, value.high, value.n, *counts])
    return ["group", "rule", "value", "low", "high", "n", "alike", "opposite", "one_tied", "both_tied"], rows


def ends(measured: Estimate | None) -> list[float | None]:
    """A number and the ends of its interval."""
    return [None, None, None] if measured is None else [measured.value, measured.low, measured.high]


def labeler_rows(found: Quality) -> Table:
    """One row a labeler."""
    head = [
        "labeler", "cohort", "rankings", "shared_pairs", "agreement", "agreement_shrunk", "low", "high", "gold", "repeats", "tie_rate",
        "seconds_a_completion", "hours", "pasted", "mean_rating", *(f"rating_{n}" for n in range(1, 8)), "position_p", "as_shown",
    ]  # fmt: skip
    rows: list[list[object]] = []
    for each in found.labelers:
        known = each.agreement
        shrunk = known.shrunk if known else None
        agreed = [known.shared, known.share, *ends(shrunk)] if known else [0, None, *ends(None)]
        checks = [row.decided.value if row else None for row in (each.gold, each.repeats)]
        habits = [each.report.ties.share, each.seconds, each.hours, each.pasted, each.mean_rating, *each.ratings]
        rows.append(
            [each.pseudonym, each.cohort, each.rankings, *agreed, *checks, *habits, each.report.position.p, each.report.as_shown.share]
        )
    return head, rows


def matrix_rows(found: Quality) -> Table:
    """Every two labelers with shared pairs."""
    names = {each.labeler: each.pseudonym for each in found.labelers}
    matrix = found.matrix
    rows: list[list[object]] = [
        [names[str(one)], names[str(other)], float(matrix.share[i, j]), int(matrix.shared[i, j])]
        for i, one in enumerate(matrix.labelers)
        for j, other in enumerate(matrix.labelers)
        if i < j and not math.isnan(matrix.share[i, j])
    ]
    return ["labeler", "other", "agreement", "shared_pairs"], rows


def label_rows(found: Quality) -> Table:
    """Ratings and labels."""
    rows: list[list[object]] = []
    for each in found.categories:
        more = [measured.value if measured else None for measured in (each.ac1, each.positive)]
        rows.append([each.name, each.answers, each.yes, *ends(each.alpha), *more])
    return ["question", "answers", "yes", "alpha", "low", "high", "ac1", "positive_agreement"], rows


def task_rows(found: Quality) -> Table:
    """All tasks that several labelers ranked."""
    rows: list[list[object]] = [[each.task, each.labelers, each.opposite, each.decided, each.share] for each in found.disagreements]
    return ["task", "labelers", "opposite", "decided", "share"], rows
