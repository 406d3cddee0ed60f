"""Store a turn of a conversation: only under an agreement, only once, and only what was itself sent under one.

A conversation contains its earlier messages. A later turn is stored only if they are exactly those of a stored turn of
the same user: messages that were written before the agreement, or that the user excluded, can't come back in a later
prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.data.background_requests import find_background_client
from instructgpt.label.db.models import PlaygroundAnswer, PlaygroundFeedback, PlaygroundTurn, new_random_id
from instructgpt.label.errors import SiteError
from instructgpt.label.playground import hygiene
from instructgpt.label.playground.review import send_to_review
from instructgpt.label.playground.users import find_current_agreement, lock_user
from instructgpt.label.tasks.ingest import replace_unstorable

Turns = Sequence[Mapping[str, str]]
"""Messages as `{"role", "content"}`."""
ExclusionReason = Literal["no_agreement", "background", "retry", "excluded", "context", "no_answer"]
EXCLUSION_REASONS: tuple[ExclusionReason, ...] = (
    "no_agreement",
    "background",
    "retry",
    "excluded",
    "context",
    "no_answer",
)
"""Why a request is not stored. `excluded`: the user said so, or deleted everything after the request began. `context`:
earlier messages are not stored ones."""


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """What a browser sent."""

    key: str
    messages: tuple[dict[str, str], ...]  # the last is the user's
    started_at: int
    parent_key: str | None = None  # the turn that this one continues
    is_retry: bool = False


@dataclass(frozen=True, slots=True)
class SampledAnswer:
    """What the browser displayed at a position of the page, from 0."""

    position: int
    model: str
    checkpoint: str | None
    sampling: dict[str, Any]
    text: str
    finish: str


@dataclass(frozen=True, slots=True)
class StoredTurn:
    turn: PlaygroundTurn
    answers: list[PlaygroundAnswer]


def find_turn(db: Session, user_id: str, key: str) -> StoredTurn | None:
    """Return a user's stored turn; None for one that was never stored or is erased."""
    statement = select(PlaygroundTurn).where(PlaygroundTurn.user_id == user_id, PlaygroundTurn.key == key)
    turn = db.scalars(statement).first()
    if turn is None or turn.state == "erased":
        return None
    return StoredTurn(turn, load_answers(db, turn.id))


def get_turn(db: Session, user_id: str, key: str) -> StoredTurn:
    """Return a user's stored turn; raise SiteError 404."""
    stored = find_turn(db, user_id, key)
    if stored is None:
        raise SiteError(404, "turn_not_stored")
    return stored


def load_answers(db: Session, turn_id: str) -> list[PlaygroundAnswer]:
    """Return the answers to a turn in the order of the page."""
    statement = select(PlaygroundAnswer).where(PlaygroundAnswer.turn_id == turn_id)
    return list(db.scalars(statement.order_by(PlaygroundAnswer.position)))


def store_turn(
    db: Session, user_id: str, session_id: str | None, request: TurnRequest, answers: Sequence[SampledAnswer]
) -> StoredTurn | ExclusionReason:
    """Store a turn with its answers, or return and count why not.

    The agreement is looked up here, in the transaction that stores, and not when the request began.
    """
    user = lock_user(db, user_id)
    messages = [{"role": turn["role"], "content": replace_unstorable(turn["content"])} for turn in request.messages]
    agreement = find_current_agreement(db, session_id) if session_id is not None else None
    statement = select(PlaygroundTurn).where(PlaygroundTurn.user_id == user_id, PlaygroundTurn.key == request.key)
    earlier = db.scalars(statement).first()
    reason: ExclusionReason | None = None
    parent = None
    if agreement is None:
        reason = "no_agreement"
    elif find_background_client(messages) is not None:
        reason = "background"
    elif (earlier is not None and earlier.state == "erased") or (user.erased_at or 0) >= request.started_at:
        reason = "excluded"
    elif earlier is not None or request.is_retry:
        reason = "retry"
    elif not any(answer.text for answer in answers):
        reason = "no_answer"
    elif (parent := _find_parent(db, user_id, request.parent_key, messages)) is None and len(
        _without_system(messages)
    ) > 1:
        reason = "context"
    if reason is not None:
        hygiene.count_not_stored(db, reason, request.started_at)
        return StoredTurn(earlier, load_answers(db, earlier.id)) if reason == "retry" and earlier else reason
    assert agreement is not None
    personal_data = hygiene.find_personal_data(messages)
    turn = PlaygroundTurn(
        key=request.key,
        user_id=user_id,
        agreement_id=agreement.id,
        parent_id=parent.id if parent else None,
        messages=messages,
        personal_data=personal_data,
        created_at=request.started_at,
    )
    db.add(turn)
    db.flush()
    rows = [_build_answer(turn, answer) for answer in answers]
    db.add_all(rows)
    if personal_data:
        send_to_review(db, turn, user.pseudonym)
    db.flush()
    return StoredTurn(turn, rows)


def _build_answer(turn: PlaygroundTurn, answer: SampledAnswer) -> PlaygroundAnswer:
    return PlaygroundAnswer(
        id=new_random_id(),
        turn_id=turn.id,
        position=answer.position,
        model=answer.model,
        checkpoint=answer.checkpoint,
        sampling=answer.sampling,
        text=replace_unstorable(answer.text),
        finish=answer.finish,
    )


def _without_system(messages: Turns) -> list[Mapping[str, str]]:
    """Return the messages without the system prompt, which each request carries."""
    return [turn for turn in messages if turn["role"] != "system"]


def _find_parent(db: Session, user_id: str, key: str | None, messages: Turns) -> PlaygroundTurn | None:
    """Return the stored turn that a conversation continues with one of its answers; None if there is none."""
    stored = find_turn(db, user_id, key) if key is not None else None
    earlier = _without_system(messages)[:-1]
    if stored is None or not earlier or earlier[-1]["role"] != "assistant":
        return None
    if [dict(turn) for turn in earlier[:-1]] != [dict(turn) for turn in _without_system(stored.turn.messages)]:
        return None
    texts = {answer.text for answer in stored.answers}
    edits = select(PlaygroundFeedback.value).where(
        PlaygroundFeedback.turn_id == stored.turn.id, PlaygroundFeedback.kind == "edit"
    )
    texts |= {value["text"] for value in db.scalars(edits)}
    return stored.turn if earlier[-1]["content"] in texts else None
