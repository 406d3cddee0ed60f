"""Run and undo a bulk change in portions, so that labelers' claims come between; each row's outcome is stored.

The rows are fixed when the change starts. One that a restart has interrupted goes on with the rows that are left.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from instructgpt.label.bulk.actions import (
    BULK_ACTIONS,
    CHANGED,
    MAX_EXTRA_LABELERS,
    WORK_ACTIONS,
    BulkAction,
    BulkContext,
    Outcome,
)
from instructgpt.label.context import Site
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import (
    Assignment,
    BulkChange,
    BulkItem,
    Person,
    Submission,
    Task,
    current_time_ms,
    new_id,
)
from instructgpt.label.errors import SiteError
from instructgpt.label.listing.filters import ListFilter, PersonFilter, SubmissionFilter, TaskFilter
from instructgpt.label.listing.people import select_person_ids
from instructgpt.label.listing.submissions import select_submission_ids, submission_state_column
from instructgpt.label.listing.tasks import select_task_ids
from instructgpt.label.tasks.batches import UNLIMITED_OVERLAP
from instructgpt.label.tasks.forms import validate_storable

_PORTION_SIZE, _INSERT_SIZE, _PAUSE_S = 50, 500, 0.005
_MAX_REASON_LENGTH = 2_000
FILTER_CLASSES: dict[str, type[ListFilter]] = {
    "task": TaskFilter,
    "submission": SubmissionFilter,
    "person": PersonFilter,
}


def check_parameters(db: Session, subject: str, action: str, form: Mapping[str, str]) -> dict[str, Any]:
    """Return the parameters of an action from a form. Raises SiteError 404 for an unknown action, 422 for a value."""
    fields = get_action(subject, action).fields
    parameters: dict[str, Any] = {}
    if "reason" in fields:
        reason = form.get("reason", "").strip()
        try:
            validate_storable(reason)
        except ValueError as error:
            raise SiteError(422, "bad_text", reason=str(error)) from error
        if not reason or len(reason) > _MAX_REASON_LENGTH:
            raise SiteError(422, "reason_missing")
        parameters["reason"] = reason
    if "number" in fields:
        text = form.get("number", "").strip()
        if not text.isdecimal() or not 1 <= int(text) <= MAX_EXTRA_LABELERS:
            raise SiteError(422, "bad_field", field="number", wrong=f"expected 1 to {MAX_EXTRA_LABELERS}")
        parameters["number"] = int(text)
    if "labeler" in fields and form.get("labeler"):
        person = db.get(Person, form["labeler"])
        if person is None or person.role != "labeler" or person.status != "active":
            raise SiteError(422, "bad_field", field="labeler", wrong="not an active labeler")
        parameters["labeler"] = person.id
    return parameters


def get_action(subject: str, action: str) -> BulkAction:
    """Return an action; raise SiteError `not_found` (404). Actions on the work of people are those on submissions."""
    if subject == "person" and action in WORK_ACTIONS:
        return BULK_ACTIONS["submission"][WORK_ACTIONS[action]]
    if action not in BULK_ACTIONS.get(subject, {}):
        raise SiteError(404, "not_found")
    return BULK_ACTIONS[subject][action]


def resolve_targets(
    db: Session, subject: str, action: str, list_filter: ListFilter | None, object_ids: Sequence[str]
) -> tuple[str, str, list[str]]:
    """Return the subject, the action and the rows that a change concerns.

    Args:
        list_filter: everything that matches; None: `object_ids`, of which unknown ones are left out.
    """
    if list_filter is None:
        table = {"task": Task, "submission": Submission, "person": Person}[subject]
        targets = _keep_existing(db, table, object_ids)
    elif isinstance(list_filter, TaskFilter):
        targets = list(db.scalars(select_task_ids(db, list_filter)))
    elif isinstance(list_filter, SubmissionFilter):
        targets = list(db.scalars(select_submission_ids(db, list_filter)))
    else:
        assert isinstance(list_filter, PersonFilter)
        targets = list(db.scalars(select_person_ids(db, list_filter)))
    if subject == "person" and action in WORK_ACTIONS:
        return "submission", WORK_ACTIONS[action], _list_current_submissions(db, targets)
    return subject, action, sorted(targets)


def _keep_existing(db: Session, table: Any, object_ids: Sequence[str]) -> list[str]:
    return [
        key
        for part in _split(sorted(set(object_ids)))
        for key in db.scalars(select(table.id).where(table.id.in_(part)))
    ]


def _list_current_submissions(db: Session, person_ids: Sequence[str]) -> list[str]:
    statement = select(Submission.id).join(Assignment, Assignment.id == Submission.assignment_id)
    statement = statement.where(Submission.replaced_at.is_(None))
    return sorted(
        key for part in _split(person_ids) for key in db.scalars(statement.where(Assignment.person_id.in_(part)))
    )


def _split(values: Sequence[str]) -> Iterable[Sequence[str]]:
    return (values[start : start + _INSERT_SIZE] for start in range(0, len(values), _INSERT_SIZE))


def count_states(db: Session, subject: str, object_ids: Sequence[str]) -> dict[str, int]:
    """Count rows by state; for tasks also the labelers that they need in all."""
    counts: Counter[str] = Counter()
    for part in _split(object_ids):
        if subject == "task":
            statement = select(
                Task.state, func.count(), func.sum(Task.overlap).filter(Task.overlap < UNLIMITED_OVERLAP)
            )
            for state, count, overlap in db.execute(statement.where(Task.id.in_(part)).group_by(Task.state)):
                counts[state] += count
                counts["overlap"] += int(overlap or 0)
        elif subject == "submission":
            column = submission_state_column()
            rows = select(column, func.count()).join(Assignment, Assignment.id == Submission.assignment_id)
            rows = rows.where(Submission.id.in_(part)).group_by(column)
            counts.update(dict(db.execute(rows).all()))
        else:
            people = select(Person.status, func.count()).where(Person.id.in_(part)).group_by(Person.status)
            counts.update(dict(db.execute(people).all()))
    return {name: count for name, count in sorted(counts.items()) if count}


def start_change(
    site: Site,
    user: Person,
    subject: str,
    action: str,
    targets: Sequence[str],
    parameters: Mapping[str, Any],
    filter_text: str = "",
) -> str:
    """Store the change with its rows, run it, and return its id."""
    change_id = new_id()
    with site.database.write() as db:
        change = BulkChange(
            id=change_id,
            subject=subject,
            action=action,
            filter=filter_text,
            parameters=dict(parameters),
            created_by=user.id,
            before_counts=count_states(db, subject, targets),
        )
        db.add(change)
        db.flush()
        for part in _split(targets):
            db.execute(insert(BulkItem), [{"change_id": change_id, "object_id": key} for key in part])
        audit_log.append_entry(db, user.id, f"bulk.{subject}.{action}", change_id, rows=len(targets))
    run_change(site, user, change_id)
    return change_id


def run_change(site: Site, user: Person, change_id: str) -> None:
    """Change the rows that have no outcome yet, then count the states afterwards."""
    with site.database.read() as db:
        change = db.get_one(BulkChange, change_id)
    apply = BULK_ACTIONS[change.subject][change.action].apply

    def change_row(context: BulkContext, item: BulkItem) -> None:
        outcome = _apply_safely(apply, context, item.object_id)
        item.outcome, item.previous = outcome.code, outcome.previous or None

    _process_portions(site, user, change, (BulkItem.outcome.is_(None),), change_row)
    with site.database.write() as db:
        stored = db.get_one(BulkChange, change_id)
        stored.after_counts = count_states(db, change.subject, _list_object_ids(db, change_id))
        audit_log.append_entry(db, user.id, "bulk.done", change_id, outcomes=count_outcomes(db, change_id))


def take_back_change(site: Site, user: Person, change_id: str) -> None:
    """Take a change back, row by row; rows that were changed since stay. Raises SiteError `already_undone` (409)."""
    with site.database.write() as db:
        change = db.get_one(BulkChange, change_id)
        unfinished = select(BulkItem.object_id).where(
            BulkItem.change_id == change_id, BulkItem.outcome == CHANGED, BulkItem.undo_outcome.is_(None)
        )
        if change.undone_at is not None and db.scalar(unfinished.limit(1)) is None:
            raise SiteError(409, "already_undone")
        change.undone_at, change.undone_by = current_time_ms(), user.id
        audit_log.append_entry(db, user.id, "bulk.undone", change_id)
    revert = BULK_ACTIONS[change.subject][change.action].revert

    def revert_row(context: BulkContext, item: BulkItem) -> None:
        try:
            item.undo_outcome = revert(context, item.object_id, item.previous or {})
        except SiteError as error:
            item.undo_outcome = error.code

    conditions = (BulkItem.outcome == CHANGED, BulkItem.undo_outcome.is_(None))
    _process_portions(site, user, change, conditions, revert_row)


def _apply_safely(apply: Any, context: BulkContext, object_id: str) -> Outcome:
    try:
        outcome: Outcome = apply(context, object_id)
    except SiteError as error:  # a refused row has changed nothing
        return Outcome(error.code)
    return outcome


def _process_portions(site: Site, user: Person, change: BulkChange, conditions: Any, process: Any) -> None:
    statement = select(BulkItem).where(BulkItem.change_id == change.id, *conditions)
    statement = statement.order_by(BulkItem.object_id).limit(_PORTION_SIZE)

    def process_portion(db: Session) -> int:
        items = db.scalars(statement.with_for_update()).all()
        context = BulkContext(db, site.settings, user, change.parameters, current_time_ms())
        for item in items:
            process(context, item)
            db.flush()
        return len(items)

    while site.database.write_with_retry(process_portion):
        time.sleep(_PAUSE_S)  # the lock of writers is not fair


def _list_object_ids(db: Session, change_id: str) -> list[str]:
    return list(db.scalars(select(BulkItem.object_id).where(BulkItem.change_id == change_id)))


def count_outcomes(db: Session, change_id: str, *, undo: bool = False) -> dict[str, int]:
    """Count the rows of a change by outcome, the changed ones first; rows before their turn are `waiting`."""
    column = func.coalesce(BulkItem.undo_outcome if undo else BulkItem.outcome, "waiting")
    statement = select(column, func.count()).where(BulkItem.change_id == change_id).group_by(column)
    if undo:
        statement = statement.where(BulkItem.outcome == CHANGED)
    counts = dict(db.execute(statement).all())
    return {code: counts[code] for code in sorted(counts, key=lambda code: (code != CHANGED, code))}
