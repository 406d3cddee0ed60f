"""Optional surveys (paper, B.3, and the fourth part of screening, B.1), not linked to accounts.

A reply is stored without author, day or order of arrival; the account only records that it has replied. Counts below
five are hidden. All questions are optional, so that hidden counts cannot be computed from the shown ones.
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

MIN_SURVEY_REPLIES = 5  # counts below it are hidden


@dataclass(frozen=True, slots=True)
class SurveyItem:
    """A question and its options; the catalog has their texts."""

    name: str
    options: tuple[str, ...]
    multiple: bool = False


_AGREEMENT_SCALE = ("strongly_agree", "agree", "neither", "disagree", "strongly_disagree")
_GROUPS = ("race", "religion", "origin", "gender", "orientation", "disability", "age", "politics", "class", "body")
_ETHNICITIES = (
    "white",
    "southeast_asian",
    "east_asian",
    "south_asian",
    "black",
    "latinx",
    "middle_eastern",
    "indigenous",
)
SURVEYS: dict[str, tuple[SurveyItem, ...]] = {
    "groups": (SurveyItem("groups", (*_GROUPS, "mental_health", "none"), multiple=True),),
    "demographics": (
        SurveyItem("gender", ("male", "female", "other")),
        SurveyItem("ethnicity", (*_ETHNICITIES, "other"), multiple=True),
        SurveyItem("age_group", ("18_24", "25_34", "35_44", "45_54", "55_64", "65_up")),
        SurveyItem("education", ("below_high_school", "high_school", "undergraduate", "masters", "doctorate")),
    ),
    "satisfaction": tuple(
        SurveyItem(name, _AGREEMENT_SCALE) for name in ("clear", "enjoyable", "repetitive", "paid_fairly", "glad")
    ),
}


def get_survey_items(kind: str) -> tuple[SurveyItem, ...]:
    """Return the questions of a survey; raise SiteError for an unknown one."""
    if kind not in SURVEYS:
        raise SiteError(404, "not_found")
    return SURVEYS[kind]


def has_replied(db: Session, person: Person, kind: str) -> bool:
    return db.get(SurveyParticipation, (person.id, kind)) is not None


def save_survey_reply(db: Session, person: Person, kind: str, answers: Mapping[str, Sequence[str]]) -> None:
    """Store a reply and, apart from it, that this person has replied.

    Args:
        answers: selected options by question; unanswered questions are left out.

    Raises:
        SiteError: the person has replied before, or an option is unknown.
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
    """Return (replies, counts by question and option): None hides a count from 1 to 4; no counts below 5 replies."""
    survey_items = get_survey_items(kind)
    reply_count = db.scalar(select(func.count()).where(SurveyReply.kind == kind)) or 0
    if reply_count < MIN_SURVEY_REPLIES:
        return reply_count, {}
    replies = db.scalars(select(SurveyReply.answers).where(SurveyReply.kind == kind)).all()
    visible: dict[str, dict[str, int | None]] = {}
    for item in survey_items:
        counts = Counter(option for answers in replies for option in answers.get(item.name, ()))
        visible[item.name] = {
            option: None if 0 < counts[option] < MIN_SURVEY_REPLIES else counts[option] for option in item.options
        }
    return reply_count, visible
