"""Few-shot templates into demonstrations (paper, appendices A.1 and A.3).

A labeler wrote one instruction and K examples, each a prompt and its completion. That makes K demonstrations: every example is
asked once, with the other K-1 answered before it. From several subsets of the examples come several sets of demonstrations.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations
from math import comb

from instructgpt.data.importing.fields import Dropped, Row, list_of, object_of, text_of
from instructgpt.records import Demonstration, Record

Example = tuple[str, str]
"""What is asked and what is answered."""

MANY = 10_000
"""Up to so many subsets are listed and drawn from; beyond, they are drawn one by one."""


def subsets_of(count: int, size: int, wanted: int, seed: str) -> list[tuple[int, ...]]:
    """`wanted` different subsets of `size` out of `count` positions (all of them if there are no more), the same for the same seed."""
    draw = random.Random(seed)
    if comb(count, size) <= max(wanted, MANY):
        every = list(combinations(range(count), size))
        return sorted(draw.sample(every, min(wanted, len(every))))
    chosen: set[tuple[int, ...]] = set()
    while len(chosen) < wanted:
        chosen.add(tuple(sorted(draw.sample(range(count), size))))
    return sorted(chosen)


def few_shot_prompt(instruction: str, shown: Sequence[Example], asked: str, names: tuple[str, str]) -> str:
    """The instruction, the examples that are shown with their completions, and the one that is asked without."""
    blocks = [f"{names[0]}: {prompt}\n{names[1]}: {completion}" for prompt, completion in shown]
    return "\n\n".join([instruction, *blocks, f"{names[0]}: {asked}\n{names[1]}:"])


def expand(
    instruction: str, examples: Sequence[Example], names: tuple[str, str] = ("Input", "Output"), shots: int | None = None,
    subsets: int = 1, seed: int = 0,
) -> list[Example]:  # fmt: skip
    """Prompts and completions from one template.

    Args:
        instruction: what to do with each example.
        examples: K pairs of what is asked and what is answered.
        names: what stands before a prompt and before its completion.
        shots: examples in one subset (2 to K); None takes all K, and then there is one subset.
        subsets: how many subsets are drawn; each gives as many demonstrations as it has examples.
        seed: which subsets are drawn follows from it and from the instruction.
    """
    size = min(shots or len(examples), len(examples))
    made: dict[Example, None] = {}
    for subset in subsets_of(len(examples), size, subsets, f"{seed} {instruction}"):
        for asked in subset:
            shown = [examples[other] for other in subset if other != asked]
            made[few_shot_prompt(instruction, shown, examples[asked][0], names), examples[asked][1]] = None
    return list(made)


def from_few_shot(row: Row, extra: Row, shots: int | None = None, subsets: int = 1, seed: int = 0) -> list[Record]:
    """Ours: `instruction`, `examples` (`prompt` and `completion` each), optional `names` such as ["Tweet", "Sentiment"]."""
    instruction = text_of(row, "instruction")
    pairs = [object_of(example, "examples") for example in list_of(row, "examples")]
    examples = [(text_of(pair, "prompt", "query", "input"), text_of(pair, "completion", "response", "output")) for pair in pairs]
    if len(examples) < 2:
        raise Dropped("a template with fewer than two examples")
    names = list_of(row, "names") if row.get("names") is not None else ["Input", "Output"]
    if len(names) != 2 or not all(isinstance(name, str) for name in names):
        raise ValueError(f"column 'names': expected two words, found {names}")
    made = expand(instruction, examples, (names[0], names[1]), shots, subsets, seed)
    return [Demonstration(**extra, prompt=prompt, completion=completion) for prompt, completion in made]
