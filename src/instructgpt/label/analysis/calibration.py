"""A calibration room: everybody ranks one task unseen, sees what the others did, talks about it, and ranks it again.

Votes live in tables of their own, so that nothing that was talked about becomes training data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Person, Remark, Room, Task, TaskCompletion, Vote
from instructgpt.label.db.models.quality import ROOM_STAGES
from instructgpt.label.errors import Problem
from instructgpt.label.tasks.forms import dense_ranks

if TYPE_CHECKING:
    from instructgpt.statistics.agreement import Agreement

ROUNDS = {"vote": 0, "again": 1}
"""The stages in which people vote, and which round it is."""
LONGEST = 10_000
"""Characters of a remark."""


def open_room(db: Session, task_id: str, title: str, by: Person) -> Room:
    """A room on a task. Raises Problem 404 when there is none to rank, 422 without a title."""
    task = db.get(Task, task_id)
    if task is None or task.kind != "rank":
        raise Problem(404, "no_such_task")
    if not title.strip():
        raise Problem(422, "empty_message")
    room = Room(task_id=task_id, title=title.strip()[:120], created_by=by.id)
    db.add(room)
    db.flush()
    audit_log.note(db, by.id, "room.opened", room.id, task=task_id)
    return room


def room_of(db: Session, room_id: str) -> Room:
    """A room. Raises Problem 404."""
    room = db.get(Room, room_id)
    if room is None:
        raise Problem(404, "no_such_room")
    return room


def vote(db: Session, room: Room, person: Person, tiers: Mapping[str, int], at: int) -> Vote:
    """Somebody's ranking in the round that runs now; a second one of the same round takes the place of the first.

    Raises:
        Problem: `wrong_stage` (409) when nobody votes now, `bad_ranking` (422) unless every completion has a tier.
    """
    if room.stage not in ROUNDS:
        raise Problem(409, "wrong_stage")
    completions = set(db.scalars(select(TaskCompletion.completion_id).where(TaskCompletion.task_id == room.task_id)))
    if set(tiers) != completions or min(tiers.values(), default=0) < 1:
        raise Problem(422, "bad_ranking")
    placed = [[each for each, tier in tiers.items() if tier == level] for level in sorted(set(tiers.values()))]
    ranks = {completion: rank for completion, (_, rank) in dense_ranks(placed).items()}
    row = db.merge(Vote(room_id=room.id, person_id=person.id, round=ROUNDS[room.stage], ranks=ranks, at=at))
    db.flush()
    return row


def say(db: Session, room: Room, person: Person, body: str, at: int) -> Remark:
    """A line of the talk. Raises Problem unless people talk now, or when nothing, or too much, was said."""
    if room.stage in ("vote", "closed"):
        raise Problem(409, "wrong_stage")
    if not body.strip():
        raise Problem(422, "empty_message")
    if len(body) > LONGEST:
        raise Problem(422, "message_too_long", most=LONGEST)
    remark = Remark(room_id=room.id, author_id=person.id, body=body.strip(), at=at)
    db.add(remark)
    db.flush()
    return remark


def advance(db: Session, room: Room, by: Person, expected: str, at: int) -> None:
    """On to the next stage: vote, talk, vote again, closed. Raises Problem `wrong_stage` when somebody else was quicker."""
    if room.stage != expected or room.stage == "closed":
        raise Problem(409, "wrong_stage")
    room.stage = ROOM_STAGES[ROOM_STAGES.index(room.stage) + 1]
    room.closed_at = at if room.stage == "closed" else None
    db.flush()
    audit_log.note(db, by.id, "room.advanced", room.id, stage=room.stage)


def votes(db: Session, room: Room) -> list[dict[str, dict[str, int]]]:
    """Of each round: person -> {completion: rank}, all of them; who may see them is `revealed`."""
    found: list[dict[str, dict[str, int]]] = [{}, {}]
    for row in db.scalars(select(Vote).where(Vote.room_id == room.id).order_by(Vote.person_id)):
        found[row.round][row.person_id] = dict(row.ranks)
    return found


def revealed(room: Room, number: int) -> bool:
    """Whether the votes of a round can be seen: the first once people talk, the second once the room is closed."""
    return room.stage != "vote" if number == 0 else room.stage == "closed"


def agreement(room: Room, given: Mapping[str, Mapping[str, int]]) -> Agreement:
    """How far the votes of one round agree."""
    from instructgpt.statistics.agreement import agreement as agreeing
    from instructgpt.statistics.pair_judgments import Ranked

    return agreeing([Ranked(room.id, person, list(ranks), list(ranks.values())) for person, ranks in given.items()])
