"""Handing in, once and for good: idempotent, append-only, late work kept.

An edit is a further version, undo withdraws the current one; whatever was handed in stays in the table. The contents of the four kinds
of form go to tables of their own (`contents`).
"""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from instructgpt.label.context import Settings
from instructgpt.label.db.models import Assignment, Draft, Submission, Task, TaskCompletion
from instructgpt.label.errors import SiteError
from instructgpt.label.tasks import submission_contents
from instructgpt.label.tasks.assignments import MINUTE_MS, cancel_skip, lease_duration_ms, lock_assignment, undo_skip
from instructgpt.label.tasks.drafts import get_draft
from instructgpt.label.tasks.forms import RankingForm, SubmissionForm
from instructgpt.label.tasks.submission_contents import read_submission_form

__all__ = [
    "get_current_submission",
    "read_submission_form",
    "set_submission_validity",
    "submit_edit",
    "submit_form",
    "undo_submission",
]

_MAX_KEY_LENGTH = 200


def submit_form(
    db: Session, settings: Settings, assignment: Assignment, form: SubmissionForm, key: str, now_ms: int
) -> Submission:
    """Hand in a form. Its draft goes in the same transaction; the same key again returns what was stored the first time.

    Work is never refused for being late: after the lease it counts while there is room, otherwise it is kept as surplus; so is work on
    a task that was skipped, whose skip is taken back.

    Raises:
        Problem: `wrong_form`, `bad_form` or `no_key` (422), and nothing is changed; `already_submitted` (409, with the submission and its
            version) for another form on handed-in work, which `edit` is for.
    """
    locked, task = lock_assignment(db, assignment)
    if (previous := _find_by_key(db, locked, key)) is not None:
        return previous
    _check_form(db, task, form)
    if locked.state == "submitted":
        current = get_current_submission(db, locked)
        raise SiteError(
            409,
            "already_submitted",
            submission=current.id if current else None,
            version=current.version if current else 0,
        )
    if locked.state == "skipped":
        cancel_skip(db, settings, locked, task, now_ms)
    replaced = _retire_current(db, locked, now_ms) if locked.state == "returned" else None
    surplus = False if replaced is not None and _is_counted(locked, replaced) else _count_or_surplus(locked, task)
    submission = _insert_version(db, locked, task, form, key, now_ms, surplus=surplus)
    locked.state, locked.closed_at = "submitted", now_ms
    _update_task_state(db, locked, task)
    return submission


def submit_edit(
    db: Session, settings: Settings, assignment: Assignment, form: SubmissionForm, key: str, now_ms: int
) -> Submission:
    """A new version of handed-in work, within the edit window; the earlier one stays.

    Raises:
        Problem: as `submit`; `not_submitted` (409), `too_late_to_edit` (409).
    """
    locked, task = lock_assignment(db, assignment)
    if (previous := _find_by_key(db, locked, key)) is not None:
        return previous
    _check_form(db, task, form)
    _check_editable(settings, locked, now_ms)
    replaced = _retire_current(db, locked, now_ms)
    submission = _insert_version(db, locked, task, form, key, now_ms, surplus=replaced.surplus)
    submission.invalid_reason = replaced.invalid_reason
    _update_task_state(db, locked, task)
    return submission


def undo_submission(db: Session, settings: Settings, assignment: Assignment, now_ms: int) -> Draft:
    """Take handed-in work back: the task is in hand again and what was handed in becomes its draft. -> the draft.

    Raises:
        Problem: `not_submitted` (409), `too_late_to_edit` (409).
    """
    locked, task = lock_assignment(db, assignment)
    _check_editable(settings, locked, now_ms)
    withdrawn = _retire_current(db, locked, now_ms)
    payload = read_submission_form(db, withdrawn).model_dump(mode="json")
    submission_contents.withdraw_written_prompt(db, withdrawn, now_ms)
    draft = get_draft(db, locked)
    if draft is None:
        draft = Draft(assignment_id=locked.id, rev=0, payload=payload)
        db.add(draft)
    draft.rev, draft.payload, draft.updated_at = draft.rev + 1, payload, now_ms
    if _is_counted(locked, withdrawn) or locked.round == 1:
        locked.state, locked.closed_at = "open", None
        locked.lease_until = now_ms + lease_duration_ms(settings, task.kind)
        if locked.round == 0:
            task.n_done -= 1
            task.n_open += 1
    else:
        locked.state, locked.closed_at = "expired", now_ms
    _update_task_state(db, locked, task)
    return draft


def set_submission_validity(db: Session, submission: Submission, invalid_reason: str | None) -> None:
    """A person decides that handed-in work does not count, and why, or (None) that it does after all. The work itself stays.

    The task of work that does not count goes to somebody else; work that is valid again when its place is taken is surplus.

    Raises:
        Problem: `not_submitted` (409) for a version that was replaced.
    """
    locked, task = lock_assignment(db, db.get_one(Assignment, submission.assignment_id))
    current = get_current_submission(db, locked)
    if current is None or current.id != submission.id:
        raise SiteError(409, "not_submitted")
    if locked.round == 0 and not current.surplus:
        if current.invalid_reason is None and invalid_reason is not None:
            task.n_done -= 1
        elif current.invalid_reason is not None and invalid_reason is None:
            current.surplus = _count_or_surplus(locked, task)
    current.invalid_reason = invalid_reason
    _update_task_state(db, locked, task)


def get_current_submission(db: Session, assignment: Assignment) -> Submission | None:
    """The version that counts; None before the first and after an undo."""
    return db.scalar(
        select(Submission).where(Submission.assignment_id == assignment.id, Submission.replaced_at.is_(None))
    )


def editable_until(settings: Settings, assignment: Assignment) -> int:
    """Until when handed-in work can be edited or undone, in milliseconds."""
    return (assignment.closed_at or 0) + settings.edit_window * MINUTE_MS


def _check_form(db: Session, task: Task, form: SubmissionForm) -> None:
    """Raises Problem `wrong_form` or `bad_form` (422) unless a form is one for this task, whole."""
    kind = getattr(form, "kind", None)
    if kind != task.kind:
        raise SiteError(422, "wrong_form", expected=task.kind, found=kind)
    if isinstance(form, RankingForm):
        completions = db.scalars(select(TaskCompletion.completion_id).where(TaskCompletion.task_id == task.id)).all()
        try:
            form.validate_completions(completions)
        except ValueError as error:
            raise SiteError(422, "bad_form", reason=str(error)) from error


def _find_by_key(db: Session, assignment: Assignment, key: str) -> Submission | None:
    """What was handed in under a key. Raises Problem `no_key` (422) for a key that is none."""
    if not key.strip() or len(key) > _MAX_KEY_LENGTH or not key.isprintable():
        raise SiteError(422, "no_key", most=_MAX_KEY_LENGTH)
    return db.scalar(select(Submission).where(Submission.assignment_id == assignment.id, Submission.key == key))


def _check_editable(settings: Settings, assignment: Assignment, now_ms: int) -> None:
    if assignment.state != "submitted":
        raise SiteError(409, "not_submitted")
    if now_ms > editable_until(settings, assignment):
        raise SiteError(409, "too_late_to_edit")


def _is_counted(assignment: Assignment, submission: Submission) -> bool:
    """Whether a current submission counts in its task: hidden repeats, surplus and invalid work do not."""
    return assignment.round == 0 and not submission.surplus and submission.invalid_reason is None


def _count_or_surplus(assignment: Assignment, task: Task) -> bool:
    """Count one more submission in the task. -> whether there was no room for it; a hidden repeat needs none."""
    if assignment.round == 1:
        return False
    if assignment.state == "open":
        task.n_open -= 1
    elif task.n_open + task.n_done >= task.overlap:
        return True
    task.n_done += 1
    return False


def _retire_current(db: Session, assignment: Assignment, now_ms: int) -> Submission:
    """The current version is no longer that."""
    current = get_current_submission(db, assignment)
    if current is None:
        raise SiteError(409, "not_submitted")
    current.replaced_at = now_ms
    db.flush()
    return current


def _insert_version(
    db: Session, assignment: Assignment, task: Task, form: SubmissionForm, key: str, now_ms: int, *, surplus: bool
) -> Submission:
    """The next version, with its contents; the draft is done with."""
    last_version = (
        db.scalar(
            select(func.coalesce(func.max(Submission.version), 0)).where(Submission.assignment_id == assignment.id)
        )
        or 0
    )
    submission = Submission(
        assignment_id=assignment.id,
        version=last_version + 1,
        key=key,
        kind=task.kind,
        note=form.note,
        active_ms=form.active_ms,
        wall_ms=max(0, now_ms - assignment.opened_at),
        pasted=form.pasted,
        surplus=surplus,
        created_at=now_ms,
    )
    db.add(submission)
    db.flush()
    submission_contents.write_submission_contents(db, submission, assignment, task, form)
    if (draft := get_draft(db, assignment)) is not None:
        db.delete(draft)
    db.flush()
    return submission


def _update_task_state(db: Session, assignment: Assignment, task: Task) -> None:
    """A task is done when as many labelers as it needs have handed it in, and open again when one of them takes it back."""
    if assignment.round == 0 and task.state in ("open", "done"):
        task.state = "done" if task.n_done >= task.overlap else "open"
    db.flush()


def undo_last_action(db: Session, settings: Settings, assignment: Assignment, now_ms: int) -> None:
    """Take back the last step of an assignment: a skip, or what was handed in. Raises Problem as either does."""
    if assignment.state == "skipped":
        undo_skip(db, settings, assignment, now_ms)
    else:
        undo_submission(db, settings, assignment, now_ms)
