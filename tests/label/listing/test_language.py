"""Languages of prompts: stated in the record, otherwise guessed."""

from __future__ import annotations

import pytest
from sqlalchemy import select
from support.tasks import PLAIN

from instructgpt.label.db.models import PromptRow
from instructgpt.label.language import guess_language
from instructgpt.label.tasks.batches import create_batch_with_tasks
from instructgpt.records import Prompt

DATABASES = ("sqlite",)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("What is the best way to learn about birds?", "en"),
        ("Schreibe bitte eine kurze Geschichte über einen Fuchs und die Krähe.", "de"),
        ("Écris une courte histoire sur un renard qui vole le fromage des autres.", "fr"),
        ("Escribe una historia corta de un zorro que vive en el bosque con los otros.", "es"),
        ("Escreva uma história sobre um menino que não sabia como voltar para a casa.", "pt"),
        ("Scrivi una storia di un ragazzo che non sapeva come tornare alla casa.", "it"),
        ("Schrijf een kort verhaal over het meisje dat niet naar school wilde.", "nl"),
        ("오늘 날씨를 영어로 번역해 주세요: weather API v2", "ko"),
        ("次の文章を要約してください。", "ja"),
        ("请用三句话总结这篇文章。", "zh"),
        ("Напиши короткий рассказ о лисе.", "ru"),
        ("اكتب قصة قصيرة عن ثعلب", "ar"),
        ("def f(x): return x ** 2", None),
        ("42 + 17 =", None),
        ("", None),
    ],
)
def test_guesses(text, code):
    assert guess_language(text) == code


def test_a_stated_language_is_kept(site):
    prompts = [
        Prompt(prompt="Translate the text of this song to French", language="fr-CA"),
        Prompt(prompt="Translate the text of this poem to French", language="the language of love"),
        Prompt(prompt="What is in the box?"),
    ]
    with site.database.write() as db:
        create_batch_with_tasks(db, "b", "demonstrate", "training", prompts, [], PLAIN)
        stored = dict(db.execute(select(PromptRow.text, PromptRow.language)).all())
    assert list(stored.values()) == ["fr", "en", "en"]
