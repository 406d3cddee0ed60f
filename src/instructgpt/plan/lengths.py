"""How long the texts are that a stage will compute: a sample of its files, tokenised, or lengths that were stated."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from instructgpt.data.packing import Example
from instructgpt.data.tokenization import Renderer
from instructgpt.errors import BadInput
from instructgpt.models.policy import load_renderer
from instructgpt.records import Skipped, read_all

SAMPLE = 256
"""Records of a file that are tokenised, spread over it evenly."""
R = TypeVar("R")


def spread(records: Sequence[R], count: int = SAMPLE) -> list[R]:
    """Some of the records, evenly spread."""
    every = max(1, len(records) / count)
    return [records[int(place * every)] for place in range(min(count, len(records)))]


def read_sample(kind: Any, files: Sequence[Path], skip_bad: bool) -> list[Any]:
    """All records of some files. Raises BadInput as the stage itself would."""
    return list(read_all(kind, files, Skipped(skip_bad)))


def renderer(source: Path | str) -> Renderer:
    """The tokenizer of a model.

    Raises:
        BadInput: there is none; lengths can be stated instead.
    """
    try:
        return load_renderer(source)
    except BadInput as error:
        raise BadInput(f"{error}; or state --prompt-tokens and --completion-tokens, and nothing is tokenised") from error


def stated(count: int, prompt: int, completion: Sequence[int]) -> list[Example]:
    """Examples of given lengths; their prompts differ, so that none is computed for another."""
    return [Example([row] * prompt, [0] * completion[row % len(completion)]) for row in range(count)]


def ended(mean: float, longest: int, count: int) -> list[int]:
    """Lengths of completions that end with equal chance at every token so that they are `mean` tokens long, cut off at `longest`.

    A mean near the longest cannot come about so, and then all are as long as the mean.
    """
    if not 1 < mean < 0.6 * longest:
        return [max(1, min(longest, round(mean)))] * count
    low, high = 0.0, 1.0  # chance to end: mean of the cut-off geometric distribution is (1 - (1 - c)^longest) / c
    for _ in range(60):
        chance = (low + high) / 2
        low, high = (chance, high) if (1 - (1 - chance) ** longest) / chance > mean else (low, chance)
    draw = random.Random(0)
    lengths = []
    for _ in range(count):
        length = 1
        while length < longest and draw.random() > high:
            length += 1
        lengths.append(length)
    return lengths
