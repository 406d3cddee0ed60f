"""Feedback of users on stored turns: rankings with ties or *all bad*, edits, thumbs, reports.

Only rankings and edits can become training data, and only behind the switch of the export. A thumb is an event. A
report sends the prompt to the labelers' review.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from instructgpt.label.db.models import PlaygroundAnswer, PlaygroundFeedback, PlaygroundTurn, current_time_ms
from instructgpt.label.db.models.playground import FeedbackKind
from instructgpt.label.errors import SiteError
from instructgpt.label.playground.hygiene import find_personal_data
from instructgpt.label.playground.review import send_to_review
from instructgpt.label.playground.turns import StoredTurn, get_turn, load_answers
from instructgpt.label.playground.users import Visitor, lock_user
from instructgpt.label.tasks.ingest import replace_unstorable

MAX_EDIT_LENGTH, MAX_REASON_LENGTH = 32_000, 2_000


def save_user_ranking(
    db: Session, visitor: Visitor, key: str, ranks: Mapping[str, int], *, all_bad: bool
) -> list[PlaygroundAnswer]:
    """Store a ranking of all answers to a turn (1 is best, equal ranks tie) and return the answers.

    Raises:
        SiteError: 404 unless the turn is stored; 403 without an agreement; 422 unless each answer has a rank.
    """
    stored = _get_own_turn(db, visitor, key)
    ids = {answer.id for answer in stored.answers}
    if set(ranks) != ids or len(ids) < 2 or min(ranks.values()) < 1:
        raise SiteError(422, "bad_ranking")
    levels = sorted(set(ranks.values()))
    dense_ranks = {answer_id: 1 + levels.index(rank) for answer_id, rank in sorted(ranks.items())}
    _add_feedback(db, stored, "ranking", None, {"ranks": dense_ranks, "all_bad": all_bad})
    return stored.answers


def save_user_edit(db: Session, visitor: Visitor, key: str, answer_id: str, text: str) -> None:
    """Store a user's better version of an answer; raise SiteError as `save_user_ranking`."""
    stored = _get_own_turn(db, visitor, key)
    answer = _get_answer(stored, answer_id)
    text = replace_unstorable(text)
    if not text.strip() or text.strip() == answer.text.strip() or len(text) > MAX_EDIT_LENGTH:
        raise SiteError(422, "bad_edit", most=MAX_EDIT_LENGTH)
    personal_data = find_personal_data([{"role": "user", "content": text}])
    _add_feedback(db, stored, "edit", answer_id, {"text": text, "personal_data": personal_data})


def save_user_thumb(db: Session, visitor: Visitor, key: str, answer_id: str, *, up: bool) -> None:
    """Store a thumb, which is counted and trains nothing; raise SiteError as `save_user_ranking`."""
    stored = _get_own_turn(db, visitor, key)
    _add_feedback(db, stored, "thumb", _get_answer(stored, answer_id).id, {"up": up})


def save_user_report(db: Session, visitor: Visitor, key: str, reason: str) -> None:
    """Store a report and send the prompt to review; raise SiteError as `save_user_ranking`."""
    stored = _get_own_turn(db, visitor, key)
    _add_feedback(db, stored, "report", None, {"reason": replace_unstorable(reason)[:MAX_REASON_LENGTH]})
    send_to_review(db, stored.turn, visitor.user.pseudonym)


def _get_own_turn(db: Session, visitor: Visitor, key: str) -> StoredTurn:
    lock_user(db, visitor.user.id)  # not beside an erasure
    if visitor.agreement is None:
        raise SiteError(403, "playground_consent")
    return get_turn(db, visitor.user.id, key)


def _get_answer(stored: StoredTurn, answer_id: str) -> PlaygroundAnswer:
    answer = next((row for row in stored.answers if row.id == answer_id), None)
    if answer is None:
        raise SiteError(404, "turn_not_stored")
    return answer


def _add_feedback(
    db: Session, stored: StoredTurn, kind: FeedbackKind, answer_id: str | None, value: dict[str, Any]
) -> None:
    """Add a row that replaces the user's earlier feedback of this kind on the same answer."""
    turn_id = stored.turn.id
    of_answer = PlaygroundFeedback.answer_id
    same = [
        PlaygroundFeedback.turn_id == turn_id,
        PlaygroundFeedback.kind == kind,
        of_answer.is_(None) if answer_id is None else of_answer == answer_id,
    ]
    current = update(PlaygroundFeedback).where(*same, PlaygroundFeedback.replaced_at.is_(None))
    db.execute(current.values(replaced_at=current_time_ms()))
    db.add(PlaygroundFeedback(turn_id=turn_id, answer_id=answer_id, kind=kind, value=value))
    db.flush()


def load_user_data(db: Session, visitor: Visitor) -> list[dict[str, Any]]:
    """Return everything that is stored of a user, for the user to read; model names are left out."""
    statement = select(PlaygroundTurn).where(
        PlaygroundTurn.user_id == visitor.user.id, PlaygroundTurn.state != "erased"
    )
    rows = []
    for turn in db.scalars(statement.order_by(PlaygroundTurn.id)):
        feedback = db.scalars(
            select(PlaygroundFeedback).where(PlaygroundFeedback.turn_id == turn.id).order_by(PlaygroundFeedback.id)
        )
        rows.append(
            {
                "created_at": turn.created_at,
                "messages": turn.messages,
                "answers": [answer.text for answer in load_answers(db, turn.id)],
                "feedback": [{"kind": row.kind, **row.value, "created_at": row.created_at} for row in feedback],
            }
        )
    return rows
