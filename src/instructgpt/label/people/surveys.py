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

from instructgpt.label.db.models import Person, SurveyParticipation, SurveyReply
from instructgpt.label.errors import SiteError

MIN_SURVEY_REPLIES = 5
"""Replies below which nothing is shown."""


@dataclass(frozen=True, slots=True)
class SurveyItem:
    """One question: its options, of which one or several are chosen. Sentences are in the catalogue."""

    name: str
    options: tuple[str, ...]
    multiple: bool = False


_AGREEMENT_SCALE = ("strongly_agree", "agree", "neither", "disagree", "strongly_disagree")
SURVEYS: dict[str, tuple[SurveyItem, ...]] = {
    "groups": (
        SurveyItem(
            "groups",
            (
                "race",
                "religion",
                "origin",
                "gender",
                "orientation",
                "disability",
                "age",
                "politics",
                "class",
                "body",
                "mental_health",
                "none",
            ),
            multiple=True,
        ),
    ),
    "demographics": (
        SurveyItem("gender", ("male", "female", "other")),
        SurveyItem(
            "ethnicity",
            (
                "white",
                "southeast_asian",
                "east_asian",
                "south_asian",
                "black",
                "latinx",
                "middle_eastern",
                "indigenous",
                "other",
            ),
            multiple=True,
        ),
        SurveyItem("age_group", ("18_24", "25_34", "35_44", "45_54", "55_64", "65_up")),
        SurveyItem("education", ("below_high_school", "high_school", "undergraduate", "masters", "doctorate")),
    ),
    "satisfaction": tuple(
        SurveyItem(name, _AGREEMENT_SCALE) for name in ("clear", "enjoyable", "repetitive", "paid_fairly", "glad")
    ),
}


def get_survey_items(kind: str) -> tuple[SurveyItem, ...]:
    """The questions of a survey. Raises Problem for one that does not exist."""
    if kind not in SURVEYS:
        raise SiteError(404, "not_found")
    return SURVEYS[kind]


def has_replied(db: Session, person: Person, kind: str) -> bool:
    """Whether somebody has replied."""
    return db.get(SurveyParticipation, (person.id, kind)) is not None


def save_survey_reply(db: Session, person: Person, kind: str, answers: Mapping[str, Sequence[str]]) -> None:
    """Keep a reply, and apart from it that this person has replied.

    Args:
        db: a transaction that writes.
        person: who replies, once.
        kind: which survey.
        answers: options by question; a question left out was not answered.

    Raises:
        Problem: this person has replied before, or an answer is none of the options.
    """
    items_by_name = {item.name: item for item in get_survey_items(kind)}
    stored_answers: dict[str, list[str]] = {}
    for name, selected in answers.items():
        item = items_by_name.get(name)
        if item is None or set(selected) - set(item.options) or (len(selected) > 1 and not item.multiple):
            raise SiteError(422, "bad_field", field=name[:40], wrong="none of the options")
        if selected:
            stored_answers[name] = sorted(set(selected))
    if has_replied(db, person, kind):
        raise SiteError(409, "survey_done")
    month = datetime.now(UTC).strftime("%Y-%m")
    db.add(SurveyParticipation(person_id=person.id, kind=kind))
    db.add(SurveyReply(id=secrets.token_hex(16), kind=kind, month=month, answers=stored_answers))
    db.flush()


def count_survey_replies(db: Session, kind: str) -> tuple[int, dict[str, dict[str, int | None]]]:
    """(replies, counts by question and option). None is a count from 1 to 4; with fewer than 5 replies there are no counts at all."""
    survey_items = get_survey_items(kind)
    reply_count = db.scalar(select(func.count()).where(SurveyReply.kind == kind)) or 0
    if reply_count < MIN_SURVEY_REPLIES:
        return reply_count, {}
    replies = db.scalars(select(SurveyReply.answers).where(SurveyReply.kind == kind)).all()
    counts = {
        item.name: Counter(option for answers in replies for option in answers.get(item.name, ()))
        for item in survey_items
    }
    return reply_count, {
        item.name: {option: _suppress_small_count(counts[item.name][option]) for option in item.options}
        for item in survey_items
    }


def _suppress_small_count(count: int) -> int | None:
    """A count as it may be shown."""
    return None if 0 < count < MIN_SURVEY_REPLIES else count
