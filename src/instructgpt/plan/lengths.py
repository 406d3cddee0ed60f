"""Sequence lengths of a stage: a tokenized sample of its files, or stated lengths."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from instructgpt.data.packing import TokenizedExample
from instructgpt.data.tokenization import PromptTokenizer
from instructgpt.errors import InputError
from instructgpt.models.policy import load_tokenizer
from instructgpt.records import SkippedLines, read_all_records

_SAMPLE_SIZE = 256
"""Records tokenized per file, spread evenly."""
_T = TypeVar("_T")


def sample_evenly(records: Sequence[_T], count: int = _SAMPLE_SIZE) -> list[_T]:
    stride = max(1, len(records) / count)
    return [records[int(place * stride)] for place in range(min(count, len(records)))]


def read_stage_records(kind: Any, files: Sequence[Path], skip_bad: bool) -> list[Any]:
    """Read all records of the files. Raises InputError as the stage itself does."""
    return list(read_all_records(kind, files, SkippedLines(skip_bad)))


def load_plan_tokenizer(source: Path | str) -> PromptTokenizer:
    """Load a model's tokenizer.

    Raises:
        InputError: there is none; lengths can be stated instead.
    """
    try:
        return load_tokenizer(source)
    except InputError as error:
        raise InputError(
            f"{error}; or state --prompt-tokens and --completion-tokens, and nothing is tokenised"
        ) from error


def synthetic_examples(count: int, prompt_length: int, completion_lengths: Sequence[int]) -> list[TokenizedExample]:
    """Make examples of given lengths with distinct prompts, so that no prompt is shared."""
    return [
        TokenizedExample([row] * prompt_length, [0] * completion_lengths[row % len(completion_lengths)])
        for row in range(count)
    ]


def geometric_lengths(mean: float, max_length: int, count: int) -> list[int]:
    """Return lengths of completions that end with equal probability at every token, truncated at `max_length`, with
    this mean.

    A mean near the maximum is unreachable; then every completion has the mean length.
    """
    if not 1 < mean < 0.6 * max_length:
        return [max(1, min(max_length, round(mean)))] * count
    low, high = 0.0, 1.0  # chance to end: mean of the cut-off geometric distribution is (1 - (1 - c)^longest) / c
    for _ in range(60):
        stop_probability = (low + high) / 2
        low, high = (
            (stop_probability, high)
            if (1 - (1 - stop_probability) ** max_length) / stop_probability > mean
            else (low, stop_probability)
        )
    rng = random.Random(0)
    lengths = []
    for _ in range(count):
        length = 1
        while length < max_length and rng.random() > high:
            length += 1
        lengths.append(length)
    return lengths
