"""Statistics for programs: agreement of labelers, win rates of evaluations."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel

from instructgpt.label.analysis import results
from instructgpt.label.auth.dependencies import ReadScope, get_site
from instructgpt.label.db.models import Batch
from instructgpt.label.errors import SiteError
from instructgpt.label.web.params import RowId, or_404, translate_errors

router = APIRouter(prefix="/api/v1/stats", tags=["service"])


class EstimateOut(BaseModel):
    """An estimate with its 95 % interval; null where nothing was measured.

    `caution` says what the interval cannot speak about: "single labeler", "two labelers", "single prompt" or a dominant
    one; else it is empty.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    caution: str


class AgreementOut(BaseModel):
    """Agreement of labelers under three rules for ties; see `docs/guides/label.md`."""

    alike: int
    opposite: int
    one_tied: int
    both_tied: int
    decided: EstimateOut
    three_way: EstimateOut
    half_credit: EstimateOut
    tie_rate: EstimateOut


@router.get("/agreement")
def get_agreement(request: Request, _: ReadScope, batch: RowId | None = None) -> dict[str, AgreementOut]:
    """Return the agreement of all labelers and of each cohort, in one batch or in all."""
    from instructgpt.label.analysis.rankings import load_stored_rankings  # imports scipy
    from instructgpt.statistics import agreement

    with get_site(request).database.read() as db:
        rankings = load_stored_rankings(db, batch)
    groups = {"all": rankings}
    groups |= {cohort: [row for row in rankings if row.cohort == cohort] for cohort in ("training", "heldout")}
    return {name: _to_agreement_out(agreement.inter_labeler_agreement(group)) for name, group in groups.items()}


def _to_agreement_out(report: Any) -> AgreementOut:
    rules = ("decided", "three_way", "half_credit", "tie_rate")
    return AgreementOut(
        alike=report.concordant,
        opposite=report.discordant,
        one_tied=report.one_tied,
        both_tied=report.both_tied,
        **{rule: _to_estimate_out(getattr(report, rule)) for rule in rules},
    )


def _to_estimate_out(estimate: Any) -> EstimateOut:
    return EstimateOut(
        value=estimate.value, low=estimate.low, high=estimate.high, n=estimate.n, caution=estimate.caution
    )


@router.get("/win-rates/{key}")
def get_win_rates(
    request: Request,
    _: ReadScope,
    key: RowId,
    pooled_with: Annotated[
        list[str] | None, Query(max_length=19, description="ids of further batches, evaluated together with it")
    ] = None,
) -> list[dict[str, Any]]:
    """Return the rows of results.json of an evaluation batch that is no longer blind, or of several together."""
    with translate_errors(), get_site(request).database.read() as db:
        pooled = [or_404(db.get(Batch, name)) for name in sorted({key, *(pooled_with or ())})]
        if any(results.is_blind(batch) for batch in pooled):
            raise SiteError(409, "still_blind")
        return results.to_result_rows(results.compute_results(db, pooled))
