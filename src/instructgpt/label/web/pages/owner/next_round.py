"""The page of the next round: the playground's link, users' new prompts, and the button that makes the batch."""

from __future__ import annotations

import threading
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError
from sqlalchemy import func, select
from starlette.concurrency import run_in_threadpool

from instructgpt.label.auth import consent
from instructgpt.label.auth.dependencies import OwnerUser, get_site
from instructgpt.label.context import Site
from instructgpt.label.db.models import (
    Batch,
    PlaygroundAgreement,
    PlaygroundConsentText,
    PlaygroundCount,
    PlaygroundRound,
    PlaygroundUser,
    current_time_ms,
)
from instructgpt.label.errors import SiteError
from instructgpt.label.playground import rounds
from instructgpt.label.playground.endpoint import ModelEndpointError
from instructgpt.label.playground.runtime import Playground
from instructgpt.label.playground.user_rankings import count_feedback, measure_user_agreement
from instructgpt.label.playground.users import ensure_playground_link, renew_playground_link
from instructgpt.label.web.params import get_playground
from instructgpt.label.web.rendering import redirect, render_page
from instructgpt.records import format_validation_error

router = APIRouter(prefix="/next-round")
_MAX_LISTED_USERS = 50
_NUMBER_FIELDS = ("k", "cap", "max_prompts", "temperature", "max_tokens")


@router.get("")
async def show_next_round(request: Request, _: OwnerUser) -> Response:
    playground: Playground | None = request.app.state.playground
    models, error = [], None
    if playground is not None:
        try:
            models = list(await playground.endpoint.list_models())
        except ModelEndpointError as failure:
            error = str(failure)
    return await run_in_threadpool(_render_page, request, models, error)


def _render_page(request: Request, models: list[str], error: str | None) -> Response:
    site = get_site(request)
    is_on = site.settings.endpoint is not None
    link = None
    if is_on:
        with site.database.write() as db:
            link = ensure_playground_link(db)
    base_url = site.settings.public_url or str(request.base_url).rstrip("/")
    return render_page(
        request,
        "owner/next_round.html",
        is_on=is_on,
        link=f"{base_url}/playground/join/{link.token}" if link else "",
        models=models,
        roles=rounds.guess_model_roles(models),
        shares=rounds.default_shares(models),
        error=error,
        defaults=rounds.RoundSettings(shares={}),
        max_listed=_MAX_LISTED_USERS,
        **_load_page_values(site),
    )


def _load_page_values(site: Site) -> dict[str, Any]:
    with site.database.read() as db:
        candidates = rounds.collect_candidates(db)
        text = consent.get_latest_consent_text(db, PlaygroundConsentText)
        version = text.version if text else 0
        agreed = select(func.count(PlaygroundAgreement.user_id.distinct())).where(
            PlaygroundAgreement.version == version, PlaygroundAgreement.withdrawn_at.is_(None)
        )
        not_stored = select(PlaygroundCount.reason, func.sum(PlaygroundCount.count)).group_by(PlaygroundCount.reason)
        return {
            "candidates": candidates,
            "version": version,
            "agreed": db.scalar(agreed),
            "user_count": db.scalar(select(func.count()).select_from(PlaygroundUser)),
            "not_stored": [(reason, int(count)) for reason, count in db.execute(not_stored)],
            "feedback": count_feedback(db),
            "user_agreement": measure_user_agreement(db),
            "rounds": [
                (row, rounds.count_samples(db, row.id), db.get(Batch, row.batch_id) if row.batch_id else None)
                for row in db.scalars(select(PlaygroundRound).order_by(PlaygroundRound.number.desc()))
            ],
        }


@router.post("")
async def make_round(request: Request, principal: OwnerUser) -> Response:
    """Start a round from the form: `share:MODEL` fields, numbers, and the switch for users' answers."""
    playground, form = get_playground(request), await request.form()
    values: dict[str, Any] = {name: form[name] for name in _NUMBER_FIELDS if form.get(name)}
    values["include_answers"] = "include_answers" in form
    try:
        values["shares"] = {
            name.removeprefix("share:"): float(str(value) or "0")
            for name, value in form.items()
            if name.startswith("share:")
        }
        settings = rounds.RoundSettings.model_validate(values)
    except ValidationError as error:
        raise SiteError(422, "bad_input", reason=format_validation_error(error)) from error
    except ValueError as error:
        raise SiteError(422, "bad_shares") from error
    await run_in_threadpool(start_round_thread, get_site(request), playground, settings, principal.user.id)
    return redirect("/next-round")


def start_round_thread(site: Site, playground: Playground, settings: rounds.RoundSettings, caller_id: str) -> None:
    """Create a round and sample it in the background; a restarted site goes on with it."""
    with site.database.write() as db:
        row = rounds.start_round(db, settings, caller_id)
    arguments = (site, playground.endpoint, row.id)
    threading.Thread(target=rounds.run_round, args=arguments, name="round", daemon=True).start()


@router.post("/link")
def renew_link(request: Request, principal: OwnerUser) -> Response:
    get_playground(request)
    with get_site(request).database.write() as db:
        renew_playground_link(db, principal.user.id, current_time_ms())
    return redirect("/next-round")
