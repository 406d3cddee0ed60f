"""Archives and backups: the same bytes after a wipe, on both databases and across them; what is damaged or in the way is refused."""

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


def wiped(request, tmp_path, name="again"):
    return empty_site(tmp_path / name, request)


@pytest.mark.parametrize("people", ["whole", "pseudonyms"])
def test_export_wipe_import_export_is_the_same_bytes(filled, tmp_path, request, people):
    about = write_archive(filled.database, tmp_path / "one", people)
    write_export(filled.database, tmp_path / "rows one", ExportFilter())
    again = wiped(request, tmp_path)
    assert read_archive(again.database, tmp_path / "one") == about
    write_archive(again.database, tmp_path / "two", people)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    write_export(again.database, tmp_path / "rows two", ExportFilter())
    assert contents(tmp_path / "rows one") == contents(tmp_path / "rows two")
    assert about["tables"]["ranking_item"]["rows"] == 3 * 4 + 2 * 3
    with again.database.read() as db:  # no value is no value there too
        assert db.query(Task).filter(Task.brief.is_(None)).count() == about["tables"]["task"]["rows"]


def test_an_archive_moves_between_databases(filled, tmp_path, request):
    write_archive(filled.database, tmp_path / "one")
    other = empty_site(tmp_path / "other", request, "postgresql" if filled.database.is_sqlite else "sqlite")
    assert other.database.is_sqlite != filled.database.is_sqlite
    read_archive(other.database, tmp_path / "one")
    write_archive(other.database, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_pseudonyms_leave_no_name_behind(filled, tmp_path):
    about = write_archive(filled.database, tmp_path / "one", "pseudonyms")
    assert not about["tables"].keys() & {"login", "invite", "api_key", "rate_bucket", "journal"}
    assert "p-ada" in (tmp_path / "one" / "person.jsonl").read_text()
    assert b"example.org" not in b"".join(contents(tmp_path / "one").values())
    assert oct((tmp_path / "one").stat().st_mode)[-3:] == "700"
    assert oct((tmp_path / "one" / "person.jsonl").stat().st_mode)[-3:] == "600"


def spoil(folder, name, change):
    about = json.loads((folder / "archive.json").read_text())
    change(about)
    (folder / "archive.json").write_text(json.dumps(about))
    return name


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "task.jsonl").write_text("{}\n"), "task.jsonl: is not what was exported"),
        (lambda f: (f / "task.jsonl").unlink(), "task.jsonl: is missing"),
        (lambda f: (f / "archive.json").unlink(), "no archive"),
        (lambda f: (f / "archive.json").write_text("[]"), "not the description of an archive"),
        (lambda f: spoil(f, "", lambda about: about.update(archive=9)), "an archive of version 9"),
        (
            lambda f: spoil(f, "", lambda about: about["tables"]["task"]["columns"].append("new")),
            "table 'task' is not as in this version",
        ),
    ],
)
def test_a_damaged_archive_changes_nothing(tmp_path, request, damage, said):
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
    with pytest.raises(InputError, match=said):
        read_archive(second.database, tmp_path / "one")
    with second.database.read() as db:
        assert db.query(Person).count() == 0


def test_an_archive_never_overwrites_a_site(tmp_path, request):
    first = empty_site(tmp_path / "first", request, "sqlite")
    add_person(first, "ada")
    write_archive(first.database, tmp_path / "one")
    with pytest.raises(InputError, match="not empty"):
        read_archive(first.database, tmp_path / "one")


def test_rows_that_do_not_fit_are_named_and_nothing_is_kept(tmp_path, request):
    import hashlib

    first = empty_site(tmp_path / "first", request, "sqlite")
    add_person(first, "ada")
    write_archive(first.database, tmp_path / "one")
    line = (tmp_path / "one" / "person.jsonl").read_text().replace('"role": "labeler"', '"role": "king"')
    (tmp_path / "one" / "person.jsonl").write_text(line)
    spoil(
        tmp_path / "one",
        "",
        lambda about: about["tables"]["person"].update(sha256=hashlib.sha256(line.encode()).hexdigest()),
    )
    second = empty_site(tmp_path / "second", request, "sqlite")
    with pytest.raises(
        InputError, match=r"person.jsonl:1: rows up to line 1 do not fit the database \(CHECK constraint"
    ):
        read_archive(second.database, tmp_path / "one")


def test_a_backup_is_a_database_and_never_overwrites(filled, tmp_path):
    counts = back_up_database(filled.database, tmp_path / "deep" / "copy")
    assert (counts["person"], counts["ranking_item"], counts["gold"]) == (3, 18, 0)
    assert oct((tmp_path / "deep" / "copy").stat().st_mode)[-3:] == "600"
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["copy"]
    if filled.database.is_sqlite:
        with sqlite3.connect(tmp_path / "deep" / "copy") as copy:
            assert copy.execute("SELECT count(*) FROM person").fetchone() == (3,)
    with pytest.raises(InputError, match="already exists"):
        back_up_database(filled.database, tmp_path / "deep" / "copy")


def test_a_backup_while_somebody_writes_has_one_state(tmp_path, request):
    site = empty_site(tmp_path / "site", request, "sqlite")
    with site.database.write() as db:
        db.add(Person(name="half", role="labeler", status="active", pseudonym="p"))
        db.flush()
        assert back_up_database(site.database, tmp_path / "copy")["person"] == 0
    assert back_up_database(site.database, tmp_path / "later")["person"] == 1


def test_a_damaged_copy_is_noticed(tmp_path, request):
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


def test_pg_dump_that_is_missing_is_said(tmp_path, request, monkeypatch):
    site = empty_site(tmp_path / "site", request, "postgresql")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="pg_dump is not installed"):
        back_up_database(site.database, tmp_path / "copy")
    assert subprocess.run is not None
    assert not (tmp_path / "copy").exists()
