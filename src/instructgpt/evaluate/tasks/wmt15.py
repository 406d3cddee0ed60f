"""WMT15, French to English: newsdiscusstest2015, 1,500 sentences (paper, appendix D: BLEU, zero and 15 examples)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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

    def parse_row(row: dict[str, Any]) -> None:
        cells = row["translation"] if isinstance(row.get("translation"), dict) else row
        texts = {name: str(cells.get(name) or "").strip() for name in ("fr", "en")}
        if not all(texts.values()):
            raise ValueError(f"'fr' or 'en' is missing (columns found: {', '.join(map(str, cells))})")
        pairs.append(texts | {"split": row.get("split")})

    load_task_rows(file, skip_bad=settings.skip_bad, check_row=parse_row)
    questions = []
    eval_rows, train_rows = split_train_rows(pairs)
    for index, condition, pair, examples in iter_shot_conditions(eval_rows, settings, train_rows):
        prefix = format_few_shot_prefix(examples, _format_translated_sentence)
        text, target = f"{_INSTRUCTION}\n\n{prefix}{_format_sentence(pair)}", {"answers": [pair["en"]]}
        questions.append(EvalQuestion(f"{index}", condition, text, max_tokens=_MAX_TOKENS, target=target))
    return questions


def _format_sentence(pair: dict[str, Any]) -> str:
    return f"French: {pair['fr']}\nEnglish:"


def _format_translated_sentence(pair: dict[str, Any]) -> str:
    return f"{_format_sentence(pair)} {pair['en']}"


def measure(replies: Sequence[QuestionReply], settings: EvalSettings) -> list[ResultRow]:  # noqa: ARG001
    """Return the corpus `bleu` (0 to 100) by condition and model."""
    rows: list[ResultRow] = []
    for condition, model in dict.fromkeys((question.condition, reply.model) for question, reply in replies):
        group = [(q, reply) for q, reply in replies if (q.condition, reply.model) == (condition, model)]
        estimate = bleu([reply.said or "" for _, reply in group], [q.target["answers"] for q, _ in group])
        rows.append(make_row(_NAME, "bleu", model, condition, estimate))
    return rows


TASK = EvalTask(_NAME, "translation from French", "wmt15_fr_en.tsv", load, measure, limit=300)
