"""WMT15, French to English: newsdiscusstest2015, 1,500 sentences (paper, appendix D: BLEU, zero and 15 examples)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructgpt.errors import InputError
from instructgpt.evaluate.aggregate import make_row
from instructgpt.evaluate.metrics.text_metrics import bleu
from instructgpt.evaluate.tasks.base import EvalQuestion, EvalSettings, EvalTask, QuestionReply
from instructgpt.evaluate.tasks.few_shot import format_few_shot_prefix, iter_shot_conditions, split_train_rows
from instructgpt.evaluate.tasks.loading import load_task_rows
from instructgpt.results import ResultRow

_NAME = "wmt15"
_INSTRUCTION = "Translate the following sentences from French into English."
_MAX_TOKENS = 100


def load(file: Path, settings: EvalSettings) -> list[EvalQuestion]:
    """Return every sentence, zero-shot and few-shot, from columns `fr` and `en` or from `translation`."""
    pairs: list[dict[str, Any]] = []
    for row_number, source_row in enumerate(load_task_rows(file), 1):
        translation = source_row["translation"] if isinstance(source_row.get("translation"), dict) else source_row
        if not translation.get("fr") or not translation.get("en"):
            raise InputError(
                f"{file}: row {row_number} lacks 'fr' or 'en' (columns found: {', '.join(map(str, translation))})"
            )
        pairs.append(
            {
                "fr": str(translation["fr"]).strip(),
                "en": str(translation["en"]).strip(),
                "split": source_row.get("split"),
            }
        )
    eval_rows, train_rows = split_train_rows(pairs)
    return [
        EvalQuestion(
            f"{row_number}",
            condition,
            f"{_INSTRUCTION}\n\n{format_few_shot_prefix(examples, _format_translated_sentence)}{_format_sentence(pair)}",
            max_tokens=_MAX_TOKENS,
            target={"answers": [pair["en"]]},
        )
        for row_number, condition, pair, examples in iter_shot_conditions(eval_rows, settings, train_rows)
    ]


def _format_sentence(pair: dict[str, Any]) -> str:
    return f"French: {pair['fr']}\nEnglish:"


def _format_translated_sentence(pair: dict[str, Any]) -> str:
    return f"{_format_sentence(pair)} {pair['en']}"


def measure(replies: Sequence[QuestionReply], settings: EvalSettings) -> list[ResultRow]:  # noqa: ARG001
    """Return the corpus `bleu` (0 to 100) by condition and model."""
    rows: list[ResultRow] = []
    for condition, model in dict.fromkeys((question.condition, reply.model) for question, reply in replies):
        group_replies = [each for each in replies if (each[0].condition, each[1].model) == (condition, model)]
        bleu_estimate = bleu(
            [reply.said or "" for _, reply in group_replies],
            [question.target["answers"] for question, _ in group_replies],
        )
        rows.append(make_row(_NAME, "bleu", model, condition, bleu_estimate))
    return rows


TASK = EvalTask(_NAME, "translation from French", "wmt15_fr_en.tsv", load, measure, limit=300)
