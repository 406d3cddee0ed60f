"""Valid and invalid requests generated from the OpenAPI description never cause a server error."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import schemathesis
from fastapi.openapi.utils import get_openapi
from hypothesis import HealthCheck, Phase, given, settings
from sqlalchemy import select
from support.exchange import fill
from support.site import add_person, client_of
from test_owner_api import program

from instructgpt.label.context import Settings, Site
from instructgpt.label.db.database import Database, sqlite_url
from instructgpt.label.db.models import Batch, Person, Task
from instructgpt.label.exchange import export_jobs
from instructgpt.label.web.pages import PAGE_ROUTERS as PAGES

schemathesis.serializer.alias("application/x-ndjson", "text/plain")
EXAMPLES = 6
PAGE_EXAMPLES = 2
LONGEST_ADDRESS = 10_000
LEFT_ALONE = ("/api/v1/sign-in", "/api/v1/redeem")
"""They hash passwords, which is slow on purpose; `test_site_accounts` has them."""


PAGES_LEFT_ALONE = ("/sign-in", "/sign-in/code", "/invite/{token}", "/sign-out", "/account/erase", "/account/withdraw")
"""They hash passwords, or end the session of who asks."""


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A site with work on it, and its labelers."""
    folder = tmp_path_factory.mktemp("site")
    site = Site(Settings(folder=folder), Database(sqlite_url(folder / "site.db")))
    site.database.upgrade()
    people = {
        name: add_person(site, name, cohort="heldout" if name == "hal" else "training")
        for name in ("ada", "bob", "hal")
    }
    fill(site, people)
    yield site, people
    for job in export_jobs.list_export_jobs(site):
        export_jobs.wait_for_export_job(job.id)
    site.database.close()


@pytest.fixture(scope="module")
def described(filled):
    """(schema, clients): a program with every scope, a labeler, nobody."""
    site, people = filled
    clients = [program(site), client_of(site, people["ada"]), client_of(site)]
    for client in clients:
        show_faults(client)
    return schemathesis.openapi.from_dict(clients[2].get("/api/v1/openapi.json").json()), clients


def show_faults(client):
    """Let a fault become the 500 that people would see."""
    client.base_url = "http://testserver"
    client._transport.raise_server_exceptions = False


def operations(schema, left_alone=LEFT_ALONE) -> Iterator[schemathesis.APIOperation]:
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path not in left_alone:
            yield operation


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_no_page_returns_a_server_error(filled, mode):
    """Addresses and forms of every page, described as an API for this test alone; their ids are real ones."""
    site, _ = filled
    owner = client_of(site, add_person(site, f"owner {mode}", role="owner"))
    show_faults(owner)
    routes = [route for router in PAGES for route in router.routes]
    schema = schemathesis.openapi.from_dict(get_openapi(title="pages", version="1", routes=routes))
    ids, counted = real_ids(site), dict[str, set[int]]()
    for operation in operations(schema, PAGES_LEFT_ALONE):
        if mode == "negative" and not (operation.query or operation.body):
            continue  # only its ids could be wrong, and they are replaced: hundreds of cases would be drawn in vain
        asking(operation, mode, [owner], counted, PAGE_EXAMPLES, ids)()
    assert len(counted) > (100 if mode == "positive" else 50)
    assert owner.get("/overview").status_code == 200, "the session has ended"


def real_ids(site) -> dict[str, str]:
    with site.database.read() as db:
        tables = {"batch_id": Batch, "task_id": Task, "person_id": Person, "labeler": Person, "key": Batch}
        return {name: db.scalars(select(table.id).order_by(table.id)).first() for name, table in tables.items()}


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_no_operation_returns_a_server_error(described, mode):
    schema, clients = described
    counted: dict[str, set[int]] = {}
    for operation in operations(schema):
        try:
            asking(operation, mode, clients, counted)()
        except schemathesis.errors.SchemathesisError:
            assert mode == "negative"  # an operation that takes nothing can be asked nothing wrong
    assert len(counted) > 25
    if mode == "positive":
        assert any(status < 300 for statuses in counted.values() for status in statuses)


def asking(operation, mode, clients, counted, examples=EXAMPLES, ids=None):
    """A test that asks one operation in many ways, of everybody."""

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
    def ask(case):
        if ids:
            case.path_parameters = {name: ids.get(name, value) for name, value in (case.path_parameters or {}).items()}
        for client in clients:
            answer = send(client, case)
            if answer is not None:
                counted.setdefault(operation.label, set()).add(answer.status_code)
                assert answer.status_code < 500, f"{operation.label}: {case.as_curl_command()[:500]}"

    return ask


def send(client, case):
    """One request; None for one that no client could send: half a surrogate pair, a NUL in an address, no end of it."""
    asked = case.as_transport_kwargs(base_url="http://testserver")
    if len(str(asked.get("params"))) > LONGEST_ADDRESS:
        return None
    headers = {
        name: value
        for name, value in (asked.get("headers") or {}).items()
        if name.lower() in ("if-match", "idempotency-key")
    }
    try:
        return client.request(
            asked["method"],
            asked["url"],
            params=asked.get("params"),
            json=asked.get("json"),
            content=content(asked.get("data")),
            headers=headers,
        )
    except (UnicodeError, ValueError):
        return None


def content(data):
    return data if isinstance(data, bytes | str) or data is None else json.dumps(data)
