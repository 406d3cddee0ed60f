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

from instructgpt.errors import one_line
from instructgpt.label.auth import consent
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import AuditLogEntry, Instructions, InstructionsRead, Person
from instructgpt.label.db.models.people import PURPOSES
from instructgpt.label.errors import SiteError

_TEXTS_FOLDER = Path(__file__).parent.parent / "texts"
BUNDLED_LANGUAGES = ("en", "ko")
"""Languages of the texts that come with the site; the first binds."""
_QUIZ_FAILED_ACTION = "instructions.quiz_failed"


class QuizQuestion(BaseModel):
    """One question of a quiz; `right` counts options from 0."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    text: str = Field(min_length=1)
    options: tuple[str, ...] = Field(min_length=2, max_length=8)
    right: int = Field(ge=0)
    why: str = ""

    @model_validator(mode="after")
    def _check_right_option(self) -> Self:
        if self.right >= len(self.options):
            raise ValueError(f"'right' is {self.right}, but options count from 0 to {len(self.options) - 1}")
        return self


class Quiz(BaseModel):
    """What shows that somebody read the instructions. It may have no question."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    questions: tuple[QuizQuestion, ...] = ()


class LocalizedInstructions(BaseModel):
    """Instructions in one language."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    body: str = Field(min_length=1, max_length=200_000)
    quiz: Quiz = Quiz()


def get_latest_instructions(db: Session, purpose: str) -> Instructions | None:
    """The newest version of the instructions for a purpose; None while there are none."""
    return db.scalar(
        select(Instructions).where(Instructions.purpose == purpose).order_by(Instructions.version.desc()).limit(1)
    )


def get_instructions_version(db: Session, purpose: str, number: int) -> Instructions | None:
    """One version."""
    return db.scalar(select(Instructions).where(Instructions.purpose == purpose, Instructions.version == number))


def list_instructions_versions(db: Session, purpose: str) -> Sequence[Instructions]:
    """All versions, newest first."""
    return db.scalars(
        select(Instructions).where(Instructions.purpose == purpose).order_by(Instructions.version.desc())
    ).all()


def has_read_instructions(db: Session, person: Person, purpose: str) -> bool:
    """Whether somebody has read the newest version and passed its quiz; true where there is nothing to read."""
    return get_read_status(db, person, purpose)[1]


def get_read_status(db: Session, person: Person, purpose: str) -> tuple[str | None, bool]:
    """(id of the newest version, whether somebody has read it); (None, True) where there is nothing to read. One statement."""
    has_read = exists().where(
        InstructionsRead.instructions_id == Instructions.id, InstructionsRead.person_id == bindparam("person")
    )
    newest = (
        select(Instructions.id, has_read)
        .where(Instructions.purpose == bindparam("purpose"))
        .order_by(Instructions.version.desc())
    )
    row = db.execute(newest.limit(1), {"person": person.id, "purpose": purpose}).first()
    return (None, True) if row is None else (row[0], bool(row[1]))


def get_instructions_read(db: Session, person: Person, instructions: Instructions) -> InstructionsRead | None:
    """When somebody read a version; None while they have not."""
    return db.scalar(
        select(InstructionsRead).where(
            InstructionsRead.person_id == person.id, InstructionsRead.instructions_id == instructions.id
        )
    )


def localize_instructions(instructions: Instructions, language: str) -> LocalizedInstructions:
    """A version as somebody reads it: in their language where there is a translation."""
    translation: dict[str, Any] | None = instructions.translations.get(language)
    return LocalizedInstructions.model_validate(translation or {"body": instructions.body, "quiz": instructions.quiz})


def add_instructions_version(
    db: Session, purpose: str, texts: Mapping[str, LocalizedInstructions], changes: str, caller_id: str | None
) -> Instructions:
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
        raise SiteError(404, "not_found")
    (language, binding_text), *translations = texts.items()
    for translation_language, text in translations:
        if [question.right for question in text.quiz.questions] != [
            question.right for question in binding_text.quiz.questions
        ]:
            raise SiteError(422, "quiz_differs", language=translation_language)
    previous = get_latest_instructions(db, purpose)
    row = Instructions(
        purpose=purpose,
        version=previous.version + 1 if previous else 1,
        body=binding_text.body,
        quiz=binding_text.quiz.model_dump(mode="json"),
        language=language,
        translations={
            translation_language: text.model_dump(mode="json") for translation_language, text in translations
        },
        changes=changes.strip(),
        created_by=caller_id,
    )
    db.add(row)
    db.flush()
    audit_log.append_entry(db, caller_id or "cli", "instructions.publish", row.id, purpose=purpose, version=row.version)
    return row


def submit_quiz(db: Session, person: Person, instructions: Instructions, answers: Sequence[int | None]) -> list[int]:
    """Take somebody's answers to a quiz: the numbers of those that were wrong. With none wrong the version counts as read.

    Raises:
        Problem: there is a newer version by now.
    """
    newest = get_latest_instructions(db, instructions.purpose)
    if newest is None or newest.id != instructions.id:
        raise SiteError(409, "instructions_changed")
    questions = localize_instructions(instructions, "").quiz.questions
    padded_answers = [*answers, *[None] * (len(questions) - len(answers))]
    wrong = [number for number, question in enumerate(questions) if padded_answers[number] != question.right]
    if wrong:
        audit_log.append_entry(db, person.id, _QUIZ_FAILED_ACTION, instructions.id, wrong=wrong)
    elif get_instructions_read(db, person, instructions) is None:
        failed_attempts = select(func.count()).where(
            AuditLogEntry.object == instructions.id,
            AuditLogEntry.by == person.id,
            AuditLogEntry.action == _QUIZ_FAILED_ACTION,
        )
        db.add(
            InstructionsRead(
                person_id=person.id, instructions_id=instructions.id, attempts=1 + (db.scalar(failed_attempts) or 0)
            )
        )
        db.flush()
        audit_log.append_entry(db, person.id, "instructions.read", instructions.id)
    return wrong


def parse_quiz(text: str) -> Quiz:
    """A quiz from its YAML; nothing is a quiz without questions.

    Raises:
        Problem: it is not YAML, or not a quiz.
    """
    try:
        return Quiz.model_validate(yaml.safe_load(text) or {})
    except yaml.YAMLError as error:
        raise SiteError(422, "bad_quiz", wrong=one_line(error)) from error
    except ValidationError as error:
        first_error = error.errors(include_url=False)[0]
        location = ".".join(map(str, first_error["loc"]))
        raise SiteError(422, "bad_quiz", wrong=f"{location}: {first_error['msg']}") from error


def format_quiz_yaml(quiz: Quiz) -> str:
    """A quiz as YAML, as people edit it."""
    return (
        yaml.safe_dump(quiz.model_dump(mode="json"), allow_unicode=True, sort_keys=False, width=140)
        if quiz.questions
        else ""
    )


def publish_default_texts(db: Session) -> None:
    """The texts that come with the site, where it has none yet: instructions for both purposes and the consent text."""
    for purpose in PURPOSES:
        if get_latest_instructions(db, purpose) is None:
            add_instructions_version(
                db,
                purpose,
                {language: _load_bundled_text(purpose, language) for language in BUNDLED_LANGUAGES},
                "",
                None,
            )
    if consent.get_latest_consent_text(db) is None:
        consent.add_consent_version(
            db,
            {
                language: (_TEXTS_FOLDER / f"consent.{language}.md").read_text(encoding="utf-8")
                for language in BUNDLED_LANGUAGES
            },
            None,
        )


def _load_bundled_text(purpose: str, language: str) -> LocalizedInstructions:
    quiz = parse_quiz((_TEXTS_FOLDER / f"{purpose}.{language}.quiz.yaml").read_text(encoding="utf-8"))
    return LocalizedInstructions(
        body=(_TEXTS_FOLDER / f"{purpose}.{language}.md").read_text(encoding="utf-8"), quiz=quiz
    )
