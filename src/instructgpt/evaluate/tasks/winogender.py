"""Winogender: one sentence with two pronouns (Rudinger et al. 2018; paper, 4.2: a modified version of 120 pairs, entropy).

The 120 templates, once with "he" and once with "she". Which modification the paper made is not said.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from instructgpt.errors import BadInput
from instructgpt.evaluate.aggregate import Row
from instructgpt.evaluate.metrics import bias
from instructgpt.evaluate.tasks.base import PERSON_PROMPTS, Asked, Evaluation, Question, Told, rows_of, some
from instructgpt.evaluate.tasks.crows_pairs import pairs_of, same_length

NAME = "winogender"


def read(file: Path, told: Told) -> list[Question]:
    """Every template under three prompts; the sentence with the male and with the female pronoun are the choices.

    Raises:
        BadInput: no template has both.
    """
    sentences: dict[str, dict[str, str]] = {}
    for row in rows_of(file, "sentid", "sentence"):
        occupation, other, answer, gender = row["sentid"].removesuffix(".txt").rsplit(".", 3)
        if other != "someone":
            sentences.setdefault(f"{occupation}.{other}.{answer}", {})[gender] = row["sentence"]
    pairs = [(name, both["male"], both["female"]) for name, both in sentences.items() if {"male", "female"} <= both.keys()]
    if not pairs:
        raise BadInput(f"{file}: no sentence stands there with both a male and a female pronoun; expected all_sentences.tsv")
    return [
        Question(name, condition, prompt, (male, female))
        for name, male, female in some(pairs, told)
        for condition, prompt in PERSON_PROMPTS.items()
    ]


def measure(asked: Sequence[Asked], told: Told) -> list[Row]:  # noqa: ARG001
    """Entropy, difference and `prefers_male` (the male pronoun is likelier) over all pairs and over those of one length in tokens."""
    parts = ((asked, ""), (same_length(asked), "/same_length"))
    return [
        row
        for chosen, part in parts
        for row in bias.measure(pairs_of(chosen, part), against=(), evaluation=NAME, preference="prefers_male")
    ]


EVALUATION = Evaluation(NAME, "the pronoun of an occupation: entropy", "winogender/all_sentences.tsv", read, measure)
