"""What is in a file: descriptions, agreement, `data stats`: `pytest tests/data/test_stats.py`."""

import json
from pathlib import Path

import numpy as np
import pytest

from instructgpt.cli import run_command as command
from instructgpt.data.cli import print_dataset_stats
from instructgpt.data.configs import StatsConfig
from instructgpt.data.stats import build_stats_tables, describe, length_win_rate
from instructgpt.errors import InputError
from instructgpt.records import Demonstration, Prompt, Ranking, read_records, write_records
from instructgpt.statistics.agreement import inter_labeler_agreement


def test_description_by_hand() -> None:
    n, mean, sd, low, q1, q2, q3, high = describe([1, 2, 3, 4, 10])
    assert (n, mean, low, q1, q2, q3, high) == (5, 4.0, 1.0, 2.0, 3.0, 4.0, 10.0)
    assert sd == pytest.approx(np.sqrt((9 + 4 + 1 + 0 + 36) / 4))
    assert describe([]) == (0, None, None, None, None, None, None, None)
    assert describe([7])[:3] == (1, 7.0, None)


def ranking(labeler: str | None, *ranks: int, order: str = "abc") -> Ranking:
    texts = {"a": "a", "b": "bb", "c": "ccc"}
    return Ranking(prompt="p", completions=tuple(texts[name] for name in order), ranks=ranks, labeler=labeler)


def test_agreement_and_length_by_hand() -> None:
    one = ranking("x", 1, 2, 3)  # ab a, ac a, bc b
    other = ranking("y", 2, 1, 1, order="cba")  # ranks: c 2, b 1, a 1 -> ab tie, ac a, bc b
    third = ranking("z", 3, 2, 2)  # ab b, ac c, bc tie
    agreed = inter_labeler_agreement([one, other, third, ranking(None, 3, 2, 1)])
    # x-y: tie, alike, alike.  x-z: opposite, opposite, tie.  y-z: tie, opposite, tie.
    assert (agreed.concordant, agreed.discordant, agreed.one_tied, agreed.both_tied) == (2, 3, 4, 0)
    assert agreed.decided.value == pytest.approx(2 / 5)
    assert agreed.three_way.value == pytest.approx(2 / 9)
    assert inter_labeler_agreement([one]).decided.value is None
    # decided pairs and their better: x a a b (shorter), y a b (shorter), z b c (longer)
    assert length_win_rate([one, other, third]) == pytest.approx(2 / 7)


def test_stats_of_any_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = [
        Prompt.model_validate(
            {"prompt": "one two", "user": "u", "use_case": "chat", "split": "train", "ambiguous": True}
        ),
        Prompt.model_validate({"prompt": "한국어 🙂", "user": "u", "split": "test", "ambiguous": False}),
    ]
    write_records(tmp_path / "p.jsonl", prompts)
    labels = ({"opinion": True}, {"opinion": None}, {"opinion": False})
    ranked = ranking("x", 1, 2, 3).model_copy(update={"ratings": (7, 4, 1), "labels": labels})
    write_records(tmp_path / "r.jsonl", [ranked])
    (tmp_path / "corpus.txt").write_text("a b c d")
    data = tuple(tmp_path / name for name in ("p.jsonl", "r.jsonl", "corpus.txt"))
    print_dataset_stats(StatsConfig(data=data, out=tmp_path / "s.json"))
    tables = json.loads((tmp_path / "s.json").read_text())
    assert tables["prompt"]["use cases"] == [
        {"use_case": "chat", "count": 1, "share": 0.5},
        {"use_case": "(none)", "count": 1, "share": 0.5},
    ]
    assert tables["prompt"]["prompts per user or organization"][1] == {
        "split": "train",
        "users": 1,
        "prompts": 1,
        "mean": 1.0,
        "most": 1,
    }
    assert tables["prompt"]["annotations"] == [{"column": "ambiguous", "yes": 1, "no": 1, "share of yes": 0.5}]
    characters, words = tables["prompt"]["lengths"]
    assert (characters["n"], characters["mean"], characters["max"], words["mean"]) == (2, 6.0, 7.0, 2.0)
    facts = {row["what"]: row["value"] for row in tables["ranking"]["rankings"]}
    assert (facts["decided pairs"], facts["tied pairs"], facts["longer completion wins (share of decided pairs)"]) == (
        3,
        0,
        0.0,
    )
    assert tables["ranking"]["labels of completions"] == [{"label": "opinion", "yes": 1, "no": 1, "not applicable": 1}]
    assert tables["ranking"]["ratings, 1 to 7"][0]["mean"] == 4.0
    assert tables["document"]["lengths"][1]["mean"] == 4.0
    assert "completions of a ranking (K)" in capsys.readouterr().out


def test_stats_in_tokens(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(str(tmp_path / "tokenizer"))
    write_records(tmp_path / "d.jsonl", [Demonstration(prompt="a, b!", completion="")])
    print_dataset_stats(
        StatsConfig(data=(tmp_path / "d.jsonl",), out=tmp_path / "s.json", tokenizer=tmp_path / "tokenizer")
    )
    lengths = {
        (row["part"], row["unit"]): row["mean"]
        for row in json.loads((tmp_path / "s.json").read_text())["demonstration"]["lengths"]
    }
    assert lengths["prompt", "tokens"] == 4.0
    assert lengths["completion", "tokens"] == 0.0
    with pytest.raises(InputError, match="no tokenizer that loads"):
        print_dataset_stats(StatsConfig(data=(tmp_path / "d.jsonl",), tokenizer=tmp_path))


def test_a_bad_line_of_a_corpus_is_counted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.jsonl").write_text('{"text": 1}\nbroken\n{"text": "a b"}\n{"text": "c"}')
    with pytest.raises(InputError, match=r"c\.jsonl:1: column 'text'"):
        print_dataset_stats(StatsConfig(data=(tmp_path / "c.jsonl",)))
    print_dataset_stats(StatsConfig(data=(tmp_path / "c.jsonl",), skip_bad=True))
    out = capsys.readouterr().out
    assert "data stats: 4 read" in out
    assert [line.split()[0] for line in out.splitlines() if "bad line (--skip-bad)" in line] == ["2"]


def test_the_same_completions_twice_are_compared_turn_by_turn() -> None:
    rows = [ranking("x", 1, 2, 3), ranking("x", 3, 2, 1), ranking("y", 1, 2, 3), ranking("y", 3, 2, 1)]
    assert inter_labeler_agreement(rows).decided.value == 1.0


def test_groups_of_five_people_are_compared_and_smaller_ones_are_in_no_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": f"p{p}", "completions": ["a", "b"], "ranks": ranks, "labeler": f"{group}{i}", "group": group}
        for p in range(4)
        for group, people, ranks in (("north", 6, [1, 2]), ("south", 5, [2, 1]), ("hamlet", 4, [1, 2]))
        for i in range(people)
    ]
    path = tmp_path / "rankings.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "stats.json"
    assert command(["data", "stats", "--data", str(path), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "hamlet" not in text + out.read_text()
    assert "smaller groups are left out" in text
    tables = {table.title: table.to_dicts() for table in build_stats_tables(read_records(Ranking, path), {})}
    assert tables["people in groups"] == [{"group": "north", "people": 6}, {"group": "south", "people": 5}]
    shares = {
        (row["group"], row["other group"]): row["share"] for row in tables["agreement of groups (pairs both decide)"]
    }
    assert shares["north", "south"] == 0
    assert shares["north", "north"] == shares["south", "south"] == 1


def test_votes_of_people_on_completions_are_compared() -> None:
    """Three people, four completions: of 12 couples of votes 8 are alike; alpha by its definition with n = 12."""
    answers = ["yyy", "yyn", "nnn", "nny"]
    records = [
        Demonstration.model_validate(
            {
                "prompt": f"p{i // 2}",
                "completion": f"c{i}",
                "votes": [{"labeler": f"l{j}", "acceptable": letter == "y"} for j, letter in enumerate(letters)],
            }
        )
        for i, letters in enumerate(answers)
    ]
    (row,) = next(table for table in build_stats_tables(records, {}) if table.title == "votes").to_dicts()
    assert (row["question"], row["completions"], row["people"], row["votes"], row["yes"]) == (
        "acceptable",
        4,
        3,
        12,
        0.5,
    )
    assert row["two agree"] == pytest.approx(8 / 12)
    assert row["alpha"] == pytest.approx(1 - (4 / 12) / (2 * 6 * 6 / (12 * 11)))
    assert 0 < row["low"] < row["two agree"] < row["high"] < 1
