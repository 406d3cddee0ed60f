"""Reading the instructions, their quiz, and writing the next version."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from instructgpt.label.auth import consent
from instructgpt.label.auth.dependencies import Principal, get_site, require
from instructgpt.label.db.models import Instructions
from instructgpt.label.db.models.people import PURPOSES
from instructgpt.label.errors import SiteError
from instructgpt.label.safe_text import render_markdown
from instructgpt.label.tasks import instructions
from instructgpt.label.tasks.instructions import (
    BUNDLED_LANGUAGES,
    LocalizedInstructions,
    Quiz,
    format_quiz_yaml,
    parse_quiz,
)
from instructgpt.label.web.rendering import get_translator, redirect, render_page

router = APIRouter()

_ConsentedUser = Annotated[Principal, require("labeler", "researcher", "owner")]
_TeamUser = Annotated[Principal, require("researcher", "owner")]
_OwnerUser = Annotated[Principal, require("owner")]
_LongText = Annotated[str, Form(max_length=200_000)]


@router.get("/instructions")
def show_instructions_list(request: Request, principal: _ConsentedUser) -> Response:
    """Both purposes, and what this person has read."""
    with get_site(request).database.read() as db:
        rows = [
            (purpose, newest, instructions.get_instructions_read(db, principal.signed_in_person, newest))
            for purpose in PURPOSES
            if (newest := instructions.get_latest_instructions(db, purpose)) is not None
        ]
    return render_page(request, principal, "instructions.html", rows=rows)


@router.get("/instructions/{purpose}")
def show_instructions(
    request: Request, principal: _ConsentedUser, purpose: str, version: int | None = None
) -> Response:
    """A version with its quiz; the newest unless another is asked for."""
    return _render_instructions_page(request, principal, purpose, version)


@router.post("/instructions/{purpose}")
async def submit_quiz_form(request: Request, principal: _ConsentedUser, purpose: str) -> Response:
    """Check the answers: field `answer-<question>` holds the number of an option, both from 0."""
    form = await request.form()
    version_text = form.get("version", "")
    if not isinstance(version_text, str) or not version_text.isdigit():
        raise SiteError(422, "bad_field", field="version", wrong="expected a number")
    answers: dict[int, int] = {}
    for name, value in form.items():
        question = name.removeprefix("answer-")
        if (
            question != name
            and question.isdecimal()
            and isinstance(value, str)
            and value.isdecimal()
            and len(question + value) < 9
        ):
            answers[int(question)] = int(value)
    return await run_in_threadpool(_grade_quiz, request, principal, purpose, int(version_text[:9]), answers)


def _grade_quiz(
    request: Request, principal: Principal, purpose: str, version: int, answers: dict[int, int]
) -> Response:
    """Note the version as read, or show which answers were wrong and why."""
    with get_site(request).database.write() as db:
        instructions_version = instructions.get_instructions_version(db, purpose, version)
        if instructions_version is None:
            raise SiteError(404, "not_found")
        wrong_answers = instructions.submit_quiz(
            db,
            principal.signed_in_person,
            instructions_version,
            [answers.get(number) for number in range(1 + max(answers, default=-1))],
        )
    if wrong_answers:
        return _render_instructions_page(request, principal, purpose, version, wrong_answers, answers)
    return redirect(f"/instructions/{purpose}")


def _render_instructions_page(
    request: Request,
    principal: Principal,
    purpose: str,
    version: int | None,
    wrong_answers: list[int] | None = None,
    answers: dict[int, int] | None = None,
) -> Response:
    """A version with its quiz, and what was wrong with the answers given to it."""
    with get_site(request).database.read() as db:
        newest = instructions.get_latest_instructions(db, purpose)
        instructions_version = (
            instructions.get_instructions_version(db, purpose, version) if version is not None else newest
        )
        if instructions_version is None or newest is None:
            raise SiteError(404, "not_found")
        read_record, all_versions = (
            instructions.get_instructions_read(db, principal.signed_in_person, instructions_version),
            instructions.list_instructions_versions(db, purpose),
        )
    localized_instructions = instructions.localize_instructions(
        instructions_version, get_translator(request, principal).language
    )
    return render_page(
        request,
        principal,
        "instructions_read.html",
        status=422 if wrong_answers else 200,
        purpose=purpose,
        text=instructions_version,
        newest=newest,
        body=render_markdown(localized_instructions.body),
        quiz=localized_instructions.quiz,
        done=read_record,
        versions=all_versions,
        wrong=wrong_answers or [],
        answers=answers or {},
    )


@router.get("/instructions/{purpose}/edit")
def show_instructions_editor(request: Request, principal: _TeamUser, purpose: str) -> Response:
    """The newest version as a form."""
    _check_purpose(purpose)
    with get_site(request).database.read() as db:
        newest = instructions.get_latest_instructions(db, purpose)
    language_codes = (
        [newest.language, *(each for each in BUNDLED_LANGUAGES if each != newest.language)]
        if newest
        else list(BUNDLED_LANGUAGES)
    )
    field_values = {
        each: (localized_text.body, format_quiz_yaml(localized_text.quiz))
        if newest and (localized_text := _find_text(newest, each))
        else ("", "")
        for each in language_codes
    }
    return render_page(
        request, principal, "instructions_edit.html", purpose=purpose, filled=field_values, changes="", wrong=None
    )


@router.post("/instructions/{purpose}/edit")
def publish_instructions_from_form(
    request: Request,
    principal: _TeamUser,
    purpose: str,
    body_en: _LongText = "",
    body_ko: _LongText = "",
    quiz_en: _LongText = "",
    quiz_ko: _LongText = "",
    changes: Annotated[str, Form(max_length=5_000)] = "",
    first: Annotated[str, Form()] = "en",
) -> Response:
    """Publish the next version; what was typed stays in the form when something is wrong."""
    _check_purpose(purpose)
    posted_texts = {"en": (body_en, quiz_en), "ko": (body_ko, quiz_ko)}
    language_codes = sorted(posted_texts, key=lambda each: each != first)
    try:
        texts = {each: _parse_text(*posted_texts[each]) for each in language_codes if posted_texts[each][0].strip()}
        if not texts:
            raise SiteError(422, "empty_text")
        with get_site(request).database.write() as db:
            instructions.add_instructions_version(db, purpose, texts, changes, principal.signed_in_person.id)
    except SiteError as problem:
        error_message = get_translator(request, principal)(f"problem.{problem.code}", **problem.values)
        field_values = {each: posted_texts[each] for each in language_codes}
        return render_page(
            request,
            principal,
            "instructions_edit.html",
            status=problem.status,
            purpose=purpose,
            filled=field_values,
            changes=changes,
            wrong=error_message,
        )
    return redirect(f"/instructions/{purpose}")


@router.get("/consent/edit")
def show_consent_editor(request: Request, principal: _OwnerUser) -> Response:
    """The present consent text as a form."""
    with get_site(request).database.read() as db:
        consent_text = consent.get_latest_consent_text(db)
    bodies = {each: consent_text.bodies.get(each, "") if consent_text else "" for each in BUNDLED_LANGUAGES}
    return render_page(
        request, principal, "consent_edit.html", bodies=bodies, version=consent_text.version if consent_text else 0
    )


@router.post("/consent/edit")
def publish_consent_from_form(
    request: Request, principal: _OwnerUser, body_en: _LongText = "", body_ko: _LongText = ""
) -> Response:
    """Publish the next consent text."""
    with get_site(request).database.write() as db:
        consent.add_consent_version(db, {"en": body_en, "ko": body_ko}, principal.signed_in_person.id)
    return redirect("/consent")


def _check_purpose(purpose: str) -> None:
    """Raises Problem for a purpose that does not exist."""
    if purpose not in PURPOSES:
        raise SiteError(404, "not_found")


def _parse_text(body: str, quiz: str) -> LocalizedInstructions:
    """One language of a form. Raises Problem where it is no text or no quiz."""
    try:
        return LocalizedInstructions(body=body.replace("\r\n", "\n"), quiz=parse_quiz(quiz))
    except ValidationError as error:
        raise SiteError(422, "empty_text") from error


def _find_text(instructions_version: Instructions, language_code: str) -> LocalizedInstructions | None:
    """A version in exactly this language."""
    if language_code == instructions_version.language:
        return LocalizedInstructions(
            body=instructions_version.body, quiz=Quiz.model_validate(instructions_version.quiz)
        )
    return (
        LocalizedInstructions.model_validate(instructions_version.translations[language_code])
        if language_code in instructions_version.translations
        else None
    )
