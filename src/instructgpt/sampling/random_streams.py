"""Random numbers of completions: each has a stream of its own, fixed by the seed, its prompt and its number.

So a completion depends neither on what else is sampled, nor on the order, and needs the memory of its own numbers
alone. The streams are those of a counter-based generator (Philox: Salmon et al., 2011) with different keys.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

StreamKey = tuple[int, int]
"""Index of the prompt, and of the completion among those of the prompt."""

_INDEX_BITS = 32
_SEED_MASK = 2**64 - 1


def default_stream_keys(prompts: int, per_prompt: int = 1) -> list[StreamKey]:
    """Return the keys of `per_prompt` consecutive completions of each prompt."""
    return [(prompt, completion) for prompt in range(prompts) for completion in range(per_prompt)]


def open_stream(seed: int, key: StreamKey) -> np.random.Generator:
    """Return the generator of one stream.

    Raises:
        ValueError: an index is negative or too large.
    """
    prompt, completion = key
    if not (0 <= prompt < 2**_INDEX_BITS and 0 <= completion < 2**_INDEX_BITS):
        raise ValueError(f"a completion's index {prompt}, {completion} is outside 0 to 2**{_INDEX_BITS} - 1")
    philox_key = np.array([seed & _SEED_MASK, prompt << _INDEX_BITS | completion], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=philox_key))


def draw_uniforms(seed: int, keys: Sequence[StreamKey], count: int) -> Tensor:
    """Draw the first `count` numbers of each stream, from 0 to below 1: (len(keys), count) float64.

    Raises:
        ValueError: an index is negative or too large.
    """
    rows = np.empty((len(keys), count))
    for row, key in zip(rows, keys, strict=True):
        open_stream(seed, key).random(out=row)
    return torch.from_numpy(rows)
