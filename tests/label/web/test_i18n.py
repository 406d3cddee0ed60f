"""The catalogues: the same keys and slots in every language, and every key that pages and errors use.

pytest tests/label/web/test_i18n.py
"""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest

from instructgpt.label.db.models.people import PERSON_ROLES, PERSON_STATUSES
from instructgpt.label.i18n import LOCALES_FOLDER, list_languages, load_translator, negotiate_language
from instructgpt.label.people import screening, surveys

LABEL = LOCALES_FOLDER.parent
TEMPLATES = sorted((LABEL / "web" / "templates").rglob("*.html"))
CODE = sorted(LABEL.rglob("*.py"))


def slots(sentence: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(sentence) if name}


@pytest.mark.parametrize("language", list_languages())
def test_every_language_has_the_same_sentences_and_slots(language):
    english, other = load_translator("en").messages, load_translator(language).messages
    assert set(other) == set(english)
    assert not {key for key, said in other.items() if slots(said) != slots(english[key])}
    assert not {key for key, said in other.items() if not said.strip() and english[key].strip()}


def test_korean_is_korean():
    alike = {key for key, said in load_translator("ko").messages.items() if not re.search("[\uac00-\ud7a3]", said)}
    own_names = {key for key in alike if load_translator("en").messages[key] == load_translator("ko").messages[key]}
    assert len(own_names) < len(load_translator("ko").messages) / 20, own_names


def test_korean_has_one_word_for_a_thing():
    """Labelers and labels are spelled in one way, and a cohort is no declared group (집단)."""
    korean = load_translator("ko").messages
    assert not {key for key, said in korean.items() if re.search("레이블|홀드아웃|평가자|작업자", said)}
    cohorts = {key for key, said in load_translator("en").messages.items() if re.search(r"\b[Cc]ohorts?\b", said)}
    assert {key for key in cohorts if "집단" in korean[key]} == set()


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: str(path.relative_to(LABEL)))
def test_template_sentences_exist(template):
    named = re.findall(r"""\b(?:t|sentence)\((?:t, )?["']([\w.]+)["'](?=[,)])""", template.read_text(encoding="utf-8"))
    assert not set(named) - set(load_translator("en").messages)


@pytest.mark.parametrize("file", CODE, ids=lambda path: str(path.relative_to(LABEL)))
def test_every_error_code_has_a_sentence_with_its_slots(file):
    for code, given in re.findall(
        r"""SiteError\(\s*\d+,\s*"(\w+)"((?:[^()]|\([^()]*\))*)\)""", file.read_text(encoding="utf-8")
    ):
        sentence = load_translator("en").messages[f"problem.{code}"]
        if "**" not in given:
            assert slots(sentence) <= set(re.findall(r"(\w+)=", given)), code


def test_sentences_chosen_by_values_exist():
    keys = [f"people.role_{role}" for role in PERSON_ROLES] + [f"people.status_{status}" for status in PERSON_STATUSES]
    keys += [
        f"screening.{kind}_{part}" for kind in ("part", "about") for part in (*screening.SCREENING_PARTS, "groups")
    ]
    keys += [
        f"{page}_{verdict}"
        for page in ("person.verdict", "person.decided", "screening.decided")
        for verdict in screening.VERDICT_TRANSITIONS
    ]
    keys += [f"link.invited_{role}" for role in PERSON_ROLES] + [
        f"journal.{wrong}" for wrong in ("is_missing", "does_not_follow", "was_changed")
    ]
    for kind, items in surveys.SURVEYS.items():
        keys += [f"surveys.{kind}"] + [f"surveys.ask.{item.name}" for item in items]
        keys += [
            f"surveys.{'group' if kind == 'groups' else 'option'}.{option}" for item in items for option in item.options
        ]
    actions = set(
        re.findall(
            r'append_entry\(\s*db,[^"]*"privacy\.(\w+)"', "".join(path.read_text(encoding="utf-8") for path in CODE)
        )
    )
    keys += [f"privacy.did_{action}" for action in actions | {"read"}]
    assert not set(keys) - set(load_translator("en").messages)


@pytest.mark.parametrize(
    ("asked", "language"),
    [("ko-KR,ko;q=0.9,en;q=0.8", "ko"), ("fr,de", "en"), ("", "en"), ("EN-us", "en"), ("fr, ko;q=0.1", "ko")],
)
def test_first_available_language_is_used(asked, language):
    assert negotiate_language(asked).language == language


def test_texts_are_in_every_language():
    for text in (Path(LABEL) / "texts").iterdir():
        name, _, rest = text.name.partition(".")
        language, _, kind = rest.partition(".")
        assert {(LABEL / "texts" / f"{name}.{other}.{kind}").exists() for other in list_languages()} == {True}, (
            name,
            language,
        )
