"""The report in every language of its catalogs: the same messages, and no English left on a Korean page.

pytest tests/report/test_report_language.py
"""

from __future__ import annotations

import html
import json
import re
import string
import typing

import pytest
from support.example_run import make

from instructgpt.cli import run_command as command
from instructgpt.label.i18n import list_languages, load_translator
from instructgpt.report.language import REPORT_LOCALES_FOLDER, format_count, format_duration, translate, use_language
from instructgpt.run.configs import ReportConfig

ENGLISH = load_translator("en", REPORT_LOCALES_FOLDER).messages
HANGUL = re.compile("[\uac00-\ud7a3]")


def placeholders(message: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(message) if name}


def test_the_option_offers_the_catalogs():
    assert list(typing.get_args(ReportConfig.model_fields["language"].annotation)) == list_languages(
        REPORT_LOCALES_FOLDER
    )


@pytest.mark.parametrize("language", [name for name in list_languages(REPORT_LOCALES_FOLDER) if name != "en"])
def test_catalogs_have_the_same_messages(language):
    messages = load_translator(language, REPORT_LOCALES_FOLDER).messages
    assert sorted(messages) == sorted(ENGLISH)
    assert {key for key in ENGLISH if placeholders(ENGLISH[key]) != placeholders(messages[key])} == set()


def test_a_korean_page_has_no_english_sentence(tmp_path):
    """Completions, names of metrics and of models are as they are; every message of the catalog is Korean."""
    run = make(tmp_path / "demo")
    assert command(["report", str(run), "--language", "ko"]) == 0
    text = (run / "report.html").read_text(encoding="utf-8")
    assert '<html lang="ko">' in text
    plain = html.unescape(re.sub(r"<[^>]+>", "\n", re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)))
    pieces = {
        piece.strip()
        for key, message in ENGLISH.items()
        if not key.startswith("model.")
        for piece in re.split(r"\{\w+\}", message)
        if len(piece.split()) >= 3 and re.search("[a-z]{3}", piece)
    }
    assert len(pieces) > 100
    assert [piece for piece in pieces if piece in plain] == []
    assert len(HANGUL.findall(plain)) > 1_500


def test_the_same_page_in_english_after_a_korean_one(tmp_path):
    run = make(tmp_path / "demo")
    assert command(["report", str(run), "--language", "ko"]) == 0
    assert command(["report", str(run)]) == 0
    assert not HANGUL.search((run / "report.html").read_text(encoding="utf-8").replace("한국어", ""))


def test_numbers_and_durations_follow_the_language():
    with use_language("ko"):
        assert (format_count(541_536), format_count(9.1e8), format_count(950)) == ("54.2만", "9.1억", "950")
        assert (format_duration(75), format_duration(7_500)) == ("75초", "2시간 05분")
        assert (
            translate("lead.preferred", model="PPO", share="59 %")
            == "라벨러가 SFT보다 PPO 모델을 선호한 비율은 59 %입니다."
        )
    assert (format_count(541_536), format_duration(7_500)) == ("542 thousand", "2 h 05 min")


def test_an_unknown_language_is_one_line(tmp_path, capsys):
    (tmp_path / "results.json").write_text(json.dumps([]))
    assert command(["report", str(tmp_path / "results.json"), "--language", "fr"]) == 2
    assert "--language" in capsys.readouterr().err
