"""A labeler's actions on tasks, each one retried transaction; pages and API call these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from sqlalchemy.orm import Session

from instructgpt.label.context import Site
from instructgpt.label.db.models import Assignment, Person, Task, current_time_ms
from instructgpt.label.errors import SiteError
from instructgpt.label.tasks import assignments, drafts, submission_history, submissions, threads
from instructgpt.label.tasks.form_fields import fields_to_payload
from instructgpt.label.tasks.forms import parse_submission_form
from instructgpt.label.tasks.task_view import TaskView, build_task_view
from instructgpt.label.vocabulary import TaskKind
from instructgpt.records import format_validation_error

_ResultT = TypeVar("_ResultT")
_FIELDS_ADAPTER = TypeAdapter(list[tuple[str, str]])


class SubmissionReceipt(BaseModel):
    """A submission as it was stored. `ranks`: completion to rank, 1 is best, equal ranks tie; empty for other kinds."""

    submission: str
    version: int
    surplus: bool
    ranks: dict[str, int]
    editable_until: int


def claim_task(
    site: Site, person: Person, kind: TaskKind | None = None, screening: str | None = None
) -> Assignment | None:
    """Return the task the person holds already, else the next one; None if nothing is available."""
    return site.database.write_with_retry(
        lambda db: assignments.claim_next_task(db, site.settings, person, kind, current_time_ms(), screening)
    )


def extend_lease(site: Site, person: Person, assignment_id: str) -> int:
    """Extend the lease. -> its new end, in milliseconds since 1970."""
    return _with_assignment(
        site,
        person,
        assignment_id,
        lambda db, assignment: assignments.renew_lease(db, site.settings, assignment, current_time_ms()),
    )


def save_draft(site: Site, person: Person, assignment_id: str, revision: int, body: Mapping[str, Any]) -> int:
    """Store a draft that follows `revision` (0: the first). -> the new revision. `body`: see `to_payload`."""

    def store(db: Session, assignment: Assignment) -> int:
        payload = to_payload(db, assignment, body)
        return drafts.store_draft(db, assignment, revision, payload, current_time_ms())

    return _with_assignment(site, person, assignment_id, store)


def submit_task(
    site: Site, person: Person, assignment_id: str, body: Mapping[str, Any], idempotency_key: str, *, is_edit: bool
) -> SubmissionReceipt:
    """Store a submission, or a new version of one (`is_edit`). The same key again returns the same submission."""

    def store(db: Session, assignment: Assignment) -> SubmissionReceipt:
        kind = db.get_one(Task, assignment.task_id).kind
        form = parse_submission_form(kind, to_payload(db, assignment, body))
        store_form = submissions.submit_edit if is_edit else submissions.submit_form
        submission = store_form(db, site.settings, assignment, form, idempotency_key, current_time_ms())
        current = assignments.get_own_assignment(db, person, assignment_id)
        return SubmissionReceipt(
            submission=submission.id,
            version=submission.version,
            surplus=submission.surplus,
            ranks=submission_history.get_submitted_ranks(db, submission.id),
            editable_until=submissions.editable_until(site.settings, current),
        )

    return _with_assignment(site, person, assignment_id, store)


def skip_task(site: Site, person: Person, assignment_id: str, reason: str, note: str) -> str:
    """Return the task to the queue. -> the id of the skip."""

    def skip(db: Session, assignment: Assignment) -> str:
        return assignments.skip_assignment(db, site.settings, assignment, reason, note, current_time_ms()).id

    return _with_assignment(site, person, assignment_id, skip)


def undo_last(site: Site, person: Person, assignment_id: str) -> TaskView:
    """Undo the last submission or skip; the task is open again, with its contents as a draft."""

    def undo(db: Session, assignment: Assignment) -> TaskView:
        submissions.undo_last_action(db, site.settings, assignment, current_time_ms())
        return build_task_view(db, assignment)

    return _with_assignment(site, person, assignment_id, undo)


def post_message(
    site: Site, person: Person, assignment_id: str, body: str, *, reported: bool
) -> list[threads.ThreadMessage]:
    """Post a question, or a report of a problem, and return the whole thread."""

    def post(db: Session, assignment: Assignment) -> list[threads.ThreadMessage]:
        threads.post_question(db, assignment, body, current_time_ms(), reported=reported)
        return threads.list_thread_messages(db, assignment.task_id, person.id)

    return _with_assignment(site, person, assignment_id, post)


def to_payload(db: Session, assignment: Assignment, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON of a form from a request's body.

    The site's pages post `{"fields": [[name, value], ...]}`, their form's fields in order; programs post the JSON.

    Raises:
        SiteError: `bad_form` (422) for fields that are no pairs of strings.
    """
    if body.keys() != {"fields"}:
        return dict(body)
    try:
        fields = _FIELDS_ADAPTER.validate_python(body["fields"])
    except ValidationError as error:
        raise SiteError(422, "bad_form", reason=format_validation_error(error)) from error
    return fields_to_payload(db.get_one(Task, assignment.task_id).kind, fields, assignment.shown)


def _with_assignment(
    site: Site, person: Person, assignment_id: str, action: Callable[[Session, Assignment], _ResultT]
) -> _ResultT:
    return site.database.write_with_retry(
        lambda db: action(db, assignments.get_own_assignment(db, person, assignment_id))
    )
