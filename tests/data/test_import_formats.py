"""Formats whose rows belong together or hide the prompt: `pytest tests/data/test_import_formats.py`."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from instructgpt.data.cli import clean_datasets, import_datasets, print_dataset_stats, split_datasets
from instructgpt.data.configs import CleanConfig, ImportConfig, SplitConfig, StatsConfig
from instructgpt.data.importing.transcripts import TranscriptError, parse_transcript
from instructgpt.errors import InputError
from instructgpt.records import Demonstration, Prompt, Ranking, read_records


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def import_rows(folder: Path, rows: list[Any], **options: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of the main output, and the report."""
    path = write_rows(folder / "in.jsonl", rows)
    import_datasets(ImportConfig(data=(path,), out=folder / "out.jsonl", **options))
    return read_json(folder / "out.jsonl"), json.loads((folder / "out.report.json").read_text())


def read_json(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def count_reasons(report: dict[str, Any], group: str) -> dict[str, int]:
    return {reason: cases["count"] for reason, cases in report[group].items()}


def check_counts(report: dict[str, Any]) -> None:
    left = sum(report["written"].values()) + sum(count_reasons(report, "dropped").values())
    assert report["read"] + report["expanded"] - report["merged"] == left


# ---------------------------------------------------------------- unpaired preferences

UNPAIRED = [
    {"prompt": "capital of Peru?", "completion": "Lima", "label": True, "user": "u"},
    {"prompt": [{"role": "user", "content": "capital of Peru?"}], "completion": "Rome", "label": False, "user": "u"},
    {"prompt": "capital of Peru?", "completion": "Oslo", "label": 0, "user": "v"},
    {"prompt": "name a tree", "completion": "a shoe", "label": "False"},
    {"prompt": "name a bird", "completion": "owl", "label": 1},
    {"prompt": "name a fish", "completion": "cod", "label": True},
    {"prompt": "name a fish", "completion": "cod", "label": False},
    {"prompt": "name a star", "completion": "Vega", "label": None},
]


def test_a_rejected_answer_is_never_a_demonstration(tmp_path: Path) -> None:
    demonstrations, report = import_rows(tmp_path, UNPAIRED)
    assert demonstrations == [
        {"prompt": "capital of Peru?", "completion": "Lima", "user": "u"},
        {"prompt": "name a bird", "completion": "owl"},
    ]
    assert read_json(tmp_path / "out.rankings.jsonl") == [
        {"prompt": "capital of Peru?", "completions": ["Lima", "Rome", "Oslo"], "ranks": [1, 2, 2]}
    ]
    assert count_reasons(report, "dropped") == {
        "a rejected answer of a prompt without a good one": 1,
        "an answer labeled both good and bad": 2,
        "column 'label' is null": 1,
    }
    assert count_reasons(report, "noticed")["a rejected answer (label false), never a demonstration"] == 4
    check_counts(report)


@pytest.mark.parametrize(
    ("target", "lines"),
    [
        ("demonstrations", ["Lima", "owl"]),
        ("rankings", [["Lima", "Rome", "Oslo"]]),
        ("pairs", ["Lima", "Lima"]),
        ("prompts", ["capital of Peru?", "name a bird"]),
    ],
)
def test_one_type_of_two_can_be_chosen(tmp_path: Path, target: Any, lines: list[Any]) -> None:
    rows, report = import_rows(tmp_path, UNPAIRED, to=target)
    column = {"demonstrations": "completion", "rankings": "completions", "pairs": "chosen", "prompts": "prompt"}[target]
    assert [row[column] for row in rows] == lines
    assert not (tmp_path / "out.rankings.jsonl").exists()
    check_counts(report)


def test_answers_of_one_prompt_meet_across_files(tmp_path: Path) -> None:
    good = write_rows(tmp_path / "a.jsonl", [{"prompt": "p", "completion": "yes", "label": True}])
    bad = write_rows(tmp_path / "b.jsonl", [{"prompt": "p", "completion": "no", "label": False}])
    import_datasets(ImportConfig(data=(bad, good), out=tmp_path / "o.jsonl.gz", to="rankings"))
    assert [ranking.completions for ranking in read_records(Ranking, tmp_path / "o.jsonl.gz")] == [("yes", "no")]
    import_datasets(ImportConfig(data=(bad, good), out=tmp_path / "two.jsonl.gz"))
    assert len(read_records(Ranking, tmp_path / "two.rankings.jsonl.gz")) == 1
    assert gzip.decompress((tmp_path / "two.rankings.jsonl.gz").read_bytes())


def test_a_class_label_is_no_preference_and_a_false_one_is_no_demonstration(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "completion": f"c{i}", "label": i} for i in range(4)]
    assert len(import_rows(tmp_path, [*rows[2:], {"prompt": "x", "completion": "y", "label": "sports"}])[0]) == 3
    mixed = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(5)]
    demonstrations, report = import_rows(tmp_path, [*mixed, {"prompt": "x", "completion": "bad", "label": False}])
    assert [row["completion"] for row in demonstrations] == [f"c{i}" for i in range(5)]
    assert count_reasons(report, "dropped") == {"a rejected answer (label false) is no demonstration": 1}
    path = write_rows(tmp_path / "u.jsonl", UNPAIRED[:2])
    with pytest.raises(InputError, match=r"u.jsonl:2: 'label' is false, a rejected answer is no demonstration"):
        read_records(Demonstration, path)
    with pytest.raises(InputError, match=r"u.jsonl:1: an unpaired preference .*'data import' reads"):
        clean_datasets(CleanConfig(data=(path,), out=tmp_path / "o.jsonl"))


# ---------------------------------------------------------------- message trees


def flat(message_id: str, parent: str | None, role: str, text: str, rank: int | None = None, **more: Any) -> Any:
    return {"message_id": message_id, "parent_id": parent, "role": role, "text": text, "rank": rank, **more}


def test_messages_of_a_tree_one_a_row_in_any_order(tmp_path: Path) -> None:
    rows = [
        flat("b1", "b", "assistant", "soup", 1),
        flat("a", None, "prompter", "what do you cook?", lang="en", message_tree_id="a"),
        flat("a1", "a", "assistant", "rice", 0),
        flat("a2", "a", "assistant", "stones", 2),
        flat("a3", "a", "assistant", "pasta", 1),
        flat("b", "a1", "prompter", "and before?"),
        flat("b2", "b", "assistant", "salad", 0),
        flat("c", "a2", "prompter", "really?"),
        flat("c1", "c", "assistant", "no"),
        flat("d", "a1", "prompter", "thanks"),
        flat("e", None, "prompter", "hello"),
        flat("e1", "e", "assistant", "spam", 0, review_result=False),
        flat("e2", "e1", "prompter", "what?"),
        flat("f", "nowhere", "assistant", "lost"),
        flat("a", None, "prompter", "again"),
    ]
    rankings, report = import_rows(tmp_path, rows)
    talk = [
        {"role": "user", "content": "what do you cook?"},
        {"role": "assistant", "content": "rice"},
        {"role": "user", "content": "and before?"},
    ]
    assert [(row.get("prompt"), row.get("messages"), row["completions"], row["ranks"]) for row in rankings] == [
        ("what do you cook?", None, ["rice", "stones", "pasta"], [1, 3, 2]),
        (None, talk, ["soup", "salad"], [2, 1]),
    ]
    assert read_json(tmp_path / "out.demonstrations.jsonl") == [{"messages": talk, "completion": "salad"}]
    assert count_reasons(report, "dropped") == {
        "a message whose message_id was there before": 1,
        "a message whose first message is not in the data": 1,
        "a message that was deleted or rejected in review, or stands below one": 2,
        "a user turn without an answer to learn from": 3,  # c, d, e
        "a reply without a rank beside others, or not the best and in no ranking": 1,  # c1 answers a worse reply
    }
    check_counts(report)


def test_long_and_circular_trees_end(tmp_path: Path) -> None:
    chain = [flat(str(i), str(i - 1) if i else None, ("prompter", "assistant")[i % 2], f"t{i}") for i in range(3000)]
    circle = [flat("x", "y", "prompter", "x"), flat("y", "x", "assistant", "y")]
    (demonstration,), report = import_rows(tmp_path, chain + circle)
    assert len(demonstration["messages"]) == 2999
    assert count_reasons(report, "dropped") == {"a message whose first message is not in the data": 2}
    check_counts(report)


# ---------------------------------------------------------------- transcripts

TRANSCRIPTS = [
    ("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", ["a", "b", "c", ""]),
    ("Human: a\nAssistant: b", ["a", "b"]),
    ("User: a\n\nAI: b\n\nmore\n\nUser: c\n\nAI: d", ["a", "b\n\nmore", "c", "d"]),
    ("### Human: a\n### Assistant: b", ["a", "b"]),
    # Words inside a text: another name, no colon, not at the beginning of a paragraph.
    ("Human: who is\nAssistant: in the play?\n\nAssistant: a role", ["who is\nAssistant: in the play?", "a role"]),
    ("Human: the Assistant: is here\n\nAssistant: yes", ["the Assistant: is here", "yes"]),
    ("Human: a\n\nUser: b\n\nAssistant: c", ["a\n\nUser: b", "c"]),
    ("Human: a\n\nAssistant:b", None),
    ("Tell me.\n\nHuman: a\n\nAssistant: b", None),
    ("Humans: a\n\nAssistant: b", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "contents"), TRANSCRIPTS)
def test_transcripts_are_split_at_role_marks_only(text: str, contents: list[str] | None) -> None:
    turns = parse_transcript(text)
    assert (None if turns is None else [turn.content for turn in turns]) == contents
    assert all(turn.role == ("user", "assistant")[i % 2] for i, turn in enumerate(turns or ()))


def test_roles_that_do_not_alternate_are_not_split(tmp_path: Path) -> None:
    text = "Human: a play:\n\nHuman: to be\n\nAssistant: or not"
    with pytest.raises(TranscriptError, match="do not alternate"):
        parse_transcript(text)
    rows = [{"chosen": f"{text} to be", "rejected": f"{text} at all"}]
    (ranking,), report = import_rows(tmp_path, rows)
    assert ranking["prompt"] == "Human: a play:\n\nHuman: to be\n\nAssistant:"
    assert ranking["completions"] == ["or not to be", "or not at all"]
    assert [reason for reason in report["noticed"] if "kept as text: its roles do not alternate" in reason]


def test_prompts_in_any_column_become_messages(tmp_path: Path) -> None:
    prompt = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: bye\n\nAssistant:"
    turns = [
        {"role": role, "content": text} for role, text in (("user", "hi"), ("assistant", "hello"), ("user", "bye"))
    ]
    for row in (
        {"prompt": prompt, "completion": " see you"},
        {"prompt": prompt, "chosen": " see you", "rejected": "no"},
        {"prompt": prompt, "chosen": f"{prompt} see you", "rejected": f"{prompt} no"},
        {"prompt": prompt, "completions": ["see you", "no"], "ranks": [1, 2]},
        {"prompt": prompt, "completion": "see you", "label": True},
    ):
        (record,), report = import_rows(tmp_path, [row])
        assert record["messages"] == turns
        assert record.get("completion", record.get("completions")) in ("see you", ["see you", "no"])
        assert sum(count_reasons(report, "noticed").values()) == 1
    (record,), report = import_rows(tmp_path, [{"prompt": prompt, "completion": " c"}], transcripts="text")
    assert (record, report["noticed"]) == ({"prompt": prompt, "completion": " c"}, {})
    few_shot = "Translate.\n\nHuman: cat\n\nAssistant:"
    assert import_rows(tmp_path, [{"prompt": few_shot}])[0] == [{"prompt": few_shot}]


PAIRS = [
    # columns besides the two answers "good" and "bad", and their turns
    ({"messages": [("user", "p")]}, [], "p"),
    ({"messages": [("user", "p"), ("assistant", "good")]}, [], "p"),
    ({"messages": [("user", "p"), ("assistant", "good")], "prompt": "p"}, [("user", "p")], "p"),
    ({"prompt": [("user", "p")]}, [], "p"),
    ({"prompt": [("user", "p")]}, [("user", "p")], "p"),
    ({}, [("user", "p")], "p"),
]


@pytest.mark.parametrize(("columns", "context", "prompt"), PAIRS)
def test_conversational_pairs(tmp_path: Path, columns: dict[str, Any], context: list[Any], prompt: str) -> None:
    def turns(*pairs: tuple[str, str]) -> list[dict[str, str]]:
        return [{"role": role, "content": content} for role, content in pairs]

    row = {name: value if isinstance(value, str) else turns(*value) for name, value in columns.items()}
    row |= {"chosen": turns(*context, ("assistant", "good")), "rejected": turns(*context, ("assistant", "bad"))}
    expected = [{"prompt": prompt, "completions": ["good", "bad"], "ranks": [1, 2]}]
    assert import_rows(tmp_path, [row])[0] == expected
    if not context:
        assert import_rows(tmp_path, [row | {"chosen": "good", "rejected": "bad"}])[0] == expected


def test_an_answer_stays_in_the_messages_of_the_next(tmp_path: Path) -> None:
    talk = [{"from": ("human", "gpt")[i % 2], "value": f"t{i}"} for i in range(11)]
    (row,), report = import_rows(tmp_path, [{"conversations": talk}])
    assert [turn["content"] for turn in row["messages"]] == [f"t{i}" for i in range(9)]
    assert row["completion"] == "t9"
    assert count_reasons(report, "noticed") == {"turns after the last answer, which nobody answered, left out": 1}


def test_wrong_scores_are_not_used(tmp_path: Path) -> None:
    entries = [{"model": "m", "response": f"r{i}", "overall_score": 9 - i, "fine-grained_score": i} for i in range(3)]
    del entries[1]["fine-grained_score"]
    path = write_rows(tmp_path / "u.jsonl", [{"instruction": "p", "completions": entries}])
    with pytest.raises(InputError, match="nothing is left"):
        import_datasets(ImportConfig(data=(path,), out=tmp_path / "o.jsonl"))
    for row, message in (
        ({"history": "p", "human_ref_A": "a", "human_ref_B": "b", "labels": 2}, "column 'labels': expected 1"),
        ({"info": {"post": "p"}, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 2}, "column 'choice'"),
    ):
        with pytest.raises(InputError, match=message):
            import_datasets(ImportConfig(data=(write_rows(path, [row]),), out=tmp_path / "o.jsonl"))


# ---------------------------------------------------------------- detection


def test_the_format_is_what_most_rows_have(tmp_path: Path) -> None:
    pairs = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(3)]
    for position in range(4):
        null = {"prompt": "n", "chosen": None, "rejected": "b"}
        rows, report = import_rows(tmp_path, [*pairs[:position], null, *pairs[position:]])
        assert [row["completions"] for row in rows] == [["a", "b"]] * 3
        assert report["dropped"]["column 'chosen' is null"]["examples"] == [f"{tmp_path}/in.jsonl:{position + 1}"]
    prompts = [{"prompt": f"q{i}"} for i in range(4)]
    path = write_rows(tmp_path / "mixed.jsonl", [pairs[0], *prompts])
    with pytest.raises(InputError, match=r"mixed.jsonl:1: column 'chosen': an answer has no place among prompts"):
        import_datasets(ImportConfig(data=(path,), out=tmp_path / "o.jsonl"))
    import_datasets(ImportConfig(data=(path,), out=tmp_path / "o.jsonl", skip_bad=True))
    assert len(read_records(Prompt, tmp_path / "o.jsonl")) == 4
    report = json.loads((tmp_path / "o.report.json").read_text())
    assert count_reasons(report, "noticed") == {"columns of 'pairs' in a file read as 'prompts'": 1}
    check_counts(report)


def test_columns_of_other_data_sets_do_not_cost_a_row(tmp_path: Path) -> None:
    row = {"instruction": "p", "output": "c", "source": 5, "labeler": True, "tags": ["x"], "level": 3}
    (record,), report = import_rows(tmp_path, [row])
    assert record == {"prompt": "p", "completion": "c", "level": 3}
    assert count_reasons(report, "noticed") == {
        f"column '{name}' was not carried over": 1 for name in ("source", "labeler", "tags")
    }


def test_tables_with_binary_and_odd_cells(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    columns = {
        "prompt": [b"caf\xc3\xa9", b"\xff\xfe", b"three", b"four"],
        "completion": ["a", "b", "c", "d"],
        "score": [float("nan"), 1.0, float("inf"), 2.0],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    config = {"data": (tmp_path / "t.parquet",), "out": tmp_path / "o.jsonl"}
    with pytest.raises(InputError, match=r"t.parquet: row 2: column 'prompt': binary data that is not UTF-8"):
        import_datasets(ImportConfig(**config))
    import_datasets(ImportConfig(**config, skip_bad=True))
    assert [row.prompt for row in read_records(Demonstration, tmp_path / "o.jsonl")] == ["café", "four"]
    report = json.loads((tmp_path / "o.report.json").read_text())
    assert [reason.partition(": ")[2] for reason in report["dropped"]["bad line (--skip-bad)"]["examples"]] == [
        "row 2: column 'prompt': binary data that is not UTF-8 text (invalid start byte)",
        "row 3: column 'score': expected a finite number, found inf",
    ]


def test_a_damaged_row_of_any_file_costs_itself_only(tmp_path: Path) -> None:
    files = {
        "a.jsonl": b'{"prompt": "a"}\n{"prompt": "\xff"}\n{"prompt": 1e999}\n{"prompt": "b"}\n',
        "b.json": b'[{"prompt": "a"}, 5, {"prompt": "\xff"}, {"prompt": "b"}, {"pro',
        "c.csv": b'prompt,user\na,u\n\xff,u\n\nb,u\n"c,u\n',
    }
    bad_lines = {"a.jsonl": 2, "b.json": 3, "c.csv": 2}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        config = {"data": (tmp_path / name,), "out": tmp_path / "o.jsonl"}
        with pytest.raises(InputError, match=name):
            import_datasets(ImportConfig(**config))
        import_datasets(ImportConfig(**config, skip_bad=True))
        assert [row.prompt for row in read_records(Prompt, tmp_path / "o.jsonl")] == ["a", "b"]
        report = json.loads((tmp_path / "o.report.json").read_text())
        assert report["dropped"]["bad line (--skip-bad)"]["count"] == bad_lines[name]
        check_counts(report)


def test_splits_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import datasets

    parts = {name: datasets.Dataset.from_list([{"prompt": f"{name} p"}]) for name in ("dev", "final")}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "set"))
    config = {"data": (tmp_path / "set",), "out": tmp_path / "o.jsonl"}
    with pytest.raises(InputError, match="has no split 'train'; it has dev, final; name one with"):
        import_datasets(ImportConfig(**config))
    with pytest.raises(InputError, match=r"--split x: .* has no such split; it has dev, final"):
        import_datasets(ImportConfig(**config, split="x"))
    import_datasets(ImportConfig(**config, split="final"))
    assert [row.prompt for row in read_records(Prompt, tmp_path / "o.jsonl")] == ["final p"]
    assert "splits that were not read: dev" in " ".join(capsys.readouterr().out.split())
    print_dataset_stats(StatsConfig(data=(tmp_path / "set",), split="dev"))
    assert [row.prompt for row in read_records(Prompt, tmp_path / "set" / "dev")] == ["dev p"]
    with pytest.raises(InputError, match="is one file"):
        import_datasets(ImportConfig(data=(tmp_path / "o.jsonl",), out=tmp_path / "p.jsonl", split="dev"))


# ---------------------------------------------------------------- conversations in clean, split and stats

TALK = [("system", "be kind"), ("user", "hello"), ("assistant", "mail ann@mail.shop"), ("user", "why?")]


def talk(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def test_clean_sees_every_turn(tmp_path: Path) -> None:
    rows = [
        {"messages": talk(*TALK[:2], ("assistant", "one"), ("user", "why?"))},
        {"messages": talk(("user", "hello"), ("assistant", "one"), ("user", "why?"))},  # another system turn
        {"messages": talk(("user", "hello"), ("assistant", "two"), ("user", "why?"))},
        {"prompt": "hello\n\none\n\nwhy?"},  # the same words, but no conversation
        {"messages": talk(*TALK)},
        {"messages": talk(("user", "hello"), ("assistant", "x" * 500), ("user", "y"))},
    ]
    path = write_rows(tmp_path / "p.jsonl", rows)
    clean_datasets(CleanConfig(data=(path,), out=tmp_path / "o.jsonl", max_characters=400))
    report = json.loads((tmp_path / "o.report.json").read_text())
    assert report["dropped"] == {
        "the same prompt as one before": {"count": 1, "examples": [f"{path}:2"]},
        "personal data: email": {"count": 1, "examples": [f"{path}:5"]},
        "longer than 400 characters": {"count": 1, "examples": [f"{path}:6"]},
    }
    rankings = [
        {"messages": talk(*TALK), "completions": ["a", "b"], "ranks": [1, 2]},
        {"prompt": "p", "completions": ["ask bob@mail.shop", "b"], "ranks": [1, 2]},
        {"messages": talk(("user", "p"), ("assistant", "q"))},
    ]
    clean_datasets(CleanConfig(data=(write_rows(path, rankings[:2]),), out=tmp_path / "r.jsonl"))
    report = json.loads((tmp_path / "r.report.json").read_text())
    assert count_reasons(report, "dropped") == {"personal data: email": 1}
    assert count_reasons(report, "noticed") == {"personal data: email in a completion, which is kept": 1}
    clean_datasets(CleanConfig(data=(write_rows(path, rankings[2:]),), out=tmp_path / "d.jsonl"))
    assert read_records(Demonstration, tmp_path / "d.jsonl")[0].completion == "q"


def test_a_conversation_and_its_continuation_stay_in_one_split(tmp_path: Path) -> None:
    prompts = [{"prompt": f"question {i}"} for i in range(60)]
    rows = [
        {"messages": talk(("user", f"Question  {i}"), ("assistant", "a"), ("user", f"more {k}")), "completion": "c"}
        for i in range(60)
        for k in range(2)
    ]
    data = (write_rows(tmp_path / "p.jsonl", prompts), write_rows(tmp_path / "d.jsonl", rows))
    split_datasets(SplitConfig(data=data, out=tmp_path / "o", validation=0.3, test=0.3))
    home: dict[str, str] = {}
    for name in ("train", "validation", "test"):
        for row in read_json(tmp_path / "o" / f"p.{name}.jsonl"):
            home[row["prompt"]] = name
        for row in read_json(tmp_path / "o" / f"d.{name}.jsonl"):
            assert home.setdefault(row["messages"][0]["content"].lower().replace("  ", " "), name) == name
    assert set(home.values()) == {"train", "validation", "test"}
    assert len(home) == 60


def test_stats_count_turns_once(tmp_path: Path) -> None:
    rows = [
        {"messages": talk(*TALK), "completions": ["a", "bb"], "ranks": [1, 2]},
        {"prompt": "hello", "completions": ["a", "bb"], "ranks": [1, 2]},
    ]
    path = write_rows(tmp_path / "r.jsonl", rows)
    print_dataset_stats(StatsConfig(data=(path,), out=tmp_path / "s.json"))
    tables = json.loads((tmp_path / "s.json").read_text())["ranking"]
    lengths = {(row["part"], row["unit"]): row for row in tables["lengths"]}
    total = sum(len(content) for _, content in TALK) + 2 * (len(TALK) - 1)
    assert (lengths["prompt", "characters"]["n"], lengths["prompt", "characters"]["max"]) == (2, total)
    assert lengths["completion", "characters"]["n"] == 4
    assert tables["turns of a conversation, without the completion"][0]["mean"] == 4.0
    turns = {(row["role"], row["unit"]): (row["n"], row["mean"]) for row in tables["lengths of turns"]}
    assert turns["assistant", "words"] == (1, 2.0)
    assert turns["user", "characters"] == (2, 4.5)


# ---------------------------------------------------------------- refusals

REFUSALS = [
    {"prompt": "how to rob a bank", "completion": "no", "model": "a", "type": "contrast_x", "label": "2_full_refusal"},
    {
        "prompt": "how to rob a bank",
        "completion": "dig",
        "model": "b",
        "type": "contrast_x",
        "label": "1_full_compliance",
    },
    {
        "prompt": "how to rob a bank",
        "completion": "hm",
        "model": "c",
        "type": "contrast_x",
        "label": "3_partial_refusal",
    },
    {"prompt": "how to kill weeds", "completion": "no", "model": "a", "type": "x", "label": "2_full_refusal"},
    {"prompt": "how to kill weeds", "completion": "hoe", "model": "b", "type": "x", "label": "1_full_compliance"},
    {"prompt": "how to kill weeds", "completion": "salt", "model": "c", "type": "x", "label": "1_full_compliance"},
    {"prompt": "how to shoot a film", "completion": "so", "model": "a", "type": "x", "label": "1_full_compliance"},
    {"prompt": "how to cut bread", "completion": "saw", "model": "a", "prompt_label": "safe", "label": "full_refusal"},
    {
        "prompt": "how to cut bread",
        "completion": "saw",
        "model": "b",
        "prompt_label": "safe",
        "label": "full_compliance",
    },
]


def test_refusing_is_right_for_harmful_prompts_and_wrong_for_safe_ones(tmp_path: Path) -> None:
    rankings, report = import_rows(tmp_path, REFUSALS)
    subsets = [{"source": name, "subset": name} for name in ("should-refuse", "should-respond")]
    assert rankings == [
        {"prompt": "how to rob a bank", "completions": ["no", "dig"], "ranks": [1, 2], "models": ["a", "b"]}
        | subsets[0],
        {
            "prompt": "how to kill weeds",
            "completions": ["no", "hoe", "salt"],
            "ranks": [2, 1, 1],
            "models": ["a", "b", "c"],
        }
        | subsets[1],
    ]
    assert count_reasons(report, "dropped") == {
        "a partial refusal, neither right nor wrong": 1,
        "an answer labeled both refusal and compliance": 2,
        "an answer to a prompt without both a refusal and an answer": 1,
    }
