"""Instructions with their quiz, and the editors of instructions and consent text."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Form, Query, Request, Response
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from instructgpt.label.auth import consent
from instructgpt.label.auth.dependencies import (
    ConsentedUser,
    OwnerUser,
    Principal,
    TeamUser,
    get_current_principal,
    get_site,
)
from instructgpt.label.db.models import Instructions
from instructgpt.label.db.models.people import PURPOSES
from instructgpt.label.errors import SiteError
from instructgpt.label.markdown import render_markdown
from instructgpt.label.tasks import instructions
from instructgpt.label.tasks.instructions import (
    BUNDLED_LANGUAGES,
    LocalizedInstructions,
    Quiz,
    format_quiz_yaml,
    parse_quiz,
)
from instructgpt.label.web.params import or_404
from instructgpt.label.web.rendering import get_translator, redirect, render_page, translate_error

router = APIRouter()

_LongText = Annotated[str, Form(max_length=200_000)]


@router.get("/instructions")
def show_instructions_list(request: Request, principal: ConsentedUser) -> Response:
    with get_site(request).database.read() as db:
        rows = [
            (purpose, newest, instructions.get_instructions_read(db, principal.user, newest))
            for purpose in PURPOSES
            if (newest := instructions.get_latest_instructions(db, purpose)) is not None
        ]
    return render_page(request, "labeler/instructions_list.html", rows=rows)


@router.get("/instructions/{purpose}")
def show_instructions(
    request: Request,
    _: ConsentedUser,
    purpose: str,
    version: int | None = None,
    start: Annotated[str, Query(max_length=40)] = "",
    screening: Annotated[str, Query(max_length=40)] = "",
) -> Response:
    """`start`, `screening`: the work that the reader wanted to begin, and goes to after the quiz."""
    return _render_instructions_page(request, purpose, version, work=(start, screening))


@router.post("/instructions/{purpose}")
async def submit_quiz_form(request: Request, principal: ConsentedUser, purpose: str) -> Response:
    """Grade the answers: field `answer-<question>` holds the number of an option, both counted from 0."""
    form = await request.form()
    version = form.get("version", "")
    if not isinstance(version, str) or not version.isdigit():
        raise SiteError(422, "bad_field", field="version", wrong="expected a number")
    answers: dict[int, int] = {}
    for name, value in form.items():
        question = name.removeprefix("answer-")
        is_answer = question != name and question.isdecimal() and isinstance(value, str) and value.isdecimal()
        if is_answer and len(question + str(value)) < 9:
            answers[int(question)] = int(str(value))
    work = (str(form.get("start", ""))[:40], str(form.get("screening", ""))[:40])
    return await run_in_threadpool(_grade_quiz, request, principal, purpose, int(version[:9]), answers, work)


def _grade_quiz(
    request: Request,
    principal: Principal,
    purpose: str,
    version: int,
    answers: dict[int, int],
    work: tuple[str, str],
) -> Response:
    with get_site(request).database.write() as db:
        text = or_404(instructions.get_instructions_version(db, purpose, version))
        answer_list = [answers.get(number) for number in range(1 + max(answers, default=-1))]
        wrong_answers = instructions.submit_quiz(db, principal.user, text, answer_list)
    if wrong_answers:
        return _render_instructions_page(request, purpose, version, wrong_answers, answers, work)
    target = urlencode({name: value for name, value in zip(("start", "screening"), work, strict=True) if value})
    return redirect(f"/instructions/{purpose}" + (f"?{target}" if target else ""))


def _render_instructions_page(
    request: Request,
    purpose: str,
    version: int | None,
    wrong_answers: list[int] | None = None,
    answers: dict[int, int] | None = None,
    work: tuple[str, str] = ("", ""),
) -> Response:
    user = get_current_principal(request).user
    with get_site(request).database.read() as db:
        newest = or_404(instructions.get_latest_instructions(db, purpose))
        selected = newest if version is None else instructions.get_instructions_version(db, purpose, version)
        text = or_404(selected)
        is_read = instructions.get_instructions_read(db, user, text)
        versions = instructions.list_instructions_versions(db, purpose)
    localized = instructions.localize_instructions(text, get_translator(request).language)
    return render_page(
        request,
        "labeler/instructions.html",
        status=422 if wrong_answers else 200,
        purpose=purpose,
        text=text,
        newest=newest,
        body=render_markdown(localized.body),
        quiz=localized.quiz,
        is_read=is_read,
        versions=versions,
        wrong_answers=wrong_answers or [],
        answers=answers or {},
        start=work[0],
        screening=work[1],
    )


@router.get("/instructions/{purpose}/edit")
def show_instructions_editor(request: Request, _: TeamUser, purpose: str) -> Response:
    _check_purpose(purpose)
    with get_site(request).database.read() as db:
        newest = instructions.get_latest_instructions(db, purpose)
    languages = list(BUNDLED_LANGUAGES)
    if newest:
        languages = [newest.language, *(language for language in languages if language != newest.language)]
    fields = {}
    for language in languages:
        text = _find_localized(newest, language) if newest else None
        fields[language] = (text.body, format_quiz_yaml(text.quiz)) if text else ("", "")
    return _render_editor(request, purpose, fields)


def _order_by_language(posted: dict[str, tuple[str, str]], first: str) -> dict[str, tuple[str, str]]:
    """Return the text and quiz of each language, the main language first."""
    return {language: posted[language] for language in sorted(posted, key=lambda language: language != first)}


@router.post("/instructions/{purpose}/edit")
def publish_instructions_from_form(
    request: Request,
    principal: TeamUser,
    purpose: str,
    body_en: _LongText = "",
    body_ko: _LongText = "",
    quiz_en: _LongText = "",
    quiz_ko: _LongText = "",
    changes: Annotated[str, Form(max_length=5_000)] = "",
    first: Annotated[str, Form()] = "en",
) -> Response:
    """Publish a new version. `first` is its main language; the other is a translation."""
    _check_purpose(purpose)
    fields = _order_by_language({"en": (body_en, quiz_en), "ko": (body_ko, quiz_ko)}, first)
    try:
        texts = {language: _parse_localized(*field) for language, field in fields.items() if field[0].strip()}
        if not texts:
            raise SiteError(422, "empty_text")
        with get_site(request).database.write() as db:
            instructions.add_instructions_version(db, purpose, texts, changes, principal.user.id)
    except SiteError as error:
        return _render_editor(request, purpose, fields, changes, error)
    return redirect(f"/instructions/{purpose}")


@router.post("/instructions/{purpose}/preview")
def preview_instructions(
    request: Request,
    _: TeamUser,
    purpose: str,
    body_en: _LongText = "",
    body_ko: _LongText = "",
    quiz_en: _LongText = "",
    quiz_ko: _LongText = "",
    changes: Annotated[str, Form(max_length=5_000)] = "",
    first: Annotated[str, Form()] = "en",
) -> Response:
    """Show the texts rendered, and what is wrong with a quiz, before all labelers have to read a new version."""
    _check_purpose(purpose)
    fields = _order_by_language({"en": (body_en, quiz_en), "ko": (body_ko, quiz_ko)}, first)
    try:
        for field in fields.values():
            if field[0].strip():
                _parse_localized(*field)
    except SiteError as error:
        return _render_editor(request, purpose, fields, changes, error, is_preview=True)
    return _render_editor(request, purpose, fields, changes, is_preview=True)


def _render_editor(
    request: Request,
    purpose: str,
    fields: dict[str, tuple[str, str]],
    changes: str = "",
    error: SiteError | None = None,
    *,
    is_preview: bool = False,
) -> Response:
    previews = {
        language: render_markdown(body) for language, (body, _) in fields.items() if is_preview and body.strip()
    }
    return render_page(
        request,
        "owner/instructions_edit.html",
        status=error.status if error else 200,
        purpose=purpose,
        fields=fields,
        changes=changes,
        error=translate_error(request, error) if error else None,
        previews=previews,
    )


@router.get("/consent/edit")
def show_consent_editor(request: Request, _: OwnerUser) -> Response:
    with get_site(request).database.read() as db:
        newest = consent.get_latest_consent_text(db)
    bodies = {language: newest.bodies.get(language, "") if newest else "" for language in BUNDLED_LANGUAGES}
    return render_page(
        request,
        "owner/consent_edit.html",
        bodies=bodies,
        version=newest.version if newest else 0,
        action="/consent/edit",
        back="/consent",
        hint="consent.edit_hint",
    )


@router.post("/consent/edit")
def publish_consent(
    request: Request, principal: OwnerUser, body_en: _LongText = "", body_ko: _LongText = ""
) -> Response:
    with get_site(request).database.write() as db:
        consent.add_consent_version(db, {"en": body_en, "ko": body_ko}, principal.user.id)
    return redirect("/consent")


def _check_purpose(purpose: str) -> None:
    if purpose not in PURPOSES:
        raise SiteError(404, "not_found")


def _parse_localized(body: str, quiz: str) -> LocalizedInstructions:
    try:
        return LocalizedInstructions(body=body.replace("\r\n", "\n"), quiz=parse_quiz(quiz))
    except ValidationError as error:
        raise SiteError(422, "empty_text") from error


def _find_localized(version: Instructions, language: str) -> LocalizedInstructions | None:
    """Return a version in exactly this language, without falling back to another."""
    if language == version.language:
        return LocalizedInstructions(body=version.body, quiz=Quiz.model_validate(version.quiz))
    translation = version.translations.get(language)
    return None if translation is None else LocalizedInstructions.model_validate(translation)
