"""Few-shot templates as demonstrations (paper, appendices A.1 and A.3).

A template is one instruction and K examples. It gives K demonstrations: every example is asked once after the other K-1
answered ones. Several subsets of the examples give several sets.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations
from math import comb

from instructgpt.data.importing.fields import (
    DatasetRow,
    RowContext,
    SkipRowError,
    check_not_null,
    get_list_column,
    get_object_list,
    get_text_column,
)
from instructgpt.records import Demonstration, Record

_FewShotExample = tuple[str, str]
"""(prompt, completion)."""

_MAX_ENUMERATED_SUBSETS = 10_000
"""Up to this number subsets are enumerated and sampled; beyond, they are sampled one by one."""


def sample_subsets(count: int, size: int, num_subsets: int, seed: str) -> list[tuple[int, ...]]:
    """Return `num_subsets` distinct subsets of `size` out of `count` positions (all if there are no more),
    fixed by the seed.
    """
    rng = random.Random(seed)
    if comb(count, size) <= max(num_subsets, _MAX_ENUMERATED_SUBSETS):
        all_subsets = list(combinations(range(count), size))
        return sorted(rng.sample(all_subsets, min(num_subsets, len(all_subsets))))
    subsets: set[tuple[int, ...]] = set()
    while len(subsets) < num_subsets:
        subsets.add(tuple(sorted(rng.sample(range(count), size))))
    return sorted(subsets)


def _format_few_shot_prompt(
    instruction: str, examples: Sequence[_FewShotExample], final_prompt: str, names: tuple[str, str]
) -> str:
    blocks = [f"{names[0]}: {prompt}\n{names[1]}: {completion}" for prompt, completion in examples]
    return "\n\n".join([instruction, *blocks, f"{names[0]}: {final_prompt}\n{names[1]}:"])


def expand_few_shot_template(
    instruction: str,
    examples: Sequence[_FewShotExample],
    names: tuple[str, str] = ("Input", "Output"),
    shots: int | None = None,
    subsets: int = 1,
    seed: int = 0,
) -> list[_FewShotExample]:
    """Return prompts and completions from one template.

    Args:
        examples: K pairs of prompt and completion.
        names: labels of prompt and completion.
        shots: examples of a subset (2 to K); None: all K in one subset.
        subsets: number of subsets; each gives as many demonstrations as it has examples.
        seed: subsets follow from it and the instruction.
    """
    size = min(shots or len(examples), len(examples))
    demonstrations: dict[_FewShotExample, None] = {}
    for subset in sample_subsets(len(examples), size, subsets, f"{seed} {instruction}"):
        for target in subset:
            context_examples = [examples[index] for index in subset if index != target]
            demonstrations[
                _format_few_shot_prompt(instruction, context_examples, examples[target][0], names), examples[target][1]
            ] = None
    return list(demonstrations)


def from_few_shot(
    row: DatasetRow, context: RowContext, shots: int | None = None, subsets: int = 1, seed: int = 0
) -> list[Record]:
    """Ours: `instruction`, `examples` (`prompt` and `completion` each), optional `names` such as ["Tweet",
    "Sentiment"].
    """
    instruction = get_text_column(row, "instruction")
    check_not_null(row, "examples")
    pairs = get_object_list(row, "examples")
    examples = [
        (get_text_column(pair, "prompt", "query", "input"), get_text_column(pair, "completion", "response", "output"))
        for pair in pairs
    ]
    if len(examples) < 2:
        raise SkipRowError("a template with fewer than two examples")
    names = get_list_column(row, "names") if row.get("names") is not None else ["Input", "Output"]
    if len(names) != 2 or not all(isinstance(name, str) for name in names):
        raise ValueError("column 'names': expected a list of two words")
    demonstrations = expand_few_shot_template(instruction, examples, (names[0], names[1]), shots, subsets, seed)
    return [
        Demonstration.model_validate(context.extra | {"prompt": prompt, "completion": completion})
        for prompt, completion in demonstrations
    ]
