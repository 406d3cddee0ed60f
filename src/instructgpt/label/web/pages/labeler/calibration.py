"""Calibration rooms: blind vote, discussion, second vote; researchers open rooms and advance their stages."""

from __future__ import annotations

from string import ascii_uppercase
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request, Response
from sqlalchemy import select

from instructgpt.label.analysis import calibration
from instructgpt.label.analysis.adjudication import get_task_completions
from instructgpt.label.analysis.results import get_hidden_model_names, redact_model_names, redact_turns
from instructgpt.label.auth.dependencies import ConsentedUser, TeamUser, get_site
from instructgpt.label.db.models import CalibrationRemark, CalibrationRoom, PromptRow, Task, current_time_ms
from instructgpt.label.web.pages.owner.adjudication import TiersForm, read_tiers_form
from instructgpt.label.web.rendering import redirect, render_page

router = APIRouter()
_MAX_LISTED = 100


@router.get("/calibration")
def show_rooms(request: Request, _: ConsentedUser) -> Response:
    with get_site(request).database.read() as db:
        rooms = list(db.scalars(select(CalibrationRoom).order_by(CalibrationRoom.created_at.desc()).limit(_MAX_LISTED)))
    return render_page(request, "labeler/calibration.html", rooms=rooms)


@router.post("/calibration")
def open_room(
    request: Request, principal: TeamUser, task: Annotated[str, Form()], title: Annotated[str, Form(max_length=120)]
) -> Response:
    with get_site(request).database.write() as db:
        room = calibration.create_calibration_room(db, task, title, principal.user)
    return redirect(f"/calibration/{room.id}")


@router.get("/calibration/{room_id}")
def show_room(request: Request, principal: ConsentedUser, room_id: str) -> Response:
    """Show the task, the visitor's votes, and the votes that the stage reveals; people are numbered, not named."""
    with get_site(request).database.read() as db:
        room = calibration.get_room(db, room_id)
        task = db.get_one(Task, room.task_id)
        prompt = db.get_one(PromptRow, task.prompt_id)
        completions = get_task_completions(db, task.id)
        votes_by_round = calibration.load_room_votes(db, room)
        hidden_names = get_hidden_model_names(db)
        statement = select(CalibrationRemark).where(CalibrationRemark.room_id == room.id)
        remarks = list(db.scalars(statement.order_by(CalibrationRemark.at, CalibrationRemark.id)))
    voters = {person for votes in votes_by_round for person in votes}
    people = sorted(voters | {remark.author_id for remark in remarks})
    is_revealed = [calibration.are_votes_visible(room, number) for number in (0, 1)]
    agreements = [
        calibration.compute_vote_agreement(room, votes) if revealed and len(votes) > 1 else None
        for revealed, votes in zip(is_revealed, votes_by_round, strict=True)
    ]
    return render_page(
        request,
        "labeler/calibration_room.html",
        room=room,
        prompt=redact_model_names(prompt.text, hidden_names),
        turns=redact_turns(prompt.messages, hidden_names),
        completions=[
            (letter, completion.id, redact_model_names(completion.text, hidden_names))
            for letter, completion in zip(ascii_uppercase, completions, strict=False)
        ],
        votes_by_round=votes_by_round,
        is_revealed=is_revealed,
        agreements=agreements,
        my_votes=[votes.get(principal.user.id) for votes in votes_by_round],
        numbers={person: number for number, person in enumerate(people, 1)},
        remarks=remarks,
        round=calibration.ROUND_BY_STAGE.get(room.stage),
    )


@router.post("/calibration/{room_id}/vote")
def submit_vote(
    request: Request, principal: ConsentedUser, room_id: str, form: Annotated[TiersForm, Depends(read_tiers_form)]
) -> Response:
    with get_site(request).database.write() as db:
        room = calibration.get_room(db, room_id)
        calibration.record_vote(db, room, principal.user, form.tiers, current_time_ms())
    return redirect(f"/calibration/{room_id}")


@router.post("/calibration/{room_id}/say")
def post_remark(request: Request, principal: ConsentedUser, room_id: str, body: Annotated[str, Form()]) -> Response:
    with get_site(request).database.write() as db:
        room = calibration.get_room(db, room_id)
        calibration.add_remark(db, room, principal.user, body, current_time_ms())
    return redirect(f"/calibration/{room_id}")


@router.post("/calibration/{room_id}/stage")
def advance_stage(request: Request, principal: TeamUser, room_id: str, stage: Annotated[str, Form()]) -> Response:
    """`stage` is the one the page showed, so that two clicks do not advance twice."""
    with get_site(request).database.write() as db:
        room = calibration.get_room(db, room_id)
        calibration.advance_room_stage(db, room, principal.user, stage, current_time_ms())
    return redirect(f"/calibration/{room_id}")
