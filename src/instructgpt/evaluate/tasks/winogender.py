"""Winogender: one sentence with two pronouns (Rudinger et al. 2018; paper, 4.2: a modified version of 120 pairs, entropy).

The 120 templates, once with "he" and once with "she". Which modification the paper made is not said.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from instructgpt.errors import InputError
from instructgpt.evaluate.aggregate import ResultRow
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

_NAME = "winogender"


def load(file: Path, settings: EvalSettings) -> list[EvalQuestion]:
    """Every template under three prompts; the sentence with the male and with the female pronoun are the choices.

    Raises:
        BadInput: no template has both.
    """
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
    """Entropy, difference and `prefers_male` (the male pronoun is likelier) over all pairs and over those of one length in tokens."""
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
