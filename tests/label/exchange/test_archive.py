"""Archives and backups: equal bytes after a round trip on and across both databases; damaged ones are refused."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess

import pytest
from support.exchange import empty_site, fill
from support.site import add_person

from instructgpt.errors import InputError, RunError
from instructgpt.label.db.backup import back_up_database, check_sqlite_backup
from instructgpt.label.db.models import (
    ApiKey,
    AuditLogEntry,
    Draft,
    Invite,
    Person,
    RateBucket,
    SurveyReply,
    Task,
    UserSession,
)
from instructgpt.label.exchange.archive import read_archive, write_archive
from instructgpt.label.exchange.export_files import write_export
from instructgpt.label.exchange.selection import ExportFilter


@pytest.fixture(params=["sqlite", "postgresql"])
def filled(request, tmp_path):
    site = empty_site(tmp_path / "first", request)
    people = {
        name: add_person(site, name, fold=2, email=f"{name}@example.org", password_hash="x") for name in ("ada", "bob")
    }
    people["hal"] = add_person(site, "hal", cohort="heldout")
    made = fill(site, people)
    with site.database.write() as db:
        db.add(UserSession(token_hash="t", csrf="c", person_id=people["ada"].id, agent="Mozilla \u2028 ☃"))
        db.add(Invite(token_hash="i", role="labeler", cohort="training", expires_at=2**45))
        db.add(ApiKey(id="k", secret_hash="s", name="n", scopes=["read", "write"]))
        db.add(SurveyReply(id="r", kind="pay", month="2026-11", answers={"fair": 5, "why": None, "ä": [1, 2.5]}))
        db.add(
            AuditLogEntry(
                seq=1, at=1, by="cli", action="a", object="o", detail={"z": 1, "a": None}, previous="0", hash="h"
            )
        )
        db.add(RateBucket(key="Zeta", tokens=0.1 + 0.2, updated_at=3))
        db.add(RateBucket(key="alpha", tokens=1e-9, updated_at=4))
        db.add(Draft(assignment_id=made["hal"].assignment_id, rev=3, payload={"tiers": [["x"], []]}))
    return site


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("people", ["whole", "pseudonyms"])
def test_archive_round_trip_gives_equal_bytes(filled, tmp_path, request, people):
    manifest = write_archive(filled.database, tmp_path / "one", people)
    write_export(filled.database, tmp_path / "rows one", ExportFilter())
    again = empty_site(tmp_path / "again", request)
    assert read_archive(again.database, tmp_path / "one") == manifest
    write_archive(again.database, tmp_path / "two", people)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    write_export(again.database, tmp_path / "rows two", ExportFilter())
    assert contents(tmp_path / "rows one") == contents(tmp_path / "rows two")
    assert manifest["tables"]["ranking_item"]["rows"] == 3 * 4 + 2 * 3
    with again.database.read() as db:  # no value is no value there too
        assert db.query(Task).filter(Task.brief.is_(None)).count() == manifest["tables"]["task"]["rows"]


def test_archive_moves_between_databases(filled, tmp_path, request):
    write_archive(filled.database, tmp_path / "one")
    other = empty_site(tmp_path / "other", request, "postgresql" if filled.database.is_sqlite else "sqlite")
    assert other.database.is_sqlite != filled.database.is_sqlite
    read_archive(other.database, tmp_path / "one")
    write_archive(other.database, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_pseudonymous_archive_contains_no_names(filled, tmp_path):
    manifest = write_archive(filled.database, tmp_path / "one", "pseudonyms")
    assert not manifest["tables"].keys() & {"login", "invite", "api_key", "rate_bucket", "journal"}
    assert "p-ada" in (tmp_path / "one" / "person.jsonl").read_text()
    assert b"example.org" not in b"".join(contents(tmp_path / "one").values())
    assert oct((tmp_path / "one").stat().st_mode)[-3:] == "700"
    assert oct((tmp_path / "one" / "person.jsonl").stat().st_mode)[-3:] == "600"


def change_manifest(folder, name, change):
    manifest = json.loads((folder / "archive.json").read_text())
    change(manifest)
    (folder / "archive.json").write_text(json.dumps(manifest))
    return name


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "task.jsonl").write_text("{}\n"), "task.jsonl: was changed after the export"),
        (lambda f: (f / "task.jsonl").unlink(), "task.jsonl: missing from the archive"),
        (lambda f: (f / "archive.json").unlink(), "not an archive"),
        (lambda f: (f / "archive.json").write_text("[]"), "not the manifest of an archive"),
        (lambda f: change_manifest(f, "", lambda manifest: manifest.update(archive=9)), "archive version 9"),
        (
            lambda f: change_manifest(f, "", lambda manifest: manifest["tables"]["task"]["columns"].append("new")),
            "the columns of table 'task' differ",
        ),
    ],
)
def test_damaged_archive_is_refused(tmp_path, request, damage, message):
    first = empty_site(tmp_path / "first", request, "sqlite")
    fill(
        first,
        {
            name: add_person(first, name, cohort="heldout" if name == "hal" else "training")
            for name in ("ada", "bob", "hal")
        },
    )
    write_archive(first.database, tmp_path / "one")
    damage(tmp_path / "one")
    second = empty_site(tmp_path / "second", request, "sqlite")
    with pytest.raises(InputError, match=message):
        read_archive(second.database, tmp_path / "one")
    with second.database.read() as db:
        assert db.query(Person).count() == 0


def test_archive_is_not_imported_into_a_site_with_rows(tmp_path, request):
    first = empty_site(tmp_path / "first", request, "sqlite")
    add_person(first, "ada")
    write_archive(first.database, tmp_path / "one")
    with pytest.raises(InputError, match="not empty"):
        read_archive(first.database, tmp_path / "one")


def test_invalid_archive_rows_are_located_and_rolled_back(tmp_path, request):
    import hashlib

    first = empty_site(tmp_path / "first", request, "sqlite")
    add_person(first, "ada")
    write_archive(first.database, tmp_path / "one")
    line = (tmp_path / "one" / "person.jsonl").read_text().replace('"role": "labeler"', '"role": "king"')
    (tmp_path / "one" / "person.jsonl").write_text(line)
    change_manifest(
        tmp_path / "one",
        "",
        lambda manifest: manifest["tables"]["person"].update(sha256=hashlib.sha256(line.encode()).hexdigest()),
    )
    second = empty_site(tmp_path / "second", request, "sqlite")
    with pytest.raises(InputError, match=r"person.jsonl:1: the database rejects a row up to line 1 \(CHECK constraint"):
        read_archive(second.database, tmp_path / "one")


def test_backup_is_a_database_and_never_overwrites(filled, tmp_path):
    counts = back_up_database(filled.database, tmp_path / "deep" / "copy")
    assert (counts["person"], counts["ranking_item"], counts["gold"]) == (3, 18, 0)
    assert oct((tmp_path / "deep" / "copy").stat().st_mode)[-3:] == "600"
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["copy"]
    if filled.database.is_sqlite:
        with sqlite3.connect(tmp_path / "deep" / "copy") as copy:
            assert copy.execute("SELECT count(*) FROM person").fetchone() == (3,)
    with pytest.raises(InputError, match="already exists"):
        back_up_database(filled.database, tmp_path / "deep" / "copy")


def test_backup_during_a_write_is_consistent(tmp_path, request):
    site = empty_site(tmp_path / "site", request, "sqlite")
    with site.database.write() as db:
        db.add(Person(name="half", role="labeler", status="active", pseudonym="p"))
        db.flush()
        assert back_up_database(site.database, tmp_path / "copy")["person"] == 0
    assert back_up_database(site.database, tmp_path / "later")["person"] == 1


def test_damaged_backup_is_detected(tmp_path, request):
    site = empty_site(tmp_path / "site", request, "sqlite")
    for number in range(300):
        add_person(site, f"somebody {number}")
    back_up_database(site.database, tmp_path / "copy")
    content = bytearray((tmp_path / "copy").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = os.urandom(4096)
    (tmp_path / "copy").write_bytes(content)
    with pytest.raises(RunError, match="copy"):
        check_sqlite_backup(tmp_path / "copy")


def test_missing_pg_dump_is_reported(tmp_path, request, monkeypatch):
    site = empty_site(tmp_path / "site", request, "postgresql")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="pg_dump is not installed"):
        back_up_database(site.database, tmp_path / "copy")
    assert subprocess.run is not None
    assert not (tmp_path / "copy").exists()
