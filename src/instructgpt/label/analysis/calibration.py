"""Calibration rooms: labelers rank one task independently, see each other's rankings, discuss them, and rank it again.

Votes have a table of their own, so that a discussed ranking never becomes training data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.label.analysis.rankings import ranks_from_tiers
from instructgpt.label.db import audit_log
from instructgpt.label.db.models.people import Person
from instructgpt.label.db.models.quality import ROOM_STAGES, CalibrationRemark, CalibrationRoom, CalibrationVote
from instructgpt.label.db.models.tasks import Task
from instructgpt.label.errors import SiteError

if TYPE_CHECKING:
    from instructgpt.statistics.agreement import Agreement

ROUND_BY_STAGE = {"vote": 0, "again": 1}
"""The voting stages and the index of their round."""
_MAX_REMARK_CHARS = 10_000


def create_calibration_room(db: Session, task_id: str, title: str, moderator: Person) -> CalibrationRoom:
    """Create a room for a rank task. Raises SiteError `no_such_task` (404) or `empty_message` (422)."""
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
    room = db.get(CalibrationRoom, room_id)
    if room is None:
        raise SiteError(404, "no_such_room")
    return room


def record_vote(
    db: Session, room: CalibrationRoom, person: Person, tiers: Mapping[str, int], now_ms: int
) -> CalibrationVote:
    """Store a vote in the current round; it replaces the person's earlier vote of that round.

    Raises:
        SiteError: `wrong_stage` (409) outside voting stages, `bad_ranking` (422) unless every completion has a tier.
    """
    if room.stage not in ROUND_BY_STAGE:
        raise SiteError(409, "wrong_stage")
    ranks = ranks_from_tiers(db, room.task_id, tiers)
    index = ROUND_BY_STAGE[room.stage]
    row = db.merge(CalibrationVote(room_id=room.id, person_id=person.id, round=index, ranks=ranks, at=now_ms))
    db.flush()
    return row


def add_remark(db: Session, room: CalibrationRoom, person: Person, body: str, now_ms: int) -> CalibrationRemark:
    """Add a remark to the discussion. Raises SiteError `wrong_stage`, `empty_message` or `message_too_long`."""
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
    """Advance to the next of ROOM_STAGES. Raises SiteError `wrong_stage` if the room left the expected stage."""
    if room.stage != expected_stage or room.stage == "closed":
        raise SiteError(409, "wrong_stage")
    room.stage = ROOM_STAGES[ROOM_STAGES.index(room.stage) + 1]
    room.closed_at = now_ms if room.stage == "closed" else None
    db.flush()
    audit_log.append_entry(db, moderator.id, "room.advanced", room.id, stage=room.stage)


def load_room_votes(db: Session, room: CalibrationRoom) -> list[dict[str, dict[str, int]]]:
    """Return person -> {completion: rank} for each of the two rounds; `are_votes_visible` says which may be shown."""
    votes_by_round: list[dict[str, dict[str, int]]] = [{}, {}]
    statement = select(CalibrationVote).where(CalibrationVote.room_id == room.id).order_by(CalibrationVote.person_id)
    for row in db.scalars(statement):
        votes_by_round[row.round][row.person_id] = dict(row.ranks)
    return votes_by_round


def are_votes_visible(room: CalibrationRoom, round_index: int) -> bool:
    """Return whether a round's votes may be shown: the first from the discussion on, the second after closing."""
    return room.stage != "vote" if round_index == 0 else room.stage == "closed"


def compute_vote_agreement(room: CalibrationRoom, votes: Mapping[str, Mapping[str, int]]) -> Agreement:
    from instructgpt.statistics.agreement import inter_labeler_agreement
    from instructgpt.statistics.pair_judgments import LabelerRanking

    rankings = [LabelerRanking(room.id, person, list(ranks), list(ranks.values())) for person, ranks in votes.items()]
    return inter_labeler_agreement(rankings)
