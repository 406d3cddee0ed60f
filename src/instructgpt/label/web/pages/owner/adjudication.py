"""Settling disagreements: a queue, rankings side by side without names, a proposal, what went wrong, gold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy import select

from instructgpt.label.analysis import adjudication
from instructgpt.label.analysis.adjudication import ERROR_CATEGORIES
from instructgpt.label.analysis.results import get_hidden_model_names, redact_model_names
from instructgpt.label.auth.dependencies import Principal, get_site, require
from instructgpt.label.db.models import Batch, CalibrationRoom, current_time_ms
from instructgpt.label.errors import SiteError
from instructgpt.label.web import charts
from instructgpt.label.web.rendering import render_page

router = APIRouter()
_TeamUser = Annotated[Principal, require("researcher", "owner")]
_MAX_LISTED = 100


@dataclass(frozen=True, slots=True)
class TiersForm:
    """A ranking as a form without script sends it: a field `tier-<completion>` each, and what else was filled in."""

    tiers: Mapping[str, int]
    errors: list[str]
    reason: str


async def read_tiers_form(request: Request) -> TiersForm:
    """Read it. Raises Problem 422 when a tier is no number."""
    form = await request.form()
    tier_values = {
        key.removeprefix("tier-"): value
        for key, value in form.items()
        if key.startswith("tier-") and isinstance(value, str)
    }
    if not all(value.isascii() and value.isdigit() and len(value) < 3 for value in tier_values.values()):
        raise SiteError(422, "bad_ranking")
    error_codes = [value for value in form.getlist("errors") if isinstance(value, str)]
    return TiersForm(
        {key: int(value) for key, value in tier_values.items()}, error_codes, str(form.get("reason") or "")[:10_000]
    )


@router.get("/adjudication")
def show_adjudication_queue(request: Request, principal: _TeamUser) -> Response:
    """Tasks on which labelers went opposite ways."""
    with get_site(request).database.read() as db:
        rows = adjudication.list_disputed_tasks(db)
        hidden_names = get_hidden_model_names(db)
        rooms = list(db.scalars(select(CalibrationRoom).order_by(CalibrationRoom.created_at.desc()).limit(20)))
    texts = {
        row.disagreement.task: redact_model_names(row.prompt_text, hidden_names)[:160] for row in rows[:_MAX_LISTED]
    }
    return render_page(
        request,
        principal,
        "adjudication.html",
        show=charts,
        rows=rows[:_MAX_LISTED],
        total=len(rows),
        texts=texts,
        rooms=rooms,
    )


@router.get("/adjudication/{task_id}")
def show_adjudication_case(request: Request, principal: _TeamUser, task_id: str) -> Response:
    """One disagreement. Labelers have numbers in place of names, completions letters in place of models."""
    with get_site(request).database.read() as db:
        task_detail = adjudication.get_disputed_task(db, task_id)
        hidden_names = get_hidden_model_names(db)
        open_batches = list(
            db.scalars(
                select(Batch).where(Batch.kind == "rank", Batch.state != "closed").order_by(Batch.created_at.desc())
            )
        )
    letters = {each.id: ascii_uppercase[place] for place, each in enumerate(task_detail.completions)}
    ranks = [dict(zip(each.completions, each.ranks, strict=True)) for each in task_detail.rankings]
    proposed_ranks = (
        dict(zip(task_detail.consensus.completions, task_detail.consensus.ranks, strict=True))
        if task_detail.consensus
        else {}
    )
    initial_ranks = task_detail.adjudications[0].ranks if task_detail.adjudications else proposed_ranks
    texts = {each.id: redact_model_names(each.text, hidden_names) for each in task_detail.completions}
    return render_page(
        request,
        principal,
        "adjudicate.html",
        found=task_detail,
        letters=letters,
        ranks=ranks,
        proposed=proposed_ranks,
        start=initial_ranks,
        errors=ERROR_CATEGORIES,
        show=charts,
        text=redact_model_names(task_detail.prompt.text, hidden_names),
        texts=texts,
        others=open_batches,
    )


@router.post("/adjudication/{task_id}")
def adjudicate_task(
    request: Request, principal: _TeamUser, task_id: str, tiers_form: Annotated[TiersForm, Depends(read_tiers_form)]
) -> Response:
    """Settle on a ranking."""
    with get_site(request).database.write() as db:
        adjudication.adjudicate(
            db,
            task_id,
            principal.signed_in_person,
            tiers_form.tiers,
            tiers_form.errors,
            tiers_form.reason,
            current_time_ms(),
        )
    return RedirectResponse(f"/adjudication/{task_id}", status_code=303)


@router.post("/adjudication/{task_id}/gold")
def promote_task_to_gold(
    request: Request, principal: _TeamUser, task_id: str, into: Annotated[str, Form()] = ""
) -> Response:
    """Ask the settled ranking of others as a check."""
    with get_site(request).database.write() as db:
        adjudication.promote_to_gold(db, task_id, principal.signed_in_person, current_time_ms(), into or None)
    return RedirectResponse(f"/adjudication/{task_id}", status_code=303)
