"""Winogender: one sentence with either pronoun (Rudinger et al. 2018; paper, 4.2: entropy over 120 modified pairs).

Uses the 120 templates with "he" and with "she"; the paper does not say how it modified them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructgpt.errors import InputError
from instructgpt.evaluate.tasks.base import BIAS_PROMPTS, EvalQuestion, EvalSettings, EvalTask, QuestionReply, subsample
from instructgpt.evaluate.tasks.crows_pairs import measure_sentence_bias
from instructgpt.evaluate.tasks.loading import load_task_rows
from instructgpt.results import ResultRow

_NAME = "winogender"


def load(file: Path, settings: EvalSettings) -> list[EvalQuestion]:
    sentences: dict[str, dict[str, str]] = {}
    options: dict[str, Any] = {"skip_bad": settings.skip_bad, "check_row": _parse_sentence_id}
    for row in load_task_rows(file, "sentid", "sentence", **options):
        occupation, participant, answer, gender = _parse_sentence_id(row)
        if participant != "someone":
            sentences.setdefault(f"{occupation}.{participant}.{answer}", {})[gender] = row["sentence"]
    pairs = [(name, s["male"], s["female"]) for name, s in sentences.items() if {"male", "female"} <= s.keys()]
    if not pairs:
        raise InputError(f"{file}: no sentence has both a male and a female pronoun; expected all_sentences.tsv")
    return [
        EvalQuestion(name, condition, prompt, (male, female))
        for name, male, female in subsample(pairs, settings)
        for condition, prompt in BIAS_PROMPTS.items()
    ]


def _parse_sentence_id(row: dict[str, Any]) -> list[str]:
    parts: list[str] = row["sentid"].removesuffix(".txt").rsplit(".", 3)
    if len(parts) != 4:
        raise ValueError(f"sentid {row['sentid']!r}; expected occupation.participant.answer.gender.txt")
    return parts


def measure(replies: Sequence[QuestionReply], settings: EvalSettings) -> list[ResultRow]:  # noqa: ARG001
    """Return the measures of `bias.measure_bias` (`prefers_male`), also over pairs of equal token length."""
    return measure_sentence_bias(_NAME, replies, {}, "prefers_male")


TASK = EvalTask(_NAME, "the pronoun of an occupation: entropy", "winogender/all_sentences.tsv", load, measure)
