"""The page of integrations: webhooks, and the outbox with its attempts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Form, Query, Request, Response
from sqlalchemy import select

from instructgpt.label.auth.dependencies import OwnerUser, get_site
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Delivery, Webhook, current_time_ms
from instructgpt.label.errors import SiteError
from instructgpt.label.integrations import outbox, webhooks
from instructgpt.label.integrations.events import EVENT_NAMES, TEST_EVENT, EventName, add_deliveries
from instructgpt.label.web.params import RowId, or_404
from instructgpt.label.web.rendering import redirect, render_page, translate_error

router = APIRouter(prefix="/integrations")

_ROWS_PER_PAGE = 50


@router.get("")
def show_integrations(
    request: Request, _: OwnerUser, before: Annotated[str | None, Query(max_length=36)] = None
) -> Response:
    return _render_integrations(request, before=before)


@router.post("/webhooks")
def add_webhook(
    request: Request,
    principal: OwnerUser,
    url: Annotated[str, Form(max_length=webhooks.MAX_URL_LENGTH)],
    events: Annotated[Sequence[EventName], Form()] = (),
) -> Response:
    """Add a webhook. The answer is the only page that shows its secret."""
    site = get_site(request)
    try:
        webhooks.check_target(url.strip(), site.settings.allowed_networks)
        with site.database.write() as db:
            secret = webhooks.create_webhook(db, url.strip(), events, principal.user.id).secret
    except SiteError as error:
        return _render_integrations(request, error.status, error=translate_error(request, error), url=url)
    return _render_integrations(request, secret=secret)


@router.post("/webhooks/{webhook_id}/revoke")
def remove_webhook(request: Request, principal: OwnerUser, webhook_id: RowId) -> Response:
    with get_site(request).database.write() as db:
        webhooks.revoke_webhook(db, or_404(db.get(Webhook, webhook_id)), principal.user.id)
    return redirect("/integrations")


@router.post("/webhooks/{webhook_id}/test")
def send_test_event(request: Request, _: OwnerUser, webhook_id: RowId) -> Response:
    """Put an event without content into the outbox."""
    with get_site(request).database.write() as db:
        webhook = or_404(db.get(Webhook, webhook_id))
        if webhook.revoked_at is not None:
            raise SiteError(409, "webhook_removed")
        add_deliveries(db, [webhook], TEST_EVENT, {"webhook": webhook.id})
    return redirect("/integrations")


@router.post("/deliveries/{delivery_id}/again")
def repeat_delivery(request: Request, principal: OwnerUser, delivery_id: RowId) -> Response:
    with get_site(request).database.write() as db:
        delivery = or_404(db.get(Delivery, delivery_id))
        outbox.send_again(db, delivery)
        audit_log.append_entry(db, principal.user.id, "delivery.repeat", delivery.id)
    return redirect("/integrations")


def _render_integrations(
    request: Request,
    status: int = 200,
    *,
    before: str | None = None,
    secret: str = "",
    error: str = "",
    url: str = "",
) -> Response:
    """`secret`: of a new webhook, shown this once; `url`: that was refused."""
    site = get_site(request)
    with site.database.read() as db:
        active = db.scalars(select(Webhook).where(Webhook.revoked_at.is_(None)).order_by(Webhook.id)).all()
        rows = outbox.list_deliveries(db, before=before, limit=_ROWS_PER_PAGE + 1)
        urls = {row.id: row.url for row in db.scalars(select(Webhook))}
    return render_page(
        request,
        "owner/integrations.html",
        status,
        webhooks=active,
        event_names=EVENT_NAMES,
        deliveries=rows[:_ROWS_PER_PAGE],
        next_before=rows[_ROWS_PER_PAGE - 1].id if len(rows) > _ROWS_PER_PAGE else None,
        urls=urls,
        secret=secret,
        error=error,
        url=url,
        now_ms=current_time_ms(),
    )
