"""The model card: valid front matter of the hub, and the facts of run.json.

pytest tests/run/test_model_card.py
"""

from __future__ import annotations

import json
import re

import pytest
from huggingface_hub import ModelCard

from instructgpt.run.model_card import format_model_card

RECORD = {
    "stage": "ppo",
    "config": {"out": "runs/a", "device": "cpu", "resume": True, "lr": 1e-5, "lora": 0},
    "seed": 3,
    "parents": {"policy": {"path": "runs/start", "sha256": 64 * "a"}, "data p|q.jsonl": {"path": "p", "sha256": "b"}},
    "versions": {"torch": "2.13.0"},
    "tokens": 17,
    "finished": True,
}


def blocks(card: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)\n```", card, re.S)


@pytest.mark.parametrize(
    ("stage", "tag", "model_class"),
    [
        ("ppo", "text-generation", "AutoModelForCausalLM"),
        ("reward", "text-classification", "AutoModelForSequenceClassification"),
    ],
)
def test_front_matter_and_loading_code_fit_the_stage(stage, tag, model_class):
    text = format_model_card(RECORD | {"stage": stage})
    data = ModelCard(text).data
    assert (data.library_name, data.pipeline_tag, data.tags) == ("transformers", tag, ["instructgpt", stage])
    (code,) = blocks(text, "python")
    assert f"model = {model_class}.from_pretrained(folder)" in code
    compile(code, "card", "exec")


def test_card_lists_parents_settings_and_facts():
    text = format_model_card(RECORD)
    assert f"| policy | `runs/start` | `{16 * 'a'}` |\n| data p|q.jsonl | `p` | `b` |\n" in text
    settings, facts = map(json.loads, blocks(text, "json"))
    assert settings == {"lr": 1e-5, "lora": 0}
    assert facts == {"seed": 3, "tokens": 17, "versions": {"torch": "2.13.0"}}
    assert "\n\n\n" not in text
    assert "score_offset" not in text
    assert "adapter" not in text


def test_offset_and_adapter_are_explained_where_they_exist():
    config = RECORD["config"] | {"lora": 4}
    text = format_model_card(RECORD | {"stage": "reward", "config": config, "validation": {"offset": 1.25}})
    assert "the shift of\n`1.25` is stored" in text
    assert "peft's format, rank 4," in text
    assert "\n\n\n" not in text
