"""Groups of labelers on the site: declared by themselves, never guessed, and nowhere with fewer than five people."""

from __future__ import annotations

import itertools
import json
import re

import pytest
from fastapi.routing import iter_route_contexts
from sqlalchemy import select
from support.exchange import add_batch, add_prompt, add_task, rank
from support.site import add_person, client_of, make_site

from instructgpt.label.db.models import AuditLogEntry, GroupDeclaration, LabelerGroup, Person, current_time_ms
from instructgpt.label.errors import SiteError
from instructgpt.label.exchange.archive import write_archive
from instructgpt.label.exchange.export_files import write_export
from instructgpt.label.exchange.export_rows import iter_export_rows
from instructgpt.label.exchange.selection import ExportFilter, ExportTally, snapshot
from instructgpt.label.people import groups, privacy
from instructgpt.label.web.app import create_app
from instructgpt.records import Ranking, read_records

SMALL = "Hamlet-dwellers"


@pytest.fixture
def filled(tmp_path):
    """Six people of the north, five of the south, who differ, four hamlet-dwellers and one who says nothing."""
    site = make_site(tmp_path / "site")
    owner = add_person(site, "olga", role="owner")
    declared = ["North"] * 6 + ["South"] * 5 + [SMALL] * 4 + [None]
    people = [add_person(site, f"ann{i}") for i in range(len(declared))]
    with site.database.write() as db:
        ids = {group.name: group.id for group in groups.set_groups(db, ["North", " South ", "", SMALL], owner.id)}
        batch = add_batch(db, "ranked")
        tasks = [add_task(db, batch, add_prompt(db, f"Prompt {p}"), [("a", ["sft"]), ("b", ["ppo"])]) for p in range(4)]
        for person, name in zip(people, declared, strict=True):
            groups.declare_group(db, db.get_one(Person, person.id), ids.get(name, ""))
            for task in tasks:
                rank(db, task, person, [2, 1] if name == "South" else [1, 2])
    return site, owner, people, declared


def exported_groups(site, **wanted):
    with snapshot(site.database) as db:
        rows = list(iter_export_rows(db, "rankings", ExportFilter(**wanted), ExportTally()))
    return {row["labeler"]: row.get("group") for row in rows}


def test_exported_rankings_carry_groups_of_five_people_of_that_export(filled, tmp_path):
    site, _, people, declared = filled
    expected = {
        person.pseudonym: None if name == SMALL else name for person, name in zip(people, declared, strict=True)
    }
    assert exported_groups(site) == expected
    few = tuple(person.pseudonym for person in people[:8])
    assert set(exported_groups(site, labelers=few).values()) == {"North", None}
    write_export(site.database, tmp_path / "out", ExportFilter())
    texts = [path.read_text(encoding="utf-8") for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert any("North" in text for text in texts)
    assert not any(SMALL in text for text in texts)
    (path,) = (tmp_path / "out").rglob("rankings*.jsonl")
    assert {ranking.group for ranking in read_records(Ranking, path)} == {"North", "South", None}


def test_the_page_compares_large_groups_and_names_small_ones_only_in_the_owners_list(filled):
    site, owner, people, _ = filled
    page = client_of(site, owner).get("/whose-preferences")
    assert page.status_code == 200
    assert "Two people agree" in page.text
    before_list, _, _ = page.text.partition("<textarea")
    assert SMALL not in before_list
    assert "North" in before_list
    assert "Prompt 0" in before_list
    researcher = add_person(site, "rita", role="researcher")
    for path in ("/whose-preferences", "/people", f"/people/{people[12].id}", "/quality"):
        text = client_of(site, researcher).get(path).text
        assert SMALL not in text, path
    assert client_of(site, people[0]).get("/whose-preferences").status_code in (303, 403)


def test_no_get_request_of_the_owner_names_a_group_of_four_but_the_owners_own_list(filled):
    site, owner, people, _ = filled
    client = client_of(site, owner)
    keys = {batch["id"] for batch in client.get("/api/v1/batches").json()}
    parts = {
        "person_id": {person.id for person in people},
        "key": keys,
        "name": {"rankings"},
        "name:path": {"rankings"},
    }
    visited = {}
    for context in iter_route_contexts(create_app(site).routes):
        path = getattr(context, "path", "")
        names = re.findall(r"{([^}]+)}", path)
        if "GET" not in (getattr(context, "methods", None) or ()) or not set(names) <= set(parts):
            continue
        for values in itertools.product(*(sorted(parts[name]) for name in names)):
            filled_path = path
            for name, value in zip(names, values, strict=True):
                filled_path = filled_path.replace(f"{{{name}}}", value)
            answer = client.get(filled_path)
            visited[filled_path] = answer.status_code
            if path not in ("/whose-preferences", "/journal"):  # the owner's list, and its changes
                assert SMALL not in answer.text, filled_path
    answered = {path for path, status in visited.items() if status == 200}
    assert len(answered) > 40
    assert {"/quality", "/people", f"/people/{people[12].id}", "/api/v1/rows/rankings", "/data"} <= answered


def test_nobody_sees_which_group_a_person_declared(filled, tmp_path):
    site, owner, people, _ = filled
    client = client_of(site, owner)
    for person in people[:2]:
        page = client.get(f"/people/{person.id}")
        assert page.status_code == 200
        assert "North" not in page.text
    with site.database.read() as db:
        entries = db.scalars(select(AuditLogEntry).where(AuditLogEntry.object.in_([p.id for p in people]))).all()
        assert not any("North" in json.dumps(entry.detail) for entry in entries)
    manifest = write_archive(site.database, tmp_path / "archive", "pseudonyms")
    assert "group_declaration" not in manifest["tables"]


def test_a_labeler_declares_changes_and_forgets_a_group(tmp_path):
    site = make_site(tmp_path / "site")
    owner, ada = add_person(site, "olga", role="owner"), add_person(site, "ada")
    client = client_of(site, ada)
    assert 'name="group"' not in client.get("/account").text
    assert client_of(site, owner).post("/whose-preferences/groups", data={"names": "North\nSouth"}).status_code == 303
    with site.database.read() as db:
        north, south = (group.id for group in groups.list_groups(db))
    page = client.get("/account").text
    assert 'name="group"' in page
    assert "selected>North" not in page
    for group in (north, south):
        assert client.post("/account/group", data={"group": group}).status_code == 303
    assert "selected>South" in client.get("/account").text
    with site.database.read() as db:
        assert privacy.export_personal_data(db, db.get_one(Person, ada.id))["group"] == "South"
    assert client.post("/account/group", data={"group": "another"}).status_code == 422
    assert client_of(site, owner).post("/account/group", data={"group": north}).status_code == 409
    assert client.post("/account/group", data={"group": ""}).status_code == 303
    with site.database.read() as db:
        assert db.scalars(select(GroupDeclaration)).all() == []


def test_an_erased_person_has_no_group_and_a_retired_group_returns_with_its_people(filled):
    site, owner, people, _ = filled
    with site.database.write() as db:
        privacy.erase_account(
            db, db.get_one(Person, people[6].id), labels=False, now_ms=current_time_ms(), initiated_by=owner.id
        )
        groups.set_groups(db, ["South"], owner.id)
    assert set(exported_groups(site).values()) == {None}  # four of the south are left
    with site.database.write() as db:
        groups.set_groups(db, ["North", "South"], owner.id)
        assert {group.name for group in db.scalars(select(LabelerGroup))} == {"North", "South", SMALL}
    assert set(exported_groups(site).values()) == {"North", None}


@pytest.mark.parametrize("names", [[f"group {i}" for i in range(21)], ["x" * 61]])
def test_too_many_groups_and_long_names_are_refused(tmp_path, names):
    site = make_site(tmp_path / "site")
    with site.database.write() as db, pytest.raises(SiteError):
        groups.set_groups(db, names, "olga")
