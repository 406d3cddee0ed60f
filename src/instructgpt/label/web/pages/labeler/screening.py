"""The screening test, the grading of its demonstrations by researchers, and surveys."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from starlette.concurrency import run_in_threadpool

from instructgpt.label.auth.dependencies import LabelerUser, TeamUser, get_site
from instructgpt.label.db.models import Person
from instructgpt.label.people import screening, surveys
from instructgpt.label.web.rendering import redirect, render_page

router = APIRouter()


_MAX_LISTED = 20
_ANSWER_PREFIX = "answer-"


@router.get("/screening")
def show_screening(request: Request, principal: LabelerUser) -> Response:
    with get_site(request).database.read() as db:
        person = db.get_one(Person, principal.user.id)
        parts, decisions = screening.get_screening_progress(db, person), screening.list_decisions(db, person)
    return render_page(request, "labeler/screening.html", parts=parts, decisions=decisions, person=person)


@router.get("/screening/grade")
def show_grading_queue(request: Request, principal: TeamUser) -> Response:
    """Show demonstrations that this person has not graded, without their authors."""
    with get_site(request).database.read() as db:
        pending = list(screening.iter_ungraded_demonstrations(db, principal.user))
    more = max(0, len(pending) - _MAX_LISTED)
    return render_page(request, "owner/screening_grade.html", pending=pending[:_MAX_LISTED], more=more)


@router.post("/screening/grade")
def grade_submission(
    request: Request,
    principal: TeamUser,
    submission: Annotated[str, Form(max_length=100)],
    score: Annotated[int, Form()],
) -> Response:
    with get_site(request).database.write() as db:
        screening.grade_demonstration(db, principal.user, submission, score)
    return redirect("/screening/grade")


@router.get("/surveys")
def show_survey_results(request: Request, _: TeamUser) -> Response:
    with get_site(request).database.read() as db:
        counts = {kind: surveys.count_survey_replies(db, kind) for kind in surveys.SURVEYS}
    return render_page(request, "owner/surveys.html", counts=counts, min_replies=surveys.MIN_SURVEY_REPLIES)


@router.get("/surveys/{kind}")
def show_survey(request: Request, principal: LabelerUser, kind: str) -> Response:
    items = surveys.get_survey_items(kind)
    with get_site(request).database.read() as db:
        is_answered = surveys.has_replied(db, principal.user, kind)
    return render_page(request, "labeler/survey.html", kind=kind, items=items, is_answered=is_answered)


@router.post("/surveys/{kind}")
async def submit_survey(request: Request, principal: LabelerUser, kind: str) -> Response:
    """Store a reply: fields `answer-<question>`, repeated where several options are chosen."""
    answers: dict[str, list[str]] = {}
    for name, value in (await request.form()).multi_items():
        if name.startswith(_ANSWER_PREFIX) and isinstance(value, str):
            answers.setdefault(name.removeprefix(_ANSWER_PREFIX), []).append(value)
    return await run_in_threadpool(_store_survey_answers, request, principal.user, kind, answers)


def _store_survey_answers(request: Request, person: Person, kind: str, answers: dict[str, list[str]]) -> Response:
    with get_site(request).database.write() as db:
        surveys.save_survey_reply(db, person, kind, answers)
    return redirect("/screening" if kind == "groups" and person.status == "screening" else f"/surveys/{kind}")
