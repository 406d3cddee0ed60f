"""Other people's formats, few-shot templates and the commands `data import` and `data stats`:
`pytest tests/data/test_importers.py`.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from support.pages import read_page

from instructgpt.data.cli import import_datasets
from instructgpt.data.configs import CleanConfig, ImportConfig, SplitConfig, StatsConfig
from instructgpt.data.drop_report import DropReport, drop_report_path
from instructgpt.data.importing.few_shot import expand_few_shot_template, sample_subsets
from instructgpt.data.importing.fields import rank_by_value
from instructgpt.data.importing.reader import ImportOptions, import_files
from instructgpt.data.importing.registry import IMPORTERS, DatasetFormat, match_format
from instructgpt.data.pii import PII_DETECTORS
from instructgpt.errors import InputError
from instructgpt.records import (
    USE_CASES,
    Demonstration,
    Pair,
    Prompt,
    Ranking,
    Record,
    iter_rows,
    read_records,
    write_records,
)

settings.register_profile("no deadline", deadline=None)  # a busy machine is not a failure
settings.load_profile("no deadline")

HUMAN, ASSISTANT = "\n\nHuman: ", "\n\nAssistant: "


def said(*turns: str) -> list[dict[str, str]]:
    """A conversation that begins with the user."""
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


def imported(rows: list[Any], folder: Path, **options: Any) -> tuple[list[Record], DropReport]:
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = DropReport("import")
    found = import_files([path], ImportOptions(**options), report, None)
    return [record for _, record in found], report


RANKED = [
    # (format, row, prompt, completions, ranks)
    ("rankings", {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [2, 1, 2]}, "p", ("a", "b", "c"), (2, 1, 2)),
    ("pairs", {"prompt": "p", "chosen": "good", "rejected": "bad"}, "p", ("good", "bad"), (1, 2)),
    (
        "pairs",
        {"prompt": said("p"), "chosen": said("p", "good")[1:], "rejected": said("p", "bad")[1:]},
        "p",
        ("good", "bad"),
        (1, 2),
    ),
    ("pairs", {"prompt": "p", "chosen": said("p", "good"), "rejected": said("p", "bad")}, "p", ("good", "bad"), (1, 2)),
    ("pairs", {"chosen": said("p", "good"), "rejected": said("p", "bad")}, "p", ("good", "bad"), (1, 2)),
    (
        "pairs",
        {"chosen": "The sky is green.", "rejected": "The sky is grey."},
        "The sky is",
        ("green.", "grey."),
        (1, 2),
    ),
    (
        "pairs",
        {"chosen": said("p", "one", "q", "good"), "rejected": said("p", "one", "q", "bad")},
        "User: p\n\nAssistant: one\n\nUser: q",
        ("good", "bad"),
        (1, 2),
    ),
    (
        "hh",
        {
            "chosen": f"{HUMAN}p{ASSISTANT}one{HUMAN}q{ASSISTANT}good",
            "rejected": f"{HUMAN}p{ASSISTANT}one{HUMAN}q{ASSISTANT}bad",
        },
        "User: p\n\nAssistant: one\n\nUser: q",
        ("good", "bad"),
        (1, 2),
    ),
    (
        "nemo",
        {
            "context": said("p"),
            "completions": [
                {"rank": 1, "completion": said("", "bad")[1:]},
                {"rank": 0, "completion": said("", "good")[1:]},
            ],
        },
        "p",
        ("bad", "good"),
        (2, 1),
    ),
    (
        "ultrafeedback",  # the overall score says otherwise: the mean of the fine-grained scores is what counts
        {
            "instruction": "p",
            "completions": [
                {"model": str(score), "response": f"r{score}", "overall_score": 9 - score, "fine-grained_score": score}
                for score in (2, 4, 1, 4)
            ],
            "correct_answers": ["x"],
        },
        "p",
        ("r2", "r4", "r1", "r4"),
        (2, 1, 3, 1),
    ),
    (
        "helpsteer3",
        {"context": said("p"), "response1": "a", "response2": "b", "overall_preference": 2},
        "p",
        ("a", "b"),
        (2, 1),
    ),
    (
        "helpsteer3",
        {"context": said("p"), "response1": "a", "response2": "b", "overall_preference": 0},
        "p",
        ("a", "b"),
        (1, 1),
    ),
    (
        "shp",
        {"history": "p", "human_ref_A": "a", "human_ref_B": "b", "labels": 0, "score_A": 3},
        "p",
        ("a", "b"),
        (2, 1),
    ),
    (
        "webgpt",
        {"question": {"full_text": "p"}, "answer_0": "a", "answer_1": "b", "score_0": -0.5, "score_1": 0.5},
        "p",
        ("a", "b"),
        (2, 1),
    ),
    (
        "tldr",
        {
            "info": {"subreddit": "tifu", "title": "t", "post": "long"},
            "summaries": [{"text": " a", "policy": "x"}, {"text": " b", "policy": "y"}],
            "choice": 1,
            "worker": "w",
        },
        "SUBREDDIT: r/tifu\n\nTITLE: t\n\nPOST: long\n\nTL;DR:",
        ("a", "b"),
        (2, 1),
    ),
]


@pytest.mark.parametrize(("name", "row", "prompt", "completions", "ranks"), RANKED)
def test_rankings_of_other_libraries(
    tmp_path: Path, name: str, row: Any, prompt: str, completions: Any, ranks: Any
) -> None:
    assert match_format(row) == name
    (record,), _ = imported([row], tmp_path)
    assert isinstance(record, Ranking)
    assert (record.prompt, record.completions, record.ranks) == (prompt, completions, ranks)


DEMONSTRATED = [
    ("demonstrations", {"prompt": "p", "completion": "c"}, {"prompt": "p"}),
    ("demonstrations", {"prompt": said("p"), "completion": said("p", "c")[1:]}, {"prompt": "p"}),
    ("demonstrations", {"messages": said("p", "x", "q"), "completion": "c"}, {"messages": said("p", "x", "q")}),
    ("messages", {"messages": said("p", "c")}, {"prompt": "p"}),
    (
        "messages",
        {"messages": [{"role": "system", "content": "s"}, *said("p", "c")]},
        {"messages": [("system", "s"), ("user", "p")]},
    ),
    ("sharegpt", {"conversations": [{"from": "human", "value": "p"}, {"from": "gpt", "value": "c"}]}, {"prompt": "p"}),
    (
        "sharegpt",
        {
            "system": "s",
            "conversations": [
                {"from": "human", "value": "p"},
                {"from": "gpt", "value": "c"},
                {"from": "human", "value": "!"},
            ],
        },
        {"messages": [("system", "s"), ("user", "p")]},
    ),
    ("alpaca", {"instruction": "p", "input": "", "output": "c"}, {"prompt": "p"}),
    ("alpaca", {"instruction": "p", "input": "q", "output": "c"}, {"prompt": "p\n\nq"}),
    ("alpaca", {"instruction": "p", "context": "q", "response": "c", "category": "closed_qa"}, {"prompt": "p\n\nq"}),
]


@pytest.mark.parametrize(("name", "row", "asked"), DEMONSTRATED)
def test_demonstrations_of_other_libraries(tmp_path: Path, name: str, row: Any, asked: Any) -> None:
    assert match_format(row) == name
    (record,), _ = imported([row], tmp_path)
    assert isinstance(record, Demonstration)
    assert record.completion == "c"
    if "prompt" in asked:
        assert record.prompt == asked["prompt"]
    turns = [(turn.role, turn.content) for turn in record.messages or ()]
    assert turns == [(t["role"], t["content"]) if isinstance(t, dict) else t for t in asked.get("messages", [])]


def test_every_format_is_tested_and_can_be_named() -> None:
    tested = {name for name, *_ in RANKED} | {name for name, *_ in DEMONSTRATED}
    tested |= {"oasst", "flat_oasst", "unpaired", "refusals", "few_shot", "prompts"}
    tested |= {"arena", "langfuse", "open_webui"}  # in test_import_feedback.py
    assert tested == set(IMPORTERS)
    assert set(get_args(DatasetFormat)) == {"auto", *IMPORTERS}


def test_a_message_tree_gives_a_ranking_a_ranked_turn(tmp_path: Path) -> None:
    def reply(text: str, rank: int | None, *replies: dict[str, Any]) -> dict[str, Any]:
        return {"role": "assistant", "text": text, "rank": rank, "replies": list(replies)}

    follow = {"role": "prompter", "text": "q", "replies": [reply("x", 1), reply("y", 0), reply("z", None)]}
    tree = {
        "message_tree_id": "t",
        "prompt": {"role": "prompter", "text": "p", "replies": [reply("a", 2), reply("b", 0, follow), reply("c", 1)]},
    }
    (first, second, answered), report = imported(
        [tree, {"message_tree_id": "u", "prompt": {"role": "prompter", "text": "p"}}], tmp_path
    )
    assert (first.prompt, first.completions, first.ranks) == ("p", ("a", "b", "c"), (3, 1, 2))  # type: ignore[attr-defined]
    assert second.to_dict() == {
        "message_tree_id": "t",
        "completions": ("x", "y"),
        "ranks": (2, 1),
        "messages": tuple(said("p", "b", "q")),
    }
    assert answered.to_dict() == {"message_tree_id": "t", "completion": "y", "messages": tuple(said("p", "b", "q"))}
    assert report.dropped["no turn with two ranked replies, and no conversation with an answer"].examples == [
        f"{tmp_path}/in.jsonl:2"
    ]


def test_prompts_are_what_nobody_answered(tmp_path: Path) -> None:
    (record,), _ = imported([{"messages": said("p", "x", "q"), "user": 4}], tmp_path)
    assert isinstance(record, Prompt)
    assert record.user == "4"


DROPPED = [
    ({"prompt": "p", "completion": " \n"}, "empty completion (--keep-empty keeps it)"),
    ({"prompt": " ", "completion": "c"}, "empty prompt"),
    ({"instruction": "", "output": "c"}, "empty prompt"),
    ({"conversations": [{"from": "human", "value": "p"}]}, "no assistant turn"),
    ({"conversations": [{"from": "gpt", "value": "c"}]}, "no user turn to answer"),
    (
        {"messages": [{"role": "tool", "content": "x"}, *said("p", "c")]},
        "a turn of role 'tool', which is none of system, user, assistant",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}, *said("p", "c")[1:]]},
        "a turn with something other than text",
    ),
    (
        {"chosen": f"{HUMAN}p{ASSISTANT}a", "rejected": f"{HUMAN}q{ASSISTANT}b"},
        "the two dialogues part before the last answer",
    ),
    (
        {"chosen": f"{HUMAN}p{ASSISTANT}a{HUMAN}!", "rejected": f"{HUMAN}p{ASSISTANT}b"},
        "the dialogue does not end with the assistant",
    ),
    ({"chosen": said("p", "a"), "rejected": said("q", "b")}, "the two dialogues part before the last answer"),
    (
        {"chosen": "same", "rejected": "same"},
        "chosen and rejected are the same text, so no prompt can be told from them",
    ),
    ({"chosen": "yes", "rejected": "no"}, "chosen and rejected share no prompt"),
    ({"instruction": "p", "examples": [{"prompt": "a", "completion": "b"}]}, "a template with fewer than two examples"),
]


@pytest.mark.parametrize(("row", "reason"), DROPPED)
def test_what_is_dropped_is_counted_with_its_place(tmp_path: Path, row: Any, reason: str) -> None:
    records, report = imported([row], tmp_path)
    assert records == []
    assert {name: (cases.count, cases.examples) for name, cases in report.dropped.items()} == {
        reason: (1, [f"{tmp_path}/in.jsonl:1"])
    }


def test_identical_completions_become_a_tie_and_nothing_is_lost(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "chosen": "same", "rejected": "same", "user": 3, "tags": ["x"], "score_chosen": 0.5},
        {"prompt": "p", "chosen": "", "rejected": "b"},
    ]
    (record, other), report = imported(rows, tmp_path)
    assert record.to_dict() == {
        "prompt": "p",
        "completions": ("same", "same"),
        "ranks": (1, 1),
        "user": 3,
        "score_chosen": 0.5,
    }
    assert other.to_dict()["completions"] == ("", "b")
    assert {name: cases.count for name, cases in report.noticed.items()} == {
        "column 'tags' was not carried over": 1,
        "identical completions in a ranking, kept as a tie": 1,
        "a ranking that is one single tie, so it gives no pair": 1,
        "a ranking with an empty completion": 1,
    }


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([{"foo": 1}], "in.jsonl:1: no known format has the columns foo; name one with --format: rankings"),
        (
            [{"prompt": "p", "completion": "c"}, {"prompt": "p"}],
            "in.jsonl:2: column 'completion': expected text, found nothing",
        ),
        ([{"prompt": "p", "completion": 5}], "column 'completion': expected text, found int"),
        ([{"chosen": "a b", "rejected": "a c"}, {"chosen": "a"}], "in.jsonl:2: column 'rejected' is missing"),
        ([{"prompt": "p", "completions": ["a", "b"], "ranks": [1]}], "2 completions but 1 ranks"),
        ([{"messages": "text"}], "column 'messages': expected a list of turns, found str"),
        (
            [{"context": said("p"), "completions": [{"rank": "x", "completion": said("", "a")[1:]}]}],
            "column 'rank': expected a number",
        ),
    ],
)
def test_rows_that_are_not_what_they_promise(tmp_path: Path, rows: list[Any], complaint: str) -> None:
    with pytest.raises(InputError) as caught:
        imported(rows, tmp_path)
    assert complaint in str(caught.value)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=9))
def test_dense_ranks_keep_order_and_leave_no_gap(scores: list[int]) -> None:
    ranks = rank_by_value(scores)
    for a, b in pairwise(range(len(scores))):
        assert (scores[a] > scores[b]) == (ranks[a] < ranks[b])
    assert sorted(set(ranks)) == list(range(1, len(set(scores)) + 1))


# ---------------------------------------------------------------- templates


def test_k_examples_are_k_demonstrations_with_the_others_in_context(tmp_path: Path) -> None:
    template = {
        "instruction": "Say the sentiment.",
        "names": ["Tweet", "Sentiment"],
        "source": "labeler",
        "examples": [
            {"prompt": "I win", "completion": "good"},
            {"query": "I lose", "response": "bad"},
            {"input": "Hm", "output": "neutral"},
        ],
    }
    made, _ = imported([template], tmp_path)
    assert [(demonstration.prompt, demonstration.completion) for demonstration in made] == [  # type: ignore[attr-defined]
        (
            "Say the sentiment.\n\nTweet: I lose\nSentiment: bad\n\nTweet: Hm\nSentiment: neutral\n\nTweet: I "
            "win\nSentiment:",
            "good",
        ),
        (
            "Say the sentiment.\n\nTweet: I win\nSentiment: good\n\nTweet: Hm\nSentiment: neutral\n\nTweet: I "
            "lose\nSentiment:",
            "bad",
        ),
        (
            "Say the sentiment.\n\nTweet: I win\nSentiment: good\n\nTweet: I lose\nSentiment: bad\n\nTweet: "
            "Hm\nSentiment:",
            "neutral",
        ),
    ]
    assert {demonstration.source for demonstration in made} == {"labeler"}  # type: ignore[attr-defined]


def test_several_subsets_of_one_template() -> None:
    examples = [(f"q{i}", f"a{i}") for i in range(6)]
    made = expand_few_shot_template("Do.", examples, shots=3, subsets=4, seed=1)
    assert len(made) == len(set(made)) == 4 * 3
    assert all(prompt.count("Input: ") == 3 and prompt.count("Output: ") == 2 for prompt, _ in made)
    assert made == expand_few_shot_template("Do.", examples, shots=3, subsets=4, seed=1)
    assert made != expand_few_shot_template("Do.", examples, shots=3, subsets=4, seed=2)
    assert (
        len(expand_few_shot_template("Do.", examples, shots=2, subsets=99)) == 15 * 2
    )  # there are only 15 subsets of two
    assert all(completion == "a" + prompt.rpartition("Input: q")[2][0] for prompt, completion in made)


@given(st.integers(2, 40), st.integers(1, 20), st.data())
def test_subsets_differ_and_have_their_size(count: int, wanted: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, count))
    found = sample_subsets(count, size, wanted, "seed")
    assert len(found) == len(set(found)) == min(wanted, len(found))
    assert all(len(set(subset)) == size and set(subset) <= set(range(count)) for subset in found)


# ---------------------------------------------------------------- the command


def test_the_command_writes_records_and_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "hh.jsonl.gz", tmp_path / "made" / "r.jsonl.gz"
    rows = [
        {"chosen": f"{HUMAN}p{i}{ASSISTANT}good 한국어 🙂", "rejected": f"{HUMAN}p{i}{ASSISTANT}bad"} for i in range(3)
    ]
    rows.append({"chosen": f"{HUMAN}p{ASSISTANT}a", "rejected": f"{HUMAN}q{ASSISTANT}b"})
    write_records(source, [Record.model_validate(row) for row in rows])
    import_datasets(ImportConfig(data=(source,), out=out, source="hh"))
    assert [(r.prompt, r.completions, r.source) for r in read_records(Ranking, out)] == [
        (f"p{i}", ("good 한국어 🙂", "bad"), "hh") for i in range(3)
    ]
    report = json.loads(drop_report_path(out).read_text())
    assert drop_report_path(out).name == "r.report.json"
    assert (report["read"], report["written"], report["formats"]) == (4, {str(out): 3}, {str(source): "hh"})
    assert report["dropped"] == {
        "the two dialogues part before the last answer": {"count": 1, "examples": [f"{source}:4"]}
    }
    assert f"data import: 4 read\n3 written to {out}\n" in capsys.readouterr().out


RANKING = {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [2, 1, 2], "labeler": "l"}


def test_rankings_go_out_as_other_kinds(tmp_path: Path) -> None:
    source = tmp_path / "r.jsonl"
    write_records(source, [Ranking.model_validate(RANKING), Ranking(prompt="q", completions=("x", "y"), ranks=(1, 1))])
    for to in ("pairs", "nemo", "demonstrations", "prompts"):
        import_datasets(ImportConfig(data=(source,), out=tmp_path / f"{to}.jsonl", to=to))
    assert [(pair.chosen, pair.rejected) for pair in read_records(Pair, tmp_path / "pairs.jsonl")] == [
        ("b", "a"),
        ("b", "c"),
    ]
    report = json.loads((tmp_path / "pairs.report.json").read_text())
    assert report["dropped"]["a ranking that is one single tie gives no pair"]["examples"] == [f"{source}:2"]
    assert [d.completion for d in read_records(Demonstration, tmp_path / "demonstrations.jsonl")] == ["b", "x"]
    assert [p.prompt for p in read_records(Prompt, tmp_path / "prompts.jsonl")] == ["p", "q"]
    _, nemo = next(iter_rows(tmp_path / "nemo.jsonl"))
    assert [(entry["rank"], entry["completion"][0]["content"]) for entry in nemo["completions"]] == [
        (1, "a"),
        (0, "b"),
        (1, "c"),
    ]
    import_datasets(ImportConfig(data=(tmp_path / "nemo.jsonl",), out=tmp_path / "back.jsonl"))
    assert read_records(Ranking, tmp_path / "back.jsonl") == read_records(
        Ranking, source
    )  # nothing was lost on the way


def test_a_conversation_survives_the_way_to_nemo_and_back(tmp_path: Path) -> None:
    row = {"chosen": said("p", "one", "q", "good"), "rejected": said("p", "one", "q", "bad")}
    (record,), _ = imported([row], tmp_path)
    write_records(tmp_path / "r.jsonl", [record])
    import_datasets(ImportConfig(data=(tmp_path / "r.jsonl",), out=tmp_path / "nemo.jsonl", to="nemo"))
    _, nemo = next(iter_rows(tmp_path / "nemo.jsonl"))
    assert nemo["context"] == said("p", "one", "q")
    import_datasets(ImportConfig(data=(tmp_path / "nemo.jsonl",), out=tmp_path / "back.jsonl"))
    assert read_records(Ranking, tmp_path / "back.jsonl") == [record]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"to": "rankings"}, "demonstrations cannot be made into rankings"),
        ({"shots": 2}, "only few-shot templates have subsets; this file is in the format 'demonstrations'"),
        ({"out": Path("x.parquet")}, "the output is JSON lines"),
        ({"format": "alpaca"}, "column 'instruction' is missing"),
    ],
)
def test_the_command_refuses_in_one_line_and_writes_nothing(tmp_path: Path, options: Any, complaint: str) -> None:
    source = tmp_path / "d.jsonl"
    write_records(source, [Demonstration(prompt="p", completion="c")])
    with pytest.raises(InputError, match=complaint):
        import_datasets(ImportConfig(**({"data": (source,), "out": tmp_path / "out.jsonl"} | options)))
    assert list(tmp_path.iterdir()) == [source]


def test_files_of_two_kinds_are_not_mixed(tmp_path: Path) -> None:
    write_records(tmp_path / "d.jsonl", [Demonstration(prompt="p", completion="c")])
    write_records(tmp_path / "r.jsonl", [Ranking.model_validate(RANKING)])
    data = (tmp_path / "d.jsonl", tmp_path / "r.jsonl")
    with pytest.raises(InputError, match="the files hold demonstrations and rankings"):
        import_datasets(ImportConfig(data=data, out=tmp_path / "o.jsonl"))
    import_datasets(ImportConfig(data=data, out=tmp_path / "o.jsonl", to="prompts"))
    assert len(read_records(Prompt, tmp_path / "o.jsonl")) == 2


def test_bad_lines_are_skipped_only_when_asked(tmp_path: Path) -> None:
    source = tmp_path / "d.jsonl"
    source.write_text('{"prompt": "p", "completion": "c"}\n{"prompt": "p", "comp\n{"prompt": "q"}\n')
    with pytest.raises(InputError, match=r"d\.jsonl:2: not valid JSON"):
        import_datasets(ImportConfig(data=(source,), out=tmp_path / "o.jsonl"))
    import_datasets(ImportConfig(data=(source,), out=tmp_path / "o.jsonl", skip_bad=True))
    assert json.loads((tmp_path / "o.report.json").read_text())["dropped"]["bad line (--skip-bad)"]["count"] == 2


def test_the_page_explains_every_format_option_and_detector() -> None:
    page = read_page("data") + read_page("options")
    configs = (ImportConfig, CleanConfig, SplitConfig, StatsConfig)
    named = [f"`--{name.replace('_', '-')}`" for config in configs for name in config.model_fields]
    named += [f"`{name}`" for name in (*IMPORTERS, *PII_DETECTORS, *USE_CASES)]
    assert not [name for name in named if name not in page]


def test_inert_options_are_named() -> None:
    config = ImportConfig(data=(), out=Path("o.jsonl"), subsets=3)
    assert list(config.ineffective_options()) == [
        "--subsets does nothing without --shots: all examples of a template are one subset"
    ]
    assert not list(ImportConfig(data=(), out=Path("o.jsonl"), subsets=3, shots=2).ineffective_options())
    with pytest.raises(ValidationError):
        ImportConfig(data=(), out=Path("o.jsonl"), unknown=1)  # type: ignore[call-arg]
