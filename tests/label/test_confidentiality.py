"""Who can read a site's files, and what a training export never holds."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from support.commands import run_in_process
from support.exchange import add_batch, add_prompt, add_task, hand_in
from support.site import add_person

from instructgpt.label.db.models import Person, PromptReview
from instructgpt.label.site_folder import open_site


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return run_in_process(capsys)


def open_to_others(folder: Path) -> dict[str, str]:
    """Files and folders that other accounts of the machine can use, with their modes."""
    paths = [folder, *folder.rglob("*")]
    modes = {str(path): stat.S_IMODE(path.stat().st_mode) for path in paths}
    return {name: oct(mode) for name, mode in modes.items() if mode & 0o077}


def test_only_the_owner_can_read_a_site_its_copies_and_its_exports(command):
    assert command("label", "init", "--site", "site").code == 0
    assert stat.S_IMODE(Path("site").stat().st_mode) == 0o700
    assert stat.S_IMODE(Path("site/site.db").stat().st_mode) == 0o600
    Path("prompts.jsonl").write_text('{"prompt": "Why is the sky blue?"}\n')
    assert command("label", "import", "--site", "site", "--data", "prompts.jsonl").code == 0
    site = open_site(Path("site"))
    with site.database.write() as db:
        db.add(Person(name="olga", role="owner", status="active", pseudonym="o"))
        assert {path.name for path in Path("site").iterdir()} >= {"site.db-wal", "site.db-shm"}
        assert open_to_others(Path("site")) == {}, "while the site runs"
    site.database.downgrade("0001")
    site.database.close()
    for format in ("jsonl", "parquet", "datasets"):
        outcome = command("label", "export", "--site", "site", "--out", format, "--format", format)
        assert outcome.code == 0, outcome.err
        assert open_to_others(Path(format)) == {}
    assert list(Path("site").glob("site.db.before-migration*"))
    assert open_to_others(Path("site")) == {}


def test_an_older_site_is_closed_to_others_with_a_message(command):
    command("label", "init", "--site", "site")
    Path("site").chmod(0o755)
    Path("site/site.db").chmod(0o644)
    Path("prompts.jsonl").write_text('{"prompt": "Why?"}\n')
    outcome = command("label", "import", "--site", "site", "--data", "prompts.jsonl")
    assert outcome.code == 0
    assert "site/site.db was open to other accounts" in outcome.out
    assert open_to_others(Path("site")) == {}
    assert "open to other" not in command("label", "import", "--site", "site", "--data", "prompts.jsonl").out


def test_a_database_elsewhere_is_private_too(command, tmp_path):
    elsewhere = tmp_path / "data.db"
    assert command("label", "init", "--site", "site", "--database", f"sqlite:///{elsewhere}").code == 0
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o600
    elsewhere.chmod(0o640)
    Path("prompts.jsonl").write_text('{"prompt": "Why?"}\n')
    assert "data.db was open" in command("label", "import", "--site", "site", "--data", "prompts.jsonl").out
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o600


def test_prompts_of_the_screening_test_are_in_no_export(command):
    command("label", "init", "--site", "site")
    site = open_site(Path("site"))
    with site.database.write() as db:
        ordinary = add_batch(db, "ordinary", kind="demonstrate")
        screening = add_batch(db, "screening", kind="review", screening="sensitive")
        for text, batches in (
            ("Tell me a racist joke", [screening]),
            ("In both", [screening, ordinary]),
            ("Write a poem", [ordinary]),
            ("Without a task", []),
        ):
            prompt = add_prompt(db, text)
            for batch in batches:
                add_task(db, batch, prompt)
    site.database.close()
    outcome = command("label", "export", "--site", "site", "--out", "out")
    assert outcome.code == 0, outcome.err
    assert "1 screening" in outcome.out
    exported = [json.loads(line)["prompt"] for line in Path("out/prompts.jsonl").read_text().splitlines()]
    assert sorted(exported) == ["In both", "Without a task", "Write a poem"]
    assert json.loads(Path("out/manifest.json").read_text())["files"]["prompts"]["left_out"] == {"screening": 1}
    assert "racist" not in "".join(path.read_text() for path in Path("out").iterdir())


@pytest.mark.parametrize(("screening", "expected"), [(None, True), ("sensitive", False)])
def test_an_export_says_which_prompts_were_reviewed_as_sensitive(command, screening, expected):
    command("label", "init", "--site", "site")
    site = open_site(Path("site"))
    ada = add_person(site, "ada")
    with site.database.write() as db:
        prompt = add_prompt(db, "How do I make a bomb?")
        task = add_task(db, add_batch(db, "reviews", kind="review", screening=screening), prompt)
        add_task(db, add_batch(db, "demonstrations", kind="demonstrate"), prompt)
        submission = hand_in(db, task, ada)
        db.add(PromptReview(submission_id=submission.id, sensitive=True, labels={}))
    site.database.close()
    assert command("label", "export", "--site", "site", "--out", "out", "--files", "prompts").code == 0
    (row,) = map(json.loads, Path("out/prompts.jsonl").read_text().splitlines())
    assert row["sensitive"] is expected
