"""Access to every route for every role; a route that is missing in the table fails.

pytest tests/label/web/test_routes.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from fastapi.routing import iter_route_contexts
from support.pages import ROOT
from support.site import add_person, client_of, make_site

from instructgpt.label.auth.dependencies import RequireRole
from instructgpt.label.auth.tokens import issue_api_key
from instructgpt.label.db.database import Database, sqlite_url
from instructgpt.label.web.app import create_app

LABELERS = {"labeler", "heldout", "screening"}
ACTIVE = {"labeler", "heldout"}
TEAM = {"researcher", "owner"}
OWNER = {"owner"}
PROGRAM = {"owner", "key"}
"""Owners, and programs with a key for it."""
SIGNED_IN = LABELERS | TEAM
EVERYBODY = SIGNED_IN | {"nobody", "key", "keyless"}

WHO = ("nobody", "labeler", "heldout", "screening", "researcher", "owner", "key", "keyless")
"""`key`: a program whose key has the scope of the route, or none where the route has no scope; `keyless`:
one with another scope.
"""

TABLE: dict[str, set[str]] = {
    # coming in
    "GET /": EVERYBODY,
    "GET /sign-in": EVERYBODY,
    "POST /sign-in": EVERYBODY,
    "POST /sign-in/code": EVERYBODY,
    "GET /sign-in/forgotten": EVERYBODY,
    "POST /sign-in/forgotten": EVERYBODY,
    "GET /sign-in/openid": EVERYBODY,
    "GET /sign-in/openid/callback": EVERYBODY,
    "POST /account/openid": SIGNED_IN,
    "POST /account/openid/end": SIGNED_IN,
    "POST /sign-out": SIGNED_IN,
    "GET /account/second-factor": TEAM,
    "POST /account/second-factor": TEAM,
    "POST /account/second-factor/end": TEAM,
    "GET /invite/{token}": EVERYBODY,
    "POST /invite/{token}": EVERYBODY,
    "GET /consent": SIGNED_IN,
    "POST /consent": SIGNED_IN,
    "POST /look": EVERYBODY,
    "POST /api/v1/sign-in": EVERYBODY,
    "POST /api/v1/redeem": EVERYBODY,
    "GET /api/v1/me": SIGNED_IN,
    # the playground: users have no accounts, their cookie is checked in each route
    "GET /playground": EVERYBODY,
    "GET /playground/join/{token}": EVERYBODY,
    "POST /playground/agree": EVERYBODY,
    "POST /playground/end-agreement": EVERYBODY,
    "POST /playground/erase": EVERYBODY,
    "GET /next-round": OWNER,
    "POST /next-round": OWNER,
    "POST /next-round/link": OWNER,
    "GET /playground/consent/edit": OWNER,
    "POST /playground/consent/edit": OWNER,
    "POST /api/v1/playground/turns": EVERYBODY,
    "POST /api/v1/playground/turns/{key}/stop": EVERYBODY,
    "POST /api/v1/playground/turns/{key}/exclude": EVERYBODY,
    "POST /api/v1/playground/turns/{key}/feedback": EVERYBODY,
    "GET /api/v1/playground/data": EVERYBODY,
    # one's account
    "GET /account": SIGNED_IN,
    "POST /account/preferences": SIGNED_IN,
    "POST /account/group": SIGNED_IN,
    "GET /whose-preferences": TEAM,
    "POST /whose-preferences/groups": OWNER,
    "POST /account/password": SIGNED_IN,
    "POST /account/sign-ins/{login_id}/end": SIGNED_IN,
    "POST /account/sign-ins/end-others": SIGNED_IN,
    "GET /account/data": SIGNED_IN,
    "POST /account/withdraw": SIGNED_IN,
    "POST /account/erase": SIGNED_IN,
    # instructions, screening, surveys
    "GET /instructions": SIGNED_IN,
    "GET /instructions/{purpose}": SIGNED_IN,
    "POST /instructions/{purpose}": SIGNED_IN,
    "GET /instructions/{purpose}/edit": TEAM,
    "POST /instructions/{purpose}/edit": TEAM,
    "POST /instructions/{purpose}/preview": TEAM,
    "GET /consent/edit": OWNER,
    "POST /consent/edit": OWNER,
    "GET /screening": LABELERS,
    "GET /screening/grade": TEAM,
    "POST /screening/grade": TEAM,
    "GET /surveys": TEAM,
    "GET /surveys/{kind}": LABELERS,
    "POST /surveys/{kind}": LABELERS,
    # the owner's people
    "GET /people": TEAM,
    "GET /people.csv": TEAM,
    "GET /people/{person_id}/work": TEAM,
    "POST /people/change": OWNER,
    "GET /search": TEAM,
    "GET /search/changes": TEAM,
    "GET /search/changes/{change_id}": TEAM,
    "POST /search/changes/{change_id}/resume": TEAM,
    "POST /search/changes/{change_id}/undo": TEAM,
    "POST /search/tasks/change": TEAM,
    "POST /search/submissions/change": TEAM,
    "GET /search/tasks": TEAM,
    "GET /search/tasks.csv": TEAM,
    "GET /search/submissions": TEAM,
    "GET /search/submissions.csv": TEAM,
    "GET /people/{person_id}": TEAM,
    "POST /people/invites": OWNER,
    "POST /people/invites/{invite_id}/revoke": OWNER,
    "POST /people/folds": OWNER,
    "POST /people/{person_id}/decision": OWNER,
    "POST /people/{person_id}/role": OWNER,
    "POST /people/{person_id}/reset": OWNER,
    "POST /people/{person_id}/sign-out": OWNER,
    "POST /people/{person_id}/withdraw": OWNER,
    "POST /people/{person_id}/erase": OWNER,
    "GET /journal": OWNER,
    "GET /journal/check": OWNER,
    "GET /privacy": OWNER,
    "POST /privacy/user": OWNER,
    # work
    "GET /home": SIGNED_IN,
    "GET /history": LABELERS,
    "POST /tasks/claim": ACTIVE,
    "GET /tasks/{assignment_id}": LABELERS,
    "GET /tasks/{assignment_id}/done": LABELERS,
    "POST /tasks/{assignment_id}/submit": LABELERS,
    "POST /tasks/{assignment_id}/edit": LABELERS,
    "POST /tasks/{assignment_id}/skip": LABELERS,
    "POST /tasks/{assignment_id}/undo": LABELERS,
    "POST /tasks/{assignment_id}/ask": LABELERS,
    "POST /tasks/{assignment_id}/attempts": LABELERS,
    "POST /tasks/{assignment_id}/attempts/{attempt_id}": LABELERS,
    "POST /api/v1/assignments/{assignment_id}/attempts": LABELERS,
    "PUT /api/v1/attempts/{attempt_id}": LABELERS,
    "POST /api/v1/tasks/claim": ACTIVE,
    "POST /api/v1/preview": LABELERS,
    "GET /api/v1/assignments/{assignment_id}": LABELERS,
    "POST /api/v1/assignments/{assignment_id}/heartbeat": LABELERS,
    "PUT /api/v1/assignments/{assignment_id}/draft": LABELERS,
    "POST /api/v1/assignments/{assignment_id}/submit": LABELERS,
    "POST /api/v1/assignments/{assignment_id}/edit": LABELERS,
    "POST /api/v1/assignments/{assignment_id}/skip": LABELERS,
    "POST /api/v1/assignments/{assignment_id}/undo": LABELERS,
    "GET /api/v1/assignments/{assignment_id}/thread": LABELERS,
    "POST /api/v1/assignments/{assignment_id}/thread": LABELERS,
    "GET /api/v1/me/history": LABELERS,
    # batches and what comes of them
    "GET /overview": TEAM,
    "GET /overview/days.csv": TEAM,
    "GET /batches": TEAM,
    "GET /batches/new": TEAM,
    "POST /batches/preview": TEAM,
    "POST /batches": TEAM,
    "GET /batches/{batch_id}": TEAM,
    "POST /batches/{batch_id}/state": TEAM,
    "POST /batches/{batch_id}/priority": TEAM,
    "POST /batches/{batch_id}/settings": TEAM,
    "POST /batches/{batch_id}/duplicate": TEAM,
    "POST /batches/{batch_id}/rate": TEAM,
    "POST /batches/{batch_id}/delete": TEAM,
    "GET /batches/tasks/{task_id}": TEAM,
    "POST /batches/tasks/{task_id}/answer": TEAM,
    "POST /batches/tasks/{task_id}/release": TEAM,
    "POST /batches/tasks/{task_id}/return": TEAM,
    "POST /batches/tasks/{task_id}/withdraw": TEAM,
    "GET /quality": TEAM,
    "GET /quality/labelers/{labeler}": TEAM,
    "GET /quality/{name}.csv": TEAM,
    "GET /adjudication": TEAM,
    "GET /adjudication/{task_id}": TEAM,
    "POST /adjudication/{task_id}": TEAM,
    "POST /adjudication/{task_id}/gold": TEAM,
    "GET /results": TEAM,
    "GET /results/red-team": TEAM,
    "GET /results/red-team/results.json": TEAM,
    "GET /results/red-team/attempts.jsonl": TEAM,
    "GET /results/pooled": TEAM,
    "GET /results/pooled/results.json": TEAM,
    "GET /results/{batch_id}": TEAM,
    "GET /results/{batch_id}/results.json": TEAM,
    "POST /results/{batch_id}/unblind": TEAM,
    # the API of programs
    "GET /api/v1/prompts": PROGRAM,
    "POST /api/v1/prompts": PROGRAM,
    "POST /api/v1/prompts/{key}/withdraw": PROGRAM,
    "POST /api/v1/prompts:import": PROGRAM,
    "POST /api/v1/completions:import": PROGRAM,
    "GET /api/v1/models": PROGRAM,
    "GET /api/v1/batches": PROGRAM,
    "GET /api/v1/batches/{key}": PROGRAM,
    "POST /api/v1/batches": PROGRAM,
    "POST /api/v1/batches/{key}/open": PROGRAM,
    "POST /api/v1/batches/{key}/close": PROGRAM,
    "GET /api/v1/batches/{key}/tasks": PROGRAM,
    "GET /api/v1/submissions": PROGRAM,
    "POST /api/v1/exports": PROGRAM,
    "GET /api/v1/exports": PROGRAM,
    "GET /api/v1/exports/{key}": PROGRAM,
    "GET /api/v1/exports/{key}/files/{name:path}": PROGRAM,
    "GET /api/v1/rows/{name}": PROGRAM,
    "GET /api/v1/stats/agreement": PROGRAM,
    "GET /api/v1/stats/win-rates/{key}": PROGRAM,
    "GET /api/v1/users": PROGRAM,
    "POST /api/v1/users/{key}/decide": PROGRAM,
    "GET /api/v1/invites": PROGRAM,
    "POST /api/v1/invites": PROGRAM,
    "GET /api/v1/healthz": EVERYBODY,
    "GET /api/v1/readyz": EVERYBODY,
    "GET /api/v1/metrics": PROGRAM,
    "GET /api/v1/openapi.json": EVERYBODY,
    "GET /api/v1/consent": EVERYBODY,
    "GET /api/v1/instructions/{purpose}": SIGNED_IN,
    "POST /api/v1/instructions/{purpose}": SIGNED_IN,
    # calibration rooms
    "GET /calibration": SIGNED_IN,
    "POST /calibration": TEAM,
    "GET /calibration/{room_id}": SIGNED_IN,
    "POST /calibration/{room_id}/vote": SIGNED_IN,
    "POST /calibration/{room_id}/say": SIGNED_IN,
    "POST /calibration/{room_id}/stage": TEAM,
    # data in and out
    "GET /data": OWNER,
    "POST /data/exports": OWNER,
    "GET /data/exports/{key}/{name:path}": OWNER,
    "POST /data/imports": OWNER,
    "POST /data/keys": OWNER,
    "POST /data/keys/{key}/revoke": OWNER,
    "POST /data/backup": OWNER,
    "GET /integrations": OWNER,
    "POST /integrations/webhooks": OWNER,
    "POST /integrations/webhooks/{webhook_id}/revoke": OWNER,
    "POST /integrations/webhooks/{webhook_id}/test": OWNER,
    "POST /integrations/deliveries/{delivery_id}/again": OWNER,
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    database = Database(sqlite_url(folder / "site.db"))
    database.upgrade()  # whoever asks whether the site is ready asks for its revision
    database.close()
    made = make_site(folder)
    yield made
    made.database.close()


def routes(app) -> Iterator[tuple[str, RequireRole | None]]:
    """(method and path, what it demands) of everything the application answers, static files left out."""
    for context in iter_route_contexts(app.routes):
        path = getattr(context, "path", "")
        if path == "/static":
            continue
        dependant = getattr(context, "dependant", None)
        demands = (
            [each.call for each in dependant.dependencies if isinstance(each.call, RequireRole)] if dependant else []
        )
        for method in sorted(getattr(context, "methods", None) or {"?"}):
            yield f"{method} {path}", demands[0] if len(demands) == 1 else None


def test_every_route_declares_its_access(site):
    found = dict(routes(create_app(site)))
    assert len(found) > 50
    assert not [route for route, access in found.items() if access is None]
    assert not set(found) - set(TABLE), "say in the table who may use it"
    silent = [
        route for route, access in found.items() if access and not (access.public or access.roles or access.scope)
    ]
    assert not silent


def test_the_threat_model_speaks_of_every_route():
    page = (ROOT / "docs" / "explanation" / "site-threats.md").read_text(encoding="utf-8")
    table = page.partition("## Route by route")[2].partition("\n## ")[0]
    first_columns = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    described = [path for column in first_columns for path in re.findall("`([^`]+)`", column)]
    paths = {route.split(" ")[1] for route in TABLE}

    def covers(start, path):
        return path == start or path.startswith((f"{start}/", f"{start}?"))

    missing = [path for path in paths if not any(covers(start, path) for start in described)]
    assert not missing, "say what could go wrong there"
    assert not [start for start in described if not any(covers(start, path) for path in paths)], "no such route"


@pytest.fixture(scope="module")
def asked(site):
    """(who, route, status) of everybody at every door."""
    people = {
        "labeler": add_person(site, "labeler"),
        "heldout": add_person(site, "heldout", cohort="heldout"),
        "screening": add_person(site, "screening", status="screening"),
        "researcher": add_person(site, "researcher", role="researcher"),
        "owner": add_person(site, "owner", role="owner"),
    }
    found, answers = dict(routes(create_app(site))), []
    clients = {who: client_of(site, people.get(who)) for who in WHO}
    for who, client in clients.items():
        for route in sorted(found, key=lambda route: route == "POST /sign-out"):
            access = found[route]
            if who.startswith("key"):
                scope = access.scope if access and who == "key" else "something else"
                with site.database.write() as db:
                    client.headers["Authorization"] = f"Bearer {issue_api_key(db, route, [scope or 'none'])[1]}"
            method, path = route.split(" ")
            answer = client.request(method, re.sub(r"{(\w+)(:\w+)?}", "nothing", path), follow_redirects=False)
            answers.append((who, route, answer.status_code))
    return answers


def test_access_is_refused_outside_the_table(asked):
    wrong = [
        (who, route, status)
        for who, route, status in asked
        if who not in TABLE.get(route, ()) and status not in (401, 403)
    ]
    assert not wrong
    mistaken = [
        (who, route, status)
        for who, route, status in asked
        if who not in TABLE.get(route, ()) and status != (401 if who == "nobody" else 403)
    ]
    assert not mistaken


def test_access_is_granted_as_in_the_table(asked):
    unauthorised = {"POST /sign-in", "POST /api/v1/sign-in"}  # 401 is their answer to wrong names
    unready = "GET /api/v1/readyz"  # 503: the tables of this site were not made by the revisions
    wrong = [
        (who, route, status)
        for who, route, status in asked
        if who in TABLE.get(route, ())
        and (
            (status >= 500 and route != unready)
            or status == 405
            or (status in (401, 403) and route not in unauthorised)
        )
    ]
    assert not wrong


def test_every_unsafe_route_refuses_forged_requests(site):
    person = add_person(site, "forged", role="owner")
    client = client_of(site, person)
    del client.headers["Sec-Fetch-Site"]
    for route, _ in routes(create_app(site)):
        method, path = route.split(" ")
        if method == "GET":
            continue
        path = re.sub(r"{(\w+)(:\w+)?}", "nothing", path)
        for headers, said in (
            ({"Sec-Fetch-Site": "cross-site"}, "Sec-Fetch-Site: cross-site"),
            ({"Sec-Fetch-Site": "same-site"}, "Sec-Fetch-Site: same-site"),
            ({"Origin": "https://evil.example"}, "--public-url"),
            ({"Origin": "null"}, "--public-url"),
            ({}, "--public-url"),
        ):
            answer = client.request(method, path, headers=headers)
            assert answer.status_code == 403, (route, headers)
            assert said in answer.text, (route, headers)
