"""The owner's data page: exports, imports, API keys and backups."""

from __future__ import annotations

import json
import re
import sqlite3

import pytest
from support.exchange import fill
from support.site import add_person, client_of

from instructgpt.label.db.models import ApiKey, AuditLogEntry, Person, PromptRow, RankingRow
from instructgpt.label.exchange import export_jobs


@pytest.fixture
def owner(site):
    people = {
        name: add_person(site, name, cohort="heldout" if name == "hal" else "training")
        for name in ("ada", "bob", "hal")
    }
    fill(site, people)
    return client_of(site, add_person(site, "olga", role="owner"))


def test_only_owners_can_open_the_data_page(site, owner):
    for role in ("labeler", "researcher"):
        client = client_of(site, add_person(site, f"some {role}", role=role))
        for method, path in (
            ("GET", "/data"),
            ("POST", "/data/keys"),
            ("POST", "/data/backup"),
            ("POST", "/data/exports"),
            ("POST", "/data/imports"),
        ):
            assert client.request(method, path).status_code == 403
    assert owner.get("/data").status_code == 200


@pytest.mark.parametrize("language", ["en", "ko"])
def test_export_from_the_form(site, owner, language):
    with site.database.write() as db:
        db.query(Person).filter_by(name="olga").one().language = language
    made = owner.post(
        "/data/exports", data={"use": "training", "format": "jsonl", "files": ["rankings", "pairs"], "batch": ""}
    )
    assert made.status_code == 303
    (job,) = export_jobs.list_export_jobs(site)
    export_jobs.wait_for_export_job(job.id)
    page = owner.get("/data").text
    address = re.search(r'href="(/data/exports/[^"]+/rankings\.jsonl)"', page)[1]
    assert [json.loads(line)["labeler"] for line in owner.get(address).text.splitlines()] == ["p-ada", "p-bob"]
    assert owner.get(address.replace("rankings.jsonl", "..%2fjob.json")).status_code == 404


def test_import_is_atomic(site, owner):
    good = {"prompt": "fresh?", "completions": ["a", "b"], "ranks": [1, 2], "labeler": "x"}

    def send(*lines):
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        return owner.post(
            "/data/imports", files={"file": ("old/before.jsonl", content)}, data={"cohort": "heldout", "name": "before"}
        )

    wrong = send(good, {"prompt": "fresh?", "completions": ["a"], "ranks": [1]})
    assert wrong.status_code == 422
    assert "before.jsonl:2: a ranking needs at least two completions" in wrong.text
    with site.database.read() as db:
        before = db.query(RankingRow).count()
        assert db.query(PromptRow).filter_by(text="fresh?").count() == 0
    assert "1 rankings" in send(good, {"prompt": "p", "completion": "a", "model": "m"}, {"id": "z", "prompt": "q"}).text
    with site.database.read() as db:
        assert db.query(RankingRow).count() == before + 1
        assert db.query(PromptRow).filter_by(external_id="z").count() == 1


def test_api_key_is_shown_once_and_can_be_revoked(site, owner):
    shown = owner.post("/data/keys", data={"name": "<script>", "scopes": ["read", "export"], "days": 1}).text
    text = re.search(r'value="(igl_[^"]+)"', shown)[1]
    page = owner.get("/data").text
    assert text not in page
    assert "&lt;script&gt;" in page
    assert owner.get("/api/v1/models", headers={"Authorization": f"Bearer {text}"}).status_code == 200
    with site.database.read() as db:
        key = db.query(ApiKey).one()
    assert owner.post(f"/data/keys/{key.id}/revoke").status_code == 303
    assert owner.get("/api/v1/models", headers={"Authorization": f"Bearer {text}"}).status_code == 401
    assert owner.post("/data/keys", data={"name": "none"}).status_code == 422
    with site.database.read() as db:
        assert {"key.create", "key.revoke"} <= {row.action for row in db.query(AuditLogEntry)}


def test_backup_download_is_a_database(site, owner, tmp_path):
    copy = owner.post("/data/backup")
    assert copy.status_code == 200
    if site.database.is_sqlite:
        (tmp_path / "copy.db").write_bytes(copy.content)
        with sqlite3.connect(tmp_path / "copy.db") as database:
            assert database.execute("SELECT count(*) FROM ranking").fetchone()[0] == 7
        database.close()
    else:
        assert copy.content.startswith(b"PGDMP")
