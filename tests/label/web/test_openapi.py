"""Valid and invalid requests generated from the OpenAPI description never cause a server error."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from support.exchange import fill
from support.site import add_person, client_of
from test_owner_api import program

from instructgpt.label.context import Settings, Site
from instructgpt.label.db.database import Database, sqlite_url
from instructgpt.label.exchange import export_jobs

schemathesis.serializer.alias("application/x-ndjson", "text/plain")
EXAMPLES = 6
LEFT_ALONE = ("/api/v1/sign-in", "/api/v1/redeem")
"""They hash passwords, which is slow on purpose; `test_site_accounts` has them."""


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    """(schema, clients) of a site with work on it: a program with every scope, a labeler, nobody."""
    folder = tmp_path_factory.mktemp("site")
    site = Site(Settings(folder=folder), Database(sqlite_url(folder / "site.db")))
    site.database.upgrade()
    people = {
        name: add_person(site, name, cohort="heldout" if name == "hal" else "training")
        for name in ("ada", "bob", "hal")
    }
    fill(site, people)
    clients = [program(site), client_of(site, people["ada"]), client_of(site)]
    for client in clients:
        client.base_url = "http://testserver"
        client._transport.raise_server_exceptions = False  # a fault becomes the 500 that people would see
    schema = schemathesis.openapi.from_dict(clients[2].get("/api/v1/openapi.json").json())
    yield schema, clients
    for job in export_jobs.list_export_jobs(site):
        export_jobs.wait_for_export_job(job.id)
    site.database.close()


def operations(schema) -> Iterator[schemathesis.APIOperation]:
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.path not in LEFT_ALONE:
            yield operation


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


def asking(operation, mode, clients, counted):
    """A test that asks one operation in many ways, of everybody."""

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
    def ask(case):
        for client in clients:
            answer = send(client, case)
            if answer is not None:
                counted.setdefault(operation.label, set()).add(answer.status_code)
                assert answer.status_code < 500, f"{operation.label}: {case.as_curl_command()[:500]}"

    return ask


def send(client, case):
    """One request; None for one that no client could send: half a surrogate pair, a NUL in an address."""
    asked = case.as_transport_kwargs(base_url="http://testserver")
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
