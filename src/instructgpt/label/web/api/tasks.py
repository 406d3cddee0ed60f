"""The labeler's own API: what the pages' scripts and simulated labelers call, with the session's cookie and its CSRF token."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Request, Response
from pydantic import BaseModel, ConfigDict

from instructgpt.label.auth.dependencies import Visitor, allow, site_of
from instructgpt.label.db.models import Person, Submission, Task, now
from instructgpt.label.db.models.tasks import Kind
from instructgpt.label.errors import Problem
from instructgpt.label.tasks import assignments as work
from instructgpt.label.tasks import drafts, submission_history, submissions, threads
from instructgpt.label.tasks.forms import Note, as_form
from instructgpt.label.tasks.task_view import TaskView, view

router = APIRouter(prefix="/api/v1", tags=["labeler"])
Labeler = Annotated[Visitor, allow("labeler")]


class Given(BaseModel):
    """Bodies of requests: what is not asked for is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Claim(Given):
    """Which task is wanted: of a kind, or of a part of the screening test."""

    kind: Kind | None = None
    screening: str | None = None


class SkipGiven(Given):
    """Why a task is handed back."""

    reason: str
    note: Note = ""


class MessageGiven(Given):
    """A question, or a report."""

    body: str
    reported: bool = False


class Stored(BaseModel):
    """What was handed in, as it was stored. `ranks`: by completion, 1 is best, equal ranks tie; empty for other kinds."""

    submission: str
    version: int
    surplus: bool
    ranks: dict[str, int]
    editable_until: int


@router.post("/tasks/claim", response_model=TaskView, responses={204: {"description": "Nothing to do now"}})
def claim(request: Request, visitor: Labeler, wanted: Annotated[Claim | None, Body()] = None) -> Any:
    """The next task, or the one still in hand."""
    site, asked = site_of(request), wanted or Claim()

    given = site.database.attempt(lambda db: work.claim(db, site.settings, visitor.me, asked.kind, now(), asked.screening))
    if given is None:
        return Response(status_code=204)
    with site.database.read() as db:  # others can write meanwhile
        return view(db, given)


@router.get("/assignments/{assignment_id}")
def look(request: Request, visitor: Labeler, assignment_id: str) -> TaskView:
    """A task of one's own."""
    with site_of(request).database.read() as db:
        return view(db, work.own(db, visitor.me, assignment_id))


@router.post("/assignments/{assignment_id}/heartbeat")
def heartbeat(request: Request, visitor: Labeler, assignment_id: str) -> dict[str, int]:
    """Somebody is at work on it: the lease goes on."""
    site = site_of(request)
    return site.database.attempt(
        lambda db: {"lease_until": work.heartbeat(db, site.settings, work.own(db, visitor.me, assignment_id), now())}
    )


@router.put("/assignments/{assignment_id}/draft")
def save_draft(
    request: Request,
    visitor: Labeler,
    assignment_id: str,
    payload: Annotated[dict[str, Any], Body()],
    if_match: Annotated[str, Header()],
) -> dict[str, int]:
    """Keep what there is so far. `If-Match` is the revision it follows, 0 at first."""
    site, rev = site_of(request), if_match.strip().strip('"')
    if not rev.isascii() or not rev.isdigit() or len(rev) > 15:
        raise Problem(422, "bad_revision")
    return site.database.attempt(lambda db: {"rev": drafts.save(db, work.own(db, visitor.me, assignment_id), int(rev), payload, now())})


@router.post("/assignments/{assignment_id}/submit")
def submit(
    request: Request,
    visitor: Labeler,
    assignment_id: str,
    body: Annotated[dict[str, Any], Body()],
    idempotency_key: Annotated[str, Header()],
) -> Stored:
    """Hand in. The key is made when the form is rendered; the same key again returns the same submission."""
    return _hand_in(request, visitor.me, assignment_id, body, idempotency_key, edited=False)


@router.post("/assignments/{assignment_id}/edit")
def edit(
    request: Request,
    visitor: Labeler,
    assignment_id: str,
    body: Annotated[dict[str, Any], Body()],
    idempotency_key: Annotated[str, Header()],
) -> Stored:
    """A new version of what was handed in."""
    return _hand_in(request, visitor.me, assignment_id, body, idempotency_key, edited=True)


def _hand_in(request: Request, me: Person, assignment_id: str, body: dict[str, Any], key: str, *, edited: bool) -> Stored:
    site = site_of(request)

    def store(db: Any) -> Stored:
        mine = work.own(db, me, assignment_id)
        form = as_form(db.get_one(Task, mine.task_id).kind, body)
        put = submissions.edit if edited else submissions.submit
        submission = put(db, site.settings, mine, form, key, now())
        until = submissions.editable_until(site.settings, work.own(db, me, assignment_id))
        return Stored(
            submission=submission.id, version=submission.version, surplus=submission.surplus, ranks=ranks_of(db, submission),
            editable_until=until,
        )  # fmt: skip

    return site.database.attempt(store)


def ranks_of(db: Any, submission: Submission) -> dict[str, int]:
    """A ranking as it was stored."""
    return submission_history.ranks(db, submission.id)


@router.post("/assignments/{assignment_id}/skip")
def skip(request: Request, visitor: Labeler, assignment_id: str, given: SkipGiven) -> dict[str, str]:
    """Hand a task back, with a reason."""
    site = site_of(request)

    def hand_back(db: Any) -> dict[str, str]:
        mine = work.own(db, visitor.me, assignment_id)
        return {"skip": work.skip(db, site.settings, mine, given.reason, given.note, now()).id}

    return site.database.attempt(hand_back)


@router.post("/assignments/{assignment_id}/undo")
def undo(request: Request, visitor: Labeler, assignment_id: str) -> TaskView:
    """Take back the last step: a skip, or what was handed in."""
    site = site_of(request)

    def take_back(db: Any) -> TaskView:
        mine = work.own(db, visitor.me, assignment_id)
        submissions.undo_last(db, site.settings, mine, now())
        return view(db, mine)

    return site.database.attempt(take_back)


@router.get("/assignments/{assignment_id}/thread")
def read_thread(request: Request, visitor: Labeler, assignment_id: str) -> list[threads.Line]:
    """The talk about a task of one's own."""
    with site_of(request).database.read() as db:
        mine = work.own(db, visitor.me, assignment_id)
        return threads.thread(db, mine.task_id, visitor.me.id)


@router.post("/assignments/{assignment_id}/thread")
def write_thread(request: Request, visitor: Labeler, assignment_id: str, given: MessageGiven) -> list[threads.Line]:
    """Ask about a task, or report it."""

    def write(db: Any) -> list[threads.Line]:
        mine = work.own(db, visitor.me, assignment_id)
        threads.ask(db, mine, given.body, now(), reported=given.reported)
        return threads.thread(db, mine.task_id, visitor.me.id)

    return site_of(request).database.attempt(write)


@router.get("/me/history")
def my_history(request: Request, visitor: Labeler, before: str | None = None) -> submission_history.Page:
    """What one handed in and skipped, the newest first, a page at a time."""
    site = site_of(request)
    with site.database.read() as db:
        return submission_history.page(db, site.settings, visitor.me, before)
