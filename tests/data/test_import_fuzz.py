"""Rows of every shape at every importer and at `data stats`: `pytest tests/data/test_import_fuzz.py`.

A row is read, left out with a reason, or a bad line; the counts add up, and no row changes how another one is read.
"""

import copy
import io
import json
import random
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from instructgpt.data.cli import clean_datasets, import_datasets, print_dataset_stats, split_datasets
from instructgpt.data.configs import CleanConfig, ImportConfig, SplitConfig, StatsConfig
from instructgpt.data.importing.registry import IMPORTERS
from instructgpt.errors import InputError
from instructgpt.io import iter_rows

ROWS_PER_FORMAT = 130


def turns(*contents: Any) -> list[Any]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def reply(text: str, rank: Any, *replies: Any) -> dict[str, Any]:
    return {"role": "assistant", "text": text, "rank": rank, "replies": list(replies)}


def dialogue(answer: str) -> str:
    return f"\n\nHuman: p\n\nAssistant: one\n\nHuman: q\n\nAssistant: {answer}"


SEEDS: dict[str, list[dict[str, Any]]] = {
    "rankings": [{"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2], "ratings": [7, 1], "labeler": "l"}],
    "nemo": [{"context": turns("p"), "completions": [{"rank": i, "completion": turns("", "a")[1:]} for i in (0, 1)]}],
    "ultrafeedback": [
        {"instruction": "p", "completions": [{"response": "a", "fine-grained_score": 3.5, "model": "m"}] * 2}
    ],
    "oasst": [
        {"message_tree_id": "t", "prompt": {"role": "prompter", "text": "p", "replies": [reply("a", 0), reply("b", 1)]}}
    ],
    "flat_oasst": [
        {"message_id": "1", "parent_id": None, "role": "prompter", "text": "p", "rank": None, "lang": "en"},
        {"message_id": "2", "parent_id": "1", "role": "assistant", "text": "a", "rank": 0, "deleted": False},
        {"message_id": "3", "parent_id": "1", "role": "assistant", "text": "b", "rank": 1, "review_result": True},
    ],
    "hh": [{"chosen": dialogue("good"), "rejected": dialogue("bad")}],
    "pairs": [
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": turns("p"), "chosen": turns("p", "a"), "rejected": turns("p", "b")},
        {"messages": turns("p"), "chosen": "a", "rejected": "b"},
        {"chosen": "the sky is blue", "rejected": "the sky is red"},
    ],
    "helpsteer3": [{"context": turns("p"), "response1": "a", "response2": "b", "overall_preference": -2}],
    "shp": [{"history": "p", "human_ref_A": "a", "human_ref_B": "b", "labels": 1}],
    "webgpt": [{"question": {"full_text": "p"}, "answer_0": "a", "answer_1": "b", "score_0": 0.5, "score_1": -0.5}],
    "tldr": [{"info": {"post": "p"}, "summaries": [{"text": "a", "policy": "x"}, {"text": "b"}], "choice": 1}],
    "langfuse": [
        {
            "id": "t",
            "input": turns("p"),
            "output": "a",
            "userId": "u",
            "scores": [{"dataType": "CORRECTION", "stringValue": "b", "observationId": o} for o in (None, "o")],
            "observations": [
                {"id": "o", "input": {"messages": turns("q")}, "output": turns("", "c")[1:], "model": "m"}
            ],
        }
    ],
    "open_webui": [
        {
            "type": "rating",
            "user_id": "u",
            "data": {"rating": 1, "model_id": "m", "sibling_model_ids": ["n"]},
            "meta": {"message_id": "2"},
            "snapshot": {
                "chat": {
                    "chat": {
                        "history": {
                            "messages": {
                                "1": {"parentId": None, "role": "user", "content": "p"},
                                "2": {"parentId": "1", "role": "assistant", "content": "a", "model": "m"},
                                "3": {"parentId": "1", "role": "assistant", "content": "b", "model": "n"},
                            }
                        }
                    }
                }
            },
        }
    ],
    "arena": [
        {
            "winner": "model_b",
            "judge": "arena_user_1",
            "model_a": "x",
            "model_b": "y",
            "conversation_a": turns("p", "a"),
            "conversation_b": turns("p", "b"),
        },
        {
            "type": "bothbad_vote",
            "models": ["", ""],
            "states": [
                {"model_name": name, "messages": [["USER", "p"], ["ASSISTANT", name]], "offset": 0} for name in "xy"
            ],
            "ip": "192.0.2.1",
        },
    ],
    "few_shot": [
        {"instruction": "i", "examples": [{"prompt": str(i), "completion": "a"} for i in range(3)], "names": ["q", "a"]}
    ],
    "alpaca": [{"instruction": "p", "input": "i", "output": "c"}, {"instruction": "p", "context": "", "response": "c"}],
    "sharegpt": [{"conversations": [{"from": "human", "value": "p"}, {"from": "gpt", "value": "c"}], "system": "s"}],
    "unpaired": [
        {"prompt": "p", "completion": "a", "label": True, "user": "u"},
        {"prompt": turns("p"), "completion": turns("", "b")[1:], "label": False},
    ],
    "refusals": [
        {"prompt": "p", "completion": "a", "model": "m", "type": "contrast_verbs", "label": "1_full_compliance"},
        {"prompt": "p", "completion": "b", "model": "n", "prompt_label": "unsafe", "label": "full_refusal"},
    ],
    "demonstrations": [{"prompt": "p", "completion": "c", "labeler": "l"}, {"messages": turns("p"), "completion": "c"}],
    "messages": [{"messages": turns("p", "a", "q", "c")}],
    "prompts": [{"prompt": "p", "user": "u"}, {"messages": turns("p", "a", "q"), "split": "train"}],
}
"""Good rows of each format."""

ODD_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 10**30, 0.5, -3.5, 1e300, "", " ", "text", "1", "\ud800", "\x00", "한국어 🙂",
    "Human:", dialogue("x"), dialogue(""), "\n\nHuman: a\n\nHuman: b\n\nAssistant:", "Human: a\nAssistant:", [], [[]],
    [None], ["a"], ["a", "b", "c"], [1, 2], [True, False], [1, None], [1.0, 2.5], {}, {"text": "a"}, [{}], [{"a": 1}],
    {"role": "user", "content": "a"}, turns("p"), turns("p", "a"), turns("p", None), turns(1, 2), turns("", ""),
    turns([{"type": "text", "text": "a"}]), turns([{"type": "image"}]), [{"role": "tool", "content": "a"}],
    [{"role": None}], [{"from": "gpt", "value": None}], [{"role": "user", "content": {}}], {"full_text": None},
    [[[[[["deep"]]]]]], {"a": {"b": {"c": [{"d": None}]}}}, [reply("a", "x")], [reply("a", None, reply("b", True))],
]  # fmt: skip
ODD_COLUMNS = [
    "prompt", "messages", "completion", "completions", "ranks", "chosen", "rejected", "label", "labels", "models",
    "ratings", "finish", "id", "user", "labeler", "cohort", "source", "use_case", "split", "organization", "text",
    "score", "model", "sampling", "self", "model_config", "pairs", "to_dict", "role", "system", "names", "", " ", "é",
]  # fmt: skip
ODD_LINES = [
    "{", "[]", "null", "5", '"text"', '{"prompt": ', "{}", "\\", '{"prompt": NaN}', '{"prompt": "p", "x": 1e999}',
    '{"prompt": Infinity}', "[" * 3000, '{"a": ' * 300 + "1" + "}" * 300, '{"prompt": ' + "9" * 5000 + "}",
]  # fmt: skip


def iter_places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a value."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from iter_places(value[key])


def mutate(row: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Change, remove or add one to three values anywhere."""
    row = copy.deepcopy(row)
    for _ in range(rng.randint(1, 3)):
        places = list(iter_places(row))
        container, key = rng.choice(places) if places else (row, "x")
        change = rng.random()
        if change < 0.65 or not places:
            container[key] = copy.deepcopy(rng.choice(ODD_VALUES))
        elif change < 0.8:
            del container[key]
        else:
            row[rng.choice(ODD_COLUMNS)] = copy.deepcopy(rng.choice(ODD_VALUES))
    return row


def odd_lines(name: str, count: int) -> list[str]:
    rng = random.Random(name)
    lines = [json.dumps(mutate(rng.choice(SEEDS[name]), rng)) for _ in range(count - 10)]
    lines += [json.dumps({rng.choice(ODD_COLUMNS): rng.choice(ODD_VALUES) for _ in range(4)}) for _ in range(4)]
    lines += rng.sample(ODD_LINES, 6)
    rng.shuffle(lines)
    return lines


def good_lines(name: str, key: str) -> list[str]:
    """Good rows that share no prompt and no message with the odd ones."""
    text = json.dumps(SEEDS[name])
    for old in ('"p"', '"q"', '"1"', '"2"', '"3"', '"the sky is', "Human: p", '"i"'):
        quote, rest = ('"', old[1:]) if old.startswith('"') else ("Human: ", old[7:])
        text = text.replace(old, f"{quote}{key} {rest}")
    return [json.dumps(row) for row in json.loads(text)]


def run(command: Any, config: Any) -> str:
    with redirect_stdout(io.StringIO()) as out:
        command(config)
    return out.getvalue()


def run_import(data: Path, name: Any, **options: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The report, and all records written."""
    out = data.with_suffix(".out.jsonl")
    run(import_datasets, ImportConfig(data=(data,), out=out, format=name, skip_bad=True, **options))
    report = json.loads(out.with_suffix("").with_suffix(".out.report.json").read_text())
    records = [row for path in report["written"] for _, row in iter_rows(path)]
    for path in report["written"]:
        Path(path).unlink()
    return report, records


def check_counts(report: dict[str, Any], lines: list[str]) -> None:
    dropped = sum(cases["count"] for cases in report["dropped"].values())
    assert report["read"] == len(lines)
    assert report["read"] + report["expanded"] - report["merged"] == sum(report["written"].values()) + dropped


@pytest.mark.parametrize("name", IMPORTERS)
def test_odd_rows_are_read_left_out_or_named(name: Any, tmp_path: Path) -> None:
    odd, good = odd_lines(name, ROWS_PER_FORMAT), good_lines(name, "good")
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(good))
    _, expected = run_import(path, name)
    assert expected
    path.write_text("\n".join(odd[:65] + good + odd[65:]))
    report, records = run_import(path, name)
    check_counts(report, odd + good)
    assert [record for record in records if record in expected] == expected
    for reason in report["dropped"].get("bad line (--skip-bad)", {"examples": []})["examples"]:
        assert reason.startswith(f"{path}:")
        assert len(reason) < 500
    # Formats are told by the columns, whatever the rows hold; the first row may be any.
    for options in ({}, {"to": "prompts"}, {"transcripts": "text", "keep_empty": True}):
        check_counts(run_import(path, "auto", **options)[0], odd + good)


@pytest.mark.parametrize("name", IMPORTERS)
def test_a_bad_row_is_one_line_and_others_go_on(name: Any, tmp_path: Path) -> None:
    path = tmp_path / "row.jsonl"
    for line in odd_lines(name, 40):
        path.write_text(line)
        message = refusal(ImportConfig(data=(path,), out=tmp_path / "o.jsonl", format=name))
        assert "\n" not in message
        assert message.startswith((f"{path}:1", "nothing was written")) or not message


def refusal(config: ImportConfig) -> str:
    try:
        run(import_datasets, config)
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", IMPORTERS)
def test_stats_clean_and_split_of_odd_rows(name: Any, tmp_path: Path) -> None:
    path, tables = tmp_path / "rows.jsonl", tmp_path / "tables.json"
    lines = odd_lines(name, 70) + good_lines(name, "good") * 40
    path.write_text("\n".join(lines))
    printed = run(print_dataset_stats, StatsConfig(data=(path,), out=tables, skip_bad=True))
    assert f"data stats: {len(lines)} read" in printed
    assert json.loads(tables.read_text())
    if not {"prompt", "messages"} & SEEDS[name][0].keys() or name in ("pairs", "unpaired", "refusals", "oasst"):
        return
    out = tmp_path / "clean.jsonl"
    run(clean_datasets, CleanConfig(data=(path,), out=out, skip_bad=True, cap=5, prefix=30, use_cases=True))
    check_counts(json.loads((tmp_path / "clean.report.json").read_text()), lines)
    run(split_datasets, SplitConfig(data=(path,), out=tmp_path / "split", skip_bad=True))
    check_counts(json.loads((tmp_path / "split" / "split.report.json").read_text()), lines)
