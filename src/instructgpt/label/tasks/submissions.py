"""Handing in, once and for good: idempotent, append-only, late work kept.

An edit is a further version, undo withdraws the current one; whatever was handed in stays in the table. The contents of the four kinds
of form go to tables of their own (`contents`).
"""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from instructgpt.label.context import Settings
from instructgpt.label.db.models import Assignment, Draft, Submission, Task, TaskCompletion
from instructgpt.label.errors import Problem
from instructgpt.label.tasks import submission_contents
from instructgpt.label.tasks.assignments import MINUTE, lease, lock, take_back_skip, undo_skip
from instructgpt.label.tasks.drafts import draft_of
from instructgpt.label.tasks.forms import Form, RankForm
from instructgpt.label.tasks.submission_contents import form_of

__all__ = ["current", "edit", "form_of", "judge", "submit", "undo"]

LONGEST_KEY = 200


def submit(db: Session, settings: Settings, assignment: Assignment, form: Form, key: str, at: int) -> Submission:
    """Hand in a form. Its draft goes in the same transaction; the same key again returns what was stored the first time.

    Work is never refused for being late: after the lease it counts while there is room, otherwise it is kept as surplus; so is work on
    a task that was skipped, whose skip is taken back.

    Raises:
        Problem: `wrong_form`, `bad_form` or `no_key` (422), and nothing is changed; `already_submitted` (409, with the submission and its
            version) for another form on handed-in work, which `edit` is for.
    """
    mine, task = lock(db, assignment)
    if (earlier := _with_key(db, mine, key)) is not None:
        return earlier
    check(db, task, form)
    if mine.state == "submitted":
        there = current(db, mine)
        raise Problem(409, "already_submitted", submission=there.id if there else None, version=there.version if there else 0)
    if mine.state == "skipped":
        take_back_skip(db, settings, mine, task, at)
    replaced = _replace(db, mine, at) if mine.state == "returned" else None
    surplus = False if replaced is not None and counts(mine, replaced) else _has_no_place(mine, task)
    stored = _store(db, mine, task, form, key, at, surplus=surplus)
    mine.state, mine.closed_at = "submitted", at
    _settle(db, mine, task)
    return stored


def edit(db: Session, settings: Settings, assignment: Assignment, form: Form, key: str, at: int) -> Submission:
    """A new version of handed-in work, within the edit window; the earlier one stays.

    Raises:
        Problem: as `submit`; `not_submitted` (409), `too_late_to_edit` (409).
    """
    mine, task = lock(db, assignment)
    if (earlier := _with_key(db, mine, key)) is not None:
        return earlier
    check(db, task, form)
    _still_editable(settings, mine, at)
    replaced = _replace(db, mine, at)
    stored = _store(db, mine, task, form, key, at, surplus=replaced.surplus)
    stored.invalid_reason = replaced.invalid_reason
    _settle(db, mine, task)
    return stored


def undo(db: Session, settings: Settings, assignment: Assignment, at: int) -> Draft:
    """Take handed-in work back: the task is in hand again and what was handed in becomes its draft. -> the draft.

    Raises:
        Problem: `not_submitted` (409), `too_late_to_edit` (409).
    """
    mine, task = lock(db, assignment)
    _still_editable(settings, mine, at)
    withdrawn = _replace(db, mine, at)
    payload = form_of(db, withdrawn).model_dump(mode="json")
    submission_contents.withdraw(db, withdrawn, at)
    draft = draft_of(db, mine)
    if draft is None:
        draft = Draft(assignment_id=mine.id, rev=0, payload=payload)
        db.add(draft)
    draft.rev, draft.payload, draft.updated_at = draft.rev + 1, payload, at
    if counts(mine, withdrawn) or mine.round == 1:
        mine.state, mine.closed_at = "open", None
        mine.lease_until = at + lease(settings, task.kind)
        if mine.round == 0:
            task.n_done -= 1
            task.n_open += 1
    else:
        mine.state, mine.closed_at = "expired", at
    _settle(db, mine, task)
    return draft


def judge(db: Session, submission: Submission, invalid_reason: str | None) -> None:
    """A person decides that handed-in work does not count, and why, or (None) that it does after all. The work itself stays.

    The task of work that does not count goes to somebody else; work that is valid again when its place is taken is surplus.

    Raises:
        Problem: `not_submitted` (409) for a version that was replaced.
    """
    mine, task = lock(db, db.get_one(Assignment, submission.assignment_id))
    there = current(db, mine)
    if there is None or there.id != submission.id:
        raise Problem(409, "not_submitted")
    if mine.round == 0 and not there.surplus:
        if there.invalid_reason is None and invalid_reason is not None:
            task.n_done -= 1
        elif there.invalid_reason is not None and invalid_reason is None:
            there.surplus = _has_no_place(mine, task)
    there.invalid_reason = invalid_reason
    _settle(db, mine, task)


def current(db: Session, assignment: Assignment) -> Submission | None:
    """The version that counts; None before the first and after an undo."""
    return db.scalar(select(Submission).where(Submission.assignment_id == assignment.id, Submission.replaced_at.is_(None)))


def editable_until(settings: Settings, assignment: Assignment) -> int:
    """Until when handed-in work can be edited or undone, in milliseconds."""
    return (assignment.closed_at or 0) + settings.edit_window * MINUTE


def check(db: Session, task: Task, form: Form) -> None:
    """Raises Problem `wrong_form` or `bad_form` (422) unless a form is one for this task, whole."""
    kind = getattr(form, "kind", None)
    if kind != task.kind:
        raise Problem(422, "wrong_form", expected=task.kind, found=kind)
    if isinstance(form, RankForm):
        completions = db.scalars(select(TaskCompletion.completion_id).where(TaskCompletion.task_id == task.id)).all()
        try:
            form.check(completions)
        except ValueError as error:
            raise Problem(422, "bad_form", reason=str(error)) from error


def _with_key(db: Session, assignment: Assignment, key: str) -> Submission | None:
    """What was handed in under a key. Raises Problem `no_key` (422) for a key that is none."""
    if not key.strip() or len(key) > LONGEST_KEY or not key.isprintable():
        raise Problem(422, "no_key", most=LONGEST_KEY)
    return db.scalar(select(Submission).where(Submission.assignment_id == assignment.id, Submission.key == key))


def _still_editable(settings: Settings, assignment: Assignment, at: int) -> None:
    if assignment.state != "submitted":
        raise Problem(409, "not_submitted")
    if at > editable_until(settings, assignment):
        raise Problem(409, "too_late_to_edit")


def counts(assignment: Assignment, submission: Submission) -> bool:
    """Whether a current submission counts in its task: hidden repeats, surplus and invalid work do not."""
    return assignment.round == 0 and not submission.surplus and submission.invalid_reason is None


def _has_no_place(assignment: Assignment, task: Task) -> bool:
    """Count one more submission in the task. -> whether there was no room for it; a hidden repeat needs none."""
    if assignment.round == 1:
        return False
    if assignment.state == "open":
        task.n_open -= 1
    elif task.n_open + task.n_done >= task.overlap:
        return True
    task.n_done += 1
    return False


def _replace(db: Session, assignment: Assignment, at: int) -> Submission:
    """The current version is no longer that."""
    there = current(db, assignment)
    if there is None:
        raise Problem(409, "not_submitted")
    there.replaced_at = at
    db.flush()
    return there


def _store(db: Session, assignment: Assignment, task: Task, form: Form, key: str, at: int, *, surplus: bool) -> Submission:
    """The next version, with its contents; the draft is done with."""
    versions = db.scalar(select(func.coalesce(func.max(Submission.version), 0)).where(Submission.assignment_id == assignment.id)) or 0
    stored = Submission(
        assignment_id=assignment.id, version=versions + 1, key=key, kind=task.kind, note=form.note, active_ms=form.active_ms,
        wall_ms=max(0, at - assignment.opened_at), pasted=form.pasted, surplus=surplus, created_at=at,
    )  # fmt: skip
    db.add(stored)
    db.flush()
    submission_contents.store(db, stored, assignment, task, form)
    if (draft := draft_of(db, assignment)) is not None:
        db.delete(draft)
    db.flush()
    return stored


def _settle(db: Session, assignment: Assignment, task: Task) -> None:
    """A task is done when as many labelers as it needs have handed it in, and open again when one of them takes it back."""
    if assignment.round == 0 and task.state in ("open", "done"):
        task.state = "done" if task.n_done >= task.overlap else "open"
    db.flush()


def undo_last(db: Session, settings: Settings, assignment: Assignment, at: int) -> None:
    """Take back the last step of an assignment: a skip, or what was handed in. Raises Problem as either does."""
    if assignment.state == "skipped":
        undo_skip(db, settings, assignment, at)
    else:
        undo(db, settings, assignment, at)
