"""The screening test as its labeler sees it, its demonstrations as researchers grade them, and surveys."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from starlette.concurrency import run_in_threadpool

from instructgpt.label.auth.dependencies import Principal, get_site, require
from instructgpt.label.db.models import Person
from instructgpt.label.people import screening, surveys
from instructgpt.label.web.rendering import redirect, render_page

router = APIRouter()

_LabelerUser = Annotated[Principal, require("labeler")]
_TeamUser = Annotated[Principal, require("researcher", "owner")]


@router.get("/screening")
def show_screening(request: Request, principal: _LabelerUser) -> Response:
    """How far one is. There is no feedback before the end."""
    with get_site(request).database.read() as db:
        person = db.get_one(Person, principal.signed_in_person.id)
        parts, decisions = screening.get_screening_progress(db, person), screening.list_decisions(db, person)
    return render_page(
        request,
        principal,
        "screening.html",
        parts=parts,
        decided=decisions,
        person=person,
        enough=screening.MIN_SCREENING_ITEMS,
    )


@router.get("/screening/grade")
def show_grading_queue(request: Request, principal: _TeamUser) -> Response:
    """Demonstrations this person has not graded, without their authors."""
    with get_site(request).database.read() as db:
        pending_grades = list(screening.iter_ungraded_demonstrations(db, principal.signed_in_person))
    return render_page(
        request, principal, "screening_grade.html", waiting=pending_grades[:20], more=max(0, len(pending_grades) - 20)
    )


@router.post("/screening/grade")
def grade_from_form(
    request: Request,
    principal: _TeamUser,
    submission: Annotated[str, Form(max_length=100)],
    score: Annotated[int, Form()],
) -> Response:
    """Grade one."""
    with get_site(request).database.write() as db:
        screening.grade_demonstration(db, principal.signed_in_person, submission, score)
    return redirect("/screening/grade")


@router.get("/surveys")
def show_survey_results(request: Request, principal: _TeamUser) -> Response:
    """What was replied, where at least five replied alike."""
    with get_site(request).database.read() as db:
        results_by_survey = {kind: surveys.count_survey_replies(db, kind) for kind in surveys.SURVEYS}
    return render_page(request, principal, "surveys.html", found=results_by_survey, least=surveys.MIN_SURVEY_REPLIES)


@router.get("/surveys/{kind}")
def show_survey(request: Request, principal: _LabelerUser, kind: str) -> Response:
    """A survey, until one has replied."""
    items = surveys.get_survey_items(kind)
    with get_site(request).database.read() as db:
        is_answered = surveys.has_replied(db, principal.signed_in_person, kind)
    return render_page(request, principal, "survey.html", kind=kind, items=items, done=is_answered)


@router.post("/surveys/{kind}")
async def submit_survey(request: Request, principal: _LabelerUser, kind: str) -> Response:
    """Take a reply: fields `answer-<question>`, several of a name where several options are chosen."""
    answers: dict[str, list[str]] = {}
    for name, value in (await request.form()).multi_items():
        if name.startswith("answer-") and isinstance(value, str):
            answers.setdefault(name.removeprefix("answer-"), []).append(value)
    return await run_in_threadpool(_store_survey_answers, request, principal, kind, answers)


def _store_survey_answers(request: Request, principal: Principal, kind: str, answers: dict[str, list[str]]) -> Response:
    """Keep a reply."""
    with get_site(request).database.write() as db:
        surveys.save_survey_reply(db, principal.signed_in_person, kind, answers)
    return redirect(
        "/screening" if kind == "groups" and principal.signed_in_person.status == "screening" else f"/surveys/{kind}"
    )
