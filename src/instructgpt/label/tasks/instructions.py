"""Immutable versions of the instructions for each purpose, with translations, a quiz, and who has read them."""

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
from instructgpt.label.db.models import (
    AuditLogEntry,
    Instructions,
    InstructionsRead,
    Person,
    PlaygroundConsentText,
)
from instructgpt.label.db.models.people import PURPOSES
from instructgpt.label.errors import SiteError

_TEXTS_FOLDER = Path(__file__).parent.parent / "texts"
BUNDLED_LANGUAGES = ("en", "ko")  # languages of the default texts; the first is binding
_QUIZ_FAILED_ACTION = "instructions.quiz_failed"


class QuizQuestion(BaseModel):
    """One question; `right` is the index of the correct option."""

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
    """The questions about a version; may be empty."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    questions: tuple[QuizQuestion, ...] = ()


class LocalizedInstructions(BaseModel):
    """Instructions in one language."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    body: str = Field(min_length=1, max_length=200_000)
    quiz: Quiz = Quiz()


def get_latest_instructions(db: Session, purpose: str) -> Instructions | None:
    statement = select(Instructions).where(Instructions.purpose == purpose)
    return db.scalar(statement.order_by(Instructions.version.desc()).limit(1))


def get_instructions_version(db: Session, purpose: str, number: int) -> Instructions | None:
    return db.scalar(select(Instructions).where(Instructions.purpose == purpose, Instructions.version == number))


def list_instructions_versions(db: Session, purpose: str) -> Sequence[Instructions]:
    """Return all versions, the newest first."""
    statement = select(Instructions).where(Instructions.purpose == purpose)
    return db.scalars(statement.order_by(Instructions.version.desc())).all()


def has_read_instructions(db: Session, person: Person, purpose: str) -> bool:
    """Return whether a person has read the newest version; True without instructions."""
    return get_read_status(db, person, purpose)[1]


def get_read_status(db: Session, person: Person, purpose: str) -> tuple[str | None, bool]:
    """Return (id of the newest version, whether the person has read it) in one statement; (None, True) without one."""
    receipt = exists().where(InstructionsRead.instructions_id == Instructions.id)
    has_read = receipt.where(InstructionsRead.person_id == bindparam("person"))
    versions = select(Instructions.id, has_read).where(Instructions.purpose == bindparam("purpose"))
    newest = versions.order_by(Instructions.version.desc()).limit(1)
    row = db.execute(newest, {"person": person.id, "purpose": purpose}).first()
    return (None, True) if row is None else (row[0], bool(row[1]))


def get_instructions_read(db: Session, person: Person, instructions: Instructions) -> InstructionsRead | None:
    statement = select(InstructionsRead).where(InstructionsRead.person_id == person.id)
    return db.scalar(statement.where(InstructionsRead.instructions_id == instructions.id))


def localize_instructions(instructions: Instructions, language: str) -> LocalizedInstructions:
    """Return a version in a language, or the binding text where no translation exists."""
    translation: dict[str, Any] | None = instructions.translations.get(language)
    return LocalizedInstructions.model_validate(translation or {"body": instructions.body, "quiz": instructions.quiz})


def add_instructions_version(
    db: Session, purpose: str, texts: Mapping[str, LocalizedInstructions], changes: str, caller_id: str | None
) -> Instructions:
    """Publish a version, which labelers must read before their next task.

    Args:
        texts: by language; the first is binding, the others are its translations.
        changes: what is new since the previous version.
        caller_id: None is the command line.

    Raises:
        SiteError: the purpose is unknown, or a translated quiz has other correct options.
    """
    if purpose not in PURPOSES:
        raise SiteError(404, "not_found")
    (language, binding), *translations = texts.items()
    answers = [question.right for question in binding.quiz.questions]
    for locale, text in translations:
        if [question.right for question in text.quiz.questions] != answers:
            raise SiteError(422, "quiz_differs", language=locale)
    previous = get_latest_instructions(db, purpose)
    row = Instructions(
        purpose=purpose,
        version=previous.version + 1 if previous else 1,
        body=binding.body,
        quiz=binding.quiz.model_dump(mode="json"),
        language=language,
        translations={locale: text.model_dump(mode="json") for locale, text in translations},
        changes=changes.strip(),
        created_by=caller_id,
    )
    db.add(row)
    db.flush()
    audit_log.append_entry(db, caller_id or "cli", "instructions.publish", row.id, purpose=purpose, version=row.version)
    return row


def submit_quiz(db: Session, person: Person, instructions: Instructions, answers: Sequence[int | None]) -> list[int]:
    """Return the indices of wrong answers; without any it counts as read. Raise SiteError for an old version."""
    newest = get_latest_instructions(db, instructions.purpose)
    if newest is None or newest.id != instructions.id:
        raise SiteError(409, "instructions_changed")
    questions = localize_instructions(instructions, "").quiz.questions
    padded_answers = [*answers, *[None] * (len(questions) - len(answers))]
    wrong = [number for number, question in enumerate(questions) if padded_answers[number] != question.right]
    if wrong:
        audit_log.append_entry(db, person.id, _QUIZ_FAILED_ACTION, instructions.id, wrong=wrong)
    elif get_instructions_read(db, person, instructions) is None:
        failed = select(func.count()).where(AuditLogEntry.object == instructions.id, AuditLogEntry.by == person.id)
        attempts = 1 + (db.scalar(failed.where(AuditLogEntry.action == _QUIZ_FAILED_ACTION)) or 0)
        db.add(InstructionsRead(person_id=person.id, instructions_id=instructions.id, attempts=attempts))
        db.flush()
        audit_log.append_entry(db, person.id, "instructions.read", instructions.id)
    return wrong


def parse_quiz(text: str) -> Quiz:
    """Parse a quiz from YAML; empty text is a quiz without questions. Raise SiteError for an invalid one."""
    try:
        return Quiz.model_validate(yaml.safe_load(text) or {})
    except yaml.YAMLError as error:
        raise SiteError(422, "bad_quiz", wrong=one_line(error)) from error
    except ValidationError as error:
        first_error = error.errors(include_url=False)[0]
        location = ".".join(map(str, first_error["loc"]))
        raise SiteError(422, "bad_quiz", wrong=f"{location}: {first_error['msg']}") from error


def format_quiz_yaml(quiz: Quiz) -> str:
    """Format a quiz as YAML for editing."""
    if not quiz.questions:
        return ""
    return yaml.safe_dump(quiz.model_dump(mode="json"), allow_unicode=True, sort_keys=False, width=140)


def publish_default_texts(db: Session) -> None:
    """Publish the bundled instructions and consent text where the site has none."""
    for purpose in PURPOSES:
        if get_latest_instructions(db, purpose) is None:
            texts = {language: _load_bundled_text(purpose, language) for language in BUNDLED_LANGUAGES}
            add_instructions_version(db, purpose, texts, "", None)
    if consent.get_latest_consent_text(db) is None:
        bodies = {language: _read_text(f"consent.{language}.md") for language in BUNDLED_LANGUAGES}
        consent.add_consent_version(db, bodies, None)
    if consent.get_latest_consent_text(db, PlaygroundConsentText) is None:
        bodies = {language: _read_text(f"playground.{language}.md") for language in BUNDLED_LANGUAGES}
        consent.add_consent_version(db, bodies, None, PlaygroundConsentText)


def _load_bundled_text(purpose: str, language: str) -> LocalizedInstructions:
    quiz = parse_quiz(_read_text(f"{purpose}.{language}.quiz.yaml"))
    return LocalizedInstructions(body=_read_text(f"{purpose}.{language}.md"), quiz=quiz)


def _read_text(name: str) -> str:
    return (_TEXTS_FOLDER / name).read_text(encoding="utf-8")
