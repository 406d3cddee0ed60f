"""Calibration rooms, for everybody who works here; researchers open them and lead from stage to stage."""

from __future__ import annotations

from string import ascii_uppercase
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy import select

from instructgpt.label.analysis import calibration
from instructgpt.label.analysis.adjudication import get_task_completions
from instructgpt.label.analysis.results import get_hidden_model_names, redact_model_names
from instructgpt.label.auth.dependencies import Principal, get_site, require
from instructgpt.label.db.models import CalibrationRemark, CalibrationRoom, PromptRow, Task, current_time_ms
from instructgpt.label.web import charts
from instructgpt.label.web.pages.owner.adjudication import TiersForm, read_tiers_form
from instructgpt.label.web.rendering import render_page

router = APIRouter()
_TeamUser = Annotated[Principal, require("researcher", "owner")]
_ConsentedUser = Annotated[Principal, require("labeler", "researcher", "owner")]


@router.get("/calibration")
def show_rooms(request: Request, principal: _ConsentedUser) -> Response:
    """The rooms there are."""
    with get_site(request).database.read() as db:
        rows = list(db.scalars(select(CalibrationRoom).order_by(CalibrationRoom.created_at.desc()).limit(100)))
    return render_page(request, principal, "calibration.html", rooms=rows, show=charts)


@router.post("/calibration")
def open_room_from_form(
    request: Request, principal: _TeamUser, task: Annotated[str, Form()], title: Annotated[str, Form(max_length=120)]
) -> Response:
    """A new room."""
    with get_site(request).database.write() as db:
        room = calibration.create_calibration_room(db, task, title, principal.signed_in_person)
    return RedirectResponse(f"/calibration/{room.id}", status_code=303)


@router.get("/calibration/{room_id}")
def show_room(request: Request, principal: _ConsentedUser, room_id: str) -> Response:
    """A room: the task, my vote, and whatever of the others' may be seen now. People have numbers in place of names."""
    with get_site(request).database.read() as db:
        room = calibration.get_room(db, room_id)
        task = db.get_one(Task, room.task_id)
        prompt = db.get_one(PromptRow, task.prompt_id)
        completions = get_task_completions(db, task.id)
        votes_by_round = calibration.load_room_votes(db, room)
        hidden_names = get_hidden_model_names(db)
        remarks = list(
            db.scalars(
                select(CalibrationRemark)
                .where(CalibrationRemark.room_id == room.id)
                .order_by(CalibrationRemark.at, CalibrationRemark.id)
            )
        )
    people = sorted({person for votes in votes_by_round for person in votes} | {each.author_id for each in remarks})
    person_numbers = {person: place for place, person in enumerate(people, 1)}
    revealed_rounds = [calibration.are_votes_visible(room, number) for number in (0, 1)]
    agreements = [
        calibration.compute_vote_agreement(room, votes) if seen and len(votes) > 1 else None
        for seen, votes in zip(revealed_rounds, votes_by_round, strict=True)
    ]
    my_votes = [votes.get(principal.signed_in_person.id) for votes in votes_by_round]
    texts = [
        (ascii_uppercase[place], each.id, redact_model_names(each.text, hidden_names))
        for place, each in enumerate(completions)
    ]
    return render_page(
        request,
        principal,
        "calibration_room.html",
        room=room,
        text=redact_model_names(prompt.text, hidden_names),
        texts=texts,
        given=votes_by_round,
        seen=revealed_rounds,
        agreed=agreements,
        my_votes=my_votes,
        numbers=person_numbers,
        talk=remarks,
        round=calibration.ROUND_BY_STAGE.get(room.stage),
        show=charts,
    )


@router.post("/calibration/{room_id}/vote")
def vote_from_form(
    request: Request,
    principal: _ConsentedUser,
    room_id: str,
    tiers_form: Annotated[TiersForm, Depends(read_tiers_form)],
) -> Response:
    """Rank the task."""
    with get_site(request).database.write() as db:
        calibration.record_vote(
            db, calibration.get_room(db, room_id), principal.signed_in_person, tiers_form.tiers, current_time_ms()
        )
    return RedirectResponse(f"/calibration/{room_id}", status_code=303)


@router.post("/calibration/{room_id}/say")
def post_remark_from_form(
    request: Request, principal: _ConsentedUser, room_id: str, body: Annotated[str, Form()]
) -> Response:
    """Say something."""
    with get_site(request).database.write() as db:
        calibration.add_remark(
            db, calibration.get_room(db, room_id), principal.signed_in_person, body, current_time_ms()
        )
    return RedirectResponse(f"/calibration/{room_id}", status_code=303)


@router.post("/calibration/{room_id}/stage")
def advance_stage_from_form(
    request: Request, principal: _TeamUser, room_id: str, stage: Annotated[str, Form()]
) -> Response:
    """On to the next stage; `stage` is the one the page showed."""
    with get_site(request).database.write() as db:
        calibration.advance_room_stage(
            db, calibration.get_room(db, room_id), principal.signed_in_person, stage, current_time_ms()
        )
    return RedirectResponse(f"/calibration/{room_id}", status_code=303)
