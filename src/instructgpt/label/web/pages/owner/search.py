"""Lists of tasks and submissions with filters in the URL, all work of one person, and the lists as CSV."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from instructgpt.label.auth.dependencies import TeamUser, get_site
from instructgpt.label.db.database import Database
from instructgpt.label.db.models import Person
from instructgpt.label.exchange.selection import snapshot
from instructgpt.label.listing import people, submissions, tasks
from instructgpt.label.listing.choices import load_filter_choices
from instructgpt.label.listing.filters import PersonFilter, SubmissionFilter, TaskFilter, count_pages
from instructgpt.label.web import charts
from instructgpt.label.web.params import or_404
from instructgpt.label.web.rendering import redirect, render_page

router = APIRouter()

_TASK_COLUMNS = ["task", "batch", "kind", "state", "overlap", "handed_in", "in_progress", "skipped"]
_TASK_COLUMNS += ["source", "use_case", "language", "prompt"]
_SUBMISSION_COLUMNS = ["submission", "task", "batch", "kind", "labeler", "cohort", "state", "version", "handed_in_utc"]
_SUBMISSION_COLUMNS += ["active_s", "mean_rating", "labels", "prompt", "text", "note"]
_PERSON_COLUMNS = ["labeler", "role", "status", "cohort", "fold", "since_utc", "submissions", "active_hours"]
_PERSON_COLUMNS += ["latest_utc"]


@router.get("/search")
def show_search(_: TeamUser) -> Response:
    return redirect("/search/tasks")


@router.get("/search/tasks")
def show_tasks(request: Request, _: TeamUser, list_filter: Annotated[TaskFilter, Query()]) -> Response:
    with get_site(request).database.read() as db:
        rows, total, page = tasks.list_tasks_page(db, list_filter)
        choices = load_filter_choices(db)
    return _render_list(request, "owner/search_tasks.html", list_filter, rows, total, page, choices=choices)


@router.get("/search/tasks.csv")
def download_tasks_csv(request: Request, _: TeamUser, list_filter: Annotated[TaskFilter, Query()]) -> Response:
    return charts.csv_download("tasks", _TASK_COLUMNS, _iter_task_rows(get_site(request).database, list_filter))


def _iter_task_rows(database: Database, list_filter: TaskFilter) -> Iterator[list[object]]:
    with snapshot(database) as db:
        for item in tasks.iter_task_items(db, list_filter):
            counts = [item.overlap, item.n_done, item.n_open, item.n_skipped]
            origin = [item.source, item.use_case, item.language]
            yield [item.id, item.batch_name, item.kind, item.state, *counts, *origin, item.text]


@router.get("/search/submissions")
def show_submissions(request: Request, _: TeamUser, list_filter: Annotated[SubmissionFilter, Query()]) -> Response:
    with get_site(request).database.read() as db:
        rows, total, page = submissions.list_submissions_page(db, list_filter)
        choices = load_filter_choices(db)
    return _render_list(request, "owner/search_submissions.html", list_filter, rows, total, page, choices=choices)


@router.get("/search/submissions.csv")
def download_submissions_csv(
    request: Request, _: TeamUser, list_filter: Annotated[SubmissionFilter, Query()]
) -> Response:
    rows = _iter_submission_rows(get_site(request).database, list_filter)
    return charts.csv_download("submissions", _SUBMISSION_COLUMNS, rows)


def _iter_submission_rows(database: Database, list_filter: SubmissionFilter) -> Iterator[list[object]]:
    """Yield the rows of the CSV file; labelers are named by their pseudonyms, as in exports."""
    with snapshot(database) as db:
        for item in submissions.iter_submission_items(db, list_filter):
            submission = item.submission
            where: list[object] = [submission.id, item.task.id, item.batch.name, submission.kind]
            labeler: list[object] = [item.person.pseudonym, item.person.cohort, item.state, submission.version]
            work: list[object] = [charts.csv_time(submission.created_at), submission.active_ms / 1000, item.mean_rating]
            yield [*where, *labeler, *work, " ".join(item.labels), item.prompt, item.text, submission.note]


@router.get("/people.csv")
def download_people_csv(request: Request, _: TeamUser, list_filter: Annotated[PersonFilter, Query()]) -> Response:
    return charts.csv_download("people", _PERSON_COLUMNS, _iter_person_rows(get_site(request).database, list_filter))


def _iter_person_rows(database: Database, list_filter: PersonFilter) -> Iterator[list[object]]:
    with snapshot(database) as db:
        for item in people.iter_person_items(db, list_filter):
            person, latest = item.person, charts.csv_time(item.latest_ms) if item.latest_ms else None
            account: list[object] = [person.pseudonym, person.role, person.status, person.cohort, person.fold]
            work: list[object] = [item.submissions, item.active_ms / 3_600_000, latest]
            yield [*account, charts.csv_time(person.created_at), *work]


@router.get("/people/{person_id}/work")
def show_person_work(
    request: Request, _: TeamUser, person_id: str, list_filter: Annotated[SubmissionFilter, Query()]
) -> Response:
    """Show all submissions of one person, with the same filters as the list of all submissions."""
    list_filter = list_filter.model_copy(update={"labeler": person_id})
    with get_site(request).database.read() as db:
        person = or_404(db.get(Person, person_id))
        rows, total, page = submissions.list_submissions_page(db, list_filter)
        counts = submissions.count_by_state(db, person_id)
        choices = load_filter_choices(db)
    return _render_list(
        request,
        "owner/search_submissions.html",
        list_filter,
        rows,
        total,
        page,
        choices=choices,
        person=person,
        counts=counts,
    )


def _render_list(
    request: Request, template: str, list_filter: Any, rows: list[Any], total: int, page: int, **values: Any
) -> Response:
    defaults = {"person": None, "counts": None}
    return render_page(
        request,
        template,
        filter=list_filter,
        rows=rows,
        total=total,
        page=page,
        pages=count_pages(total),
        **defaults | values,
    )
