"""Surveys (paper, appendix B.3, and the fourth part of screening, B.1): optional, and not linked to accounts.

A reply is kept without its author, its day or its place in the order of replies; the account only remembers that it has replied.
Counts below five are not shown. Every question can be left out, so that what is hidden cannot be computed from what is shown.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from instructgpt.label.db.models import Person, SurveyDone, SurveyReply
from instructgpt.label.errors import Problem

LEAST = 5
"""Replies below which nothing is shown."""


@dataclass(frozen=True, slots=True)
class Item:
    """One question: its options, of which one or several are chosen. Sentences are in the catalogue."""

    name: str
    options: tuple[str, ...]
    several: bool = False


AGREEMENT = ("strongly_agree", "agree", "neither", "disagree", "strongly_disagree")
SURVEYS: dict[str, tuple[Item, ...]] = {
    "groups": (
        Item(
            "groups",
            (
                "race", "religion", "origin", "gender", "orientation", "disability", "age", "politics", "class", "body", "mental_health",
                "none",
            ),
            several=True,
        ),
    ),
    "demographics": (
        Item("gender", ("male", "female", "other")),
        Item(
            "ethnicity",
            ("white", "southeast_asian", "east_asian", "south_asian", "black", "latinx", "middle_eastern", "indigenous", "other"),
            several=True,
        ),
        Item("age_group", ("18_24", "25_34", "35_44", "45_54", "55_64", "65_up")),
        Item("education", ("below_high_school", "high_school", "undergraduate", "masters", "doctorate")),
    ),
    "satisfaction": tuple(Item(name, AGREEMENT) for name in ("clear", "enjoyable", "repetitive", "paid_fairly", "glad")),
}  # fmt: skip


def items(kind: str) -> tuple[Item, ...]:
    """The questions of a survey. Raises Problem for one that does not exist."""
    if kind not in SURVEYS:
        raise Problem(404, "not_found")
    return SURVEYS[kind]


def is_done(db: Session, person: Person, kind: str) -> bool:
    """Whether somebody has replied."""
    return db.get(SurveyDone, (person.id, kind)) is not None


def reply(db: Session, person: Person, kind: str, answers: Mapping[str, Sequence[str]]) -> None:
    """Keep a reply, and apart from it that this person has replied.

    Args:
        db: a transaction that writes.
        person: who replies, once.
        kind: which survey.
        answers: options by question; a question left out was not answered.

    Raises:
        Problem: this person has replied before, or an answer is none of the options.
    """
    asked = {item.name: item for item in items(kind)}
    kept: dict[str, list[str]] = {}
    for name, chosen in answers.items():
        item = asked.get(name)
        if item is None or set(chosen) - set(item.options) or (len(chosen) > 1 and not item.several):
            raise Problem(422, "bad_field", field=name[:40], wrong="none of the options")
        if chosen:
            kept[name] = sorted(set(chosen))
    if is_done(db, person, kind):
        raise Problem(409, "survey_done")
    month = datetime.now(UTC).strftime("%Y-%m")
    db.add(SurveyDone(person_id=person.id, kind=kind))
    db.add(SurveyReply(id=secrets.token_hex(16), kind=kind, month=month, answers=kept))
    db.flush()


def results(db: Session, kind: str) -> tuple[int, dict[str, dict[str, int | None]]]:
    """(replies, counts by question and option). None is a count from 1 to 4; with fewer than 5 replies there are no counts at all."""
    asked = items(kind)
    number = db.scalar(select(func.count()).where(SurveyReply.kind == kind)) or 0
    if number < LEAST:
        return number, {}
    replies = db.scalars(select(SurveyReply.answers).where(SurveyReply.kind == kind)).all()
    counts = {item.name: Counter(option for answers in replies for option in answers.get(item.name, ())) for item in asked}
    return number, {item.name: {option: hidden(counts[item.name][option]) for option in item.options} for item in asked}


def hidden(count: int) -> int | None:
    """A count as it may be shown."""
    return None if 0 < count < LEAST else count
