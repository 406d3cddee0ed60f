"""WMT15, French to English: newsdiscusstest2015, 1,500 sentences (paper, appendix D: BLEU, zero and 15 examples)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructgpt.errors import BadInput
from instructgpt.evaluate.aggregate import Row, row
from instructgpt.evaluate.metrics.text_metrics import bleu
from instructgpt.evaluate.tasks.base import Asked, Evaluation, Question, Told
from instructgpt.evaluate.tasks.few_shot import conditions, in_front, split_off
from instructgpt.evaluate.tasks.loading import rows_of

NAME = "wmt15"
INSTRUCTION = "Translate the following sentences from French into English."
MAX_TOKENS = 100


def read(file: Path, told: Told) -> list[Question]:
    """Every sentence without and with examples: columns `fr` and `en`, or both in `translation`."""
    pairs: list[dict[str, Any]] = []
    for number, found in enumerate(rows_of(file), 1):
        both = found["translation"] if isinstance(found.get("translation"), dict) else found
        if not both.get("fr") or not both.get("en"):
            raise BadInput(f"{file}: row {number} lacks 'fr' or 'en' (columns found: {', '.join(map(str, both))})")
        pairs.append({"fr": str(both["fr"]).strip(), "en": str(both["en"]).strip(), "split": found.get("split")})
    asked, training = split_off(pairs)
    return [
        Question(
            f"{number}",
            condition,
            f"{INSTRUCTION}\n\n{in_front(examples, translated)}{show(pair)}",
            max_tokens=MAX_TOKENS,
            truth={"answers": [pair["en"]]},
        )
        for number, condition, pair, examples in conditions(asked, told, training)
    ]


def show(pair: dict[str, Any]) -> str:
    """A sentence, up to its translation."""
    return f"French: {pair['fr']}\nEnglish:"


def translated(pair: dict[str, Any]) -> str:
    """A sentence with its translation."""
    return f"{show(pair)} {pair['en']}"


def measure(asked: Sequence[Asked], told: Told) -> list[Row]:  # noqa: ARG001
    """`bleu` by condition and model: one number of all sentences together, 0 to 100."""
    rows: list[Row] = []
    for condition, model in dict.fromkeys((question.condition, reply.model) for question, reply in asked):
        mine = [each for each in asked if (each[0].condition, each[1].model) == (condition, model)]
        found = bleu([reply.said or "" for _, reply in mine], [question.truth["answers"] for question, _ in mine])
        rows.append(row(NAME, "bleu", model, condition, found))
    return rows


EVALUATION = Evaluation(NAME, "translation from French", "wmt15_fr_en.tsv", read, measure, limit=300)
