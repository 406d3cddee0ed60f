"""`best`: the best of N completions by score, as demonstrations."""

from __future__ import annotations

import json
from itertools import combinations
from math import log
from statistics import mean

import pytest

from instructgpt.cli import run_command
from instructgpt.records import Demonstration, read_records


def scored(prompt, score, completion=None, **columns):
    return {"prompt": prompt, "completion": completion or f"{prompt} {score}", "score": score} | columns


ROWS = [
    scored("a", 1.0, model="m", sampling={"seed": 0}, id="7"),
    scored("a", 3.0, model="m", finish="length", id="7"),
    scored("b", -2.0),
    scored("a", 9.0),
    scored("b", -2.0, "later"),
    scored("b", 5.0),
]


@pytest.fixture
def best(tmp_path, capsys, write):
    def run(rows, *more):
        data = write("scored.jsonl", rows)
        code = run_command(["best", "--data", str(data), "--out", str(tmp_path / "best.jsonl"), *more])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_the_best_of_the_first_n_become_demonstrations(best, tmp_path, rows_of):
    code, out, _ = best(ROWS, "-n", "2")
    assert code == 0
    first, second = rows_of(tmp_path / "best.jsonl")
    assert first == {
        "prompt": "a", "completion": "a 3.0", "score": 3.0, "model": "m", "id": "7", "source": "best of 2"
    }  # fmt: skip
    assert second["completion"] == "b -2.0"  # the first of equal ones
    assert len(read_records(Demonstration, tmp_path / "best.jsonl")) == 2
    assert "2 demonstrations, each the best of 2 completions" in out
    assert "at most log 2 - 1/2 = 0.193 nats" in out
    assert "1 of the best are truncated" in out


def test_every_n_is_estimated_from_all_completions(best, tmp_path):
    assert best([*ROWS, scored("a", 4.0)], "-n", "3")[0] == 0
    estimates = json.loads((tmp_path / "best.estimates.json").read_text())
    assert estimates["prompts"] == 2
    rows = estimates["estimates"]
    groups = {"a": [1.0, 3.0, 9.0, 4.0], "b": [-2.0, -2.0, 5.0]}
    assert [row["n"] for row in rows] == [1, 2, 3]  # b has no more
    for row in rows:
        of_prompt = [mean(map(max, combinations(scores, row["n"]))) for scores in groups.values()]
        assert row["score"] == pytest.approx(mean(of_prompt))
        assert row["low"] <= row["score"] <= row["high"]
        assert row["kl_bound"] == pytest.approx(log(row["n"]) - (row["n"] - 1) / row["n"])


def test_conversations_are_grouped_by_all_their_messages(best, tmp_path, rows_of):
    def talk(first, score):
        turns = [("user", first), ("assistant", "yes"), ("user", "and?")]
        return {"messages": [{"role": role, "content": text} for role, text in turns], "completion": str(score)} | {
            "score": score
        }

    assert best([talk("x", 1), talk("y", 2), talk("x", 3), talk("y", 0)], "-n", "2")[0] == 0
    rows = rows_of(tmp_path / "best.jsonl")
    assert [row["completion"] for row in rows] == ["3", "2"]
    assert rows[0]["messages"][0]["content"] == "x"


def test_prompts_with_fewer_completions_are_named_or_counted(best):
    code, _, err = best([*ROWS, scored("rare", 1.0)], "-n", "3")
    assert (code, err.count("\n")) == (2, 1)
    assert "prompt 'rare' has 1 completions, fewer than --n 3" in err
    code, out, _ = best([*ROWS, scored("rare", 1.0)], "-n", "3", "--skip-bad")
    assert code == 0
    assert "left out: 1" in out


@pytest.mark.parametrize(
    ("rows", "more", "said"),
    [
        ([{"prompt": "a", "completion": "b"}] * 2, ["-n", "2"], "score"),
        (ROWS, ["-n", "1"], "--n 1 chooses nothing"),
        (ROWS, [], "--n is required"),
        (ROWS, ["-n", "9", "--skip-bad"], "no prompt has so many completions"),
        ([scored("a", "high")] * 2, ["-n", "2"], "score"),
    ],
)
def test_bad_input_is_one_line(rows, more, said, best, tmp_path):
    code, _, err = best(rows, *more)
    assert (code, err.count("\n")) == (2, 1)
    assert said in err
    assert not (tmp_path / "best.jsonl").exists()


def test_several_models_are_announced(best):
    assert "of 2 models (m, n)" in best([scored("a", 1.0, model="m"), scored("a", 2.0, model="n")], "-n", "2")[1]
