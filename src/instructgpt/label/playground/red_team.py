"""Send a labeler's red-team prompt to a model of the endpoint, chosen at random and hidden from the labeler."""

from __future__ import annotations

import asyncio
import secrets
import threading
from typing import Any

from sqlalchemy.orm import Session

from instructgpt.label.context import Site
from instructgpt.label.db.models import Assignment, Person, RedTeamAttempt
from instructgpt.label.errors import SiteError
from instructgpt.label.playground.endpoint import Delta, ModelEndpointError
from instructgpt.label.playground.runtime import Playground
from instructgpt.label.tasks.red_team import AttemptView, add_attempt, check_attempt

_MAX_ACTIVE = 8
_active_slots = threading.BoundedSemaphore(_MAX_ACTIVE)
_RETRY_AFTER_S = 5
_MAX_TOKENS = 512


def send_attempt(
    site: Site, playground: Playground | None, person: Person, assignment_id: str, text: str
) -> AttemptView:
    """Answer a prompt by a model, and store both. Blocks until the answer is complete.

    Raises:
        SiteError: as `check_attempt`; the site has no endpoint (409), too many prompts are being answered (429), or
            the endpoint gives no answer (502).
    """
    if playground is None:
        raise SiteError(409, "no_endpoint")
    with site.database.read() as db:
        failure = check_attempt(db, person, assignment_id, text)
    if not _active_slots.acquire(blocking=False):
        raise SiteError(429, "playground_busy", retry_after=_RETRY_AFTER_S)
    try:
        sampling = {"temperature": 1.0, "max_tokens": _MAX_TOKENS, "seed": secrets.randbits(31)}
        model, answer = asyncio.run(_ask(playground, text, sampling))
    except ModelEndpointError as error:
        raise SiteError(502, "endpoint_failed", reason=error.summary) from error
    finally:
        _active_slots.release()
    fields: dict[str, Any] = {"failure": failure, "model": model, "checkpoint": answer.checkpoint, "prompt": text}
    fields |= {"completion": answer.text.replace("\x00", ""), "finish": answer.finish or "stop", "sampling": sampling}

    def store(db: Session) -> AttemptView:
        attempt = RedTeamAttempt(assignment_id=assignment_id, **fields)
        return add_attempt(db, db.get_one(Assignment, assignment_id), attempt)

    return site.database.write_with_retry(store)


async def _ask(playground: Playground, text: str, sampling: dict[str, Any]) -> tuple[str, Delta]:
    model = secrets.choice(await playground.list_offered_models())
    async with playground.endpoint.client() as client:
        messages = [{"role": "user", "content": text}]
        return model, await playground.endpoint.complete_chat(client, model, messages, sampling)
