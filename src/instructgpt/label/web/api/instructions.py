"""The instructions and their quiz as JSON, for whoever has no page in front of them."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from instructgpt.label.auth import consent
from instructgpt.label.auth.dependencies import Visitor, allow, everyone, site_of
from instructgpt.label.tasks import instructions
from instructgpt.label.web.api.schemas import Given
from instructgpt.label.web.params import existing
from instructgpt.label.web.rendering import language

router = APIRouter(prefix="/api/v1", tags=["labeler"])
Reader = Annotated[Visitor, allow("labeler", "researcher", "owner")]
Purpose = Literal["training", "evaluation"]


class QuestionShown(BaseModel):
    """A question of the quiz, without the answer."""

    text: str
    options: tuple[str, ...]


class InstructionsShown(BaseModel):
    """The newest version of the instructions for a purpose, as Markdown, with its quiz."""

    purpose: str
    version: int
    body: str
    quiz: list[QuestionShown]
    read: bool


class Answers(Given):
    """Numbers of options, from 0, one for each question."""

    version: Annotated[int, Field(ge=1, lt=2**31)]
    answers: Annotated[tuple[Annotated[int, Field(ge=0, lt=100)], ...], Field(max_length=100)]


class Passed(BaseModel):
    """Whether the version counts as read; otherwise the numbers of the questions that were answered wrong, from 0."""

    passed: bool
    wrong: list[int]


class ConsentShown(BaseModel):
    """What a labeler agrees to before any work."""

    version: int | None
    body: str


@router.get("/consent")
def read_consent(request: Request, visitor: Annotated[Visitor, everyone()]) -> ConsentShown:
    """The present text; its version goes with the invitation that is redeemed."""
    with site_of(request).database.read() as db:
        newest = consent.latest(db)
    if newest is None:
        return ConsentShown(version=None, body="")
    return ConsentShown(version=newest.version, body=consent.body(newest, language(request, visitor).language))


@router.get("/instructions/{purpose}")
def read(request: Request, visitor: Reader, purpose: Purpose) -> InstructionsShown:
    """The newest version, in the reader's language where there is a translation."""
    with site_of(request).database.read() as db:
        newest = existing(instructions.latest(db, purpose))
        done = instructions.reading(db, visitor.me, newest) is not None
    mine = instructions.shown(newest, language(request, visitor).language)
    quiz = [QuestionShown(text=each.text, options=each.options) for each in mine.quiz.questions]
    return InstructionsShown(purpose=purpose, version=newest.version, body=mine.body, quiz=quiz, read=done)


@router.post("/instructions/{purpose}")
def answer(request: Request, visitor: Reader, purpose: Purpose, given: Answers) -> Passed:
    """Answer the quiz; with nothing wrong the version counts as read."""
    with site_of(request).database.write() as db:
        text = existing(instructions.version(db, purpose, given.version))
        wrong = instructions.answer(db, visitor.me, text, given.answers)
    return Passed(passed=not wrong, wrong=wrong)
