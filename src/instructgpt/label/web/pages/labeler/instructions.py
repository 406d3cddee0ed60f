"""Reading the instructions, their quiz, and writing the next version."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from instructgpt.label.auth import consent
from instructgpt.label.auth.dependencies import Visitor, allow, site_of
from instructgpt.label.db.models import Instructions
from instructgpt.label.db.models.people import PURPOSES
from instructgpt.label.errors import Problem
from instructgpt.label.safe_text import rendered
from instructgpt.label.tasks import instructions
from instructgpt.label.tasks.instructions import LANGUAGES, Quiz, Text, parse_quiz, written_quiz
from instructgpt.label.web.rendering import language, page, redirect

router = APIRouter()

Reader = Annotated[Visitor, allow("labeler", "researcher", "owner")]
Editor = Annotated[Visitor, allow("researcher", "owner")]
Owner = Annotated[Visitor, allow("owner")]
Body = Annotated[str, Form(max_length=200_000)]


@router.get("/instructions")
def overview(request: Request, visitor: Reader) -> Response:
    """Both purposes, and what this person has read."""
    with site_of(request).database.read() as db:
        rows = [
            (purpose, newest, instructions.reading(db, visitor.me, newest))
            for purpose in PURPOSES
            if (newest := instructions.latest(db, purpose)) is not None
        ]
    return page(request, visitor, "instructions.html", rows=rows)


@router.get("/instructions/{purpose}")
def read(request: Request, visitor: Reader, purpose: str, version: int | None = None) -> Response:
    """A version with its quiz; the newest unless another is asked for."""
    return reading_page(request, visitor, purpose, version)


@router.post("/instructions/{purpose}")
async def take_quiz(request: Request, visitor: Reader, purpose: str) -> Response:
    """Check the answers: field `answer-<question>` holds the number of an option, both from 0."""
    form = await request.form()
    number = form.get("version", "")
    if not isinstance(number, str) or not number.isdigit():
        raise Problem(422, "bad_field", field="version", wrong="expected a number")
    answers: dict[int, int] = {}
    for name, value in form.items():
        question = name.removeprefix("answer-")
        if question != name and question.isdecimal() and isinstance(value, str) and value.isdecimal() and len(question + value) < 9:
            answers[int(question)] = int(value)
    return await run_in_threadpool(check_quiz, request, visitor, purpose, int(number[:9]), answers)


def check_quiz(request: Request, visitor: Visitor, purpose: str, version: int, answers: dict[int, int]) -> Response:
    """Note the version as read, or show which answers were wrong and why."""
    with site_of(request).database.write() as db:
        text = instructions.version(db, purpose, version)
        if text is None:
            raise Problem(404, "not_found")
        wrong = instructions.answer(db, visitor.me, text, [answers.get(number) for number in range(1 + max(answers, default=-1))])
    if wrong:
        return reading_page(request, visitor, purpose, version, wrong, answers)
    return redirect(f"/instructions/{purpose}")


def reading_page(
    request: Request,
    visitor: Visitor,
    purpose: str,
    version: int | None,
    wrong: list[int] | None = None,
    answers: dict[int, int] | None = None,
) -> Response:
    """A version with its quiz, and what was wrong with the answers given to it."""
    with site_of(request).database.read() as db:
        newest = instructions.latest(db, purpose)
        text = instructions.version(db, purpose, version) if version is not None else newest
        if text is None or newest is None:
            raise Problem(404, "not_found")
        done, all_versions = instructions.reading(db, visitor.me, text), instructions.versions(db, purpose)
    mine = instructions.shown(text, language(request, visitor).language)
    return page(
        request, visitor, "instructions_read.html", status=422 if wrong else 200, purpose=purpose, text=text, newest=newest,
        body=rendered(mine.body), quiz=mine.quiz, done=done, versions=all_versions, wrong=wrong or [], answers=answers or {},
    )  # fmt: skip


@router.get("/instructions/{purpose}/edit")
def edit(request: Request, visitor: Editor, purpose: str) -> Response:
    """The newest version as a form."""
    known(purpose)
    with site_of(request).database.read() as db:
        newest = instructions.latest(db, purpose)
    texts = [newest.language, *(each for each in LANGUAGES if each != newest.language)] if newest else list(LANGUAGES)
    filled = {each: (shown.body, written_quiz(shown.quiz)) if newest and (shown := _text_in(newest, each)) else ("", "") for each in texts}
    return page(request, visitor, "instructions_edit.html", purpose=purpose, filled=filled, changes="", wrong=None)


@router.post("/instructions/{purpose}/edit")
def publish(
    request: Request, visitor: Editor, purpose: str, body_en: Body = "", body_ko: Body = "", quiz_en: Body = "", quiz_ko: Body = "",
    changes: Annotated[str, Form(max_length=5_000)] = "", first: Annotated[str, Form()] = "en",
) -> Response:  # fmt: skip
    """Publish the next version; what was typed stays in the form when something is wrong."""
    known(purpose)
    written = {"en": (body_en, quiz_en), "ko": (body_ko, quiz_ko)}
    order = sorted(written, key=lambda each: each != first)
    try:
        texts = {each: _text(*written[each]) for each in order if written[each][0].strip()}
        if not texts:
            raise Problem(422, "empty_text")
        with site_of(request).database.write() as db:
            instructions.publish(db, purpose, texts, changes, visitor.me.id)
    except Problem as problem:
        wrong = language(request, visitor)(f"problem.{problem.code}", **problem.values)
        filled = {each: written[each] for each in order}
        return page(
            request, visitor, "instructions_edit.html", status=problem.status, purpose=purpose, filled=filled, changes=changes, wrong=wrong
        )
    return redirect(f"/instructions/{purpose}")


@router.get("/consent/edit")
def edit_consent(request: Request, visitor: Owner) -> Response:
    """The present consent text as a form."""
    with site_of(request).database.read() as db:
        text = consent.latest(db)
    bodies = {each: text.bodies.get(each, "") if text else "" for each in LANGUAGES}
    return page(request, visitor, "consent_edit.html", bodies=bodies, version=text.version if text else 0)


@router.post("/consent/edit")
def publish_consent(request: Request, visitor: Owner, body_en: Body = "", body_ko: Body = "") -> Response:
    """Publish the next consent text."""
    with site_of(request).database.write() as db:
        consent.publish(db, {"en": body_en, "ko": body_ko}, visitor.me.id)
    return redirect("/consent")


def known(purpose: str) -> None:
    """Raises Problem for a purpose that does not exist."""
    if purpose not in PURPOSES:
        raise Problem(404, "not_found")


def _text(body: str, quiz: str) -> Text:
    """One language of a form. Raises Problem where it is no text or no quiz."""
    try:
        return Text(body=body.replace("\r\n", "\n"), quiz=parse_quiz(quiz))
    except ValidationError as error:
        raise Problem(422, "empty_text") from error


def _text_in(text: Instructions, spoken: str) -> Text | None:
    """A version in exactly this language."""
    if spoken == text.language:
        return Text(body=text.body, quiz=Quiz.model_validate(text.quiz))
    return Text.model_validate(text.translations[spoken]) if spoken in text.translations else None
