"""Instructions, their quiz, and the consent text as JSON."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from instructgpt.label.auth import consent
from instructgpt.label.auth.dependencies import AnyUser, ConsentedUser, get_site
from instructgpt.label.tasks import instructions
from instructgpt.label.web.api.schemas import RequestModel
from instructgpt.label.web.params import or_404
from instructgpt.label.web.rendering import get_translator

router = APIRouter(prefix="/api/v1", tags=["labeler"])
_Purpose = Literal["training", "evaluation"]


class QuizQuestionOut(BaseModel):
    """A quiz question, without the right answer."""

    text: str
    options: tuple[str, ...]


class InstructionsOut(BaseModel):
    """The newest instructions for a purpose: Markdown, and the quiz. `read`: the caller passed this version's quiz."""

    purpose: str
    version: int
    body: str
    quiz: list[QuizQuestionOut]
    read: bool


class QuizAnswers(RequestModel):
    """One option number for each question, from 0."""

    version: Annotated[int, Field(ge=1, lt=2**31)]
    answers: Annotated[tuple[Annotated[int, Field(ge=0, lt=100)], ...], Field(max_length=100)]


class QuizResult(BaseModel):
    """Whether the quiz is passed, and the numbers of wrongly answered questions, from 0."""

    passed: bool
    wrong: list[int]


class ConsentOut(BaseModel):
    """The text that labelers agree to before they work."""

    version: int | None
    body: str


@router.get("/consent")
def get_consent(request: Request, _: AnyUser) -> ConsentOut:
    """Return the consent text; `redeem` expects its version."""
    with get_site(request).database.read() as db:
        newest = consent.get_latest_consent_text(db)
    if newest is None:
        return ConsentOut(version=None, body="")
    body = consent.localized_consent_body(newest, get_translator(request).language)
    return ConsentOut(version=newest.version, body=body)


@router.get("/instructions/{purpose}")
def get_instructions(request: Request, principal: ConsentedUser, purpose: _Purpose) -> InstructionsOut:
    """Return the newest version, in the caller's language if there is a translation."""
    with get_site(request).database.read() as db:
        newest = or_404(instructions.get_latest_instructions(db, purpose))
        is_read = instructions.get_instructions_read(db, principal.user, newest) is not None
    text = instructions.localize_instructions(newest, get_translator(request).language)
    quiz = [QuizQuestionOut(text=question.text, options=question.options) for question in text.quiz.questions]
    return InstructionsOut(purpose=purpose, version=newest.version, body=text.body, quiz=quiz, read=is_read)


@router.post("/instructions/{purpose}")
def answer_quiz(request: Request, principal: ConsentedUser, purpose: _Purpose, body: QuizAnswers) -> QuizResult:
    """Grade the quiz. If all answers are right, the version counts as read."""
    with get_site(request).database.write() as db:
        version = or_404(instructions.get_instructions_version(db, purpose, body.version))
        wrong = instructions.submit_quiz(db, principal.user, version, body.answers)
    return QuizResult(passed=not wrong, wrong=wrong)
