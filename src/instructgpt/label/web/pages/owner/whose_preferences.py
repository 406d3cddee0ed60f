"""Whose preferences: the owner's list of groups, and how far people agree within and between them."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from sqlalchemy import select

from instructgpt.label.analysis.adjudication import load_task_titles
from instructgpt.label.analysis.groups import GroupReport, compare_groups
from instructgpt.label.analysis.rankings import has_many_rankings
from instructgpt.label.analysis.results import get_hidden_model_names, redact_model_names
from instructgpt.label.auth.dependencies import OwnerUser, TeamUser, get_site
from instructgpt.label.context import Site
from instructgpt.label.db.models import GroupDeclaration
from instructgpt.label.people import groups
from instructgpt.label.web import charts
from instructgpt.label.web.rendering import redirect, render_page

router = APIRouter()


@router.get("/whose-preferences")
def show_whose_preferences(request: Request, _: TeamUser) -> Response:
    site = get_site(request)
    with site.database.read() as db:
        names = [group.name for group in groups.list_groups(db)]
        declarations = [tuple(row) for row in db.execute(select(*GroupDeclaration.__table__.columns))]
        is_slow = has_many_rankings(db)
    # A declaration that was changed or withdrawn shows at once.
    key = ("groups", tuple(names), hash(repr(declarations)))
    cached = site.reports.load(key, partial(_compute_comparison, site), is_slow=is_slow)
    if cached is None:
        return render_page(request, "owner/computing.html", title="groups.title", batch_names=None)
    report = cached.value
    with site.database.read() as db:
        hidden_names = get_hidden_model_names(db)
        titles = load_task_titles(db, [str(difference.prompt) for difference in report.differences])
    prompts = {task: redact_model_names(text, hidden_names) for task, text in titles.items()}
    return render_page(
        request,
        "owner/whose_preferences.html",
        report=report,
        cached=cached,
        names=names,
        prompts=prompts,
        least=groups.MIN_GROUP_PEOPLE,
        charts=charts,
    )


def _compute_comparison(site: Site) -> GroupReport:
    with site.database.read() as db:
        return compare_groups(db)


@router.post("/whose-preferences/groups")
def save_group_list(
    request: Request, principal: OwnerUser, names: Annotated[str, Form(max_length=5_000)] = ""
) -> Response:
    with get_site(request).database.write() as db:
        groups.set_groups(db, names.splitlines(), principal.user.id)
    return redirect("/whose-preferences")
