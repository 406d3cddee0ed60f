"""The playground for its page: send a message and stream the answers, stop, exclude, feedback.

Answers come as server-sent events through the site; browsers never see the endpoint or its key.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Path, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from instructgpt.label.auth import rate_limits
from instructgpt.label.auth.dependencies import AnyUser, get_site
from instructgpt.label.context import Site
from instructgpt.label.db.models import PlaygroundAnswer, current_time_ms
from instructgpt.label.errors import SiteError
from instructgpt.label.markdown import render_markdown
from instructgpt.label.playground import erasure, feedback, hygiene
from instructgpt.label.playground.endpoint import ModelEndpointError
from instructgpt.label.playground.runtime import Playground
from instructgpt.label.playground.streaming import (
    MAX_ANSWERS,
    Event,
    TurnStream,
    create_turn_stream,
    finish_event,
    stream_answers,
)
from instructgpt.label.playground.turns import StoredTurn, TurnRequest, find_turn, store_turn
from instructgpt.label.playground.users import Visitor
from instructgpt.label.web.api.schemas import RequestModel
from instructgpt.label.web.params import get_playground, get_visitor
from instructgpt.records import Message

MAX_MESSAGES, MAX_MESSAGE_LENGTH, MAX_CONVERSATION_LENGTH = 200, 16_000, 64_000
_MAX_BODY_BYTES = 400_000
_MAX_TOKENS = 4_096

router = APIRouter(prefix="/api/v1/playground", tags=["playground"], max_body_size=_MAX_BODY_BYTES)
TurnKey = Annotated[str, Path(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
_KeyText = Annotated[str, Field(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
_ResultT = TypeVar("_ResultT")
_EVENT_HEADERS = {"X-Accel-Buffering": "no"}  # nginx would hold the events back


class PlaygroundMessage(RequestModel):
    """A message with the conversation before it. `key` is new for each message and the same for a retry."""

    key: _KeyText
    messages: Annotated[tuple[Message, ...], Field(min_length=1, max_length=MAX_MESSAGES)]
    parent: _KeyText | None = None
    answers: Annotated[int, Field(ge=1, le=MAX_ANSWERS)] = 2
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Annotated[int, Field(ge=1, le=_MAX_TOKENS)] = 512

    @property
    def turns(self) -> tuple[dict[str, str], ...]:
        """The messages without an empty system prompt. Raises SiteError 422 unless the last one is the user's."""
        turns = tuple(
            {"role": str(message.role), "content": message.content}
            for message in self.messages
            if message.role != "system" or message.content.strip()
        )
        if not turns or turns[-1]["role"] != "user" or not turns[-1]["content"].strip():
            raise SiteError(422, "empty_message")
        if len(turns[-1]["content"]) > MAX_MESSAGE_LENGTH:
            raise SiteError(422, "message_too_long", most=MAX_MESSAGE_LENGTH)
        if sum(len(turn["content"]) for turn in turns) > MAX_CONVERSATION_LENGTH:
            raise SiteError(422, "conversation_too_long", most=MAX_CONVERSATION_LENGTH)
        return turns


class RankingRequest(RequestModel):
    """Ranks by answer id: 1 is best, equal ranks tie. `all_bad`: none of the answers is acceptable."""

    kind: Literal["ranking"]
    ranks: dict[Annotated[str, Field(max_length=36)], Annotated[int, Field(ge=1, le=MAX_ANSWERS)]]
    all_bad: bool = False


class EditRequest(RequestModel):
    kind: Literal["edit"]
    answer: Annotated[str, Field(max_length=36)]
    text: Annotated[str, Field(max_length=feedback.MAX_EDIT_LENGTH)]


class ThumbRequest(RequestModel):
    kind: Literal["thumb"]
    answer: Annotated[str, Field(max_length=36)]
    up: bool


class ReportRequest(RequestModel):
    kind: Literal["report"]
    reason: Annotated[str, Field(max_length=feedback.MAX_REASON_LENGTH)] = ""


FeedbackRequest = Annotated[RankingRequest | EditRequest | ThumbRequest | ReportRequest, Field(discriminator="kind")]


class RevealedAnswer(BaseModel):
    """An answer's id and its model, after the ranking."""

    answer: str
    model: str


class FeedbackOut(BaseModel):
    """`models`: after a ranking, which model wrote each answer. `html`: after an edit, its text as Markdown."""

    models: list[RevealedAnswer]
    html: str | None = None


class StoppedOut(BaseModel):
    stopped: bool


class ErasedOut(BaseModel):
    turns: int


@router.post("/turns", response_class=StreamingResponse)
async def send_message(request: Request, _: AnyUser, body: PlaygroundMessage) -> StreamingResponse:
    """Sample the answers to a message and stream them as server-sent events; store them if the user agreed."""
    site, playground = get_site(request), get_playground(request)
    messages = body.turns
    visitor, stored = await run_in_threadpool(_begin_turn, request, body.key)
    if stored is not None:
        if [*messages] != stored.turn.messages:
            raise SiteError(409, "turn_key_used")
        return _stream(_replay(stored))
    try:
        models = await playground.list_offered_models()
    except ModelEndpointError as error:
        raise SiteError(502, "endpoint_failed", reason=str(error)) from error
    sampling = body.model_dump(include={"temperature", "top_p", "max_tokens"})
    turn_request = TurnRequest(
        key=body.key,
        messages=messages,
        started_at=current_time_ms(),
        parent_key=body.parent,
        is_retry=hygiene.is_retry(request.headers),
    )
    turn = create_turn_stream(models, body.answers, sampling)
    playground.check_capacity(visitor.user.id, body.key)
    return _stream(_sample_and_store(site, playground, visitor, turn_request, turn))


def _begin_turn(request: Request, key: str) -> tuple[Visitor, StoredTurn | None]:
    """Return the user and the turn that an earlier request with this key stored; raise SiteError 429."""
    visitor, site = get_visitor(request), get_site(request)
    with site.database.write() as db:
        limit, now_ms = rate_limits.PLAYGROUND_LIMIT, current_time_ms()
        is_allowed = rate_limits.consume_token(db, limit, visitor.user.id, now_ms)
        stored = find_turn(db, visitor.user.id, key)
        if stored is not None:
            hygiene.count_not_stored(db, "retry", now_ms)
    if not is_allowed:
        raise SiteError(429, "too_often")
    return visitor, stored


def _stream(events: AsyncIterator[str]) -> StreamingResponse:
    return StreamingResponse(events, media_type="text/event-stream", headers=_EVENT_HEADERS)


def _format_event(event: Event) -> str:
    return f"data: {json.dumps(event, ensure_ascii=False)}\n\n"


async def _sample_and_store(
    site: Site, playground: Playground, visitor: Visitor, request: TurnRequest, turn: TurnStream
) -> AsyncIterator[str]:
    """Yield the events of a turn; the last one says whether the turn is stored, after it is."""
    yield _format_event({"answers": len(turn.answers)})
    with playground.activate(visitor.user.id, request.key, turn):
        async for event in stream_answers(playground.endpoint, turn, request.messages):
            yield ": ping\n\n" if event is None else _format_event(event)
    session_id = visitor.session.id if visitor.session else None

    def store(db: Session) -> Any:
        return store_turn(db, visitor.user.id, session_id, request, turn.sampled_answers())

    try:
        result = await run_in_threadpool(site.database.write_with_retry, store)
    except Exception as error:
        yield _format_event({"done": True, "stored": False, "reason": "failed"})
        raise error from None
    if isinstance(result, StoredTurn):
        yield _format_event(_stored_event(result))
    else:
        models = {position: row.model for position, row in enumerate(turn.answers)}
        yield _format_event({"done": True, "stored": False, "reason": result, "models": models})


async def _replay(stored: StoredTurn) -> AsyncIterator[str]:
    """Yield the events of a stored turn, for a browser that lost them."""
    yield _format_event({"answers": 1 + max(answer.position for answer in stored.answers)})
    for answer in stored.answers:
        yield _format_event({"answer": answer.position, "text": answer.text})
        yield _format_event(await finish_event(answer.position, answer.text, answer.finish))
    yield _format_event(_stored_event(stored))


def _stored_event(stored: StoredTurn) -> Event:
    ids = {answer.position: answer.id for answer in stored.answers}
    return {"done": True, "stored": True, "ids": ids, "state": stored.turn.state}


@router.post("/turns/{key}/stop")
async def stop_turn(request: Request, _: AnyUser, key: TurnKey) -> StoppedOut:
    """Stop the answers to a message where they are."""
    visitor = await run_in_threadpool(get_visitor, request)
    return StoppedOut(stopped=get_playground(request).stop(visitor.user.id, key))


@router.post("/turns/{key}/exclude")
def exclude_message(request: Request, _: AnyUser, key: TurnKey) -> ErasedOut:
    """Erase a message (*not this one*) and what followed it in the conversation."""
    visitor, site = get_visitor(request), get_site(request)
    with site.database.write() as db:
        count = erasure.exclude_turn(db, visitor.user.id, key, current_time_ms())
    site.database.purge_deleted()
    return ErasedOut(turns=count)


@router.post("/turns/{key}/feedback")
def send_feedback(request: Request, _: AnyUser, key: TurnKey, body: FeedbackRequest) -> FeedbackOut:
    """Store feedback on a stored turn; a ranking is answered with the models' names."""
    visitor = get_visitor(request)

    def save(save_kind: Callable[[Session], _ResultT]) -> _ResultT:
        return get_site(request).database.write_with_retry(save_kind)

    answers: list[PlaygroundAnswer] = []
    html = None
    if isinstance(body, RankingRequest):
        ranks, all_bad = body.ranks, body.all_bad
        answers = save(lambda db: feedback.save_user_ranking(db, visitor, key, ranks, all_bad=all_bad))
    elif isinstance(body, EditRequest):
        edit = body
        save(lambda db: feedback.save_user_edit(db, visitor, key, edit.answer, edit.text))
        html = str(render_markdown(edit.text))
    elif isinstance(body, ThumbRequest):
        thumb = body
        save(lambda db: feedback.save_user_thumb(db, visitor, key, thumb.answer, up=thumb.up))
    else:
        reason = body.reason
        save(lambda db: feedback.save_user_report(db, visitor, key, reason))
    return FeedbackOut(models=[RevealedAnswer(answer=row.id, model=row.model) for row in answers], html=html)


@router.get("/data")
def download_playground_data(request: Request, _: AnyUser) -> JSONResponse:
    """Return everything that is stored of the user, as a file."""
    visitor = get_visitor(request)
    with get_site(request).database.read() as db:
        turns = feedback.load_user_data(db, visitor)
    headers = {"Content-Disposition": 'attachment; filename="playground.json"'}
    return JSONResponse({"user": visitor.user.pseudonym, "turns": turns}, headers=headers)
