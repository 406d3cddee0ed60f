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
from instructgpt.label.analysis.adjudication import ERRORS
from instructgpt.label.analysis.results import masked, names_hidden
from instructgpt.label.auth.dependencies import Visitor, allow, site_of
from instructgpt.label.db.models import Batch, Room, now
from instructgpt.label.errors import Problem
from instructgpt.label.web import charts
from instructgpt.label.web.rendering import page

router = APIRouter()
Team = Annotated[Visitor, allow("researcher", "owner")]
SHOWN = 100


@dataclass(frozen=True, slots=True)
class Tiers:
    """A ranking as a form without script sends it: a field `tier-<completion>` each, and what else was filled in."""

    tiers: Mapping[str, int]
    errors: list[str]
    reason: str


async def tiers(request: Request) -> Tiers:
    """Read it. Raises Problem 422 when a tier is no number."""
    form = await request.form()
    placed = {key.removeprefix("tier-"): value for key, value in form.items() if key.startswith("tier-") and isinstance(value, str)}
    if not all(value.isascii() and value.isdigit() and len(value) < 3 for value in placed.values()):
        raise Problem(422, "bad_ranking")
    chosen = [value for value in form.getlist("errors") if isinstance(value, str)]
    return Tiers({key: int(value) for key, value in placed.items()}, chosen, str(form.get("reason") or "")[:10_000])


@router.get("/adjudication")
def waiting(request: Request, visitor: Team) -> Response:
    """Tasks on which labelers went opposite ways."""
    with site_of(request).database.read() as db:
        rows = adjudication.queue(db)
        hidden = names_hidden(db)
        rooms = list(db.scalars(select(Room).order_by(Room.created_at.desc()).limit(20)))
    texts = {row.disagreement.task: masked(row.text, hidden)[:160] for row in rows[:SHOWN]}
    return page(request, visitor, "adjudication.html", show=charts, rows=rows[:SHOWN], total=len(rows), texts=texts, rooms=rooms)


@router.get("/adjudication/{task_id}")
def one_case(request: Request, visitor: Team, task_id: str) -> Response:
    """One disagreement. Labelers have numbers in place of names, completions letters in place of models."""
    with site_of(request).database.read() as db:
        found = adjudication.case(db, task_id)
        hidden = names_hidden(db)
        others = list(db.scalars(select(Batch).where(Batch.kind == "rank", Batch.state != "closed").order_by(Batch.created_at.desc())))
    letters = {each.id: ascii_uppercase[place] for place, each in enumerate(found.completions)}
    ranks = [dict(zip(each.completions, each.ranks, strict=True)) for each in found.rankings]
    proposed = dict(zip(found.proposal.completions, found.proposal.ranks, strict=True)) if found.proposal else {}
    start = found.settled[0].ranks if found.settled else proposed
    texts = {each.id: masked(each.text, hidden) for each in found.completions}
    return page(
        request, visitor, "adjudicate.html", found=found, letters=letters, ranks=ranks, proposed=proposed, start=start, errors=ERRORS,
        show=charts, text=masked(found.prompt.text, hidden), texts=texts, others=others,
    )  # fmt: skip


@router.post("/adjudication/{task_id}")
def settle(request: Request, visitor: Team, task_id: str, given: Annotated[Tiers, Depends(tiers)]) -> Response:
    """Settle on a ranking."""
    with site_of(request).database.write() as db:
        adjudication.settle(db, task_id, visitor.me, given.tiers, given.errors, given.reason, now())
    return RedirectResponse(f"/adjudication/{task_id}", status_code=303)


@router.post("/adjudication/{task_id}/gold")
def promote(request: Request, visitor: Team, task_id: str, into: Annotated[str, Form()] = "") -> Response:
    """Ask the settled ranking of others as a check."""
    with site_of(request).database.write() as db:
        adjudication.promote(db, task_id, visitor.me, now(), into or None)
    return RedirectResponse(f"/adjudication/{task_id}", status_code=303)
