"""Hygiene of prompts: copies, caps, splits, personal data, use cases; `data clean` and `data split`:
`pytest tests/data/test_hygiene.py`.
"""

import json
import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructgpt.data.cli import clean_datasets, split_datasets
from instructgpt.data.configs import CleanConfig, SplitConfig
from instructgpt.data.dedup import (
    get_prompt_group,
    near_duplicate_reasons,
    normalize_prompt,
    prompt_text_without_system,
    user_cap_reasons,
)
from instructgpt.data.pii import PII_DETECTORS, find_pii, is_luhn_valid, parse_detector_names, pii_drop_reason
from instructgpt.data.splits import SPLIT_NAMES, assign_splits, hash_split
from instructgpt.data.use_cases import guess_use_case
from instructgpt.errors import InputError
from instructgpt.records import USE_CASES, Demonstration, Message, Prompt, Ranking, Record, read_records, write_records

settings.register_profile("no deadline", deadline=None)  # a busy machine is not a failure
settings.load_profile("no deadline")

# ---------------------------------------------------------------- near-copies


def kept_by_comparing_all(texts: list[str], length: int) -> list[bool]:
    """The slow definition: a text falls to a kept earlier one that it equals,
    or with which it shares `length` characters.
    """
    kept: list[str] = []
    decisions = []
    for text in map(normalize_prompt, texts):
        shared = (
            next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
            for other in kept
        )
        falls = text in kept or any(length <= common for common in shared)
        decisions.append(not falls)
        kept += [] if falls else [text]
    return decisions


@given(st.lists(st.text("aAb \n", max_size=7), max_size=12), st.integers(1, 5))
def test_one_look_up_finds_what_comparing_all_pairs_finds(texts: list[str], length: int) -> None:
    assert [reason is None for reason in near_duplicate_reasons(texts, length)] == kept_by_comparing_all(texts, length)


def test_the_first_is_kept_and_the_reason_says_why() -> None:
    texts = [
        "Translate into French: cat",
        "Translate  into\nFRENCH: dog",
        "Translate into French: cat",
        "Hi",
        "hi ",
        "High",
    ]
    assert near_duplicate_reasons(texts, 15) == [
        None,
        "shares 15 characters with one before",
        "the same prompt as one before",
        None,
        "the same prompt as one before",
        None,
    ]
    # With people's work beside them, equal prompts all stay: several labelers may have answered the same one.
    assert near_duplicate_reasons(texts, 15, is_labeled=True)[2:] == [None, None, None, None]


def test_a_common_system_turn_is_no_common_prefix() -> None:
    system = Message(role="system", content="You are the assistant of a large company. " * 20)
    prompts = [
        Prompt(messages=(system, Message(role="user", content=text)))
        for text in ("Where is my parcel?", "Cancel my order.")
    ]
    assert near_duplicate_reasons([prompt_text_without_system(prompt) for prompt in prompts], 100) == [None, None]


def test_ten_thousand_long_prompts_are_quick() -> None:
    texts = [f"{number % 5000:06d}" + "x" * 2000 for number in range(10_000)]
    assert sum(reason is None for reason in near_duplicate_reasons(texts, 200)) == 5000


# ---------------------------------------------------------------- users


def test_groups_are_organizations_where_there_are_some() -> None:
    prompt = Prompt.model_validate({"prompt": "p", "user": 17, "organization": "acme", "team": 3})
    assert get_prompt_group(prompt) == "organization:acme"
    assert get_prompt_group(prompt, "user") == "user:17"
    assert get_prompt_group(prompt, "team") == "team:3"
    assert get_prompt_group(Prompt(prompt="p", user=" ")) is None


def test_at_most_so_many_prompts_of_one_user() -> None:
    groups = ["user:a", "user:b", None, "user:a", "user:a", None, None, "user:b"]
    over = "more than 2 prompts of one user"
    assert user_cap_reasons(groups, 2) == [None, None, None, None, over, None, None, None]


# ---------------------------------------------------------------- splits

population = st.lists(
    st.tuples(st.sampled_from([None, *(f"user:{i}" for i in range(9))]), st.sampled_from("abcdefghij")), max_size=60
)


@given(population, st.floats(0, 0.5), st.floats(0, 0.5))
def test_neither_users_nor_texts_cross(rows: list[tuple[str | None, str]], validation: float, test: float) -> None:
    splits = assign_splits([group for group, _ in rows], [text for _, text in rows], validation, test)
    users, texts = defaultdict(set), defaultdict(set)
    for (group, text), home in zip(rows, splits, strict=True):
        if home is not None:
            texts[text].add(home)
            users[group].add(home)
    assert all(len(homes) == 1 for homes in texts.values())
    assert all(len(homes) == 1 for group, homes in users.items() if group is not None)
    # Only what another user wrote too is left out.
    assert all(
        len({g for g, t in rows if t == text and g}) > 1
        for (_, text), home in zip(rows, splits, strict=True)
        if home is None
    )


@given(st.lists(st.integers(), unique=True, min_size=1, max_size=30), st.randoms())
def test_adding_data_moves_no_user(users: list[int], shuffler: random.Random) -> None:
    groups = [f"user:{user}" for user in users]
    texts = [f"text of {user}" for user in users]
    first = dict(zip(groups, assign_splits(groups, texts, 0.2, 0.2), strict=True))
    more = [(f"user:new{i}", f"new text {i}") for i in range(20)] + list(zip(groups, texts, strict=True))
    shuffler.shuffle(more)
    second = dict(
        zip([group for group, _ in more], assign_splits(*map(list, zip(*more, strict=True)), 0.2, 0.2), strict=True)
    )  # type: ignore[arg-type]
    assert first == {group: second[group] for group in groups}


def test_shares_are_as_asked_and_growing_a_part_only_adds_to_it() -> None:
    keys = [f"user:{i}" for i in range(20_000)]
    small = {key: hash_split(key, 0.1, 0.2) for key in keys}
    large = {key: hash_split(key, 0.15, 0.3) for key in keys}
    counts = Counter(small.values())
    for name, share in (("train", 0.7), ("validation", 0.1), ("test", 0.2)):
        assert counts[name] / 20_000 == pytest.approx(share, abs=0.012)  # four standard deviations at most
    assert all(large[key] == small[key] for key in keys if small[key] != "train")
    assert sum(hash_split(key, 0.1, 0.2, "other salt") != small[key] for key in keys) > 6000
    assert {hash_split(key, 0, 0) for key in keys} == {"train"}


def test_the_split_is_the_same_for_ever() -> None:
    """Worked with sha256sum: the first 16 hex digits for "\\nuser:0" and so on, below 4 test, from c validation."""
    assert [hash_split(f"user:{i}", 0.25, 0.25) for i in range(8)] == [
        "train",
        "validation",
        "test",
        "train",
        "validation",
        "train",
        "validation",
        "train",
    ]


# ---------------------------------------------------------------- personal data

POSITIVE = {
    "email": [
        "write to anna.smith+news@mail.shop.co.uk!",
        "이메일: kim_minsu@naver.com 입니다",
        "<a.b@c.io>",
        "mailto:jo@uni-köln.de",
    ],
    "phone": [
        "+44 20 7946 0958",
        "+82 10-2345-6789",
        "+14155552671",
        "+1 (415) 555-2671",
        "call (212) 736-5000 now",
        "212-736-5000",
        "212.736.5000",
        "1-800-273-8255",
        "010-2345-6789 로 전화",
        "02-345-6789",
        "031-1234-5678",
        "07700 900 123",
        "020 7946 0958",
        "01 42 68 53 00",
        "+49 (0)30 901820",
    ],
    "card": [
        "4111 1111 1111 1111",
        "5500-0000-0000-0004",
        "378282246310005",
        "6011111111111117",
        "3530111333300000",
        "2223003122003222",
    ],
    "address": [
        "I live at 12 North Elm Street, Springfield",
        "221B Baker Street",
        "412 Monterey Ave, Capitola",
        "P.O. Box 1234",
        "444 29th St.",
        "Hauptstraße 12a",
        "12 rue de la Paix",
        "서울특별시 강남구 테헤란로 123",
        "15 E. Fremont St",
    ],
    "ssn": ["my SSN is 536-90-4399.", "(001-01-0001)"],
    "rrn": ["900101-1234568", "9001011234568", "201105-3000000", "850709-5678903"],
    "nino": ["NI number AB123456C", "JG 10 37 59 A"],
    "iban": [
        "GB82 WEST 1234 5698 7654 32",
        "DE89370400440532013000",
        "FR14 2004 1010 0505 0001 3M02 606",
        "NL91ABNA0417164300",
    ],
}

NEGATIVE = {
    "email": [
        "git@github.com:org/repo",
        "icon@2x.png",
        "someone@example.com",
        "a@b",
        "lodash@4.17.21",
        "@decorator.method",
        "x@localhost",
    ],
    "phone": [
        "2021-03-04",
        "1999-2004",
        "192.168.100.1",
        "version 10.15.7.2",
        "978-3-16-148410-0",
        "order 123-4567890-1234567",
        "1234567890",
        "112-911-0000",
        "000-000-0000",
        "3.14159265358979",
        "12:30:45",
        "1,234,567,890",
        "+1 23",
        "100-200-3000",
        "2020-12-31T23:59:59",
        "ISBN 0-306-40615-2",
        "555-0123",
        "+10000000000",
    ],
    "card": [
        "4111 1111 1111 1112",
        "1234 5678 9012 3456",
        "978-3-16-148410-0",
        "9780306406157",
        "356938035643809",
        "0000 0000 0000 0000",
        "411111111111111",
        "order 4111111111111111000000",
    ],
    "address": [
        "In 1984 the street",
        "5 Way",
        "3 Street",
        "on 14 February",
        "Chapter 12 Road to Ruin",
        "1980 Mount St. Helens",
        "$100 Main Street",
        "12 Angry Men",
        "a 10 mile drive",
        "2시 3분",
        "우리도 길 3개",
    ],
    "ssn": [
        "000-12-3456",
        "666-12-3456",
        "900-12-3456",
        "123-00-4567",
        "123-45-0000",
        "078-05-1120",
        "2021-03-0456",
        "1123-45-6789",
        "123-456-789",
    ],
    "rrn": [
        "901301-1234568",
        "900230-1234568",
        "900101-1234567",
        "900101-9234568",
        "20200115-1234567",
        "900101-12345678",
    ],
    "nino": ["QQ123456C", "GB123456A", "AB123456E", "ab123456c", "XAB123456C", "AB12345C", "DA123456B"],
    "iban": ["GB82 WEST 1234 5698 7654 33", "DE8937040044053201300", "XX89370400440532013000", "ISO 9001 2015 ABCD"],
}


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, examples in POSITIVE.items() for text in examples])
def test_personal_data_is_found(kind: str, text: str) -> None:
    assert any(found.kind == kind for found in find_pii(text)), text
    assert any(found.kind == kind for found in find_pii(f"앞 text: {text}\n")), text


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, examples in NEGATIVE.items() for text in examples])
def test_what_only_looks_alike_is_not(kind: str, text: str) -> None:
    assert not list(find_pii(text, [kind])), text


def test_every_detector_has_both() -> None:
    assert set(POSITIVE) == set(NEGATIVE) == set(PII_DETECTORS)


@given(st.text("0123456789", min_size=1, max_size=18))
def test_luhn_finds_every_wrong_digit(digits: str) -> None:
    valid = [number for number in (digits + str(check) for check in range(10)) if is_luhn_valid(number)]
    assert len(valid) == 1
    for position in range(len(digits)):
        changed = digits[:position] + str((int(digits[position]) + 1) % 10) + valid[0][position + 1 :]
        assert not is_luhn_valid(changed)


def test_where_it_stands_and_which_kinds() -> None:
    text = "Ask jo@mail.org or +44 20 7946 0958"
    assert [(found.kind, text[found.start : found.end]) for found in find_pii(text)] == [
        ("email", "jo@mail.org"),
        ("phone", "+44 20 7946 0958"),
    ]
    assert pii_drop_reason(text, ("phone",)) == "personal data: phone"
    assert pii_drop_reason("nothing here 12") is None
    assert parse_detector_names("ssn, email") == ("ssn", "email")
    with pytest.raises(InputError, match="there is no such detector"):
        parse_detector_names("email,passport")


@given(st.text(max_size=200))
def test_detectors_take_any_text(text: str) -> None:
    assert all(0 <= found.start < found.end <= len(text) for found in find_pii(text))


def test_detectors_do_not_stall_on_long_runs() -> None:
    for piece in ("1", "1 ", "1-", "a.", "a@", "12 Aa ", "+1", "가시 ", "AB12 "):
        list(find_pii(piece * 20_000))


# ---------------------------------------------------------------- use cases

TASKS = {
    "generation": "Write a short story about a bear.",
    "open_qa": "Who built the statue of liberty?",
    "brainstorming": "List five ideas for how to regain enthusiasm for my career",
    "chat": "Human: hello\nAssistant: Hi!\nHuman: how are you?",
    "rewrite": "Translate this sentence to Spanish: good morning",
    "summarization": "Summarize this for a second-grade student: Jupiter is the fifth planet.",
    "classification": "Classify the sentiment of this tweet: I love it",
    "closed_qa": "Passage: The museum opened in 1912.\nQuestion: When did the museum open?",
    "extract": "Extract all course titles from the table below",
    "other": "start",
}


@pytest.mark.parametrize("use_case", USE_CASES)
def test_plain_cases_are_guessed(use_case: str) -> None:
    assert guess_use_case(TASKS[use_case]) == use_case


@given(st.text(max_size=100), st.integers(1, 3))
def test_a_guess_is_one_of_the_ten(text: str, turns: int) -> None:
    assert guess_use_case(text, turns) in USE_CASES


# ---------------------------------------------------------------- data clean


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_clean_drops_and_says_why(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "Where is Ulsan?", "user": "u", "use_case": "open_qa", "note": ["kept"]},
        {"prompt": "where  is ulsan?", "user": "v"},
        {"prompt": " ", "user": "u"},
        {"prompt": "Mail jo@mail.org", "user": "u"},
        {"prompt": "Mail jo@mail.org", "user": "u", "split": "test"},
        {"prompt": "x" * 99, "user": "u"},
        {"messages": [{"role": "user", "content": "Write a poem"}], "user": "u"},
        {"prompt": "third", "user": "u"},
    ]
    out = tmp_path / "clean.jsonl"
    data = (write(tmp_path / "p.jsonl", rows),)
    clean_datasets(CleanConfig(data=data, out=out, max_characters=50, cap=3, use_cases=True))
    assert [prompt.prompt for prompt in read_records(Prompt, out)] == [
        "Where is Ulsan?",
        "Mail jo@mail.org",
        "Write a poem",
    ]
    first, second, third = read_records(Prompt, out)
    assert first.to_dict() == rows[0]  # a tag a person gave is not touched
    assert (third.use_case, third.model_extra) == ("generation", {"use_case_by": "heuristic"})
    report = json.loads((tmp_path / "clean.report.json").read_text())
    assert {
        reason: [place.rpartition(":")[2] for place in cases["examples"]] for reason, cases in report["dropped"].items()
    } == {
        "empty prompt": ["3"],
        "longer than 50 characters": ["6"],
        "personal data: email": ["4"],
        "the same prompt as one before": ["2"],
        "more than 3 prompts of one user": ["8"],
    }
    assert report["read"] == sum(report["written"].values()) + sum(
        cases["count"] for cases in report["dropped"].values()
    )
    assert "jo@mail.org" not in (tmp_path / "clean.report.json").read_text()
    assert second.split == "test"


@pytest.mark.parametrize(("personal", "left"), [("training", 1), ("all", 0), ("off", 2)])
def test_whose_personal_data_is_filtered(tmp_path: Path, personal: Any, left: int) -> None:
    rows = [
        {"prompt": "SSN 536-90-4399", "split": "train"},
        {"prompt": "SSN 536-90-4398", "split": "validation"},
        {"prompt": "fine"},
    ]
    clean_datasets(CleanConfig(data=(write(tmp_path / "p.jsonl", rows),), out=tmp_path / "o.jsonl", personal=personal))
    assert len(read_records(Prompt, tmp_path / "o.jsonl")) == left + 1


def test_labelers_work_is_only_thinned_out_when_asked(tmp_path: Path) -> None:
    long = "Rank these answers to the question of the day. " * 10
    rows = [
        {"prompt": long + str(i), "completions": ["a", "b"], "ranks": [1, 2], "labeler": str(i), "user": "u"}
        for i in (1, 1, 2)
    ]
    data = (write(tmp_path / "r.jsonl", rows),)
    clean_datasets(CleanConfig(data=data, out=tmp_path / "o.jsonl"))
    assert [ranking.to_dict() for ranking in read_records(Ranking, tmp_path / "o.jsonl")] == [
        row | {"completions": ("a", "b"), "ranks": (1, 2)} for row in rows
    ]
    clean_datasets(CleanConfig(data=data, out=tmp_path / "o.jsonl", prefix=200))
    assert [ranking.labeler for ranking in read_records(Ranking, tmp_path / "o.jsonl")] == [
        "1",
        "1",
    ]  # two people's view of one prompt
    clean_datasets(CleanConfig(data=data, out=tmp_path / "o.jsonl", cap=1))
    assert len(read_records(Ranking, tmp_path / "o.jsonl")) == 1


@pytest.mark.parametrize(
    ("rows", "options", "complaint"),
    [
        ([{"prompt": "SSN 536-90-4399"}], {}, "nothing is left"),
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}], {}, "'data import' reads other formats"),
        ([{"prompt": "a"}, {"prompt": "a", "completion": "c"}], {}, "the files hold demonstrations and prompts"),
        ([{"prompt": "a"}, {"prompt": 5}], {}, "p.jsonl:2: column 'prompt'"),
        ([{"prompt": "a"}], {"detectors": "dna"}, "no such detector"),
        ([{"prompt": " "}], {}, "nothing in it that can be used"),
    ],
)
def test_clean_refuses_in_one_line(tmp_path: Path, rows: Any, options: Any, complaint: str) -> None:
    path = write(tmp_path / "p.jsonl", rows)
    with pytest.raises(InputError) as caught:
        clean_datasets(CleanConfig(data=(path,), out=tmp_path / "o.jsonl", **options))
    assert complaint in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]
    assert "\n" not in str(caught.value)


def test_inert_options_are_named() -> None:
    assert list(CleanConfig(data=(), out=Path("o.jsonl"), cap=0, group="team").ineffective_options()) == [
        "--group does nothing with --cap 0"
    ]
    assert list(CleanConfig(data=(), out=Path("o.jsonl"), personal="off", detectors="ssn").ineffective_options())
    assert not list(CleanConfig(data=(), out=Path("o.jsonl")).ineffective_options())


# ---------------------------------------------------------------- data split


def read_splits(folder: Path, name: str, kind: type[Any]) -> dict[str, list[Any]]:
    return {
        part: read_records(kind, path)
        for part in SPLIT_NAMES
        if (path := folder / f"{name}.{part}.jsonl").exists() and path.stat().st_size
    }


def test_files_split_together_share_their_prompts_homes(tmp_path: Path) -> None:
    prompts = [{"prompt": f"prompt {i}", "user": f"u{i % 40}"} for i in range(200)]
    rankings = [
        {"prompt": f"prompt {i}", "completions": ["a", "b"], "ranks": [1, 2], "labeler": "l"} for i in range(0, 200, 2)
    ] * 2
    demonstrations = [{"prompt": f"Prompt  {i}", "completion": "c"} for i in range(150, 250)]
    data = tuple(
        write(tmp_path / f"{name}.jsonl", rows)
        for name, rows in (("p", prompts), ("r", rankings), ("d", demonstrations))
    )
    out = tmp_path / "out"
    split_datasets(SplitConfig(data=data, out=out, validation=0.2, test=0.2))
    home: dict[str, str] = {}
    users: dict[str, str] = {}
    total = 0
    for name, kind in (("p", Prompt), ("r", Ranking), ("d", Demonstration)):
        for part, records in read_splits(out, name, kind).items():
            for record in records:
                total += 1
                assert record.split == part
                assert home.setdefault(normalize_prompt(record.prompt), part) == part
                if getattr(record, "user", None):
                    assert users.setdefault(record.user, part) == part
    assert total == 200 + 200 + 100
    assert set(home.values()) == set(SPLIT_NAMES)
    assert json.loads((out / "split.report.json").read_text())["dropped"] == {}


def test_a_text_of_two_users_in_two_splits_stays_in_one(tmp_path: Path) -> None:
    at = {part: next(f"u{i}" for i in range(999) if hash_split(f"user:u{i}", 0.3, 0.3) == part) for part in SPLIT_NAMES}
    rows = [
        {"prompt": "hello", "user": at["test"]},
        {"prompt": "Hello", "user": at["train"]},
        {"prompt": "bye", "user": at["test"]},
    ]
    rows += [{"prompt": "mine", "user": at["validation"], "split": "train"}]
    split_datasets(SplitConfig(data=(write(tmp_path / "p.jsonl", rows),), out=tmp_path / "o", validation=0.3, test=0.3))
    texts = {
        part: [prompt.prompt for prompt in prompts]
        for part, prompts in read_splits(tmp_path / "o", "p", Prompt).items()
    }
    assert texts == {"train": ["Hello"], "validation": ["mine"], "test": ["bye"]}
    report = json.loads((tmp_path / "o" / "split.report.json").read_text())
    assert report["dropped"]["the same prompt is in another split, from another user"]["examples"] == [
        f"{tmp_path}/p.jsonl:1"
    ]
    assert report["noticed"]["was in another split, now in validation"]["count"] == 1


def test_a_user_of_two_organizations_is_an_error_not_a_leak(tmp_path: Path) -> None:
    at = {
        part: next(f"o{i}" for i in range(999) if hash_split(f"organization:o{i}", 0.3, 0.3) == part)
        for part in SPLIT_NAMES
    }
    rows = [{"prompt": part, "user": "jo", "organization": at[part]} for part in ("train", "test")]
    path = write(tmp_path / "p.jsonl", rows)
    with pytest.raises(InputError, match=r"user 'jo' would be in train and in test.*--group user"):
        split_datasets(SplitConfig(data=(path,), out=tmp_path / "o", validation=0.3, test=0.3))
    assert not (tmp_path / "o").exists()
    split_datasets(SplitConfig(data=(path,), out=tmp_path / "o", validation=0.3, test=0.3, group="user"))
    assert sum(len(found) for found in read_splits(tmp_path / "o", "p", Prompt).values()) == 2


def test_split_refuses_in_one_line(tmp_path: Path) -> None:
    one, two = tmp_path / "a" / "p.jsonl", tmp_path / "b" / "p.jsonl.gz"
    for path in (one, two):
        write_records(path, [Record.model_validate({"prompt": "p"})])
    with pytest.raises(InputError, match="together at most 1"):
        split_datasets(SplitConfig(data=(one,), out=tmp_path / "o", validation=0.6, test=0.6))
    with pytest.raises(InputError, match="the same name"):
        split_datasets(SplitConfig(data=(one, two), out=tmp_path / "o"))
    assert not (tmp_path / "o").exists()
