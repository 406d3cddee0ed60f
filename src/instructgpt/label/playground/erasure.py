"""Erase texts of the playground: *not this one*, *delete all of mine*, and what is older than the retention time.

Turns lose their messages, answers, feedback and samples; prompts of the site that were made of them lose their text and
are withdrawn with their tasks. SQLite runs with `secure_delete`, and the write-ahead log is emptied afterwards, so that
no page of the files holds the text. Labelers' own work (demonstrations, notes) stays, outside every export.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from instructgpt.label.db import audit_log
from instructgpt.label.db.models import (
    CompletionRow,
    PlaygroundAnswer,
    PlaygroundFeedback,
    PlaygroundTurn,
    PlaygroundUser,
    PromptRow,
    RoundSample,
    new_id,
)
from instructgpt.label.db.models.base import DAY_MS
from instructgpt.label.playground.users import end_agreements, lock_user, now_after
from instructgpt.label.tasks.batches import withdraw_prompt

_CHUNK_SIZE = 500


def exclude_turn(db: Session, user_id: str, key: str, now_ms: int) -> int:
    """Erase a turn and everything that followed it in the conversation; return the number of turns, 0 if unknown."""
    lock_user(db, user_id)
    statement = select(PlaygroundTurn).where(PlaygroundTurn.user_id == user_id, PlaygroundTurn.key == key)
    turn = db.scalars(statement).first()
    if turn is None:
        return 0
    turns = [turn, *_load_descendants(db, turn)]
    _erase_turns(db, turns, now_ms)
    audit_log.append_entry(db, user_id, "playground.exclude", turn.id, turns=len(turns))
    return len(turns)


def erase_user_texts(db: Session, user: PlaygroundUser, now_ms: int, until_ms: int | None = None) -> int:
    """Erase everything that a user wrote and got, and end the user's agreements; return the number of turns.

    Args:
        until_ms: turns that began later stay.
    """
    user = lock_user(db, user.id)
    user.erased_at = now_after(user.erased_at) if until_ms is None else max(until_ms, user.erased_at or 0)
    statement = select(PlaygroundTurn).where(PlaygroundTurn.user_id == user.id, PlaygroundTurn.state != "erased")
    if until_ms is not None:
        statement = statement.where(PlaygroundTurn.created_at <= until_ms)
    turns = db.scalars(statement).all()
    _erase_turns(db, turns, now_ms)
    end_agreements(db, user, now_ms)
    audit_log.append_entry(db, user.id, "playground.erase", user.id, turns=len(turns))
    return len(turns)


def erase_texts_of_pseudonym(db: Session, pseudonym: str, now_ms: int, initiated_by: str) -> int:
    """Erase everything of a user for an owner whom the user asked; return the number of turns, 0 for an unknown one."""
    user = db.scalars(select(PlaygroundUser).where(PlaygroundUser.pseudonym == pseudonym)).first()
    if user is None:
        return 0
    count = erase_user_texts(db, user, now_ms)
    if count:
        audit_log.append_entry(db, initiated_by, "privacy.withdraw_user", user.id, prompts=count)
    return count


def erase_expired_turns(db: Session, retention_days: int, now_ms: int) -> int:
    """Erase turns that are older than the retention time and in no batch; return their number."""
    statement = select(PlaygroundTurn).where(
        PlaygroundTurn.created_at < now_ms - retention_days * DAY_MS,
        PlaygroundTurn.state != "erased",
        PlaygroundTurn.round_id.is_(None),
    )
    turns = db.scalars(statement).all()
    if turns:
        _erase_turns(db, turns, now_ms)
        audit_log.append_entry(db, "site", "playground.expire", "", turns=len(turns))
    return len(turns)


def _load_descendants(db: Session, turn: PlaygroundTurn) -> list[PlaygroundTurn]:
    """Return the turns that contain a turn's messages as context."""
    descendants: list[PlaygroundTurn] = []
    parent_ids = [turn.id]
    while parent_ids:
        children = list(db.scalars(select(PlaygroundTurn).where(PlaygroundTurn.parent_id.in_(parent_ids))))
        descendants += children
        parent_ids = [child.id for child in children]
    return descendants


def _erase_turns(db: Session, turns: Sequence[PlaygroundTurn], now_ms: int) -> None:
    for start in range(0, len(turns), _CHUNK_SIZE):
        chunk = turns[start : start + _CHUNK_SIZE]
        ids = [turn.id for turn in chunk]
        for table in (RoundSample, PlaygroundFeedback, PlaygroundAnswer):
            db.execute(delete(table).where(table.turn_id.in_(ids)))
        for turn in chunk:
            turn.messages, turn.personal_data, turn.state = [], [], "erased"
        db.flush()
        _erase_prompts(db, {turn.prompt_id for turn in chunk if turn.prompt_id is not None}, now_ms)


def _erase_prompts(db: Session, prompt_ids: Iterable[str], now_ms: int) -> None:
    """Withdraw the site's prompts and blank their text and completions; rows stay, since tasks refer to them."""
    for prompt in db.scalars(select(PromptRow).where(PromptRow.id.in_(list(prompt_ids)))).all():
        withdraw_prompt(db, prompt, now_ms)
        prompt.text, prompt.messages, prompt.text_hash = "", None, f"erased-{new_id()}"
        prompt.external_id = None
        for completion in db.scalars(select(CompletionRow).where(CompletionRow.prompt_id == prompt.id)):
            values = {"text": "", "text_hash": f"erased-{new_id()}"}
            db.execute(update(CompletionRow).where(CompletionRow.id == completion.id).values(**values))
    db.flush()
