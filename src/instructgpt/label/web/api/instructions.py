"""The instructions and their quiz as JSON, for whoever has no page in front of them."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from instructgpt.label.auth import consent
from instructgpt.label.auth.dependencies import Principal, get_site, public_access, require
from instructgpt.label.tasks import instructions
from instructgpt.label.web.api.schemas import RequestModel
from instructgpt.label.web.params import or_404
from instructgpt.label.web.rendering import get_translator

router = APIRouter(prefix="/api/v1", tags=["labeler"])
_ConsentedUser = Annotated[Principal, require("labeler", "researcher", "owner")]
_Purpose = Literal["training", "evaluation"]


class QuizQuestionOut(BaseModel):
    """A question of the quiz, without the answer."""

    text: str
    options: tuple[str, ...]


class InstructionsOut(BaseModel):
    """The newest version of the instructions for a purpose, as Markdown, with its quiz."""

    purpose: str
    version: int
    body: str
    quiz: list[QuizQuestionOut]
    read: bool


class QuizAnswers(RequestModel):
    """Numbers of options, from 0, one for each question."""

    version: Annotated[int, Field(ge=1, lt=2**31)]
    answers: Annotated[tuple[Annotated[int, Field(ge=0, lt=100)], ...], Field(max_length=100)]


class QuizResult(BaseModel):
    """Whether the version counts as read; otherwise the numbers of the questions that were answered wrong, from 0."""

    passed: bool
    wrong: list[int]


class ConsentOut(BaseModel):
    """What a labeler agrees to before any work."""

    version: int | None
    body: str


@router.get("/consent")
def get_consent(request: Request, principal: Annotated[Principal, public_access()]) -> ConsentOut:
    """The present text; its version goes with the invitation that is redeemed."""
    with get_site(request).database.read() as db:
        newest = consent.get_latest_consent_text(db)
    if newest is None:
        return ConsentOut(version=None, body="")
    return ConsentOut(
        version=newest.version, body=consent.localized_consent_body(newest, get_translator(request, principal).language)
    )


@router.get("/instructions/{purpose}")
def get_instructions(request: Request, principal: _ConsentedUser, purpose: _Purpose) -> InstructionsOut:
    """The newest version, in the reader's language where there is a translation."""
    with get_site(request).database.read() as db:
        newest = or_404(instructions.get_latest_instructions(db, purpose))
        is_read = instructions.get_instructions_read(db, principal.signed_in_person, newest) is not None
    localized_instructions = instructions.localize_instructions(newest, get_translator(request, principal).language)
    quiz = [QuizQuestionOut(text=each.text, options=each.options) for each in localized_instructions.quiz.questions]
    return InstructionsOut(
        purpose=purpose, version=newest.version, body=localized_instructions.body, quiz=quiz, read=is_read
    )


@router.post("/instructions/{purpose}")
def answer_quiz(request: Request, principal: _ConsentedUser, purpose: _Purpose, body: QuizAnswers) -> QuizResult:
    """Answer the quiz; with nothing wrong the version counts as read."""
    with get_site(request).database.write() as db:
        instructions_version = or_404(instructions.get_instructions_version(db, purpose, body.version))
        wrong = instructions.submit_quiz(db, principal.signed_in_person, instructions_version, body.answers)
    return QuizResult(passed=not wrong, wrong=wrong)
