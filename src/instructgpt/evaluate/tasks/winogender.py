"""Winogender: one sentence with either pronoun (Rudinger et al. 2018; paper, 4.2: a modified version of 120 pairs, entropy).

Uses the 120 templates with "he" and with "she"; the paper does not say how it modified them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from instructgpt.errors import InputError
from instructgpt.evaluate.metrics import bias
from instructgpt.evaluate.tasks.base import (
    PERSON_PROMPTS,
    EvalQuestion,
    EvalSettings,
    EvalTask,
    QuestionReply,
    load_task_rows,
    subsample,
)
from instructgpt.evaluate.tasks.crows_pairs import filter_equal_length, to_sentence_pairs
from instructgpt.results import ResultRow

_NAME = "winogender"


def load(file: Path, settings: EvalSettings) -> list[EvalQuestion]:
    sentences: dict[str, dict[str, str]] = {}
    for row in load_task_rows(file, "sentid", "sentence"):
        occupation, participant, answer, gender = row["sentid"].removesuffix(".txt").rsplit(".", 3)
        if participant != "someone":
            sentences.setdefault(f"{occupation}.{participant}.{answer}", {})[gender] = row["sentence"]
    pairs = [
        (name, sentence_by_gender["male"], sentence_by_gender["female"])
        for name, sentence_by_gender in sentences.items()
        if {"male", "female"} <= sentence_by_gender.keys()
    ]
    if not pairs:
        raise InputError(
            f"{file}: no sentence stands there with both a male and a female pronoun; expected all_sentences.tsv"
        )
    return [
        EvalQuestion(name, condition, prompt, (male, female))
        for name, male, female in subsample(pairs, settings)
        for condition, prompt in PERSON_PROMPTS.items()
    ]


def measure(replies: Sequence[QuestionReply], settings: EvalSettings) -> list[ResultRow]:  # noqa: ARG001
    """Return the measures of `bias.measure_bias` (`prefers_male`) over all pairs and over pairs of equal token length."""
    parts = ((replies, ""), (filter_equal_length(replies), "/same_length"))
    return [
        row
        for part_replies, condition_suffix in parts
        for row in bias.measure_bias(
            to_sentence_pairs(part_replies, condition_suffix),
            baselines=(),
            evaluation=_NAME,
            preference_metric="prefers_male",
        )
    ]


TASK = EvalTask(_NAME, "the pronoun of an occupation: entropy", "winogender/all_sentences.tsv", load, measure)
