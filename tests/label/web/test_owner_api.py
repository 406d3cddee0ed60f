"""The API for programs: keys and scopes, imports line by line, batches, resumable exports, invalid values."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient
from support.exchange import fill
from support.site import add_person, client_of

from instructgpt.label.analysis import quality
from instructgpt.label.auth.tokens import issue_api_key
from instructgpt.label.context import Settings, Site
from instructgpt.label.db.audit_log import verify_chain
from instructgpt.label.db.database import Database, sqlite_url
from instructgpt.label.db.models import ApiKey, AuditLogEntry, Person, PromptRow, current_time_ms
from instructgpt.label.exchange import export_jobs
from instructgpt.label.web.api import API_ROUTERS as API
from instructgpt.label.web.app import create_app
from instructgpt.label.web.pages import PAGE_ROUTERS as PAGES
from instructgpt.records import Ranking

ALL = ("read", "write", "export", "admin")


def program(site, *scopes, **more):
    """A client with a key; it comes with no cookie."""
    with site.database.write() as db:
        _, text = issue_api_key(db, "test", scopes or ALL, **more)
    return TestClient(
        create_app(site), base_url="http://testserver/api/v1", headers={"Authorization": f"Bearer {text}"}
    )


@pytest.fixture
def filled(site):
    people = {
        name: add_person(site, name, fold=1, cohort="heldout" if name == "hal" else "training")
        for name in ("ada", "bob", "hal")
    }
    return fill(site, people)


def test_api_key_scopes_limit_routes(site):
    wanted = {
        "read": [
            ("GET", "/prompts"),
            ("GET", "/batches"),
            ("GET", "/models"),
            ("GET", "/submissions"),
            ("GET", "/metrics"),
            ("GET", "/stats/agreement"),
        ],
        "write": [
            ("POST", "/prompts"),
            ("POST", "/prompts:import"),
            ("POST", "/completions:import"),
            ("POST", "/batches"),
        ],
        "export": [("GET", "/exports"), ("POST", "/exports"), ("GET", "/rows/rankings")],
        "admin": [("GET", "/users"), ("GET", "/invites"), ("POST", "/invites")],
    }
    for scope in wanted:
        client = program(site, scope)
        for other, calls in wanted.items():
            for method, path in calls:
                status = client.request(method, path, json={}).status_code
                assert (status in (401, 403)) == (other != scope), (scope, method, path, status)
    nobody = TestClient(create_app(site), base_url="http://testserver/api/v1")
    assert {nobody.get(path).status_code for path in ("/healthz", "/openapi.json")} == {200}
    assert nobody.get("/prompts").status_code == 401


def test_readiness_depends_on_the_schema_version(tmp_path, site):
    assert program(site).get("/readyz").json() == {
        "status": "other_version"
    }  # its tables were not made by the revisions
    made = Site(Settings(folder=tmp_path), Database(sqlite_url(tmp_path / "made.db")))
    made.database.upgrade()
    assert TestClient(create_app(made)).get("/api/v1/readyz").json() == {"status": "ok"}
    made.database.close()


def test_keys_expire_and_are_revoked(site):
    client = program(site, expires_at=current_time_ms() - 1)
    assert client.get("/models").status_code == 401
    client = program(site)
    assert client.get("/models").status_code == 200
    with site.database.write() as db:
        for key in db.query(ApiKey):
            assert key.secret_hash not in client.headers["authorization"]
            key.revoked_at = 5
    assert client.get("/models").json()["error"] == "bad_key"


def test_labelers_cannot_use_the_owner_api(site):
    ada = client_of(site, add_person(site, "ada"))
    for path in ("prompts", "submissions", "users", "exports", "metrics", "batches"):
        assert ada.get(f"/api/v1/{path}").status_code == 403


def test_prompt_import_reports_each_line(site):
    client = program(site)
    rows = [
        {"id": "a", "prompt": "one"},
        "not json",
        {"id": "b", "prompt": "two\u0000"},
        {"id": "c"},
        {"id": "d", "prompt": "été 한국"},
    ]
    body = (
        b"\n\n".join(row.encode() if isinstance(row, str) else json.dumps(row).encode() for row in rows)
        + b"\n\xff\xfe\n"
    )
    said = client.post("/prompts:import", content=body).json()
    assert [(line["line"], line["status"]) for line in said["lines"]] == [
        (1, "created"),
        (3, "error"),
        (5, "error"),
        (7, "error"),
        (9, "created"),
        (10, "error"),
    ]
    assert said["errors"] == 4
    assert "NUL" in said["lines"][2]["error"]
    again = client.post("/prompts:import", content=json.dumps({"id": "a", "prompt": "one", "use_case": "chat"})).json()
    assert again["lines"][0]["status"] == "updated"
    changed = client.post("/prompts:import", content=json.dumps({"id": "a", "prompt": "other"})).json()
    assert "already belongs to another text" in changed["lines"][0]["error"]
    assert [row["prompt"] for row in client.get("/prompts").json()["prompts"]] in (
        ["one", "été 한국"],
        ["été 한국", "one"],
    )


def test_import_reads_a_chunked_body(site):
    client = program(site)
    lines = b"".join(
        json.dumps({"id": str(number), "prompt": f"number {number}"}).encode() + b"\n" for number in range(450)
    )
    pieces = (lines[start : start + 997] for start in range(0, len(lines), 997))
    said = client.post("/prompts:import", content=pieces).json()
    assert [line["line"] for line in said["lines"]] == list(range(1, 451))
    assert said["errors"] == 0
    found, cursor = [], None
    while True:
        page = client.get("/prompts", params={"limit": 100} | ({"after": cursor} if cursor else {})).json()
        found += page["prompts"]
        if (cursor := page["next"]) is None:
            break
    assert sorted(int(row["id"]) for row in found) == list(range(450))


def test_batch_of_stored_completions(site):
    client = program(site)
    lines = [
        {"prompt": f"p{n}", "completion": f"{model} says {n}", "model": model}
        for n in range(3)
        for model in ("x", "y", "z")
    ]
    said = client.post("/completions:import", content="\n".join(map(json.dumps, [*lines, lines[0]]))).json()
    assert [line["status"] for line in said["lines"]] == ["created"] * 9 + ["unchanged"]
    assert client.get("/models").json() == [{"model": model, "completions": 3} for model in "xyz"]
    made = client.post(
        "/batches", json={"name": "b", "kind": "rank", "stored": {"models": ["x", "y"]}, "policy": {"gold_share": 0}}
    )
    assert made.status_code == 201
    batch = made.json()
    assert (batch["state"], batch["intake"]["tasks"], batch["progress"]["tasks"]) == ("draft", 3, 3)
    again = client.post("/batches", json={"name": "b", "kind": "rank", "stored": {}})
    assert (again.status_code, again.json()["error"]) == (422, "bad_input")
    assert "already a batch" in again.json()["message"]
    assert client.post(f"/batches/{batch['id']}/open").json()["state"] == "open"
    assert client.post(f"/batches/{batch['id']}/close").json()["state"] == "closed"
    assert len(client.get(f"/batches/{batch['id']}/tasks").json()["tasks"]) == 3


def test_submissions_hide_names_and_models(site, filled):
    client = program(site)
    found, cursor = [], None
    while True:
        page = client.get("/submissions", params={"limit": 3} | ({"after": cursor} if cursor else {})).json()
        found += page["submissions"]
        if (cursor := page["next"]) is None:
            break
    assert {each["id"] for each in found} == {each.id for each in filled.values()}
    ada = next(each for each in found if each["id"] == filled["ada"].id)
    assert (ada["labeler"], ada["form"]["confidence"], len(ada["form"]["ratings"])) == ("p-ada", 7, 3)
    assert "ppo" not in json.dumps(found)
    assert client.get("/submissions", params={"since": 2**50}).json()["submissions"] == []


@pytest.mark.usefixtures("filled")
def test_streamed_rows_leave_out_withdrawn_prompts(site):
    client = program(site)
    rows = [json.loads(line) for line in client.get("/rows/rankings").text.splitlines()]
    assert [Ranking.model_validate(row).labeler for row in rows] == ["p-ada", "p-bob"]
    prompt = next(row for row in client.get("/prompts").json()["prompts"] if row["id"] == "p-1")
    assert client.post(f"/prompts/{prompt['key']}/withdraw").json()["withdrawn_at"]
    assert client.get("/rows/rankings").text == ""
    assert client.get("/rows/rankings", params={"batch": ["no such"]}).text == ""


@pytest.mark.usefixtures("filled")
def test_export_job_and_resumed_download(site):
    client = program(site)
    job = client.post("/exports", json={"format": "jsonl", "files": ["rankings", "pairs"]}).json()
    export_jobs.wait_for_export_job(job["id"])
    job = client.get(f"/exports/{job['id']}").json()
    assert (job["state"], job["files"]) == ("done", ["manifest.json", "pairs.jsonl", "rankings.jsonl"])
    path = f"/exports/{job['id']}/files/rankings.jsonl"
    whole = client.get(path).content
    part = client.get(path, headers={"Range": "bytes=100-"})
    assert (part.status_code, whole[:100] + part.content) == (206, whole)
    for name in ("../job.json", "job.json", "%2e%2e/job.json", "nothing"):
        assert client.get(f"/exports/{job['id']}/files/{name}").status_code == 404
    # cut short by a restart: whoever asks begins it again, with the same bytes
    folder = site.settings.folder / "exports" / job["id"]
    cut = json.loads((folder / "job.json").read_text()) | {"state": "running", "files": []}
    (folder / "job.json").write_text(json.dumps(cut))
    (folder / "export" / "rankings.jsonl").write_text("half")
    client.get(f"/exports/{job['id']}")
    export_jobs.wait_for_export_job(job["id"])
    assert client.get(path).content == whole
    empty = client.post("/exports", json={"filter": {"batches": ["none"]}}).json()
    export_jobs.wait_for_export_job(empty["id"])
    failed = client.get(f"/exports/{empty['id']}").json()
    assert failed["state"] == "failed"
    assert "nothing to export" in failed["error"]
    assert len(client.get("/exports").json()) == 2


@pytest.mark.usefixtures("filled")
def test_win_rates_are_hidden_while_blind(site):
    client = program(site)
    found = client.get("/stats/agreement").json()["all"]
    assert found["alike"] + found["opposite"] + found["one_tied"] + found["both_tied"] > 0
    with site.database.read() as db:
        assert found["decided"]["caution"] == quality.compute_quality(db, None).overall.decided.caution != ""
    evaluation = next(batch for batch in client.get("/batches").json() if batch["name"] == "measured")
    rows = client.get(f"/stats/win-rates/{evaluation['id']}").json()
    assert {row["model"] for row in rows} >= {"sft", "ppo"}
    client.post(f"/batches/{evaluation['id']}/open")
    assert client.get(f"/stats/win-rates/{evaluation['id']}").json()["error"] == "still_blind"


def test_invitations_and_decisions_over_the_api(site):
    owner = add_person(site, "olga", role="owner")
    client = program(site, created_by=owner.id)
    made = client.post("/invites", json={"cohort": "training", "max_uses": 2}).json()
    assert made["path"] == f"/invite/{made['token']}"
    assert [(row["uses"], row["max_uses"]) for row in client.get("/invites").json()] == [(0, 2)]
    assert made["token"] not in json.dumps(client.get("/invites").json())
    assert client.post("/invites", json={"role": "owner"}).status_code == 403
    ada = add_person(site, "ada", status="screening")
    admitted = client.post(f"/users/{ada.id}/decide", json={"verdict": "admit", "reason": "ready"}).json()
    assert (admitted["status"], admitted["pseudonym"]) == ("active", "p-ada")
    assert admitted["fold"] is not None
    assert "ada" not in [row.get("name") for row in client.get("/users").json()]
    with site.database.read() as db:
        assert db.get(Person, ada.id).status == "active"


@pytest.mark.usefixtures("filled")
def test_api_changes_are_in_the_audit_log(site):
    client = program(site)
    client.post("/prompts", json={"prompt": "fresh"})
    client.get("/rows/rankings")
    with site.database.read() as db:
        assert {row.action for row in db.query(AuditLogEntry)} >= {"prompt.created", "export.stream"}
        assert {row.by for row in db.query(AuditLogEntry)} == {f"key:{client.headers['authorization'].split('_')[1]}"}
        assert verify_chain(db) is None


NONSENSE = ["\x00", "\ud800", "a" * 100_000, "", "-1", "\u202e", "null"]


@pytest.mark.parametrize("value", NONSENSE, ids=range(len(NONSENSE)))
def test_invalid_values_are_refused(site, value):
    client = program(site)
    said = quote(value[:5000].encode("utf-8", "surrogatepass"))
    for path in (
        f"/batches/{said}",
        f"/batches/{said}/tasks",
        f"/exports/{said}",
        f"/prompts?after={said}",
        f"/submissions?kind={said}",
        f"/rows/{said}",
        f"/rows/rankings?batch={said}",
        f"/stats/agreement?batch={said}",
        f"/prompts?limit={said}",
    ):
        assert client.get(path).status_code < 500, path
    bodies = [
        ("/prompts", {"prompt": value}),
        ("/prompts", {"id": value, "prompt": "x"}),
        ("/prompts", {"messages": [{"role": "user", "content": value}]}),
        ("/batches", {"name": value or "n", "kind": "demonstrate", "prompts": [{"prompt": value or "p"}]}),
        ("/batches", {"name": "x", "kind": value}),
        (
            "/batches",
            {"name": "g", "kind": "rank", "completions": [{"prompt": "p", "completion": value, "model": value}] * 2},
        ),
        ("/invites", {"note": value}),
        ("/exports", {"filter": {"batches": [value]}}),
    ]
    for path, body in bodies:
        answer = client.post(path, content=json.dumps(body))
        assert answer.status_code < 500, (path, answer.text[:300])
    for job in client.get("/exports").json():
        export_jobs.wait_for_export_job(job["id"])
    with site.database.read() as db:
        assert not [row for row in db.query(PromptRow) if "\x00" in row.text]


def test_openapi_lists_every_route(site):
    described = client_of(site).get("/api/v1/openapi.json").json()
    routes = {route.path for router in (*API, *PAGES) for route in router.routes if route.path.startswith("/api/")}
    assert set(described["paths"]) == {route.replace(":path}", "}") for route in routes} - {"/api/v1/openapi.json"}
    assert "http://" not in json.dumps(described)
    assert "https://" not in json.dumps(described)


def test_metrics_are_prometheus_gauges(site, filled):
    lines = program(site).get("/metrics").text.splitlines()
    values = {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}
    assert values["instructgpt_label_submissions"] == len(filled)
    assert values['instructgpt_label_people{role="labeler",status="active"}'] == 3
