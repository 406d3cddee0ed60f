"""What red-team tasks found: shares of success by model and kind, and the attempts as a file."""

from __future__ import annotations

import json

from fastapi import APIRouter, Request, Response

from instructgpt.io import format_json_line
from instructgpt.label.analysis.red_team import iter_attempt_records, measure_red_team, red_team_result_rows
from instructgpt.label.auth.dependencies import TeamUser, get_site
from instructgpt.label.web.rendering import render_page

router = APIRouter(prefix="/results")


@router.get("/red-team")
def show_red_team(request: Request, _: TeamUser) -> Response:
    with get_site(request).database.read() as db:
        rows = measure_red_team(db)
    return render_page(request, "owner/red_team.html", rows=rows)


@router.get("/red-team/results.json")
def download_red_team_results(request: Request, _: TeamUser) -> Response:
    with get_site(request).database.read() as db:
        rows = red_team_result_rows(measure_red_team(db))
    content = json.dumps(rows, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    headers = {"Content-Disposition": 'attachment; filename="red-team.json"'}
    return Response(content, media_type="application/json", headers=headers)


@router.get("/red-team/attempts.jsonl")
def download_red_team_attempts(request: Request, _: TeamUser) -> Response:
    with get_site(request).database.read() as db:
        content = "".join(map(format_json_line, iter_attempt_records(db)))
    headers = {"Content-Disposition": 'attachment; filename="red-team.jsonl"'}
    return Response(content, media_type="application/x-ndjson", headers=headers)
