"""The actions on many rows. Each one changes one row in the caller's transaction and can take the change back.

An action returns an `Outcome`: `changed` with what the row was before, or why the row stays as it is. The inverse
returns `changed`, or why it leaves the row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.label.context import Settings
from instructgpt.label.db.models import Assignment, Batch, Draft, Person, PromptRow, Skip, Submission, Task
from instructgpt.label.errors import SiteError
from instructgpt.label.people import screening
from instructgpt.label.people.privacy import WITHDRAWN_BY_LABELER
from instructgpt.label.tasks import assignments, queue, submissions, threads
from instructgpt.label.tasks.batches import UNLIMITED_OVERLAP

MAX_EXTRA_LABELERS = 20
CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class BulkContext:
    """What an action needs besides the row: `parameters` are `reason`, `number` and `labeler`, as the action asks."""

    db: Session
    settings: Settings
    user: Person
    parameters: Mapping[str, Any]
    now_ms: int


@dataclass(frozen=True, slots=True)
class Outcome:
    code: str = CHANGED
    previous: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BulkAction:
    """`fields`: the parameters that the form asks for; `number` and `reason` are required, `labeler` is not."""

    apply: Callable[[BulkContext, str], Outcome]
    revert: Callable[[BulkContext, str, dict[str, Any]], str]
    fields: tuple[str, ...] = ()
    owner_only: bool = False


def _refresh_task_state(task: Task) -> None:
    if task.state in ("open", "done"):
        task.state = "done" if task.n_done >= task.overlap else "open"


# --- tasks ------------------------------------------------------------------------------------------------------------


def _lock_task(context: BulkContext, task_id: str) -> Task:
    task = assignments.lock_tasks(context.db, [task_id]).get(task_id)
    if task is None:
        raise SiteError(404, "gone")
    return task


def _add_labelers(context: BulkContext, task_id: str) -> Outcome:
    task = _lock_task(context, task_id)
    if task.state == "withdrawn" or task.overlap >= UNLIMITED_OVERLAP:
        return Outcome("withdrawn" if task.state == "withdrawn" else "everybody")
    task.overlap += int(context.parameters["number"])
    _refresh_task_state(task)
    return Outcome()


def _remove_added_labelers(context: BulkContext, task_id: str, _: dict[str, Any]) -> str:
    task = _lock_task(context, task_id)
    overlap = task.overlap - int(context.parameters["number"])
    in_use = task.n_open + task.n_done
    task.overlap = max(overlap, in_use)
    _refresh_task_state(task)
    return CHANGED if in_use <= overlap else "in_use"


def _reassign_task(context: BulkContext, task_id: str) -> Outcome:
    """Take a task from those who have it open; with a labeler, that person gets it first."""
    db, labeler_id = context.db, context.parameters.get("labeler")
    is_open = (Assignment.task_id == task_id, Assignment.state == "open", Assignment.person_id != (labeler_id or ""))
    holders = db.scalars(select(Assignment).where(*is_open).order_by(Assignment.id).with_for_update(key_share=True))
    released = [row.id for row in holders.all()]
    task = _lock_task(context, task_id)
    if task.state == "withdrawn":
        return Outcome("withdrawn")
    assigned = None
    if labeler_id:
        if (refusal := _find_refusal(context, task, labeler_id, len(released))) is not None:
            return Outcome(refusal)
        assigned = _reserve(context, task, labeler_id)
    elif not released:
        return Outcome("not_in_progress")
    _release(context, task, released)
    return Outcome(previous={"released": released, "assigned": assigned})


def _release(context: BulkContext, task: Task, assignment_ids: list[str]) -> None:
    for assignment in context.db.scalars(select(Assignment).where(Assignment.id.in_(assignment_ids))):
        assignment.state, assignment.closed_at = "expired", context.now_ms
        task.n_open -= assignment.round == 0
    context.db.flush()


def _find_refusal(context: BulkContext, task: Task, labeler_id: str, freed: int) -> str | None:
    """Return why a labeler cannot get a task; `freed` places become free."""
    person = context.db.get(Person, labeler_id)
    if person is None or person.role != "labeler" or person.status != "active":
        return "labeler_not_active"
    batch = context.db.get_one(Batch, task.batch_id)
    if batch.screening or {batch.cohort, task.cohort} - {None, person.cohort}:
        return "not_eligible"
    if person.cohort == "heldout" and batch.purpose == "training":
        return "not_eligible"
    if task.n_open - freed + task.n_done >= task.overlap:
        return "no_place"
    return None if queue.is_eligible(context.db, person, task) else "not_eligible"


def _reserve(context: BulkContext, task: Task, labeler_id: str) -> str:
    """Create an expired assignment: its person gets the task before any other, and others while it is not begun."""
    assignment = Assignment(
        task_id=task.id,
        person_id=labeler_id,
        state="expired",
        lease_until=context.now_ms,
        shown=assignments.shuffle_completion_ids(context.db, task),
        opened_at=context.now_ms,
        closed_at=context.now_ms,
    )
    context.db.add(assignment)
    context.db.flush()
    return assignment.id


def _give_back_task(context: BulkContext, task_id: str, previous: dict[str, Any]) -> str:
    task, db = _lock_task(context, task_id), context.db
    reserved = db.get(Assignment, previous["assigned"]) if previous["assigned"] else None
    if reserved is not None and reserved.state == "expired" and not _has_history(db, reserved.id):
        db.delete(reserved)
        db.flush()
    code = "changed_since" if previous["assigned"] and reserved is None else CHANGED
    for assignment_id in previous["released"]:
        assignment = db.get(Assignment, assignment_id)
        if assignment is None or assignment.state != "expired":
            code = "changed_since"
        elif assignment.round == 0 and task.n_open + task.n_done >= task.overlap:
            code = "no_place"
        else:
            assignment.state, assignment.closed_at = "open", None
            assignment.lease_until = context.now_ms + assignments.lease_duration_ms(context.settings, task.kind)
            task.n_open += assignment.round == 0
    db.flush()
    return code


def _has_history(db: Session, assignment_id: str) -> bool:
    """Return whether somebody has worked on an assignment."""
    tables = (Submission, Draft, Skip)
    return any(
        db.scalar(select(table.assignment_id).where(table.assignment_id == assignment_id).limit(1)) is not None
        for table in tables
    )


def _exclude_task(context: BulkContext, task_id: str) -> Outcome:
    task = _lock_task(context, task_id)
    if task.state == "withdrawn":
        return Outcome("withdrawn")
    previous, task.state = task.state, "withdrawn"
    return Outcome(previous={"state": previous})


def _include_task(context: BulkContext, task_id: str) -> Outcome:
    task = _lock_task(context, task_id)
    if task.state != "withdrawn":
        return Outcome("not_excluded")
    prompt = context.db.get(PromptRow, task.prompt_id) if task.prompt_id else None
    if prompt is not None and prompt.withdrawn_at is not None:
        return Outcome("prompt_withdrawn")
    task.state = "done" if task.n_done >= task.overlap else "open"
    return Outcome()


def _include_again(context: BulkContext, task_id: str, previous: dict[str, Any]) -> str:
    outcome = _include_task(context, task_id)
    if outcome.code == CHANGED and previous["state"] == "review":
        _lock_task(context, task_id).state = "review"
    return outcome.code


# --- submissions ------------------------------------------------------------------------------------------------------


def _get_current(context: BulkContext, submission_id: str) -> tuple[Submission, Assignment]:
    submission = context.db.get(Submission, submission_id)
    if submission is None or submission.replaced_at is not None:
        raise SiteError(409, "replaced")
    return submission, context.db.get_one(Assignment, submission.assignment_id)


def _return_submission(context: BulkContext, submission_id: str) -> Outcome:
    _, assignment = _get_current(context, submission_id)
    previous = {"closed_at": assignment.closed_at}
    assignments.return_to_labeler(context.db, assignment, context.now_ms)
    labeler = context.db.get_one(Person, assignment.person_id)
    reason = context.parameters["reason"]
    threads.post_answer(context.db, assignment.task_id, labeler, context.user, reason, context.now_ms)
    return Outcome(previous=previous)


def _take_back_return(context: BulkContext, submission_id: str, previous: dict[str, Any]) -> str:
    _, assignment = _get_current(context, submission_id)
    locked, _ = assignments.lock_assignment(context.db, assignment)
    if locked.state != "returned":
        return "changed_since"
    locked.state, locked.closed_at = "submitted", previous["closed_at"]
    return CHANGED


def _exclude_submission(context: BulkContext, submission_id: str) -> Outcome:
    """Leave a submission out; nobody else is asked for the task."""
    outcome = _reassign_submission(context, submission_id)
    if outcome.code != CHANGED:
        return outcome
    submission, assignment = _get_current(context, submission_id)
    task = _lock_task(context, assignment.task_id)
    lowered = assignment.round == 0 and not submission.surplus and task.overlap < UNLIMITED_OVERLAP
    task.overlap -= lowered
    _refresh_task_state(task)
    return Outcome(previous={"overlap": int(lowered)})


def _reassign_submission(context: BulkContext, submission_id: str) -> Outcome:
    """Leave a submission out; its task goes to another labeler."""
    submission, _ = _get_current(context, submission_id)
    if submission.invalid_reason is not None:
        return Outcome("already_excluded")
    submissions.set_submission_validity(context.db, submission, context.parameters["reason"])
    return Outcome(previous={"overlap": 0})


def _include_submission(context: BulkContext, submission_id: str) -> Outcome:
    submission, _ = _get_current(context, submission_id)
    reason = submission.invalid_reason
    if reason is None or reason == WITHDRAWN_BY_LABELER:
        return Outcome("not_excluded" if reason is None else "withdrawn_by_labeler")
    submissions.set_submission_validity(context.db, submission, None)
    return Outcome(previous={"reason": reason})


def _include_submission_again(context: BulkContext, submission_id: str, previous: dict[str, Any]) -> str:
    submission, assignment = _get_current(context, submission_id)
    if submission.invalid_reason != context.parameters["reason"]:
        return "changed_since"
    task = _lock_task(context, assignment.task_id)
    task.overlap += previous["overlap"]
    context.db.flush()
    submissions.set_submission_validity(context.db, submission, None)
    return CHANGED


def _exclude_submission_again(context: BulkContext, submission_id: str, previous: dict[str, Any]) -> str:
    submission, _ = _get_current(context, submission_id)
    if submission.invalid_reason is not None:
        return "changed_since"
    submissions.set_submission_validity(context.db, submission, previous["reason"])
    return CHANGED


# --- people -----------------------------------------------------------------------------------------------------------


def _get_person(context: BulkContext, person_id: str) -> Person:
    person = context.db.scalars(select(Person).where(Person.id == person_id).with_for_update()).first()
    if person is None:
        raise SiteError(404, "gone")
    return person


def _decide(verdict: str) -> Callable[[BulkContext, str], Outcome]:
    def apply(context: BulkContext, person_id: str) -> Outcome:
        person = _get_person(context, person_id)
        screening.record_decision(context.db, person, context.user, verdict, context.parameters["reason"])
        return Outcome()

    return apply


def _decide_back(verdict: str) -> Callable[[BulkContext, str, dict[str, Any]], str]:
    def revert(context: BulkContext, person_id: str, _: dict[str, Any]) -> str:
        return _decide(verdict)(context, person_id).code

    return revert


def _release_person(context: BulkContext, person_id: str) -> Outcome:
    """Release the open tasks of a person; their drafts stay, and what they hand in late is stored."""
    is_open = (Assignment.person_id == person_id, Assignment.state == "open")
    rows = context.db.scalars(select(Assignment).where(*is_open).order_by(Assignment.id).with_for_update()).all()
    if not rows:
        return Outcome("not_in_progress")
    tasks = assignments.lock_tasks(context.db, (row.task_id for row in rows))
    for row in rows:
        _release(context, tasks[row.task_id], [row.id])
    return Outcome(previous={"released": {row.id: row.task_id for row in rows}})


def _take_up_again(context: BulkContext, _: str, previous: dict[str, Any]) -> str:
    codes = {
        _give_back_task(context, task_id, {"released": [assignment_id], "assigned": None})
        for assignment_id, task_id in previous["released"].items()
    }
    return next((code for code in sorted(codes) if code != CHANGED), CHANGED)


_REASON = ("reason",)
BULK_ACTIONS: dict[str, dict[str, BulkAction]] = {
    "task": {
        "add_labelers": BulkAction(_add_labelers, _remove_added_labelers, ("number",)),
        "reassign": BulkAction(_reassign_task, _give_back_task, ("labeler",)),
        "exclude": BulkAction(_exclude_task, _include_again),
        "include": BulkAction(_include_task, lambda context, key, _: _exclude_task(context, key).code),
    },
    "submission": {
        "return": BulkAction(_return_submission, _take_back_return, _REASON),
        "exclude": BulkAction(_exclude_submission, _include_submission_again, _REASON),
        "reassign": BulkAction(_reassign_submission, _include_submission_again, _REASON),
        "include": BulkAction(_include_submission, _exclude_submission_again),
    },
    "person": {
        "release": BulkAction(_release_person, _take_up_again, owner_only=True),
        "pause": BulkAction(_decide("pause"), _decide_back("resume"), _REASON, owner_only=True),
        "resume": BulkAction(_decide("resume"), _decide_back("pause"), _REASON, owner_only=True),
    },
}
"""Subject -> action -> what it does."""
WORK_ACTIONS = {"return_work": "return", "exclude_work": "exclude", "reassign_work": "reassign"}
"""Actions on people that change all their current submissions."""
