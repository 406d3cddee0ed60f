"""The instructions for each purpose: versions, translations, a quiz, who has read which version.

A version is never changed, only followed by another, so that every assignment can name the text that applied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from sqlalchemy import bindparam, exists, func, select
from sqlalchemy.orm import Session

from instructgpt.errors import in_one_line
from instructgpt.label.auth import consent
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Instructions, Journal, Person, Reading
from instructgpt.label.db.models.people import PURPOSES
from instructgpt.label.errors import Problem

FOLDER = Path(__file__).parent.parent / "texts"
LANGUAGES = ("en", "ko")
"""Languages of the texts that come with the site; the first binds."""
FAILED = "instructions.quiz_failed"


class Question(BaseModel):
    """One question of a quiz; `right` counts options from 0."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    text: str = Field(min_length=1)
    options: tuple[str, ...] = Field(min_length=2, max_length=8)
    right: int = Field(ge=0)
    why: str = ""

    @model_validator(mode="after")
    def _there(self) -> Self:
        if self.right >= len(self.options):
            raise ValueError(f"'right' is {self.right}, but options count from 0 to {len(self.options) - 1}")
        return self


class Quiz(BaseModel):
    """What shows that somebody read the instructions. It may have no question."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    questions: tuple[Question, ...] = ()


class Text(BaseModel):
    """Instructions in one language."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    body: str = Field(min_length=1, max_length=200_000)
    quiz: Quiz = Quiz()


def latest(db: Session, purpose: str) -> Instructions | None:
    """The newest version of the instructions for a purpose; None while there are none."""
    return db.scalar(select(Instructions).where(Instructions.purpose == purpose).order_by(Instructions.version.desc()).limit(1))


def version(db: Session, purpose: str, number: int) -> Instructions | None:
    """One version."""
    return db.scalar(select(Instructions).where(Instructions.purpose == purpose, Instructions.version == number))


def versions(db: Session, purpose: str) -> Sequence[Instructions]:
    """All versions, newest first."""
    return db.scalars(select(Instructions).where(Instructions.purpose == purpose).order_by(Instructions.version.desc())).all()


def has_read(db: Session, person: Person, purpose: str) -> bool:
    """Whether somebody has read the newest version and passed its quiz; true where there is nothing to read."""
    return standing(db, person, purpose)[1]


def standing(db: Session, person: Person, purpose: str) -> tuple[str | None, bool]:
    """(id of the newest version, whether somebody has read it); (None, True) where there is nothing to read. One statement."""
    read = exists().where(Reading.instructions_id == Instructions.id, Reading.person_id == bindparam("person"))
    newest = select(Instructions.id, read).where(Instructions.purpose == bindparam("purpose")).order_by(Instructions.version.desc())
    found = db.execute(newest.limit(1), {"person": person.id, "purpose": purpose}).first()
    return (None, True) if found is None else (found[0], bool(found[1]))


def reading(db: Session, person: Person, text: Instructions) -> Reading | None:
    """When somebody read a version; None while they have not."""
    return db.scalar(select(Reading).where(Reading.person_id == person.id, Reading.instructions_id == text.id))


def shown(text: Instructions, language: str) -> Text:
    """A version as somebody reads it: in their language where there is a translation."""
    other: dict[str, Any] | None = text.translations.get(language)
    return Text.model_validate(other or {"body": text.body, "quiz": text.quiz})


def publish(db: Session, purpose: str, texts: Mapping[str, Text], changes: str, by: str | None) -> Instructions:
    """The next version, which labelers read before they go on.

    Args:
        db: a transaction that writes.
        purpose: `training` or `evaluation`.
        texts: by language; the first one binds, the others translate it.
        changes: what is new, for those who know the version before.
        by: whose work it is; None is the command line.

    Raises:
        Problem: there is no such purpose, or a translation asks another number of questions, or has other right answers.
    """
    if purpose not in PURPOSES:
        raise Problem(404, "not_found")
    (language, first), *others = texts.items()
    for other, text in others:
        if [question.right for question in text.quiz.questions] != [question.right for question in first.quiz.questions]:
            raise Problem(422, "quiz_differs", language=other)
    before = latest(db, purpose)
    row = Instructions(
        purpose=purpose,
        version=before.version + 1 if before else 1,
        body=first.body,
        quiz=first.quiz.model_dump(mode="json"),
        language=language,
        translations={other: text.model_dump(mode="json") for other, text in others},
        changes=changes.strip(),
        created_by=by,
    )
    db.add(row)
    db.flush()
    audit_log.note(db, by or "cli", "instructions.publish", row.id, purpose=purpose, version=row.version)
    return row


def answer(db: Session, person: Person, text: Instructions, answers: Sequence[int | None]) -> list[int]:
    """Take somebody's answers to a quiz: the numbers of those that were wrong. With none wrong the version counts as read.

    Raises:
        Problem: there is a newer version by now.
    """
    newest = latest(db, text.purpose)
    if newest is None or newest.id != text.id:
        raise Problem(409, "instructions_changed")
    questions = shown(text, "").quiz.questions
    given = [*answers, *[None] * (len(questions) - len(answers))]
    wrong = [number for number, question in enumerate(questions) if given[number] != question.right]
    if wrong:
        audit_log.note(db, person.id, FAILED, text.id, wrong=wrong)
    elif reading(db, person, text) is None:
        tries = select(func.count()).where(Journal.object == text.id, Journal.by == person.id, Journal.action == FAILED)
        db.add(Reading(person_id=person.id, instructions_id=text.id, attempts=1 + (db.scalar(tries) or 0)))
        db.flush()
        audit_log.note(db, person.id, "instructions.read", text.id)
    return wrong


def parse_quiz(written: str) -> Quiz:
    """A quiz from its YAML; nothing is a quiz without questions.

    Raises:
        Problem: it is not YAML, or not a quiz.
    """
    try:
        return Quiz.model_validate(yaml.safe_load(written) or {})
    except yaml.YAMLError as error:
        raise Problem(422, "bad_quiz", wrong=in_one_line(error)) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise Problem(422, "bad_quiz", wrong=f"{place}: {first['msg']}") from error


def written_quiz(quiz: Quiz) -> str:
    """A quiz as YAML, as people edit it."""
    return yaml.safe_dump(quiz.model_dump(mode="json"), allow_unicode=True, sort_keys=False, width=140) if quiz.questions else ""


def publish_defaults(db: Session) -> None:
    """The texts that come with the site, where it has none yet: instructions for both purposes and the consent text."""
    for purpose in PURPOSES:
        if latest(db, purpose) is None:
            publish(db, purpose, {language: _file(purpose, language) for language in LANGUAGES}, "", None)
    if consent.latest(db) is None:
        consent.publish(db, {language: (FOLDER / f"consent.{language}.md").read_text(encoding="utf-8") for language in LANGUAGES}, None)


def _file(purpose: str, language: str) -> Text:
    quiz = parse_quiz((FOLDER / f"{purpose}.{language}.quiz.yaml").read_text(encoding="utf-8"))
    return Text(body=(FOLDER / f"{purpose}.{language}.md").read_text(encoding="utf-8"), quiz=quiz)
