"""Calibration rooms, for everybody who works here; researchers open them and lead from stage to stage."""

from __future__ import annotations

from string import ascii_uppercase
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy import select

from instructgpt.label.analysis import calibration
from instructgpt.label.analysis.adjudication import completions_of
from instructgpt.label.analysis.results import masked, names_hidden
from instructgpt.label.auth.dependencies import Visitor, allow, site_of
from instructgpt.label.db.models import Prompt, Remark, Room, Task, now
from instructgpt.label.web import charts
from instructgpt.label.web.pages.owner.adjudication import Tiers, tiers
from instructgpt.label.web.rendering import page

router = APIRouter()
Team = Annotated[Visitor, allow("researcher", "owner")]
Anyone = Annotated[Visitor, allow("labeler", "researcher", "owner")]


@router.get("/calibration")
def rooms(request: Request, visitor: Anyone) -> Response:
    """The rooms there are."""
    with site_of(request).database.read() as db:
        rows = list(db.scalars(select(Room).order_by(Room.created_at.desc()).limit(100)))
    return page(request, visitor, "calibration.html", rooms=rows, show=charts)


@router.post("/calibration")
def open_room(request: Request, visitor: Team, task: Annotated[str, Form()], title: Annotated[str, Form(max_length=120)]) -> Response:
    """A new room."""
    with site_of(request).database.write() as db:
        room = calibration.open_room(db, task, title, visitor.me)
    return RedirectResponse(f"/calibration/{room.id}", status_code=303)


@router.get("/calibration/{room_id}")
def one_room(request: Request, visitor: Anyone, room_id: str) -> Response:
    """A room: the task, my vote, and whatever of the others' may be seen now. People have numbers in place of names."""
    with site_of(request).database.read() as db:
        room = calibration.room_of(db, room_id)
        task = db.get_one(Task, room.task_id)
        prompt = db.get_one(Prompt, task.prompt_id)
        shown = completions_of(db, task.id)
        given = calibration.votes(db, room)
        hidden = names_hidden(db)
        talk = list(db.scalars(select(Remark).where(Remark.room_id == room.id).order_by(Remark.at, Remark.id)))
    people = sorted({person for votes in given for person in votes} | {each.author_id for each in talk})
    numbers = {person: place for place, person in enumerate(people, 1)}
    open_ = [calibration.revealed(room, number) for number in (0, 1)]
    agreed = [calibration.agreement(room, votes) if seen and len(votes) > 1 else None for seen, votes in zip(open_, given, strict=True)]
    my_votes = [votes.get(visitor.me.id) for votes in given]
    texts = [(ascii_uppercase[place], each.id, masked(each.text, hidden)) for place, each in enumerate(shown)]
    return page(
        request, visitor, "calibration_room.html", room=room, text=masked(prompt.text, hidden), texts=texts, given=given, seen=open_,
        agreed=agreed, my_votes=my_votes, numbers=numbers, talk=talk, round=calibration.ROUNDS.get(room.stage), show=charts,
    )  # fmt: skip


@router.post("/calibration/{room_id}/vote")
def vote(request: Request, visitor: Anyone, room_id: str, form: Annotated[Tiers, Depends(tiers)]) -> Response:
    """Rank the task."""
    with site_of(request).database.write() as db:
        calibration.vote(db, calibration.room_of(db, room_id), visitor.me, form.tiers, now())
    return RedirectResponse(f"/calibration/{room_id}", status_code=303)


@router.post("/calibration/{room_id}/say")
def say(request: Request, visitor: Anyone, room_id: str, body: Annotated[str, Form()]) -> Response:
    """Say something."""
    with site_of(request).database.write() as db:
        calibration.say(db, calibration.room_of(db, room_id), visitor.me, body, now())
    return RedirectResponse(f"/calibration/{room_id}", status_code=303)


@router.post("/calibration/{room_id}/stage")
def advance(request: Request, visitor: Team, room_id: str, stage: Annotated[str, Form()]) -> Response:
    """On to the next stage; `stage` is the one the page showed."""
    with site_of(request).database.write() as db:
        calibration.advance(db, calibration.room_of(db, room_id), visitor.me, stage, now())
    return RedirectResponse(f"/calibration/{room_id}", status_code=303)
