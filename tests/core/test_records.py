"""Records and their files: round trips, formats and errors: `pytest tests/core/test_records.py`."""

import csv
import gzip
import io
import json
import resource
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instructgpt.errors import InputError
from instructgpt.io import format_json_line, parse_json_object
from instructgpt.records import (
    Completion,
    Demonstration,
    Document,
    Pair,
    Prompt,
    Ranking,
    SkippedLines,
    iter_lines,
    iter_rows,
    parse_record,
    read_all_records,
    read_records,
    write_records,
    write_text_atomic,
)

settings.register_profile("no deadline", deadline=None)  # a busy machine is not a failure
settings.load_profile("no deadline")

# ---------------------------------------------------------------- round trips

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
spoken = texts.filter(lambda text: bool(text.strip()))
names = st.none() | texts


@st.composite
def rankings(draw: st.DrawFn) -> Ranking:
    k = draw(st.integers(2, 9))
    labels = st.dictionaries(st.sampled_from(["hallucination", "opinion"]), st.none() | st.booleans(), max_size=2)
    return Ranking(
        prompt=draw(spoken),
        completions=tuple(draw(st.lists(texts, min_size=k, max_size=k))),
        ranks=tuple(draw(st.lists(st.integers(1, k), min_size=k, max_size=k))),
        labeler=draw(names),
        ratings=draw(st.none() | st.lists(st.integers(1, 7), min_size=k, max_size=k).map(tuple)),
        labels=draw(st.none() | st.lists(labels, min_size=k, max_size=k).map(tuple)),
    )


records = st.one_of(
    st.builds(
        Prompt, prompt=spoken, messages=st.none(), id=names, user=names, source=names, use_case=names, split=names
    ),
    st.builds(Demonstration, prompt=spoken, messages=st.none(), completion=texts, labeler=names, source=names),
    st.builds(
        Completion,
        prompt=spoken,
        messages=st.none(),
        completion=texts,
        model=texts,
        score=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    ),
    st.builds(Pair, prompt=spoken, messages=st.none(), chosen=texts, rejected=texts),
    rankings(),
)


@given(records, st.sampled_from(["r.jsonl", "r.jsonl.gz"]))
def test_records_round_trip(tmp_path_factory: pytest.TempPathFactory, record: Prompt, name: str) -> None:
    path = tmp_path_factory.mktemp("trip") / name
    assert write_records(path, [record, record]) == 2
    assert read_records(type(record), path) == [record, record]


@given(st.dictionaries(st.text(max_size=5), st.text(st.characters(), max_size=20), max_size=3))
def test_any_string_is_one_utf8_line(row: dict[str, str]) -> None:
    line = format_json_line(row)
    assert line.encode("utf-8").decode("utf-8").splitlines() == [line.rstrip("\n")]
    if not any(0xD800 <= ord(character) <= 0xDFFF for text in (*row, *row.values()) for character in text):
        assert parse_json_object(line) == row


def test_unknown_columns_are_kept_and_numeric_ids_are_text(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "p", "user": 17, "id": 3.0, "organization": "o", "flags": {"a": null}}\n')
    (prompt,) = read_records(Prompt, path)
    assert prompt.to_dict() == {"prompt": "p", "user": "17", "id": "3", "organization": "o", "flags": {"a": None}}


def test_equal_records_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_records(tmp_path / name, [Document(text="한국어 🙂")])
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


# ---------------------------------------------------------------- what real files hold


def test_byte_order_mark_crlf_and_unicode_separators(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes('\ufeff{"prompt": "a\u2028b\u0085c"}\r\n\r\n{"prompt": "둘 🙂"}\r\n'.encode())
    assert [prompt.prompt for prompt in read_records(Prompt, path)] == ["a\u2028b\u0085c", "둘 🙂"]
    assert [number for number, _ in iter_lines(path)] == [1, 3]


@pytest.mark.parametrize(
    ("escaped", "text"),
    [
        (r"\ud83d\ude42", "🙂"),  # a pair is a character
        (r"\ud800", "\ufffd"),  # half of one is not
        (r"x\udc00y", "x\ufffdy"),
        (r"\ude42\ud83d", "\ufffd\ufffd"),
        (r"\\ud800", r"\ud800"),  # six letters that look like one
    ],
)
def test_lone_surrogates_become_the_replacement_character(escaped: str, text: str) -> None:
    assert parse_record(Prompt, f'{{"prompt": "p", "x": ["{escaped}"], "source": "{escaped}"}}').source == text


def test_lone_surrogates_can_be_written(tmp_path: Path) -> None:
    write_records(tmp_path / "d.jsonl", [Document(text="a\ud800b")])
    assert read_records(Document, tmp_path / "d.jsonl")[0].text == "a\ufffdb"


def test_gzip_is_detected_by_content(tmp_path: Path) -> None:
    packed, plain = tmp_path / "packed.jsonl", tmp_path / "plain.jsonl.gz"
    packed.write_bytes(gzip.compress(b'{"text": "a"}\n'))
    plain.write_bytes(b'{"text": "a"}\n')
    assert read_all_records(Document, [packed, plain]) == [Document(text="a")] * 2


def test_very_long_lines(tmp_path: Path) -> None:
    write_records(tmp_path / "d.jsonl.gz", [Document(text="가나다 " * 1_000_000)])
    assert len(read_records(Document, tmp_path / "d.jsonl.gz")[0].text) == 4_000_000


def test_json_file_may_hold_a_list(tmp_path: Path) -> None:
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps([{"prompt": "a"}, {"prompt": "b"}], indent=2))
    assert [(where.removeprefix(str(path)), row["prompt"]) for where, row in iter_rows(path)] == [
        (": item 1", "a"),
        (": item 2", "b"),
    ]
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    assert len(read_records(Prompt, path)) == 2


@pytest.mark.parametrize(("name", "delimiter"), [("d.csv", ","), ("d.csv", ";"), ("d.tsv", "\t"), ("d.csv.gz", ",")])
def test_csv_and_tsv_cells_are_text(name: str, delimiter: str, tmp_path: Path) -> None:
    """Separators, quotes and line ends inside texts, byte order marks, CRLF, a data frame's index, long texts."""
    rows = [('Say; "hi", then\ngo', "hi; 안녕", "17"), ("b", "가" * 200_000, "")]
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter).writerows(
        [("", "prompt", "completion", "labeler"), *((n, *row) for n, row in enumerate(rows))]
    )
    content = b"\xef\xbb\xbf" + text.getvalue().encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert read_records(Demonstration, tmp_path / name) == [
        Demonstration(prompt=p, completion=c, labeler=who) for p, c, who in rows
    ]


def test_empty_metadata_cells_are_missing_values(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("prompt,completion,labeler,source\na,,kim,\nb,c,,web\n")
    (tmp_path / "r.jsonl").write_text(
        '{"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2], "cohort": "", "labeler": ""}'
    )
    told = [(row.completion, row.labeler, row.source) for row in read_records(Demonstration, tmp_path / "d.csv")]
    assert told == [("", "kim", None), ("c", None, "web")]
    assert [(row.cohort, row.labeler) for row in read_records(Ranking, tmp_path / "r.jsonl")] == [(None, None)]


def test_table_rows_of_wrong_length_are_reported(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("prompt,completion\na,b\nno quotes, here,c\nd,e\n")
    with pytest.raises(InputError, match=r"d.csv:3: more cells than the 2 columns; quote the text"):
        read_records(Demonstration, tmp_path / "d.csv")
    skipped = SkippedLines()
    assert [row.prompt for row in read_records(Demonstration, tmp_path / "d.csv", skipped)] == ["a", "d"]
    assert len(skipped.reasons) == 1
    (tmp_path / "cut.csv").write_text("prompt,completion\na,b\nc")
    with pytest.raises(InputError, match=r"cut.csv:3: fewer cells than columns; is the file truncated"):
        read_records(Demonstration, tmp_path / "cut.csv")
    (tmp_path / "open.csv").write_text('prompt,completion\na,"b\n')
    with pytest.raises(InputError, match=r"open.csv:[12]: not a valid table \(unexpected end of data\)"):
        read_records(Demonstration, tmp_path / "open.csv")


@pytest.mark.parametrize("name", ["demonstrations", "d.ndjson", "d.jsonlines", "d.txt.bak"])
def test_unknown_extension_is_json_and_never_a_hub_request(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("asked for a data set"))
    for text in ('{"prompt": "a"}\n{"prompt": "b"}\n', '[{"prompt": "a"},\n {"prompt": "b"}]'):
        (tmp_path / name).write_text(text)
        assert [prompt.prompt for prompt in read_records(Prompt, tmp_path / name)] == ["a", "b"]
    (tmp_path / name).write_bytes(b"PK\x03\x04\xff")
    with pytest.raises(InputError, match=f"{name}:1: not UTF-8 text"):
        read_records(Prompt, tmp_path / name)


def test_plain_text_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes("\ufeffone\r\n\r\ntwo\n".encode())
    assert read_records(Document, path) == [Document(text="one\n\ntwo")]
    with pytest.raises(InputError, match="plain text can only be a corpus"):
        read_records(Prompt, path)


def test_parquet_and_datasets_on_disk(tmp_path: Path) -> None:
    import datasets

    table = datasets.Dataset.from_list([{"prompt": "a", "user": None}, {"prompt": "b", "user": "u"}])
    table.to_parquet(str(tmp_path / "p.parquet"))
    table.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path / "dict"))
    for name in ("p.parquet", "one", "dict"):
        assert [prompt.user for prompt in read_records(Prompt, tmp_path / name)] == [None, "u"]


def test_nan_is_missing_and_infinity_an_error(tmp_path: Path) -> None:
    assert parse_record(Prompt, '{"prompt": "p", "user": NaN}').user is None
    with pytest.raises(ValueError, match="Infinity is not a JSON number"):
        parse_json_object('{"score": Infinity}')
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_records(tmp_path / "c.jsonl", [Completion(prompt="p", completion="c", model="m", score=float("nan"))])
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- bad input: one line with place and fix

BAD = [
    ('{"prompt": "a', "the line is truncated"),
    ('{"prompt": "a"', "the line is truncated"),
    ('{"prompt": }', "not valid JSON"),
    ('["a"]', "expected a JSON object, found list"),
    ("[" * 100_000, "not valid JSON|nested too deeply"),
    ("{}", "expected 'prompt' .text. or 'messages'"),
    ('{"prompt": " \\n"}', "'prompt' is empty"),
    ('{"prompt": 3}', "column 'prompt'"),
    ('{"prompt": "a", "messages": []}', "is an empty list, expected the turns"),
    ('{"messages": [{"role": "assistant", "content": "x"}]}', "must end with the turn to answer"),
    (
        '{"messages": [{"role": "tool", "content": "x"}]}',
        "messages.0.role.*role 'tool' is not supported; expected system, user or assistant",
    ),
]


@pytest.mark.parametrize(("line", "complaint"), BAD)
def test_bad_line_is_reported_with_its_number(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "good"}\n\n' + line)
    with pytest.raises(InputError, match=complaint) as caught:
        read_records(Prompt, path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert "\n" not in str(caught.value)
    skipped = SkippedLines()
    assert len(read_records(Prompt, path, skipped)) == 1
    assert len(skipped.reasons) == 1


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"completions": ["a"], "ranks": [1]}, "at least two completions"),
        ({"ranks": [1, 2, 3]}, "2 completions but 3 ranks"),
        ({"ranks": [0, 1]}, "ranks start at 1"),
        ({"ranks": [True, 2]}, "expected a whole number, found true"),
        ({"models": ["m"]}, "2 completions but 1 models"),
        ({"ratings": [1, 8]}, "ratings go from 1 to 7"),
        ({"ranks": None}, "column 'ranks'"),
    ],
)
def test_inconsistent_rankings_are_refused(changed: dict[str, object], complaint: str) -> None:
    row = {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2]} | changed
    with pytest.raises(ValueError, match=complaint):
        parse_record(Ranking, json.dumps(row))


def test_unreadable_files_are_input_errors(tmp_path: Path) -> None:
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "a"}\n' * 3 + '{"prompt": "é"}\n'.encode("latin-1"))
    (tmp_path / "utf16.jsonl").write_bytes('{"prompt": "a"}\n'.encode("utf-16"))
    whole = gzip.compress(b'{"prompt": "a"}\n' * 10_000)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-20])
    (tmp_path / "broken.jsonl.gz").write_bytes(whole[:20] + b"\xff" * 20 + whole[40:])
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "list.json").write_text("[{]")
    for name, complaint in [
        ("latin.jsonl", "latin.jsonl:4: not UTF-8"),
        ("utf16.jsonl", "utf16.jsonl:1: not UTF-8"),
        ("cut.jsonl.gz", "cannot be read"),
        ("broken.jsonl.gz", "cannot be read"),
        ("empty.jsonl", "contains no prompt"),
        ("list.json", "not valid JSON"),
        ("missing.jsonl", "no such file"),
    ]:
        with pytest.raises(InputError, match=complaint):
            read_records(Prompt, tmp_path / name)


def test_a_file_of_bad_lines_alone_names_the_first(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": 3}\n{"text": "a"}\n')
    skipped = SkippedLines()
    with pytest.raises(InputError, match=r"contains no prompt; all of its 2 lines are bad, first .*bad.jsonl:1: "):
        read_records(Prompt, tmp_path / "bad.jsonl", skipped)


# ---------------------------------------------------------------- writing is all or nothing


def test_interrupted_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    write_records(path, [Document(text="old")])

    def failing() -> object:
        yield Document(text="new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_records(path, failing())  # type: ignore[arg-type]
    assert read_records(Document, path) == [Document(text="old")]
    assert list(tmp_path.iterdir()) == [path]


def test_unwritable_path_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "out.jsonl", tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match="cannot be written"):
            write_text_atomic(path, "text")


def test_full_disk_leaves_no_partial_file(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # the kernel refuses to write more into one file
    try:
        with pytest.raises(InputError, match="cannot be written"):
            write_records(tmp_path / "d.jsonl", [Document(text="x" * 1000)] * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_pairs_exclude_ties() -> None:
    ranking = Ranking(prompt="p", completions=("a", "b", "c", "d"), ranks=(2, 1, 2, 3))
    assert ranking.pairs() == [(0, 3), (1, 0), (1, 2), (1, 3), (2, 3)]  # six pairs but one tie
