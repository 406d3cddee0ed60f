"""The screening test as its labeler sees it, its demonstrations as researchers grade them, and surveys."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from starlette.concurrency import run_in_threadpool

from instructgpt.label.auth.dependencies import Visitor, allow, site_of
from instructgpt.label.db.models import Person
from instructgpt.label.people import screening, surveys
from instructgpt.label.web.rendering import page, redirect

router = APIRouter()

Labeler = Annotated[Visitor, allow("labeler")]
Researcher = Annotated[Visitor, allow("researcher", "owner")]


@router.get("/screening")
def my_screening(request: Request, visitor: Labeler) -> Response:
    """How far one is. There is no feedback before the end."""
    with site_of(request).database.read() as db:
        person = db.get_one(Person, visitor.me.id)
        parts, decided = screening.progress(db, person), screening.decisions(db, person)
    return page(request, visitor, "screening.html", parts=parts, decided=decided, person=person, enough=screening.ENOUGH)


@router.get("/screening/grade")
def to_grade(request: Request, visitor: Researcher) -> Response:
    """Demonstrations this person has not graded, without their authors."""
    with site_of(request).database.read() as db:
        waiting = list(screening.ungraded(db, visitor.me))
    return page(request, visitor, "screening_grade.html", waiting=waiting[:20], more=max(0, len(waiting) - 20))


@router.post("/screening/grade")
def grade(
    request: Request, visitor: Researcher, submission: Annotated[str, Form(max_length=100)], score: Annotated[int, Form()]
) -> Response:
    """Grade one."""
    with site_of(request).database.write() as db:
        screening.grade(db, visitor.me, submission, score)
    return redirect("/screening/grade")


@router.get("/surveys")
def results(request: Request, visitor: Researcher) -> Response:
    """What was replied, where at least five replied alike."""
    with site_of(request).database.read() as db:
        found = {kind: surveys.results(db, kind) for kind in surveys.SURVEYS}
    return page(request, visitor, "surveys.html", found=found, least=surveys.LEAST)


@router.get("/surveys/{kind}")
def ask(request: Request, visitor: Labeler, kind: str) -> Response:
    """A survey, until one has replied."""
    items = surveys.items(kind)
    with site_of(request).database.read() as db:
        done = surveys.is_done(db, visitor.me, kind)
    return page(request, visitor, "survey.html", kind=kind, items=items, done=done)


@router.post("/surveys/{kind}")
async def reply(request: Request, visitor: Labeler, kind: str) -> Response:
    """Take a reply: fields `answer-<question>`, several of a name where several options are chosen."""
    answers: dict[str, list[str]] = {}
    for name, value in (await request.form()).multi_items():
        if name.startswith("answer-") and isinstance(value, str):
            answers.setdefault(name.removeprefix("answer-"), []).append(value)
    return await run_in_threadpool(keep, request, visitor, kind, answers)


def keep(request: Request, visitor: Visitor, kind: str, answers: dict[str, list[str]]) -> Response:
    """Keep a reply."""
    with site_of(request).database.write() as db:
        surveys.reply(db, visitor.me, kind, answers)
    return redirect("/screening" if kind == "groups" and visitor.me.status == "screening" else f"/surveys/{kind}")
