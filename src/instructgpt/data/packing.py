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
MIN_MICROBATCH_TOKENS = 256
"""Where memory is not even enough for these, fewer would not help: what is left is the model itself."""
MIN_SHARED_PREFIX = 4
"""Tokens from which on a prompt is computed once for its completions; for shorter ones it saves nothing (see docs/performance.md)."""


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """The tokens of one prompt and of its completion (with its end-of-text token, where it has one).

    A window of pretraining text is an example too; `restarts` are the places where a document begins that must not see those before it.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    document_starts: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


class Span(NamedTuple):
    """Tokens of a batch from `start` to `end`, read from left to right; those of a completion read all of its prompt's span before them."""

    start: int
    end: int
    prompt: Span | None = None

    @property
    def offset(self) -> int:
        """The position of its first token: after its prompt, or 0."""
        return self.prompt.end - self.prompt.start if self.prompt else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """B examples laid end to end, N tokens, of which M are to be predicted."""

    input_ids: Tensor  # (N,) int64
    position_ids: Tensor  # (N,) int64, counted from the beginning of each text
    spans: tuple[Span, ...]  # in order, together all tokens
    last_positions: Tensor  # (B,) where each example's last token stands
    target_positions: (
        Tensor  # (M,) where the token before each completion token stands; values "before a token" stand there too
    )
    targets: Tensor  # (M,) the completion tokens, example by example
    cache: dict[str, Any] = field(
        default_factory=dict, repr=False, compare=False
    )  # what models have worked out about it, for the next one


def collate(examples: Sequence[TokenizedExample], device: torch.device | str = "cpu") -> PackedBatch:
    """Examples as one batch. A prompt that comes several times is in it once, if that saves anything.

    A batch of no examples is one token that nobody reads: a rank that has nothing to compute enters the model with it.
    """
    prompt_counts = Counter(
        tuple(example.prompt_ids)
        for example in examples
        if len(example.prompt_ids) >= MIN_SHARED_PREFIX and not example.document_starts
    )
    prompt_spans: dict[tuple[int, ...], Span] = {}
    input_ids: list[int] = []
    spans: list[Span] = []
    last_positions: list[int] = []
    target_positions: list[int] = []

    def append_span(ids: Sequence[int], prompt: Span | None = None) -> Span:
        input_ids.extend(ids)
        span = Span(len(input_ids) - len(ids), len(input_ids), prompt)
        if ids:
            spans.append(span)
        return span

    for example in examples:
        prompt_ids = tuple(example.prompt_ids)
        if prompt_counts[prompt_ids] > 1 and not example.document_starts:
            if prompt_ids not in prompt_spans:
                prompt_spans[prompt_ids] = append_span(prompt_ids)
            completion_span = append_span(example.completion_ids, prompt_spans[prompt_ids])
            positions = [
                prompt_spans[prompt_ids].end - 1,
                *range(completion_span.start, completion_span.end),
            ]  # the prompt's last token, and the completion
        else:
            ids, start = [*prompt_ids, *example.completion_ids], len(input_ids)
            for begin, end in pairwise((0, *example.document_starts, len(ids))):
                append_span(ids[begin:end])
            positions = list(range(start + len(prompt_ids) - 1, start + len(ids)))
        last_positions.append(positions[-1])
        target_positions += positions[:-1]
    if not examples:
        append_span([0])
    return PackedBatch(
        input_ids=torch.tensor(input_ids, device=device),
        position_ids=torch.cat([torch.arange(span.end - span.start) + span.offset for span in spans]).to(device),
        spans=tuple(spans),
        last_positions=torch.tensor(last_positions, dtype=torch.long, device=device),
        target_positions=torch.tensor(target_positions, dtype=torch.long, device=device),
        targets=torch.tensor(
            [token for example in examples for token in example.completion_ids], dtype=torch.long, device=device
        ),
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
    num_rows = 0
    for element in sorted(range(len(lengths)), key=lambda element: (lengths[element], element)):
        if group and lengths[element] * (num_rows + rows[element]) > budget:
            yield group
            group, num_rows = [], 0
        group.append(element)
        num_rows += rows[element]
    if group:
        yield group


def microbatches_by_prompt(examples: Sequence[TokenizedExample], budget: int) -> Iterator[list[int]]:
    """Indices of examples computed together, those of one prompt side by side so that it is computed once; within the budget."""
    rows_by_prompt: dict[tuple[int, ...], list[int]] = {}
    for row, example in enumerate(examples):
        rows_by_prompt.setdefault(tuple(example.prompt_ids), []).append(row)
    chunks: list[list[int]] = []
    for group in rows_by_prompt.values():
        max_rows = max(1, budget // max(1, max(len(examples[row]) for row in group)))
        chunks += [group[start : start + max_rows] for start in range(0, len(group), max_rows)]
    max_lengths = [max(len(examples[row]) for row in chunk) for chunk in chunks]
    for chunk_indices in microbatches(max_lengths, budget, [len(chunk) for chunk in chunks]):
        yield [row for chunk in chunk_indices for row in chunks[chunk]]


def token_budget(device: torch.device) -> int:
    """How many tokens are computed at once on this kind of device."""
    return MICROBATCH_TOKENS.get(device.type, MICROBATCH_TOKENS["cpu"])


def halve_token_budget() -> bool:
    """From now on compute half as many tokens at once, because memory ran out. Returns False where it was hardly any already."""
    if min(MICROBATCH_TOKENS.values()) < 2 * MIN_MICROBATCH_TOKENS:
        return False
    for device_type in MICROBATCH_TOKENS:
        MICROBATCH_TOKENS[device_type] //= 2
    return True


def epoch_permutation(dataset_size: int, seed: int, epoch: int) -> list[int]:
    """The order of an epoch: a function of seed and epoch alone, so that a resumed run needs no stored generator."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    permutation: list[int] = torch.randperm(dataset_size, generator=generator).tolist()
    return permutation


def steps_per_epoch(dataset_size: int, batch_size: int) -> int:
    """Optimizer steps in one pass over `count` elements; the last may be of fewer than `batch`."""
    return -(-dataset_size // batch_size)


def step_indices(step: int, dataset_size: int, batch_size: int, seed: int) -> list[int]:
    """Which of `count` elements an optimizer step learns from: every epoch is shuffled anew and cut into batches."""
    epoch, step_in_epoch = divmod(step, steps_per_epoch(dataset_size, batch_size))
    return epoch_permutation(dataset_size, seed, epoch)[step_in_epoch * batch_size : (step_in_epoch + 1) * batch_size]


def stream_indices(start: int, length: int, dataset_size: int, seed: int) -> list[int]:
    """Elements number `first` to `first + wanted` of an endless stream over `count` elements, shuffled anew each time round."""
    indices: list[int] = []
    while len(indices) < length:
        epoch, position = divmod(start + len(indices), dataset_size)
        indices += epoch_permutation(dataset_size, seed, epoch)[position : position + length - len(indices)]
    return indices
