"""`label import`, `export` and `backup`, and the documented path from a site to a reward model."""

from __future__ import annotations

import json
import re
import shlex

import pytest
from sqlalchemy import select
from support.pages import commands, read_page

from instructgpt.label.db.models import Batch, Submission, Task
from instructgpt.label.site_folder import open_site
from instructgpt.models.reward_model import load_reward_model


@pytest.fixture
def site_folder(command, tmp_path):
    folder = tmp_path / "site"
    assert command("label", "init", "--site", folder).code == 0
    return folder


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_exported_rankings_train_a_reward_model(site_folder, command, write, save, tmp_path):
    letters = "abcdefghij"
    rankings = [
        {
            "prompt": f"Name {letter}",
            "completions": ["croak", "a frog", "sky"],
            "ranks": [3, 1, 2],
            "labeler": name,
            "cohort": cohort,
        }
        for letter in letters
        for name, cohort in (("ann", "training"), ("eve", "heldout"))
    ]
    shown = [{"prompt": f"Name {letter}", "completion": "a frog", "labeler": "ann"} for letter in letters]
    said = command(
        "label", "import", "--site", site_folder, "--data", write("work.jsonl", rankings), write("shown.jsonl", shown)
    ).out
    assert "20 rankings" in said
    assert "10 demonstrations" in said
    assert "heldout 1" not in command("label", "export", "--site", site_folder, "--out", tmp_path / "exported").out
    (documented,) = [argv for argv in commands(read_page("label-api")) if argv[0] == "reward"]
    places = {
        "MODEL": str(save()),
        "exported/rankings.jsonl": str(tmp_path / "exported" / "rankings.jsonl"),
        "runs/reward": str(tmp_path / "reward"),
        "exported/demonstrations.jsonl": str(tmp_path / "exported" / "demonstrations.jsonl"),
    }
    assert (
        command(*[places.get(word, word) for word in documented], "--batch", "4", "--lr", "1e-3", "--folds", "0").code
        == 0
    )
    load_reward_model(tmp_path / "reward", "cpu")
    assert {row["labeler"] for row in rows(tmp_path / "exported" / "rankings.jsonl")} != {"ann"}
    assert len(rows(tmp_path / "exported" / "rankings.jsonl")) == 10


def test_importing_completions_creates_a_batch(site_folder, command, write, tmp_path):
    completions = [
        {"prompt": f"p{n}", "completion": f"{model}\x00 {n}", "model": model, "finish": "stop", "sampling": {}}
        for n in range(5)
        for model in "xyz"
    ]
    argv = shlex.split('--name first --open --policy \'{"overlap": 2, "cohort_overlap": 3, "cohort_share": 0.2}\'')
    assert (
        "5 tasks in batch 'first'"
        in command("label", "import", "--site", site_folder, "--data", write("c.jsonl", completions), *argv).out
    )
    site = open_site(site_folder)
    with site.database.read() as db:
        assert db.query(Batch).one().state == "open"
        assert sorted(task.overlap for task in db.query(Task)) == [2, 2, 2, 2, 3]
    site.database.close()
    said = command(
        "label", "import", "--site", site_folder, "--data", tmp_path / "c.jsonl", "--name", "first"
    ).error_line(2)
    assert "there is already a batch 'first'" in said


def test_importing_prompts_with_kind_creates_a_batch(site_folder, command, write):
    prompts = write("p.jsonl", [{"id": n, "prompt": f"p{n}"} for n in range(3)])
    assert "3 prompts created" in command("label", "import", "--site", site_folder, "--data", prompts).out
    said = command("label", "import", "--site", site_folder, "--data", prompts, "--kind", "demonstrate", "--open").out
    assert "3 prompts unchanged" in said
    assert "3 tasks in batch 'p'" in said
    assert "has no effect" in command("label", "import", "--site", site_folder, "--data", prompts, "--open").error_line(
        2
    )


def test_files_are_a_list_and_rankings_are_no_completions(site_folder, command, tmp_path):
    """`--files` takes names apart by spaces, as every other list, or by commas; a screening batch is made here too."""
    (tmp_path / "r.jsonl").write_text(
        json.dumps({"prompt": "a", "completions": ["x", "y"], "ranks": [1, 2], "labeler": "l"})
    )
    refused = command("label", "batch", "--site", site_folder, "--name", "wrong", "--completions", tmp_path / "r.jsonl")
    assert refused.code == 2
    assert "r.jsonl:1: column 'completion' is missing" in refused.err
    assert "'label import'" in refused.err
    assert "data import" not in refused.err
    assert command("label", "import", "--site", site_folder, "--data", tmp_path / "r.jsonl", "--name", "old").code == 0
    for number, names in enumerate((["prompts", "rankings"], ["prompts,rankings"])):
        made = command("label", "export", "--site", site_folder, "--out", tmp_path / f"out{number}", "--files", *names)
        assert (made.code, made.err) == (0, "")
        assert {path.stem for path in (tmp_path / f"out{number}").glob("*.jsonl")} <= {"prompts", "rankings"}
        assert (tmp_path / f"out{number}" / "rankings.jsonl").is_file()
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "Is this sensitive?"}))
    options = ["--name", "test", "--kind", "review", "--prompts", tmp_path / "p.jsonl", "--screening", "sensitive"]
    made = command("label", "batch", "--site", site_folder, *options)
    assert (made.code, made.err) == (0, "")
    site = open_site(site_folder)
    with site.database.read() as db:
        assert db.scalar(select(Batch.screening).where(Batch.name == "test")) == "sensitive"
    site.database.close()


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_the_group_lists_its_commands(command, words):
    shown_help = command("label", *words)
    assert "did you mean" not in shown_help.out + shown_help.err
    listed = set(re.findall(r"^  label ([\w-]+) ", shown_help.out + shown_help.err, re.MULTILINE))
    assert {"init", "serve", "import", "export", "backup", "simulate", "batch", "reset-link"} <= listed


def test_archive_and_backup_commands(site_folder, command, write, tmp_path):
    line = {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2], "labeler": "x"}
    command("label", "import", "--site", site_folder, "--data", write("r.jsonl", [line]))
    assert command("label", "export", "--site", site_folder, "--archive", "--out", tmp_path / "one").code == 0
    other = tmp_path / "other"
    command("label", "init", "--site", other)
    assert command("label", "import", "--site", other, "--archive", tmp_path / "one").code == 0
    assert command("label", "export", "--site", other, "--archive", "--out", tmp_path / "two").code == 0
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    assert "verified" in command("label", "backup", "--site", site_folder, "--out", tmp_path / "copy.db").out
    assert "already exists" in command(
        "label", "backup", "--site", site_folder, "--out", tmp_path / "copy.db"
    ).error_line(2)
    for rest in site_folder.glob("site.db*"):
        rest.unlink()
    (tmp_path / "copy.db").rename(site_folder / "site.db")  # as the page of the API says
    assert command("label", "export", "--site", site_folder, "--archive", "--out", tmp_path / "three").code == 0
    for name in ("submission", "ranking_item", "person"):
        assert (tmp_path / "three" / f"{name}.jsonl").read_bytes() == one[f"{name}.jsonl"]
    site = open_site(other)
    with site.database.read() as db:
        assert db.query(Submission).count() == 1
    site.database.close()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["import"], "give one of --data, --archive and --requests"),
        (["import", "--archive", "x", "--name", "n"], "--name has no effect with --archive"),
        (["import", "--data", "nothing.jsonl"], "nothing.jsonl: no such file"),
        (["import", "--data", "p.jsonl", "--policy", "{"], "--policy {: "),
        (["import", "--data", "p.jsonl", "--policy", '{"overlap": 0}'], "column 'overlap'"),
        (["export", "--out", "o", "--people", "whole"], "--people has no effect without --archive"),
        (["export", "--out", "o", "--archive", "--use", "training"], "--use has no effect with --archive"),
        (["export", "--out", "o", "--files", "rankings,nothing"], "no file 'nothing'"),
        (["export", "--out", "o"], "nothing to export for training (there are no submissions yet)"),
    ],
)
def test_invalid_options_are_errors(site_folder, command, monkeypatch, tmp_path, argv, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_text('{"prompt": "p"}\n')
    assert message in command("label", argv[0], "--site", site_folder, *argv[1:]).error_line(2)
    assert not (tmp_path / "o").exists()


def test_folder_without_a_site_is_an_error(command, tmp_path):
    assert "no site there" in command("label", "export", "--site", tmp_path, "--out", tmp_path / "o").error_line(2)
    assert "--key is missing" in command("label", "simulate", "--site", "http://127.0.0.1:1").error_line(2)
