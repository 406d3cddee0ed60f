"""Submit, edit and undo work. Submissions are append-only: an edit adds a version, an undo retires the current one.

Typed rows hold the contents of a form, for training and exports (`submission_contents`).
"""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from instructgpt.label.context import Settings
from instructgpt.label.db.models import (
    Assignment,
    Batch,
    Draft,
    Person,
    Submission,
    Task,
    TaskCompletion,
)
from instructgpt.label.errors import SiteError
from instructgpt.label.tasks.assignments import MINUTE_MS, cancel_skip, lease_duration_ms, lock_assignment, undo_skip
from instructgpt.label.tasks.drafts import get_draft
from instructgpt.label.tasks.forms import PromptForm, RankingForm, SubmissionForm
from instructgpt.label.tasks.questions import batch_questions, complete_form, list_unanswered
from instructgpt.label.tasks.red_team import check_judged, get_failure_kind
from instructgpt.label.tasks.submission_contents import read_submission_form, withdraw_written_prompt, write_contents
from instructgpt.label.tasks.task_events import record_batch_completion, record_submission

_MAX_KEY_LENGTH = 200


def submit_form(
    db: Session, settings: Settings, assignment: Assignment, form: SubmissionForm, key: str, now_ms: int
) -> Submission:
    """Submit a form and delete its draft; the same `key` again returns the first submission.

    Late work is stored: after the lease it counts while the task has a place, otherwise it is surplus. Submitting a
    skipped task cancels the skip.

    Raises:
        SiteError: `wrong_form`, `bad_form`, `no_key` (422); `already_submitted` (409, with submission and version) for
            another form, which needs `submit_edit`.
    """
    locked, task = lock_assignment(db, assignment)
    if (previous := _find_by_key(db, locked, key)) is not None:  # a retry, which the lock made wait for the original
        return previous
    form = _check_form(db, locked, task, form)
    if locked.state == "submitted":
        current = get_current_submission(db, locked)
        submission_id, version = (current.id, current.version) if current else (None, 0)
        raise SiteError(409, "already_submitted", submission=submission_id, version=version)
    if locked.state == "skipped":
        cancel_skip(db, settings, locked, task, now_ms)
    replaced = _retire_current(db, locked, now_ms) if locked.state == "returned" else None
    surplus = False if replaced is not None and _is_counted(locked, replaced) else _count_or_surplus(locked, task)
    submission = _insert_version(db, locked, task, form, key, now_ms, surplus=surplus)
    locked.state, locked.closed_at = "submitted", now_ms
    _update_task_state(db, locked, task)
    record_submission(db, locked, task, submission)
    return submission


def submit_edit(
    db: Session, settings: Settings, assignment: Assignment, form: SubmissionForm, key: str, now_ms: int
) -> Submission:
    """Store a new version within the edit window; raise SiteError (422, 409) as `submit_form`, or when it is over."""
    locked, task = lock_assignment(db, assignment)
    if (previous := _find_by_key(db, locked, key)) is not None:
        return previous
    form = _check_form(db, locked, task, form)
    _check_editable(db, settings, locked, task, now_ms)
    replaced = _retire_current(db, locked, now_ms)
    submission = _insert_version(db, locked, task, form, key, now_ms, surplus=replaced.surplus)
    submission.invalid_reason = replaced.invalid_reason
    _update_task_state(db, locked, task)
    record_submission(db, locked, task, submission)
    return submission


def undo_submission(db: Session, settings: Settings, assignment: Assignment, now_ms: int) -> Draft:
    """Undo a submission, reopen its task, and return the submission as its draft; raise SiteError (409)."""
    locked, task = lock_assignment(db, assignment)
    _check_editable(db, settings, locked, task, now_ms)
    withdrawn = _retire_current(db, locked, now_ms)
    payload = read_submission_form(db, withdrawn).model_dump(mode="json")
    withdraw_written_prompt(db, withdrawn, now_ms)
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
    """Mark submitted work as invalid with a reason, or (None) as valid again; its contents stay.

    The task of invalid work goes to another labeler. Work that becomes valid when its place is taken is surplus.

    Raises:
        SiteError: `not_submitted` (409) for a replaced version.
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
    """Return the current version; None before the first one and after an undo."""
    statement = select(Submission).where(Submission.assignment_id == assignment.id)
    return db.scalar(statement.where(Submission.replaced_at.is_(None)))


def editable_until(settings: Settings, assignment: Assignment) -> int:
    """Return the end of the edit window in milliseconds."""
    return (assignment.closed_at or 0) + settings.edit_window * MINUTE_MS


def _check_form(db: Session, assignment: Assignment, task: Task, form: SubmissionForm) -> SubmissionForm:
    """Return the form, a ranking with what follows from its answers.

    Raises:
        SiteError: 422: `wrong_form` for another kind of form, `bad_form` for other completions or answers that the
            batch does not ask for, `unanswered` for required questions that are open.
    """
    kind = getattr(form, "kind", None)
    if kind != task.kind:
        raise SiteError(422, "wrong_form", expected=task.kind, found=kind)
    if isinstance(form, PromptForm) and get_failure_kind(task.brief) is not None:
        check_judged(db, assignment, form.text)
    if not isinstance(form, RankingForm):
        return form
    completions = db.scalars(select(TaskCompletion.completion_id).where(TaskCompletion.task_id == task.id)).all()
    questions = batch_questions(db.get_one(Batch, task.batch_id))
    try:
        form.validate_completions(completions)
        form = complete_form(questions, form, assignment.shown)
    except ValueError as error:
        raise SiteError(422, "bad_form", reason=str(error)) from error
    required = [each.name for each in list_unanswered(questions, form, assignment.shown) if each.required]
    if required:
        raise SiteError(422, "unanswered", count=len(required), names=", ".join(dict.fromkeys(required)))
    return form


def _find_by_key(db: Session, assignment: Assignment, key: str) -> Submission | None:
    """Return the submission of an idempotency key; raise SiteError `no_key` (422) for an invalid key."""
    if not key.strip() or len(key) > _MAX_KEY_LENGTH or not key.isprintable():
        raise SiteError(422, "no_key", most=_MAX_KEY_LENGTH)
    return db.scalar(select(Submission).where(Submission.assignment_id == assignment.id, Submission.key == key))


def _check_editable(db: Session, settings: Settings, assignment: Assignment, task: Task, now_ms: int) -> None:
    if assignment.state != "submitted":
        raise SiteError(409, "not_submitted")
    if now_ms > editable_until(settings, assignment):
        raise SiteError(409, "too_late_to_edit")
    is_screening = db.get_one(Batch, task.batch_id).screening is not None
    if is_screening and db.get_one(Person, assignment.person_id).status != "screening":
        raise SiteError(409, "too_late_to_edit")  # the decision was made on these answers


def _is_counted(assignment: Assignment, submission: Submission) -> bool:
    """Return whether a current submission counts; hidden repeats, surplus and invalid work do not."""
    return assignment.round == 0 and not submission.surplus and submission.invalid_reason is None


def _count_or_surplus(assignment: Assignment, task: Task) -> bool:
    """Count a submission in its task; return True, without counting, if the task is full."""
    if assignment.round == 1:
        return False
    if assignment.state == "open":
        task.n_open -= 1
    elif task.n_open + task.n_done >= task.overlap:
        return True
    task.n_done += 1
    return False


def _retire_current(db: Session, assignment: Assignment, now_ms: int) -> Submission:
    current = get_current_submission(db, assignment)
    if current is None:
        raise SiteError(409, "not_submitted")
    current.replaced_at = now_ms
    db.flush()
    return current


def _insert_version(
    db: Session, assignment: Assignment, task: Task, form: SubmissionForm, key: str, now_ms: int, *, surplus: bool
) -> Submission:
    """Store a new version with its contents and delete its draft."""
    latest = select(func.max(Submission.version)).where(Submission.assignment_id == assignment.id)
    submission = Submission(
        assignment_id=assignment.id,
        version=(db.scalar(latest) or 0) + 1,
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
    write_contents(db, submission, assignment, task, form)
    if (draft := get_draft(db, assignment)) is not None:
        db.delete(draft)
    db.flush()
    return submission


def _update_task_state(db: Session, assignment: Assignment, task: Task) -> None:
    if assignment.round == 0 and task.state in ("open", "done"):
        was_done = task.state == "done"
        task.state = "done" if task.n_done >= task.overlap else "open"
        if task.state == "done" and not was_done:
            record_batch_completion(db, task.batch_id)
    db.flush()


def undo_last_action(db: Session, settings: Settings, assignment: Assignment, now_ms: int) -> None:
    """Undo the last step of an assignment: its skip or its submission."""
    if assignment.state == "skipped":
        undo_skip(db, settings, assignment, now_ms)
    else:
        undo_submission(db, settings, assignment, now_ms)
