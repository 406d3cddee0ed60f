"""The task pages. They work as plain forms; with script the same forms save drafts and hand in over the labeler's API."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy.orm import Session

from instructgpt.label.auth.dependencies import Visitor, allow, site_of
from instructgpt.label.db.models import Assignment, Instructions, Task, new_id, now
from instructgpt.label.db.models.submissions import SKIP_REASONS
from instructgpt.label.db.models.tasks import KINDS, Kind
from instructgpt.label.errors import Problem
from instructgpt.label.i18n import Words
from instructgpt.label.tasks import assignments as work
from instructgpt.label.tasks import submission_history, submissions, threads
from instructgpt.label.tasks.form_fields import Fields, fields_of, payload_of
from instructgpt.label.tasks.forms import MAX_TEXT, as_form
from instructgpt.label.tasks.task_view import TaskView, view
from instructgpt.label.web.rendering import language, page
from instructgpt.records import USE_CASES

router = APIRouter(prefix="/tasks")
Labeler = Annotated[Visitor, allow("labeler")]
SCRIPT = ("save.", "again.", "conflict.", "board.", "rank.", "compare.", "work.", "write.", "demonstrate.", "unreachable", "close")
"""Sections of the catalogue that the scripts speak with."""
EXAMPLES = 3
"""Empty example fields a few-shot prompt begins with."""


async def fields(request: Request) -> list[tuple[str, str]]:
    """The fields of a posted form, in order."""
    return [(name, value) for name, value in (await request.form()).multi_items() if isinstance(value, str)]


Posted = Annotated[list[tuple[str, str]], Depends(fields)]


@router.post("/claim")
def claim(request: Request, visitor: Labeler, posted: Posted) -> Response:
    """The next task of a kind, or the one still in hand."""
    site, asked = site_of(request), dict(posted)
    kind = next((each for each in KINDS if each == asked.get("kind")), None)
    try:
        given = site.database.attempt(lambda db: work.claim(db, site.settings, visitor.me, kind, now(), asked.get("screening") or None))
    except Problem as problem:
        if problem.code != "read_instructions":
            raise
        return RedirectResponse(f"/instructions/{problem.values['purpose']}", status_code=303)
    home = "/screening" if asked.get("screening") else "/home?nothing=true"
    return RedirectResponse(f"/tasks/{given.id}" if given else home, status_code=303)


@router.get("/{assignment_id}")
def task(request: Request, visitor: Labeler, assignment_id: str, edit: bool = False, show: bool = False) -> Response:
    """A task to work on; what is handed in or skipped shows what was stored, unless it is to be edited."""
    site = site_of(request)
    with site.database.read() as db:
        mine = work.own(db, visitor.me, assignment_id)
        editing = edit and mine.state == "submitted" and submissions.editable_until(site.settings, mine) > now()
        if mine.state in ("submitted", "skipped") and not editing:
            return RedirectResponse(f"/tasks/{mine.id}/done", status_code=303)
        shown = view(db, mine)
        payload = shown.draft.payload if shown.draft and not editing else shown.submission or {}
        return form_page(request, visitor, db, mine, shown, fields_of(payload), payload.get("active_ms"), editing=editing, show=show)


def form_page(
    request: Request,
    visitor: Visitor,
    db: Session,
    mine: Assignment,
    shown: TaskView,
    filled: Fields,
    already: Any,
    *,
    editing: bool,
    show: bool = False,
    wrong: str | None = None,
) -> Response:
    """The form of a task, filled in with what there is."""
    examples = list(
        zip(
            [value.strip(" ") for name, value in filled if name == "example_prompt"],
            [value.strip(" ") for name, value in filled if name == "example_completion"],
            strict=False,
        )
    )
    return page(
        request, visitor, f"work/{shown.kind}.html", status=422 if wrong else 200, task=shown, address=f"/tasks/{mine.id}", key=new_id(),
        values=dict(filled), examples=examples + [("", "")] * max(0, EXAMPLES - len(examples)), editing=editing, wrong=wrong,
        gated=shown.sensitive and not (show or editing or wrong), returned=mine.state == "returned",
        reason=threads.reasons(db, visitor.me, [mine]).get(mine.id) if mine.state == "returned" else None,
        already=already if isinstance(already, int) else 0, labels=shown.labels, use_cases=USE_CASES, max_text=MAX_TEXT,
        skip_reasons=SKIP_REASONS, words=spoken(language(request, visitor)), messages=threads.thread(db, mine.task_id, visitor.me.id),
        instructions=db.get(Instructions, mine.instructions_id) if mine.instructions_id else None,
    )  # fmt: skip


def spoken(words: Words) -> dict[str, str]:
    """The sentences the scripts need."""
    return {key: sentence for key, sentence in words.sentences.items() if key.startswith(SCRIPT)}


@router.post("/{assignment_id}/submit")
def submit(request: Request, visitor: Labeler, assignment_id: str, posted: Posted) -> Response:
    """Hand in a plain form."""
    return _hand_in(request, visitor, assignment_id, posted, edited=False)


@router.post("/{assignment_id}/edit")
def edit(request: Request, visitor: Labeler, assignment_id: str, posted: Posted) -> Response:
    """A new version from a plain form."""
    return _hand_in(request, visitor, assignment_id, posted, edited=True)


def _hand_in(request: Request, visitor: Visitor, assignment_id: str, posted: Fields, *, edited: bool) -> Response:
    """Store a form, or show it again with what is wrong and everything that was filled in."""
    site = site_of(request)

    def store(db: Session) -> None:
        mine = work.own(db, visitor.me, assignment_id)
        kind: Kind = db.get_one(Task, mine.task_id).kind
        form = as_form(kind, payload_of(kind, posted, mine.shown))
        put = submissions.edit if edited else submissions.submit
        put(db, site.settings, mine, form, dict(posted).get("key", ""), now())

    try:
        site.database.attempt(store)
    except Problem as problem:
        if problem.code != "bad_form":
            raise
        said = language(request, visitor)("problem.bad_form", **problem.values)
        with site.database.read() as db:
            mine = work.own(db, visitor.me, assignment_id)
            already = payload_of("review", posted)["active_ms"]
            return form_page(request, visitor, db, mine, view(db, mine), posted, already, editing=edited, wrong=said)
    return RedirectResponse(f"/tasks/{assignment_id}/done", status_code=303)


@router.get("/{assignment_id}/done")
def done(request: Request, visitor: Labeler, assignment_id: str) -> Response:
    """What was stored, as the database has it."""
    site, at = site_of(request), now()
    with site.database.read() as db:
        mine = work.own(db, visitor.me, assignment_id)
        if mine.state not in ("submitted", "skipped"):
            return RedirectResponse(f"/tasks/{mine.id}", status_code=303)
        shown, stored = view(db, mine), submissions.current(db, mine)
        ranks = submission_history.ranks(db, stored.id) if stored else {}
        return page(
            request, visitor, "work/done.html", task=shown, address=f"/tasks/{mine.id}", stored=stored, form=shown.submission or {},
            order=order(shown, ranks), ranks=ranks, listed=sorted(shown.completions, key=lambda each: ranks.get(each.id, 0)), at=at,
            until=submissions.editable_until(site.settings, mine),
            messages=threads.thread(db, mine.task_id, visitor.me.id), skip_reasons=(), instructions=None,
        )  # fmt: skip


def order(shown: TaskView, ranks: dict[str, int]) -> str:
    """A stored ranking as people write it: "B > A = D > C"."""
    tiers: dict[int, list[str]] = {}
    for completion in shown.completions:
        if completion.id in ranks:
            tiers.setdefault(ranks[completion.id], []).append(completion.letter)
    return " > ".join(" = ".join(tiers[rank]) for rank in sorted(tiers))


@router.post("/{assignment_id}/skip")
def skip(request: Request, visitor: Labeler, assignment_id: str, posted: Posted) -> Response:
    """Hand a task back, with a reason."""
    site, asked = site_of(request), dict(posted)
    site.database.attempt(
        lambda db: (
            work.skip(db, site.settings, work.own(db, visitor.me, assignment_id), asked.get("reason", ""), asked.get("note", ""), now()).id
        )
    )
    return RedirectResponse(f"/tasks/{assignment_id}/done", status_code=303)


@router.post("/{assignment_id}/undo")
def undo(request: Request, visitor: Labeler, assignment_id: str) -> Response:
    """Take the last step back, a skip or what was handed in; the task is in hand again with everything in it."""
    site = site_of(request)

    site.database.attempt(lambda db: submissions.undo_last(db, site.settings, work.own(db, visitor.me, assignment_id), now()))
    return RedirectResponse(f"/tasks/{assignment_id}", status_code=303)


@router.post("/{assignment_id}/ask")
def ask(request: Request, visitor: Labeler, assignment_id: str, posted: Posted) -> Response:
    """A question about a task, or a report of something wrong with it."""
    asked = dict(posted)

    def write(db: Session) -> None:
        mine = work.own(db, visitor.me, assignment_id)
        threads.ask(db, mine, asked.get("body", ""), now(), reported="reported" in asked)

    site_of(request).database.attempt(write)
    return RedirectResponse(f"/tasks/{assignment_id}#thread", status_code=303)
