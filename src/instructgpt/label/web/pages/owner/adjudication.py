"""Adjudication of tasks on which labelers disagree; a settled ranking can become a gold task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request, Response
from sqlalchemy import select

from instructgpt.label.analysis import adjudication
from instructgpt.label.analysis.adjudication import ERROR_CATEGORIES
from instructgpt.label.analysis.results import get_hidden_model_names, redact_model_names, redact_turns
from instructgpt.label.auth.dependencies import TeamUser, get_site
from instructgpt.label.db.models import Batch, current_time_ms
from instructgpt.label.errors import SiteError
from instructgpt.label.web.rendering import redirect, render_page

router = APIRouter()
_MAX_LISTED, _PREVIEW_LENGTH, _MAX_REASON = 100, 160, 10_000
_TIER_PREFIX = "tier-"


@dataclass(frozen=True, slots=True)
class TiersForm:
    """A ranking as a form without scripts posts it: one field `tier-<completion>` for each completion, 1 is best."""

    tiers: Mapping[str, int]
    errors: list[str]
    reason: str


async def read_tiers_form(request: Request) -> TiersForm:
    """Read the form. Raises SiteError `bad_ranking` (422) when a tier is not a number."""
    form = await request.form()
    tiers = {
        name.removeprefix(_TIER_PREFIX): value
        for name, value in form.items()
        if name.startswith(_TIER_PREFIX) and isinstance(value, str)
    }
    if not all(value.isascii() and value.isdigit() and len(value) < 3 for value in tiers.values()):
        raise SiteError(422, "bad_ranking")
    errors = [value for value in form.getlist("errors") if isinstance(value, str)]
    reason = str(form.get("reason") or "")[:_MAX_REASON]
    return TiersForm({completion: int(tier) for completion, tier in tiers.items()}, errors, reason)


@router.get("/adjudication")
def show_adjudication_queue(request: Request, _: TeamUser) -> Response:
    with get_site(request).database.read() as db:
        tasks, hidden_names = adjudication.list_disputed_tasks(db), get_hidden_model_names(db)
        rows = tasks[:_MAX_LISTED]
        titles = adjudication.load_task_titles(db, [row.disagreement.task for row in rows])
    texts = {task: redact_model_names(text, hidden_names)[:_PREVIEW_LENGTH] for task, text in titles.items()}
    return render_page(request, "owner/adjudication.html", rows=rows, total=len(tasks), texts=texts)


@router.get("/adjudication/{task_id}")
def show_adjudication_case(request: Request, _: TeamUser, task_id: str) -> Response:
    """Show the rankings of a task side by side: labelers are numbered, completions have letters, nobody is named."""
    is_open = (Batch.kind == "rank", Batch.state != "closed")
    with get_site(request).database.read() as db:
        case, hidden_names = adjudication.get_disputed_task(db, task_id), get_hidden_model_names(db)
        batches = list(db.scalars(select(Batch).where(*is_open).order_by(Batch.created_at.desc())))
    consensus = case.consensus
    proposal = dict(zip(consensus.completions, consensus.ranks, strict=True)) if consensus else {}
    return render_page(
        request,
        "owner/adjudication_case.html",
        case=case,
        letters={row.id: letter for letter, row in zip(ascii_uppercase, case.completions, strict=False)},
        ranks=[dict(zip(ranking.completions, ranking.ranks, strict=True)) for ranking in case.rankings],
        proposal=proposal,
        initial_ranks=case.adjudications[0].ranks if case.adjudications else proposal,
        error_categories=ERROR_CATEGORIES,
        prompt=redact_model_names(case.prompt.text, hidden_names),
        turns=redact_turns(case.prompt.messages, hidden_names),
        texts={row.id: redact_model_names(row.text, hidden_names) for row in case.completions},
        batches=batches,
    )


@router.post("/adjudication/{task_id}")
def adjudicate_task(
    request: Request, principal: TeamUser, task_id: str, form: Annotated[TiersForm, Depends(read_tiers_form)]
) -> Response:
    with get_site(request).database.write() as db:
        adjudication.adjudicate(db, task_id, principal.user, form.tiers, form.errors, form.reason, current_time_ms())
    return redirect(f"/adjudication/{task_id}")


@router.post("/adjudication/{task_id}/gold")
def promote_task_to_gold(
    request: Request, principal: TeamUser, task_id: str, into: Annotated[str, Form()] = ""
) -> Response:
    """Make the settled ranking a gold task of the batch `into`, or of the task's own batch."""
    with get_site(request).database.write() as db:
        adjudication.promote_to_gold(db, task_id, principal.user, current_time_ms(), into or None)
    return redirect(f"/adjudication/{task_id}")
