"""Whose preferences: the owner's list of groups, and how far people agree within and between them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response

from instructgpt.label.analysis.adjudication import load_task_titles
from instructgpt.label.analysis.groups import compare_groups
from instructgpt.label.analysis.results import get_hidden_model_names, redact_model_names
from instructgpt.label.auth.dependencies import OwnerUser, TeamUser, get_site
from instructgpt.label.people import groups
from instructgpt.label.web import charts
from instructgpt.label.web.rendering import redirect, render_page

router = APIRouter()


@router.get("/whose-preferences")
def show_whose_preferences(request: Request, _: TeamUser) -> Response:
    with get_site(request).database.read() as db:
        report = compare_groups(db)
        names = [group.name for group in groups.list_groups(db)]
        hidden_names = get_hidden_model_names(db)
        titles = load_task_titles(db, [str(difference.prompt) for difference in report.differences])
    prompts = {task: redact_model_names(text, hidden_names) for task, text in titles.items()}
    return render_page(
        request,
        "owner/whose_preferences.html",
        report=report,
        names=names,
        prompts=prompts,
        least=groups.MIN_GROUP_PEOPLE,
        charts=charts,
    )


@router.post("/whose-preferences/groups")
def save_group_list(
    request: Request, principal: OwnerUser, names: Annotated[str, Form(max_length=5_000)] = ""
) -> Response:
    with get_site(request).database.write() as db:
        groups.set_groups(db, names.splitlines(), principal.user.id)
    return redirect("/whose-preferences")
