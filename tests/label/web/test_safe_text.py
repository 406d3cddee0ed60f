"""Escaping of hostile text, forms as fields and JSON, the catalogue, color contrast.

Run: python -m pytest tests/label/web/test_safe_text.py
"""

from __future__ import annotations

import re
import sys
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import instructgpt.label
from instructgpt.label import markdown, safe_text
from instructgpt.label.i18n import LOCALES_FOLDER, list_languages
from instructgpt.label.tasks.form_fields import fields_to_payload, payload_to_fields
from instructgpt.label.tasks.forms import PROMPT_LABELS, SUBMISSION_FORMS
from instructgpt.records import LABELS, USE_CASES

LABEL = Path(instructgpt.label.__file__).parent
CARDS = ["one", "two", "three"]


class Reader(HTMLParser):
    """What a browser makes of HTML: its tags with their attributes, and its words."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words += data


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_plain_text_shows_invisible_characters_and_has_no_tags(written):
    read = Reader(str(safe_text.escape_text(written)))
    assert all(tag == "span" and shown["class"] == "odd" for tag, shown in read.tags)
    for character in read.words:
        assert unicodedata.category(character) not in ("Cc", "Cs") or character in "\n\t"
        assert unicodedata.bidirectional(character) not in (
            "RLO",
            "LRO",
            "RLE",
            "LRE",
            "PDF",
            "RLI",
            "LRI",
            "FSI",
            "PDI",
        )


@given(st.text(alphabet="<>[]()!*_`#-|\n ahtp:/.\"'&;=\u202e\x00", max_size=120))
@settings(max_examples=200, deadline=None)
def test_rendered_markdown_has_only_harmless_tags_without_attributes(written):
    for tag, attributes in Reader(str(markdown.render_markdown(written))).tags:
        assert tag in markdown.ALLOWED_TAGS
        assert not attributes


def test_rendered_links_and_images_are_text():
    read = Reader(
        str(
            markdown.render_markdown(
                "[go](https://a.example) ![pic](https://b.example/p.png) <https://c.example> **b** <b>raw</b>"
            )
        )
    )
    assert [tag for tag, _ in read.tags] == ["p", "strong"]
    assert (
        read.words.strip()
        == "go (https://a.example) [image: pic, https://b.example/p.png] https://c.example b <b>raw</b>"
    )


@pytest.mark.parametrize(
    ("written", "seen"),
    [
        ("a\u202eb", "a‹RLO›b"),
        ("a\x00b", "a\u2400b"),
        ("a\u200bb", "a‹ZWSP›b"),
        ("line\r\nnext\rlast", "line\nnext\nlast"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("👨\u200d👩\u200d👧", "👨\u200d👩\u200d👧"),
        ("a\u200cb", "a‹ZWNJ›b"),
        ("क्\u200dष", "क्\u200dष"),
        ("tab\tstays", "tab\tstays"),
        ("tag\U000e0041", "tag‹U+E0041›"),
        ("한국어 日本語 العربية", "한국어 日本語 العربية"),
    ],
)
def test_invisible_characters_are_named_and_joiners_stay(written, seen):
    assert safe_text.show_invisible(written) == seen
    assert Reader(str(safe_text.escape_text(written))).words == seen


def count_calls(function, *arguments) -> int:
    """Count the calls of Python and C functions."""
    calls = 0

    def on_event(_frame, event, _argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(on_event)
    try:
        function(*arguments)
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("hostile", ["x", "[", "*a", "> ", "![[", "`", "<", "1. ", "|-", "\u202e"])
def test_cost_of_long_text_is_linear(hostile):
    written = (hostile * 200_000)[:200_000]
    for function, length in (
        (safe_text.escape_text, 200_000),
        (safe_text.one_line_preview, 200_000),
        (markdown.render_markdown, markdown.MAX_MARKDOWN_LENGTH),
    ):
        half, whole = (count_calls(function, written[: length // part]) for part in (2, 1))
        assert whole <= 2.05 * half + 100, function
    too_long = count_calls(markdown.render_markdown, written)
    assert too_long <= count_calls(safe_text.escape_text, written) + 100, "Markdown that is too long is not parsed"
    head, rest = safe_text.split_long_text(written)
    assert head + rest == written
    assert len(head) <= safe_text.MAX_INITIAL_LENGTH


RANK = {
    "kind": "rank",
    "note": "both\nfine",
    "active_ms": 1234,
    "none_acceptable": True,
    "answers": {"has_constraint": True},
    "confidence": 7,
    "tiers": [["two"], [], ["one", "three"]],
    "ratings": [
        {
            "completion": "one",
            "rating": 6,
            "labels": {"fails_instruction": False, "hallucination": None},
            "note": "n: 1",
        },
        {"completion": "three", "rating": None, "labels": {"opinion": True}, "note": ""},
    ],
}
PAYLOADS = [
    RANK,
    {"kind": "demonstrate", "note": "", "active_ms": 1, "text": "a\nb", "pasted": 0.25, "meant_empty": False},
    {"kind": "demonstrate", "note": "", "active_ms": 1, "text": "", "pasted": None, "meant_empty": True},
    {
        "kind": "write",
        "note": "",
        "active_ms": 1,
        "text": "t",
        "pasted": None,
        "form": "few_shot",
        "examples": [["a", "b"], ["c", "d"]],
        "use_case": "rewrite",
        "sensitive": True,
    },
    {
        "kind": "review",
        "note": "x",
        "active_ms": 1,
        "use_case": "chat",
        "personal_data": False,
        "sensitive": True,
        "labels": {"ambiguous": True, "closed_domain": False},
        "rejected": "duplicate",
    },
]


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: payload["kind"])
def test_form_round_trips_through_fields(payload):
    fields = [*payload_to_fields(payload), ("active_ms", str(payload["active_ms"]))]
    assert fields_to_payload(payload["kind"], fields, CARDS) == payload
    SUBMISSION_FORMS[payload["kind"]].model_validate(payload)


@pytest.mark.parametrize(
    "payload", [{}, {"tiers": "x"}, {"ratings": [3, {"labels": []}]}, {"labels": {"a": 5}}, {"examples": [["a"]]}]
)
def test_malformed_draft_makes_fields(payload):
    assert all(isinstance(name, str) and isinstance(value, str) for name, value in payload_to_fields(payload))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["tier:one", "rating:one", "confidence", "text", "label:one:opinion", "zz"]),
            st.text(max_size=9),
        )
    )
)
@settings(max_examples=100, deadline=None)
def test_any_fields_make_a_payload(fields):
    for kind in SUBMISSION_FORMS:
        fields_to_payload(kind, fields, CARDS)


class Once(yaml.SafeLoader):
    """YAML in which a key stands once and is a word."""


def _mapping(loader, node, deep=False):
    keys = [loader.construct_object(key) for key, _ in node.value]
    assert all(isinstance(key, str) for key in keys), keys
    assert len(keys) == len(set(keys)), sorted(key for key in keys if keys.count(key) > 1)
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


Once.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def leaves(section, prefix=""):
    for name, value in section.items():
        yield from leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", str(value))]


def catalogue(language: str) -> dict[str, str]:
    return dict(leaves(yaml.load((LOCALES_FOLDER / f"{language}.yaml").read_text(encoding="utf-8"), Once)))


def test_catalogues_have_the_same_keys_and_slots():
    english = catalogue("en")
    for language in list_languages():
        other = catalogue(language)
        assert set(other) - {"direction"} == set(english) - {"direction"}
        slots = {key: sorted(re.findall(r"\{(\w+)", sentence)) for key, sentence in english.items()}
        assert {key: sorted(re.findall(r"\{(\w+)", other[key])) for key in slots} == slots


def test_sentences_used_by_pages_and_scripts_exist():
    english = catalogue("en")
    named = {
        key
        for file in [*(LABEL / "web" / "templates").rglob("*.html"), *(LABEL / "web" / "static").glob("*.js")]
        for key in re.findall(r"""(?<![\w.])t\(\s*["']([a-z_.]+)["']\s*[,)]""", file.read_text(encoding="utf-8"))
    }
    assert len(named) > 100
    assert not {key for key in named if key not in english}
    for group, names in {
        "labels": LABELS,
        "labels_short": LABELS,
        "prompt_labels": PROMPT_LABELS,
        "use_case": USE_CASES,
    }.items():
        assert not [name for name in names if f"{group}.{name}" not in english]


def test_pages_have_no_inline_script_or_style():
    for file in (LABEL / "web" / "templates").rglob("*.html"):
        html = re.sub(r"\{[%{#].*?[%}#]\}", "", file.read_text(encoding="utf-8"), flags=re.S)
        assert not re.search(r"\sstyle\s*=|\son[a-z]+\s*=|<style|https?://", html), file.name
        assert not re.search(r"<script(?![^>]*(?:src=|application/json))", html), file.name


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_color_contrast_is_sufficient(theme):
    css = (LABEL / "web" / "static" / "site.css").read_text(encoding="utf-8")
    found = re.findall(r"--([\w-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)", css)
    colours = {name: both[theme] for name, *both in found}
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for ground in ("paper", "sheet", "sunk"):
        for ink in ("ink", "muted", "accent", "bad"):
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
        assert contrast(colours["edge"], colours[ground]) >= 3, ("edge", ground)
    for ink, ground in (
        ("accent-ink", "accent"),
        ("bad-ink", "bad"),
        ("accent", "accent-soft"),
        ("bad", "bad-soft"),
        ("wait", "wait-soft"),
        ("ink", "wait-soft"),
        ("ink", "bad-soft"),
        ("ink", "accent-soft"),
        ("muted", "accent-soft"),
    ):
        assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
