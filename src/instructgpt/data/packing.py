"""Tensor nouns: texts of tokens laid end to end, and how many of them are computed at once.

Nothing is padded: a batch is one line of tokens, and a prompt that several completions answer stands in it once. Where a
text begins and what it continues is told by its spans; completions are found by position, never by searching for a
token id, so a tokenizer whose pad and end-of-text are one id changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

MICROBATCH_TOKENS = {"cpu": 2_048, "cuda": 65_536}
"""Tokens computed at once, by kind of device, counted as rows that are padded and share nothing. Only memory and speed depend on it."""
FEWEST_TOKENS = 256
"""Where memory is not even enough for these, fewer would not help: what is left is the model itself."""
SHARED_FROM = 4
"""Tokens from which on a prompt is computed once for its completions; for shorter ones it saves nothing (see docs/performance.md)."""


@dataclass(frozen=True, slots=True)
class Example:
    """The tokens of one prompt and of its completion (with its end-of-text token, where it has one).

    A window of pretraining text is an example too; `restarts` are the places where a document begins that must not see those before it.
    """

    prompt: list[int]
    completion: list[int]
    restarts: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


class Span(NamedTuple):
    """Tokens of a batch from `start` to `end`, read from left to right; those of a completion read all of its prompt's span before them."""

    start: int
    end: int
    prompt: Span | None = None

    @property
    def origin(self) -> int:
        """The position of its first token: after its prompt, or 0."""
        return self.prompt.end - self.prompt.start if self.prompt else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """B examples laid end to end, N tokens, of which M are to be predicted."""

    tokens: Tensor  # (N,) int64
    positions: Tensor  # (N,) int64, counted from the beginning of each text
    spans: tuple[Span, ...]  # in order, together all tokens
    last: Tensor  # (B,) where each example's last token stands
    predicts: Tensor  # (M,) where the token before each completion token stands; values "before a token" stand there too
    targets: Tensor  # (M,) the completion tokens, example by example
    known: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)  # what models have worked out about it, for the next one


def collate(examples: Sequence[Example], device: torch.device | str = "cpu") -> Batch:
    """Examples as one batch. A prompt that comes several times is in it once, if that saves anything.

    A batch of no examples is one token that nobody reads: a rank that has nothing to compute enters the model with it.
    """
    times = Counter(tuple(example.prompt) for example in examples if len(example.prompt) >= SHARED_FROM and not example.restarts)
    prompts: dict[tuple[int, ...], Span] = {}
    tokens: list[int] = []
    spans: list[Span] = []
    last: list[int] = []
    predicts: list[int] = []

    def add(part: Sequence[int], prompt: Span | None = None) -> Span:
        tokens.extend(part)
        span = Span(len(tokens) - len(part), len(tokens), prompt)
        if part:
            spans.append(span)
        return span

    for example in examples:
        prompt = tuple(example.prompt)
        if times[prompt] > 1 and not example.restarts:
            if prompt not in prompts:
                prompts[prompt] = add(prompt)
            own = add(example.completion, prompts[prompt])
            line = [prompts[prompt].end - 1, *range(own.start, own.end)]  # the prompt's last token, and the completion
        else:
            text, start = [*prompt, *example.completion], len(tokens)
            for begin, end in pairwise((0, *example.restarts, len(text))):
                add(text[begin:end])
            line = list(range(start + len(prompt) - 1, start + len(text)))
        last.append(line[-1])
        predicts += line[:-1]
    if not examples:
        add([0])
    return Batch(
        tokens=torch.tensor(tokens, device=device),
        positions=torch.cat([torch.arange(span.end - span.start) + span.origin for span in spans]).to(device),
        spans=tuple(spans),
        last=torch.tensor(last, dtype=torch.long, device=device),
        predicts=torch.tensor(predicts, dtype=torch.long, device=device),
        targets=torch.tensor([token for example in examples for token in example.completion], dtype=torch.long, device=device),
    )


def microbatches(lengths: Sequence[int], budget: int, rows: Sequence[int] | None = None) -> Iterator[list[int]]:
    """Indices of what is computed together: alike in length, at most `budget` tokens if all were padded (always at least one).

    Args:
        lengths: tokens of each element, of its longest row where it has several.
        budget: tokens computed at once.
        rows: how many rows each element has; one where not given.
    """
    rows = rows or [1] * len(lengths)
    group: list[int] = []
    total = 0
    for element in sorted(range(len(lengths)), key=lambda element: (lengths[element], element)):
        if group and lengths[element] * (total + rows[element]) > budget:
            yield group
            group, total = [], 0
        group.append(element)
        total += rows[element]
    if group:
        yield group


def by_prompt(examples: Sequence[Example], budget: int) -> Iterator[list[int]]:
    """Indices of examples computed together, those of one prompt side by side so that it is computed once; within the budget."""
    same: dict[tuple[int, ...], list[int]] = {}
    for row, example in enumerate(examples):
        same.setdefault(tuple(example.prompt), []).append(row)
    parts: list[list[int]] = []
    for group in same.values():
        most = max(1, budget // max(1, max(len(examples[row]) for row in group)))
        parts += [group[start : start + most] for start in range(0, len(group), most)]
    widths = [max(len(examples[row]) for row in part) for part in parts]
    for chosen in microbatches(widths, budget, [len(part) for part in parts]):
        yield [row for part in chosen for row in parts[part]]


def token_budget(device: torch.device) -> int:
    """How many tokens are computed at once on this kind of device."""
    return MICROBATCH_TOKENS.get(device.type, MICROBATCH_TOKENS["cpu"])


def halve_token_budget() -> bool:
    """From now on compute half as many tokens at once, because memory ran out. Returns False where it was hardly any already."""
    if min(MICROBATCH_TOKENS.values()) < 2 * FEWEST_TOKENS:
        return False
    for kind in MICROBATCH_TOKENS:
        MICROBATCH_TOKENS[kind] //= 2
    return True


def shuffled(count: int, seed: int, epoch: int) -> list[int]:
    """The order of an epoch: a function of seed and epoch alone, so that a resumed run needs no stored generator."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    return order


def steps_an_epoch(count: int, batch: int) -> int:
    """Optimizer steps in one pass over `count` elements; the last may be of fewer than `batch`."""
    return -(-count // batch)


def rows_of_step(step: int, count: int, batch: int, seed: int) -> list[int]:
    """Which of `count` elements an optimizer step learns from: every epoch is shuffled anew and cut into batches."""
    epoch, place = divmod(step, steps_an_epoch(count, batch))
    return shuffled(count, seed, epoch)[place * batch : (place + 1) * batch]


def rows_of_stream(first: int, wanted: int, count: int, seed: int) -> list[int]:
    """Elements number `first` to `first + wanted` of an endless stream over `count` elements, shuffled anew each time round."""
    rows: list[int] = []
    while len(rows) < wanted:
        epoch, place = divmod(first + len(rows), count)
        rows += shuffled(count, seed, epoch)[place : place + wanted - len(rows)]
    return rows
