"""Changes of many tasks, submissions or people: confirm, run, look at what happened, take back."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.label.auth.dependencies import OwnerUser, Principal, TeamUser, get_site
from instructgpt.label.bulk import changes
from instructgpt.label.bulk.actions import CHANGED
from instructgpt.label.db.models import BulkChange, Person
from instructgpt.label.errors import SiteError
from instructgpt.label.listing.filters import ListFilter, parse_filter
from instructgpt.label.web.params import or_404
from instructgpt.label.web.rendering import redirect, render_page, translate_error

router = APIRouter()
_MAX_FORM_FIELDS = 300
_MAX_LISTED_CHANGES = 100
_LIST_PATHS = {"task": "/search/tasks", "submission": "/search/submissions", "person": "/people"}


class _ChangeForm:
    """The fields of the form: `id` of each selected row, or `everything` with `filter`; `confirmed` is the count."""

    def __init__(self, fields: dict[str, str], object_ids: list[str]) -> None:
        self.fields, self.object_ids = fields, object_ids

    @property
    def has_filter(self) -> bool:
        return self.fields.get("everything") == "1"

    def get_filter(self, subject: str) -> ListFilter | None:
        return parse_filter(changes.FILTER_CLASSES[subject], self.fields.get("filter", "")) if self.has_filter else None


async def _read_change_form(request: Request) -> _ChangeForm:
    async with request.form(max_files=0, max_fields=_MAX_FORM_FIELDS) as form:
        fields = {name: value for name, value in form.items() if isinstance(value, str)}
        return _ChangeForm(fields, [value for value in form.getlist("id") if isinstance(value, str)])


_Form = Annotated[_ChangeForm, Depends(_read_change_form)]


@router.post("/search/tasks/change")
def change_tasks(request: Request, principal: TeamUser, form: _Form) -> Response:
    return _change(request, principal, "task", form)


@router.post("/search/submissions/change")
def change_submissions(request: Request, principal: TeamUser, form: _Form) -> Response:
    return _change(request, principal, "submission", form)


@router.post("/people/change")
def change_people(request: Request, principal: OwnerUser, form: _Form) -> Response:
    return _change(request, principal, "person", form)


def _change(request: Request, principal: Principal, list_subject: str, form: _ChangeForm) -> Response:
    """Show how many rows would change, by state; run the change when the count that was confirmed still holds."""
    site, list_action = get_site(request), form.fields.get("action", "")
    list_filter = form.get_filter(list_subject)
    with site.database.read() as db:
        action = changes.get_action(list_subject, list_action)
        subject, name, targets = changes.resolve_targets(db, list_subject, list_action, list_filter, form.object_ids)
        if not targets:
            raise SiteError(422, "nothing_selected")
        parameters, error = _parameters(request, db, list_subject, list_action, form)
        counts = changes.count_states(db, subject, targets)
        labelers = _active_labelers(db) if "labeler" in action.fields else []
    confirmed = form.fields.get("confirmed", "")
    if confirmed == str(len(targets)) and error is None:
        filter_text = list_filter.url_fields(page=None) if list_filter is not None else ""
        change_id = changes.start_change(site, principal.user, subject, name, targets, parameters, filter_text)
        return redirect(f"/search/changes/{change_id}")
    return render_page(
        request,
        "owner/change_confirm.html",
        422 if error and confirmed else 200,
        subject=subject,
        list_subject=list_subject,
        action=list_action,
        form=form,
        total=len(targets),
        counts=counts,
        fields=action.fields,
        labelers=labelers,
        error=error if confirmed else None,
        has_moved=confirmed.isdecimal() and confirmed != str(len(targets)),
        list_path=_LIST_PATHS[list_subject],
        address=f"{_LIST_PATHS[list_subject]}/change",
    )


def _parameters(
    request: Request, db: Session, subject: str, action: str, form: _ChangeForm
) -> tuple[dict[str, Any], str | None]:
    """Return the parameters, and what is wrong with them as a sentence."""
    try:
        return changes.check_parameters(db, subject, action, form.fields), None
    except SiteError as error:
        return {}, translate_error(request, error)


def _active_labelers(db: Session) -> list[tuple[str, str]]:
    statement = select(Person.id, Person.name).where(Person.role == "labeler", Person.status == "active")
    return [(key, name) for key, name in db.execute(statement.order_by(Person.name))]


@router.get("/search/changes")
def show_changes(request: Request, _: TeamUser) -> Response:
    statement = select(BulkChange, Person.name).join(Person, Person.id == BulkChange.created_by)
    with get_site(request).database.read() as db:
        rows = list(db.execute(statement.order_by(BulkChange.id.desc()).limit(_MAX_LISTED_CHANGES)))
    return render_page(request, "owner/changes.html", rows=rows)


@router.get("/search/changes/{change_id}")
def show_change(request: Request, _: TeamUser, change_id: str) -> Response:
    with get_site(request).database.read() as db:
        change = or_404(db.get(BulkChange, change_id))
        labeler = db.get(Person, change.parameters["labeler"]) if change.parameters.get("labeler") else None
        return render_page(
            request,
            "owner/change.html",
            change=change,
            author=db.get_one(Person, change.created_by).name,
            labeler=labeler.name if labeler else None,
            outcomes=changes.count_outcomes(db, change_id),
            undo_outcomes=changes.count_outcomes(db, change_id, undo=True) if change.undone_at else {},
            changed=CHANGED,
            list_path=_LIST_PATHS[change.subject],
        )


@router.post("/search/changes/{change_id}/resume")
def resume_change(request: Request, principal: TeamUser, change_id: str) -> Response:
    """Go on with a change that a restart has interrupted."""
    _check_permission(request, principal, change_id)
    changes.run_change(get_site(request), principal.user, change_id)
    return redirect(f"/search/changes/{change_id}")


@router.post("/search/changes/{change_id}/undo")
def undo_change(request: Request, principal: TeamUser, change_id: str) -> Response:
    _check_permission(request, principal, change_id)
    changes.take_back_change(get_site(request), principal.user, change_id)
    return redirect(f"/search/changes/{change_id}")


def _check_permission(request: Request, principal: Principal, change_id: str) -> None:
    """Raise SiteError 404 for an unknown change, 403 for a researcher who would change people."""
    with get_site(request).database.read() as db:
        change = or_404(db.get(BulkChange, change_id))
    if change.subject == "person" and principal.user.role != "owner":
        raise SiteError(403, "not_allowed")
