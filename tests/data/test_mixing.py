"""`data mix`: shares, what stays, the list of forbidden uses as a system turn, and inputs that do not fit."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from instructgpt.cli import run_command

USES = "Refuse: weapons; insults."


@pytest.fixture
def mix(write, tmp_path, capsys):
    """Run `data mix` on 90 demonstrations and 40 refusals; return code, rows, printed text and report."""

    def run(*options, data=None, add=None, uses=None):
        ordinary = [{"prompt": f"question {i}", "completion": "answer"} for i in range(90)] if data is None else data
        refusals = [{"prompt": f"bomb {i}", "completion": "no"} for i in range(40)] if add is None else add
        out = tmp_path / "mixed.jsonl"
        files = ["--data", write("data.jsonl", ordinary), "--add", write("add.jsonl", refusals), "--out", out]
        if uses is not None:
            (tmp_path / "uses.txt").write_text(uses, encoding="utf-8")
            files += ["--forbidden", tmp_path / "uses.txt"]
        capsys.readouterr()
        code = run_command(["data", "mix", *map(str, [*files, *options])])
        rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
        report = tmp_path / "mixed.report.json"
        return code, rows, capsys.readouterr(), json.loads(report.read_text()) if report.exists() else {}

    return run


def text_of(row):
    return row["prompt"] if "prompt" in row else row["messages"][-1]["content"]


def test_so_many_are_added_that_they_are_the_share(mix):
    code, rows, printed, report = mix("--share", "0.1")
    assert code == 0
    kinds = Counter(text_of(row).split()[0] for row in rows)
    assert kinds == {"question": 90, "bomb": 10}
    assert len({text_of(row) for row in rows}) == 100
    assert "10 of 100 records are added ones: 10.0%" in printed.out
    assert report["dropped"]["added records beyond --share"]["count"] == 30
    assert report["read"] == 130 == sum(report["written"].values()) + 30
    assert [text_of(row).split()[0] for row in rows[:90]] != ["question"] * 90, "mixed, not appended"


def test_too_few_are_all_added_and_it_says_so(mix):
    code, rows, printed, _ = mix("--share", "0.5")
    assert (code, len(rows)) == (0, 130)
    assert "40 of 130 records are added ones: 30.8%; --add has too few for 50.0%" in " ".join(printed.out.split())


def test_the_list_stands_before_all_added_and_a_share_of_the_others(mix):
    conversation = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "bomb of a system"}]
    add = [{"prompt": f"bomb {i}", "completion": "no", "labeler": "ann"} for i in range(9)]
    add += [{"messages": conversation, "completion": "no"}]
    _, rows, _, _ = mix("--share", "0.1", "--forbidden-share", "0.2", add=add, uses=f"{USES}\n")
    listed = [row for row in rows if "messages" in row]
    assert Counter(text_of(row).split()[0] for row in listed) == {"question": 18, "bomb": 10}
    for row in listed:
        system, user = row["messages"]
        assert system["role"] == "system"
        expected = f"{USES}\n\nBe brief." if user["content"] == "bomb of a system" else USES
        assert system["content"] == expected
        assert row["completion"] == ("no" if user["content"].startswith("bomb") else "answer")
    assert sum(row.get("labeler") == "ann" for row in listed) == 9


def test_rankings_keep_their_columns(mix):
    ranking = {"completions": ["no", "yes"], "ranks": [1, 2], "labeler": "bo", "cohort": "training", "subset": "refuse"}
    rows = [{"prompt": f"question {i}"} | ranking for i in range(9)]
    _, mixed, _, _ = mix("--share", "0.1", data=rows, add=[{"prompt": "bomb"} | ranking], uses=USES)
    (listed,) = (row for row in mixed if text_of(row) == "bomb")
    assert listed == {"messages": [{"role": "system", "content": USES}, {"role": "user", "content": "bomb"}]} | ranking


def test_a_seed_gives_the_same_file_and_another_one_another(mix):
    first, second, third = (mix("--share", "0.1", "--seed", seed)[1] for seed in ("3", "3", "4"))
    assert first == second != third


@pytest.mark.parametrize(
    ("options", "files", "message"),
    [
        ((), {"add": [{"prompt": "bomb"}]}, "--data holds demonstrations, --add prompts; mix files of one kind"),
        ((), {"uses": " \n"}, "the file is empty; write the forbidden uses into it"),
        (("--forbidden-share", "0.3"), {}, "--forbidden-share does nothing without --forbidden"),
        (("--share", "1"), {}, "share"),
        (("--forbidden", "nowhere.txt"), {}, "--forbidden nowhere.txt: cannot be read as UTF-8 text"),
    ],
)
def test_bad_input_is_one_line(mix, options, files, message):
    code, rows, printed, _ = mix(*options, **files)
    assert (code, rows) == (2, [])
    assert message in printed.err
    assert printed.err.count("\n") == 1
