"""A calibration room: everybody ranks one task unseen, sees what the others did, talks about it, and ranks it again.

Votes live in tables of their own, so that nothing that was talked about becomes training data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.label.db import audit_log
from instructgpt.label.db.models import (
    CalibrationRemark,
    CalibrationRoom,
    CalibrationVote,
    Person,
    Task,
    TaskCompletion,
)
from instructgpt.label.db.models.quality import ROOM_STAGES
from instructgpt.label.errors import SiteError
from instructgpt.label.tasks.forms import tier_ranks

if TYPE_CHECKING:
    from instructgpt.statistics.agreement import Agreement

ROUND_BY_STAGE = {"vote": 0, "again": 1}
"""The stages in which people vote, and which round it is."""
_MAX_REMARK_CHARS = 10_000
"""Characters of a remark."""


def create_calibration_room(db: Session, task_id: str, title: str, moderator: Person) -> CalibrationRoom:
    """A room on a task. Raises Problem 404 when there is none to rank, 422 without a title."""
    task = db.get(Task, task_id)
    if task is None or task.kind != "rank":
        raise SiteError(404, "no_such_task")
    if not title.strip():
        raise SiteError(422, "empty_message")
    room = CalibrationRoom(task_id=task_id, title=title.strip()[:120], created_by=moderator.id)
    db.add(room)
    db.flush()
    audit_log.append_entry(db, moderator.id, "room.opened", room.id, task=task_id)
    return room


def get_room(db: Session, room_id: str) -> CalibrationRoom:
    """A room. Raises Problem 404."""
    room = db.get(CalibrationRoom, room_id)
    if room is None:
        raise SiteError(404, "no_such_room")
    return room


def record_vote(
    db: Session, room: CalibrationRoom, person: Person, tiers: Mapping[str, int], now_ms: int
) -> CalibrationVote:
    """Somebody's ranking in the round that runs now; a second one of the same round takes the place of the first.

    Raises:
        Problem: `wrong_stage` (409) when nobody votes now, `bad_ranking` (422) unless every completion has a tier.
    """
    if room.stage not in ROUND_BY_STAGE:
        raise SiteError(409, "wrong_stage")
    completions = set(db.scalars(select(TaskCompletion.completion_id).where(TaskCompletion.task_id == room.task_id)))
    if set(tiers) != completions or min(tiers.values(), default=0) < 1:
        raise SiteError(422, "bad_ranking")
    tier_groups = [[each for each, tier in tiers.items() if tier == level] for level in sorted(set(tiers.values()))]
    ranks = {completion: rank for completion, (_, rank) in tier_ranks(tier_groups).items()}
    row = db.merge(
        CalibrationVote(room_id=room.id, person_id=person.id, round=ROUND_BY_STAGE[room.stage], ranks=ranks, at=now_ms)
    )
    db.flush()
    return row


def add_remark(db: Session, room: CalibrationRoom, person: Person, body: str, now_ms: int) -> CalibrationRemark:
    """A line of the talk. Raises Problem unless people talk now, or when nothing, or too much, was said."""
    if room.stage in ("vote", "closed"):
        raise SiteError(409, "wrong_stage")
    if not body.strip():
        raise SiteError(422, "empty_message")
    if len(body) > _MAX_REMARK_CHARS:
        raise SiteError(422, "message_too_long", most=_MAX_REMARK_CHARS)
    remark = CalibrationRemark(room_id=room.id, author_id=person.id, body=body.strip(), at=now_ms)
    db.add(remark)
    db.flush()
    return remark


def advance_room_stage(db: Session, room: CalibrationRoom, moderator: Person, expected_stage: str, now_ms: int) -> None:
    """On to the next stage: vote, talk, vote again, closed. Raises Problem `wrong_stage` when somebody else was quicker."""
    if room.stage != expected_stage or room.stage == "closed":
        raise SiteError(409, "wrong_stage")
    room.stage = ROOM_STAGES[ROOM_STAGES.index(room.stage) + 1]
    room.closed_at = now_ms if room.stage == "closed" else None
    db.flush()
    audit_log.append_entry(db, moderator.id, "room.advanced", room.id, stage=room.stage)


def load_room_votes(db: Session, room: CalibrationRoom) -> list[dict[str, dict[str, int]]]:
    """Of each round: person -> {completion: rank}, all of them; who may see them is `revealed`."""
    votes_by_round: list[dict[str, dict[str, int]]] = [{}, {}]
    for row in db.scalars(
        select(CalibrationVote).where(CalibrationVote.room_id == room.id).order_by(CalibrationVote.person_id)
    ):
        votes_by_round[row.round][row.person_id] = dict(row.ranks)
    return votes_by_round


def are_votes_visible(room: CalibrationRoom, round_index: int) -> bool:
    """Whether the votes of a round can be seen: the first once people talk, the second once the room is closed."""
    return room.stage != "vote" if round_index == 0 else room.stage == "closed"


def compute_vote_agreement(room: CalibrationRoom, votes: Mapping[str, Mapping[str, int]]) -> Agreement:
    """How far the votes of one round agree."""
    from instructgpt.statistics.agreement import inter_labeler_agreement as agreeing
    from instructgpt.statistics.pair_judgments import LabelerRanking

    return agreeing(
        [LabelerRanking(room.id, person, list(ranks), list(ranks.values())) for person, ranks in votes.items()]
    )
